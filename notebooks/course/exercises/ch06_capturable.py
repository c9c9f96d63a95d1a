"""Checks for the exercises of chapter 06. Each takes what the reader wrote and returns a Report."""

import contextlib
import copy
import functools
import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course.graph_tape import CaptureError, GraphTape, device_tensors
from adamlib.optimizer import Adam

from . import check, expect, expect_that, not_written

_IN_PLACE = "methods that end in _ write into their tensor; `x = ...` only gives the name x to another one"


@check(start="the table of refused and permitted lines: what chooses on the device?")
def clip_(reader):
    """``clip_(grads, max_norm)``: scales the gradients in place to a joint norm of at most max_norm."""
    generator = torch.Generator().manual_seed(6)
    shapes = [(4, 3), (5,), ()]
    random = [torch.randn(shape, generator=generator) for shape in shapes]
    cases = [
        ([100 * g for g in random], "long gradients: multiply each by max_norm / norm"),
        ([0.001 * g for g in random], "short gradients: they stay as they are, the factor is at most 1"),
        ([torch.zeros(shape) for shape in shapes], "zeros: max_norm / 0 must not become NaN on its way"),
        ([random[0] * 1e-3, random[1] * 100, random[2] * 0], "the norm: one for all tensors together"),
        ([-g for g in random], "the sign of a gradient: clipping keeps it"),
    ]
    for max_norm in (1.0, 5.0):
        grads = [torch.empty(shape) for shape in shapes]
        tape = GraphTape({f"grad{i}": grad for i, grad in enumerate(grads)})
        for grad, value in zip(grads, random):
            grad.copy_(value)
        _capture(tape, lambda: reader(list(grads), max_norm))
        _no_copy_from_host(reader, [grad.to("meta") for grad in grads], max_norm)
        for values, look in cases:
            for grad, value in zip(grads, values):
                grad.copy_(value)
            tape.replay()
            if look.startswith("long"):
                moved = any(not grad.equal(value) for grad, value in zip(grads, values))
                expect_that(moved, tried="a replay with gradients far longer than max_norm",
                            yours="gradients as they were", expected="shorter ones, in the same tensors",
                            look=_IN_PLACE)  # fmt: skip
            norm = math.sqrt(sum(value.double().square().sum().item() for value in values))
            factor = min(1.0, max_norm / norm) if norm else 1.0
            want = [value * factor for value in values]
            tried = f"a replay with gradients of joint norm {norm:.4g}, max_norm = {max_norm:g}"
            for grad, right in zip(grads, want):
                expect(grad, right, rtol=2e-5, atol=1e-9, tried=tried, look=look)
    return "agrees in 10 replays: long, short, zero, and one tensor much longer than the others"


@check(start="`drift` above: how far is it from 1 at worst, over all t ≥ s?")
def safe_capture(reader):
    """``safe_capture(beta1, beta2, tolerance) -> int``: the first step at which to capture plain Adam."""
    cases = [
        (0.9, 0.999, 0.01, "all later steps: as far as t → ∞, where the limit is √(1−β₂ˢ) / (1−β₁ˢ)"),
        (0.9, 0.999, 0.1, "all later steps, as far as t → ∞; and the first s that will do"),
        (0.9, 0.5, 0.01, "betas for which m is the slower one: the steps of a late replay are too long"),
        (0.9, 0.95, 0.01, "betas of like length: the worst step may lie in the middle"),
        (0.0, 0.99, 0.05, "β₁ = 0: only v has to settle"),
        (0.9, 0.999, 5.0, "a tolerance that step 1 already meets: s starts at 1"),
    ]
    for beta1, beta2, tolerance, look in cases:
        yours = reader(beta1, beta2, tolerance)
        want = _safe_capture(beta1, beta2, tolerance)
        expect(yours, want, tried=f"safe_capture({beta1}, {beta2}, {tolerance})", look=look)
    return "agrees for 6 pairs of betas and tolerances"


@check(start="rule 2: the rate is written into the tensor `lr`, with calls on the device only")
def schedule_(reader):
    """``schedule_(lr, t, peak, warmup, total)``: writes the rate of step t into lr, captured once."""
    for peak, warmup, total in ((0.01, 10, 50), (2.0, 5, 12)):
        lr, t = torch.full((), 0.5), torch.zeros(())
        tape = GraphTape(lr=lr, t=t)
        _capture(tape, lambda: reader(lr, t, peak, warmup, total))
        _no_copy_from_host(reader, lr.to("meta"), t.to("meta"), peak, warmup, total)
        for step in range(total + 20):
            t.fill_(float(step))
            tape.replay()
            expect_that(lr.item() != 0.5, tried=f"a replay at t = {step}", yours="lr as it was before",
                        expected="another value in the same tensor", look=_IN_PLACE)  # fmt: skip
            tried = f"a replay at t = {step}, peak = {peak}, warmup = {warmup}, total = {total}"
            expect(t, float(step), tried=tried, look="t: the count is the optimizer's; read it and leave it")
            if step < warmup:
                want, look = peak * step / warmup, "the warm-up: peak · t / warmup, 0 at t = 0"
            elif step <= total:
                progress = (step - warmup) / (total - warmup)
                want = peak * (0.5 + 0.5 * math.cos(math.pi * progress))
                look = "the cosine: it begins at warmup, not at 0, and ends at total"
            else:
                want, look = 0.0, "after `total`: the rate stays 0, a cosine would rise again"
            expect(lr, want, rtol=1e-5, atol=2e-7 * peak, tried=tried, look=look)
    return "one capture each of two schedules, replayed from t = 0 to beyond the end: every rate is right"


@check(start="rule 2: a graph reads addresses. Which tensors does load_state_dict replace?")
def load_in_place(reader):
    """``load_in_place(optimizer, state_dict)``: the captured step goes on from the checkpoint."""
    for lr_saved_as in (torch.tensor, float):
        generator = torch.Generator().manual_seed(6)
        gradients = [[torch.randn(shape, generator=generator) for shape in ((4, 3), (5,))] for _ in range(30)]
        teacher, weights = _optimizer()
        for grads in gradients[:20]:
            _feed(weights, [10 * grad for grad in grads])  # long ones: the maximum of v lies in the past
            teacher.step()
        teacher.param_groups[0]["lr"].fill_(0.003)
        saved = copy.deepcopy(teacher.state_dict())
        saved["param_groups"][0]["lr"] = lr_saved_as(0.003)
        before = copy.deepcopy(saved)

        optimizer, params = _optimizer()
        _feed(params, gradients[0])
        optimizer.step()
        tape = GraphTape(device_tensors(optimizer))
        old = device_tensors(optimizer)  # held, so that a graph on replaced tensors still runs
        with tape.capture():
            optimizer.step()
        count = old["p0.step"].item()
        contents = {name: tensor.detach().clone() for name, tensor in old.items()}
        reader(optimizer, saved)
        now = device_tensors(optimizer)
        if all(now.get(name) is old[name] and old[name].equal(contents[name]) for name in old):
            if all(e[n].equal(before["state"][i][n]) for i, e in saved["state"].items() for n in e):
                not_written()
        with torch.no_grad():
            for param, weight in zip(params, weights):
                param.copy_(weight)
        expect_that(
            old["p0.step"].item() != count, tried="the count that the graph reads, after loading",
            yours=f"{count:g} as before", expected="20, the checkpoint's",
            look="copy_ into the tensors of optimizer.state: load_state_dict puts new ones in their place",
        )  # fmt: skip
        for grads in gradients[20:]:
            _feed(weights, grads)
            _feed(params, grads)
            teacher.step()
            tape.replay()
        _compare_states(optimizer, params, teacher, weights, old)
        _feed(params, gradients[0])
        _feed(weights, gradients[0])
        optimizer.step()
        teacher.step()
        expect(params[0], weights[0], tried="one eager step after the replays",
               look="optimizer.state and the graph must go on with the same tensors")  # fmt: skip
        for index, entry in before["state"].items():
            for name, tensor in entry.items():
                expect(
                    saved["state"][index][name], tensor, tried=f"the checkpoint's {name} after training on",
                    look="the checkpoint belongs to the caller: copy its contents, do not keep its tensors",
                )  # fmt: skip
    return "10 replays after loading continue the saved run bit for bit, and the checkpoint is untouched"


def _capture(tape, block):
    """Capture the reader's block; one that touches no tensor and returns nothing counts as not written."""
    result = None
    try:
        with tape.capture():
            result = block()
    except CaptureError as error:
        if "nothing was recorded" in str(error) and result is None:
            not_written()
        raise


class _CopiesFromHost(TorchDispatchMode):
    """Counts tensors that are moved from the CPU to the meta device, which stands for the GPU."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op.overloadpacket.__name__ == "_to_copy" and args[0].is_cpu:
            self.count += getattr(kwargs.get("device"), "type", "cpu") == "meta"
        return op(*args, **kwargs)


def _no_copy_from_host(reader, *arguments):
    """End the check where the reader's function, given tensors of the meta device, moves a tensor of the host there.

    The tape does not see each way to do so: all of its tensors lie on the CPU, where .to(x) does nothing.
    """
    with _CopiesFromHost() as copies, contextlib.suppress(Exception):  # what raises here has passed on the tape
        reader(*arguments)
    expect_that(
        not copies.count, tried="the capture, with the tensors on another device than the CPU",
        yours="a tensor made on the host and moved with .to(...)",
        expected="none: CUDA raises \"Cannot copy between CPU and CUDA tensors during CUDA graph capture\"",
        look="torch.tensor(...).to(...): a Python number will do, or torch.full(..., device=...), which copies nothing",
    )  # fmt: skip


@functools.cache
def _safe_capture(beta1, beta2, tolerance):
    """By brute force over s and t, up to where both averages have settled to 1e-12."""
    horizon = max(2, *(math.ceil(math.log(1e-12) / math.log(b)) for b in (beta1, beta2) if b > 0))
    t = torch.arange(1, horizon + 1, dtype=torch.float64)
    size = (1 - beta1**t) / (1 - beta2**t).sqrt()  # uncorrected; the corrections of s divide by size[s]
    largest = size.flip(0).cummax(0).values.flip(0)  # over all later steps
    smallest = size.flip(0).cummin(0).values.flip(0)
    worst = torch.maximum(largest / size - 1, 1 - smallest / size)
    return int((worst <= tolerance).nonzero()[0]) + 1


def _optimizer():
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((4, 3), (5,))]
    for param in params:
        param.grad = torch.zeros_like(param)
    return Adam(params, lr=torch.tensor(0.01), amsgrad=True, capturable=True), params


def _feed(params, grads):
    for param, grad in zip(params, grads):
        param.grad.copy_(grad)


def _compare_states(optimizer, params, teacher, weights, old):
    looks = {
        "step": "the count: it is a tensor in the state, too",
        "exp_avg": "m: copy the checkpoint's exp_avg into the tensor that is there",
        "exp_avg_sq": "v: copy the checkpoint's exp_avg_sq into the tensor that is there",
        "max_exp_avg_sq": "all entries of the state, not only the three of plain Adam",
    }
    for i, (param, weight) in enumerate(zip(params, weights)):
        for name, look in looks.items():
            tried = f"{name} of tensor {i} in the graph, 10 replays after loading"
            expect(old[f"p{i}.{name}"], teacher.state[weight][name], tried=tried, look=look)
    expect(old["lr"], 0.003, rtol=1e-6, tried="the lr that the graph reads",
           look='group["lr"]: fill it with the saved one; it may be a tensor or a float')  # fmt: skip
    for i, (param, weight) in enumerate(zip(params, weights)):
        expect(param, weight, tried=f"weights of tensor {i}, 10 replays after loading",
               look="the order: state and lr, of every group and tensor")  # fmt: skip
