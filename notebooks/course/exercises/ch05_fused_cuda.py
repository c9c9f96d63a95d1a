"""Checks for the exercises of chapter 05 and appendix D. Each takes what the reader wrote and returns a Report."""

import contextlib
import math
import sys
from unittest import mock

import torch

from course.op_meter import OpMeter

from . import check, expect, expect_that, not_written

_PAD, _POISON = 4096, 512.0  # elements on either side of a tensor that nobody may touch


@check(start="the list under 'Where the 76 come from': which of the four is read, which is written?")
def step_bytes(reader):
    """``step_bytes(param, grad, state, amsgrad, scaled) -> int``: bytes per weight that a fused step moves.

    param, grad, state: bytes of one element of θ, of g, of m and v.  scaled: the kernel gets a grad_scale.
    """
    cases = [
        ((4, 4, 4, False, False), "float32: four numbers in, three out"),
        ((8, 8, 8, False, False), "the sizes: float64 has 8 bytes, and all of them move"),
        ((2, 2, 2, False, False), "the sizes: every one of the seven moves may have its own"),
        ((2, 2, 4, False, False), "m and v are read and written in their own size, θ in its own"),
        ((4, 4, 2, False, False), "m and v may be the smaller ones"),
        ((4, 2, 4, False, False), "g is read and not written: its size counts once"),
        ((4, 4, 4, True, False), "AMSGrad's maximum is one more state: read and written"),
        ((2, 2, 4, True, False), "the maximum has the size of m and v"),
        ((4, 4, 4, False, True), "with grad_scale the kernel writes the unscaled gradient back"),
        ((4, 2, 4, False, True), "the gradient is written in its own size"),
        ((2, 2, 4, True, True), "both options together"),
    ]
    for (param, grad, state, amsgrad, scaled), look in cases:
        want = 2 * param + grad * (1 + scaled) + 2 * state * (2 + amsgrad)
        tried = f"step_bytes({param}, {grad}, {state}, amsgrad={amsgrad}, scaled={scaled})"
        expect(reader(param, grad, state, amsgrad, scaled), want, tried=tried, look=look)
    return f"agrees for {len(cases)} combinations of sizes and options"


@check(start="launches() above: what ends a launch? Put next what the launch has more room for")
def reorder(reader):
    """``reorder(numels, max_tensors, max_blocks) -> list``: the order of the tensors that saves launches.

    The order is a list of the indices 0 ... len(numels) - 1.
    """
    chunk = 65_536
    cases = [
        ("biases first", [1000] * 360 + [32 * chunk] * 100, 36, 320),
        ("layer by layer", [40 * chunk, 1000, 20 * chunk, 1000, *[500] * 30] * 20, 36, 320),
        ("other limits", [700] * 500 + [100 * chunk + 1] * 40, 252, 2240),
        ("few large ones", [300 * chunk] * 30 + [100] * 1000, 36, 320),
        ("already in order", [1000, 5 * chunk] * 30, 36, 320),
        ("empty tensors too", [0, 300] * 60 + [50 * chunk] * 8, 24, 64),
        ("one tensor", [7], 36, 320),
    ]
    saved = []
    for name, numels, *limits in cases:
        tried = f"'{name}': {len(numels)} tensors; a launch holds {limits[0]} tensors and {limits[1]} blocks"
        given = list(numels)
        order = reader(given, *limits)
        if order is None:
            not_written()
        order = [int(i) for i in order]
        expect_that(
            given == numels, tried=tried, yours="the list of sizes was changed", expected="as it was",
            look="sort() and pop() work in place: take sorted(...), or work on a list of indices",
        )  # fmt: skip
        expect_that(
            sorted(order) == list(range(len(numels))), tried=tried,
            yours=f"{len(order)} indices, {len(set(order))} of them different",
            expected=f"each of 0 ... {len(numels) - 1} once",
            look="what you return: indices of tensors, not their sizes; an empty tensor has one, too",
        )  # fmt: skip
        before, after = _launches(numels, *limits), _launches([numels[i] for i in order], *limits)
        best = max(math.ceil(sum(n > 0 for n in numels) / limits[0]),
                   math.ceil(sum(-(-n // chunk) for n in numels) / limits[1]))  # fmt: skip
        expect_that(
            after <= best + 1, tried=tried, yours=f"{after} launches (in the order given: {before})",
            expected=f"at most {best + 1}",
            look="a launch full of small tensors has blocks left, one full of blocks has tensors left: mix",
        )  # fmt: skip
        saved.append(f"{before} → {after}")
    return "launches " + ", ".join(saved)


@check(start="the calls under 'The kernel, called by hand', with grad_scale and found_inf for the kernel")
def scaled_step(reader):
    """``scaled_step(params, grads, exp_avgs, exp_avg_sqs, steps, scale)``: one Adam step of scaled gradients.

    In place, with torch's default options. Where a gradient is not finite nothing changes, the count neither;
    and the host asks no tensor for its value.
    """
    cases = [
        ("finite gradients", None, 8.0),
        ("an inf in the last tensor", (2, math.inf), 8.0),
        ("finite gradients again", None, 1024.0),
        ("a nan in the first tensor", (0, math.nan), 4.0),
        ("-inf", (1, -math.inf), 4.0),
        ("+inf and -inf in one tensor", (1, "both"), 4.0),
        ("huge but finite gradients", "huge", 1.0),
        ("a third step", None, 0.5),
    ]
    yours, want = _small_model(), _small_model()
    for number, (name, poison, scale) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        grads = [torch.randn(p.shape, generator=generator) for p in yours[0]]
        if poison == "huge":
            grads[0][:2] = 2e38  # their sum is no float32 number, each of them is
        elif poison:
            tensor, value = poison
            grads[tensor].view(-1)[0] = math.inf if value == "both" else value
            if value == "both":
                grads[tensor].view(-1)[1] = -math.inf
        scaled = [g * scale for g in grads]
        given = [g.clone() for g in scaled]
        start = [t.clone() for column in yours for t in column]
        with OpMeter() as meter:
            reader(yours[0], given, *yours[1:], torch.tensor(scale))
        if not number and all(torch.equal(a, b) for a, b in zip(start, [t for c in yours for t in c])):
            not_written()
        asked = next((row.op for row in meter.rows if row.op in _HOST), None)
        expect_that(
            asked is None, tried=name, yours=f"asked a tensor for its value ({asked})",
            expected="no question to the device: the kernel reads found_inf itself",
            look="if, bool(), float(), .item() of a tensor: on a GPU each waits. Keep found_inf a tensor",
        )  # fmt: skip
        skipped = bool(poison) and poison != "huge"
        if not skipped:
            _adam(want, grads)
        for column, expected, what in zip(yours, want, ("θ", "m", "v", "the step count")):
            for i, (a, b) in enumerate(zip(column, expected)):
                look = (
                    "found_inf: 1.0 if any entry of any gradient is not finite; and t, which it takes back"
                    if skipped else "grad_scale: the kernel divides by it, once; t is advanced before it runs"
                )  # fmt: skip
                expect(a, b, rtol=2e-6, atol=1e-9, tried=f"{name}: {what} of tensor {i}", look=look)
        for i, (a, b) in enumerate(zip(given, scaled if skipped else grads)):
            expect(a, b, rtol=1e-6, tried=f"{name}: gradient {i} afterwards",
                   look="the kernel writes g/scale back, and nothing in a step called off")  # fmt: skip
    return "agrees in 8 steps, 4 of them called off, and never asks the device"


@check(start="add() above: which elements are this program's, and which of them exist?")
def momentum(reader):
    """A Triton kernel ``momentum(p, g, m, n, lr, beta, BLOCK)``: m ← βm + g, θ ← θ − lr·m, for n elements."""
    for n, block in ((64, 64), (1, 64), (100, 64), (1000, 128)):
        memory = [torch.full((n + 2 * _PAD,), _POISON) for _ in range(3)]
        p, g, m = (x[_PAD : _PAD + n] for x in memory)
        generator = torch.Generator().manual_seed(n)
        for x in (p, g, m):
            x.copy_(torch.randn(n, generator=generator))
        start, want_m = [x.clone() for x in (p, g, m)], m.clone()
        want_p = p.clone()
        for _ in range(2):
            want_m.mul_(0.9).add_(g)
            want_p.sub_(want_m, alpha=0.1)
            with _loads_outside(p, g, m) as outside:
                reader[(-(-n // block),)](p, g, m, n, 0.1, 0.9, BLOCK=block)
        if n == 64 and all(torch.equal(a, b) for a, b in zip((p, g, m), start)):
            not_written()
        tried = f"{n} elements, BLOCK = {block}, {-(-n // block)} programs, two steps: "
        untouched = all((x[:_PAD] == _POISON).all() and (x[_PAD + n :] == _POISON).all() for x in memory)
        expect_that(
            bool(untouched), tried=tried + "the memory around the tensors", yours="written to",
            expected="left alone", look="the mask: i < n, in every store",
        )  # fmt: skip
        expect_that(
            not outside, tried=tried + "the memory around the tensors",
            yours=f"read: {sum(outside)} elements in the last step", expected="not read",
            look="the mask: i < n, in every load too. Here a stray load is harmless, on a GPU it may end the run",
        )  # fmt: skip
        expect(g, start[1], tried=tried + "the gradient", look="the stores: only θ and m are written")
        expect(m, want_m, rtol=1e-5, atol=1e-6, tried=tried + "m",
               look="m ← βm + g, stored; and i, which starts at program_id · BLOCK")  # fmt: skip
        expect(p, want_p, rtol=1e-5, atol=1e-6, tried=tried + "θ", look="θ ← θ − lr·m, with the new m")
    return "agrees for 1, 64, 100 and 1000 elements, and neither reads nor writes around them"


_HOST = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")  # what makes the host wait for the device


@contextlib.contextmanager
def _loads_outside(*tensors):
    """A list to which each load of a kernel in Triton's interpreter adds how many elements outside it reads."""
    outside, interpreter = [], sys.modules.get("triton.runtime.interpreter")
    builder = getattr(interpreter, "interpreter_builder", None)
    load = getattr(builder, "create_masked_load", None)  # every load ends here, an unmasked one too

    def watched(pointers, mask, *rest):
        read = pointers.data[mask.data]
        own = sum(((read >= x.data_ptr()) & (read < x.data_ptr() + x.nbytes)).sum() for x in tensors)
        if len(read) > own:
            outside.append(int(len(read) - own))
        return load(pointers, mask, *rest)

    with mock.patch.object(builder, "create_masked_load", watched) if load else contextlib.nullcontext():
        yield outside


def _launches(numels, max_tensors, max_blocks, chunk=65_536):
    """How many launches torch's multi-tensor kernel takes (ATen/native/cuda/MultiTensorApply.cuh)."""
    done = blocks = tensors = 0
    for numel in numels:
        chunks = -(-numel // chunk)
        tensors += chunks > 0
        for left in reversed(range(chunks)):
            blocks += 1
            if blocks == max_blocks or (tensors == max_tensors and not left):
                done, blocks, tensors = done + 1, 0, int(left > 0)
    return done + (blocks > 0)


def _small_model():
    """[params, exp_avgs, exp_avg_sqs, steps] of three tensors, as before a first step."""
    generator = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=generator) for shape in ((5,), (3, 4), (1, 2))]
    zeros = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    return [params, *zeros, [torch.zeros(()) for _ in params]]


def _adam(model, grads, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    for p, m, v, step, g in zip(*model, grads):
        step += 1
        t = step.item()
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.addcdiv_(m, (v / (1 - beta2**t)).sqrt_().add_(eps), value=-lr / (1 - beta1**t))
