"""The contract of every variant: a step is the for-loop's, or it raises before anything at all is written.

A situation is prepared in the second of two groups, before the first step or after two, in every variant, with every
set of options. If the variant takes the step, then parameters, moments and counts are those of the for-loop to
rounding, NaN and ±inf where they are. If it raises, no parameter, moment, count or gradient of either group has
changed and no state was made or dropped; once the situation is undone, the next step has the bits of a run that never
met it. The table says which variants must take the step, so that refusing everything is no way to pass.

The Triton kernel takes part in its interpreter, in a process of its own (see test_triton_kernel.py).
"""

import math
import os
import re
import subprocess
import sys

import pytest
import torch
from parameter_zoo import FLAGS

import adamlib

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPS = {"single_tensor", "foreach", "capturable_single", "capturable_foreach", "differentiable"}  # made of ATen's ops
RAW = {"fused", "triton"}  # kernels that walk raw memory
VARIANTS = FLAGS | {"differentiable": dict(differentiable=True)}
OPTIONS = [
    {},
    dict(weight_decay=0.1, amsgrad=True),
    dict(weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
]
STARTS = (0, 2)  # steps before the situation
if INTERPRETED:  # every step takes long there
    VARIANTS, OPTIONS = {"triton": dict(fused="triton")}, OPTIONS[1:2]
LOOP = dict(foreach=False)


class World:
    """Two groups, (3,) and (2, 3), then (4, 6) and (1,); `p` is the parameter (4, 6) to which things happen."""

    def __init__(self, flags, options, steps):
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.randn(s, generator=generator) for s in [(3,), (2, 3), (4, 6), (1,)]]
        self.gradients = [[torch.randn(p.shape, generator=generator) for p in self.params] for _ in range(3)]
        for p in self.params:
            p.requires_grad_("differentiable" not in flags)  # a differentiable step takes no leaf
        self.p, self.q, self.flags = *self.params[2:], flags
        self.opt = adamlib.Adam([dict(params=self.params[:2]), dict(params=self.params[2:])], lr=0.1, **options, **flags)
        for t in range(steps):
            self.get_gradients(t)
            self.opt.step()
        self.get_gradients(2)

    def get_gradients(self, t):
        for p, gradient in zip(self.params, self.gradients[t]):
            p.grad = gradient.clone()

    @property
    def entry(self):
        return self.opt.state[self.p]

    def tensors(self):
        """Everything that a step may change, by name."""
        found = {f"parameter {i}": p for i, p in enumerate(self.params)}
        found |= {f"gradient {i}": p.grad for i, p in enumerate(self.params)}
        for i, p in enumerate(self.params):
            if p in self.opt.state:
                found[f"entry {i}"] = list(self.opt.state[p])
                found |= {f"{key} of {i}": value for key, value in self.opt.state[p].items()}
        return found

    def remember(self):
        """A function that puts everything back as it is now: the parameters' memory, gradients, state, options."""
        data = [(p, p.data, p.data.clone(), p.grad, p.grad.clone()) for p in self.params]
        moments = [(v, v.data, v.data.clone()) for entry in self.opt.state.values() for v in entry.values()]
        entries = {p: dict(entry) for p, entry in self.opt.state.items()}
        options = [dict(group) for group in self.opt.param_groups]

        def undo():
            for p, memory, values, grad, gradient in data:
                p.grad = None
                p.grad_dtype, p.data, grad.data = None, memory.copy_(values), gradient
                p.grad = grad
            for v, memory, values in moments:
                v.data = memory.copy_(values)
            for p, entry in entries.items():
                self.opt.state[p] = entry
            for group, before in zip(self.opt.param_groups, options):
                group.update(before)

        return undo


def plain(value):
    """A tensor or a list as something that can be compared, memory and place included."""
    if not isinstance(value, torch.Tensor):
        return value
    told = value.dtype, value.device, value.layout, tuple(value.shape), value.is_neg()
    if value.is_sparse:
        return told, value.to_dense().tolist()
    content = None
    if not value.is_meta:
        content = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().flatten()).view(torch.uint8).tolist()
    return told, value.stride(), value.data_ptr(), content


def agree(ours, loops):
    """Whether two values are equal to rounding, NaN and ±inf at the same places."""
    if not isinstance(ours, torch.Tensor):
        return ours == loops
    ours, loops = ours.detach().double(), loops.detach().double()
    return ours.shape == loops.shape and torch.allclose(ours, loops, rtol=2e-5, atol=2e-6, equal_nan=True)


# --- situations: what happens to `w.p`, a parameter of shape (4, 6), to its gradient, its state, its options

INF = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e30])


def data(get, change):
    """Give a tensor of the world other memory, shape, dtype or device, as `t.data = ...` does behind everybody's back."""

    def happen(w):
        tensor = get(w)
        tensor.data = change(tensor.data)

    return happen


def entry(key, change):
    """Put another tensor, or whatever, into the state."""

    def happen(w):
        w.entry[key] = change(w.entry[key])

    return happen


def gradient(change, dtype=None):
    def happen(w):
        grad, w.p.grad = w.p.grad, None
        w.p.grad_dtype = dtype
        w.p.grad = change(grad)

    return happen


def option(**changes):
    return lambda w: w.opt.param_groups[1].update(changes)


def param(w):
    return w.p


def moment(key):
    return lambda w: w.entry[key]


def gaps(t):
    return torch.zeros(*t.shape, 2, dtype=t.dtype)[..., 0].copy_(t)


def other_order(t):
    return t.t().contiguous().t()


def negated(t):
    """The same values in a tensor that is negated when it is read, like the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


ANY, NOBODY = OPS | RAW, set()
SITUATIONS = {  # name: (who must take the step, whether it takes a state, what happens)
    "nothing": (ANY, False, lambda w: None),
    "infinite parameters": (ANY, False, lambda w: w.p.data[0].copy_(INF)),
    "infinite parameters, gradient 0": (ANY, False, lambda w: (w.p.data[:2].fill_(-math.inf), w.p.grad.zero_())),
    "infinite gradients": (ANY, False, lambda w: w.p.grad[0].copy_(INF)),
    "no gradient": (ANY, False, lambda w: setattr(w.p, "grad", None)),
    "a gradient that requires one": (ANY, False, lambda w: w.p.grad.requires_grad_("differentiable" not in w.flags)),
    "a parameter in other memory": (ANY, False, data(param, torch.clone)),
    "a parameter with gaps": (OPS, False, data(param, gaps)),
    "a parameter in another order": (OPS, False, data(param, other_order)),
    "an expanded parameter": (NOBODY, False, data(param, lambda t: t[:1].expand(4, 6))),
    "a shrunk parameter": (NOBODY, False, data(param, lambda t: t[:2])),
    "a grown parameter": (NOBODY, False, data(param, lambda t: torch.ones(8, 6))),
    "a flat parameter": (NOBODY, False, data(param, torch.flatten)),
    "a parameter in double": (NOBODY, False, data(param, torch.Tensor.double)),
    "a parameter in bfloat16": (NOBODY, False, data(param, torch.Tensor.bfloat16)),
    "a negated gradient": (OPS, False, gradient(negated)),
    "a negated gradient of one element": (OPS, False, lambda w: setattr(w.q, "grad", negated(w.q.grad))),
    "an expanded gradient": (OPS, False, gradient(lambda g: g[:1].expand(4, 6))),
    "a gradient with gaps": (OPS, False, gradient(gaps)),
    "a gradient in another order": (OPS, False, gradient(other_order)),
    "a gradient of another dtype": (NOBODY, False, gradient(torch.Tensor.bfloat16, torch.bfloat16)),
    "a gradient of another shape": (NOBODY, False, data(lambda w: w.p.grad, lambda g: g[:2])),
    "a gradient that would broadcast": (NOBODY, False, data(lambda w: w.p.grad, lambda g: g[:1])),
    "a sparse gradient": (NOBODY, False, gradient(torch.Tensor.to_sparse)),
    "a count through .data": (ANY, True, data(moment("step"), lambda t: torch.tensor(40.0))),
    "a count of one dimension": (ANY, True, entry("step", lambda t: t.reshape(1))),
    "a count in bfloat16": (ANY, True, entry("step", torch.Tensor.bfloat16)),
    "a count in int64": (ANY, True, entry("step", torch.Tensor.long)),
    "a count in double": (ANY, True, entry("step", torch.Tensor.double)),
    "a count that is a number": (ANY, True, entry("step", float)),
    "a count of two": (NOBODY, True, entry("step", lambda t: t.repeat(2))),
    "a count of two through .data": (NOBODY, True, data(moment("step"), lambda t: t.repeat(2))),
    "a count on another device": (NOBODY, True, entry("step", lambda t: t.to("meta"))),
    "no count": (NOBODY, True, lambda w: w.entry.pop("step")),
    "beta1 = 1": (NOBODY, False, option(betas=(1.0, 0.9))),
    "no betas": (NOBODY, False, option(betas=None)),
    "one beta": (NOBODY, False, option(betas=(0.9,))),
    "lr is a word": (NOBODY, False, option(lr="high")),
    "lr of two elements": (NOBODY, False, option(lr=torch.ones(2))),
    "a beta of two elements": (NOBODY, False, option(betas=(torch.ones(2), 0.9))),
    "eps is None": (NOBODY, False, option(eps=None)),
    "foreach and fused": (NOBODY, False, option(foreach=True, fused=True)),
    "foreach and differentiable": (NOBODY, False, option(foreach=True, differentiable=True, fused=None)),
}
for key in ("exp_avg", "exp_avg_sq"):
    for how, change in (("replaced", entry), ("through .data", lambda key, change: data(moment(key), change))):
        SITUATIONS |= {
            f"{key} {how}, in other memory": (ANY, True, change(key, torch.clone)),
            f"{key} {how}, with gaps": (OPS, True, change(key, gaps)),
            f"{key} {how}, in another order": (OPS, True, change(key, other_order)),
            f"{key} {how}, of another shape": (NOBODY, True, change(key, torch.flatten)),
            f"{key} {how}, that would broadcast": (NOBODY, True, change(key, lambda t: t[:1])),
            f"{key} {how}, too large": (NOBODY, True, change(key, lambda t: t.repeat(2, 1))),
            f"{key} {how}, expanded": (NOBODY, True, change(key, lambda t: t[:1].expand(4, 6))),
            f"{key} {how}, in double": (NOBODY, True, change(key, torch.Tensor.double)),
        }
    SITUATIONS |= {
        f"{key} on another device": (NOBODY, True, entry(key, lambda t: t.to("meta"))),
        f"{key} negated": (NOBODY, True, entry(key, negated)),
        f"{key} missing": (NOBODY, True, lambda w, key=key: w.entry.pop(key)),
    }


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Cut as if only 8 elements fitted into the cache, so that small tensors meet what large ones do."""
    monkeypatch.setattr(adamlib.functional, "CPU_PART", 8)


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_for_loops_or_changes_nothing(variant, name, tally):
    takes, needs_state, happen = SITUATIONS[name]
    for options in OPTIONS:
        for steps in STARTS[needs_state:] if not INTERPRETED else (int(needs_state),):
            w = World(VARIANTS[variant], options, steps)
            undo = w.remember()
            happen(w)
            before = {what: plain(value) for what, value in w.tensors().items()}
            try:
                w.opt.step()
            except Exception as error:
                assert variant not in takes, f"{variant} {steps} {options} must take this step: {error!r}"
                after = {what: plain(value) for what, value in w.tensors().items()}
                assert before == after, [what for what in before | after if before.get(what) != after.get(what)]
                undo()
                w.opt.step()
                clean = World(VARIANTS[variant], options, steps)
                clean.opt.step()
                tally.add(f"contract, {variant}, refused and unchanged", True)
                for what, value in clean.tensors().items():
                    assert plain(w.tensors()[what])[-1] == plain(value)[-1], f"{what}, in the step after"
            else:
                assert variant in takes, f"{variant} {steps} {options} must refuse this step"
                loop = World(LOOP, options, steps)
                happen(loop)
                loop.opt.step()
                for what, value in loop.tensors().items():
                    assert agree(w.tensors()[what], value), (what, options, w.tensors()[what], value)
                tally.add(f"contract, {variant}, stepped like the for-loop", True)


def test_the_triton_kernel_keeps_the_contract_in_its_interpreter():
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= len(SITUATIONS), run.stdout


@pytest.mark.parametrize("variant", sorted({"single_tensor", "foreach", "differentiable"} & {*VARIANTS}))
def test_a_count_below_0_is_refused_where_it_is_read(variant):
    """Of no use to anybody. The others do not read it, and compute with it."""
    w = World(VARIANTS[variant], {}, 2)
    w.entry["step"].fill_(-1)
    before = {what: plain(value) for what, value in w.tensors().items()}
    with pytest.raises(RuntimeError, match="parameter 0 of group 1: its count is below 0"):
        w.opt.step()
    assert before == {what: plain(value) for what, value in w.tensors().items()}


# --- the function, called directly


def lists(n, *, amsgrad=False, size=3):
    tensors = [[torch.ones(size) * (k + 1) for _ in range(n)] for k in range(3)]
    return [*tensors, [torch.ones(size) for _ in range(n)], [torch.ones(size) for _ in range(n * amsgrad)],
            [torch.tensor(1.0) for _ in range(n)]]  # fmt: skip


def call(columns, **options):
    settings = dict(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, maximize=False, amsgrad=bool(columns[4]))
    adamlib.adam(*columns, **settings | options)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("short", range(6))
@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_of_unequal_length_are_refused(variant, short, left):
    columns = lists(2, amsgrad=True)
    del columns[short][left:]
    before = [[plain(t) for t in column] for column in columns]
    with pytest.raises(IndexError, match="one length"), torch.no_grad():
        call(columns, **VARIANTS[variant] | {"amsgrad": True})
    assert before == [[plain(t) for t in column] for column in columns]


@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "fused", "capturable_single", "capturable_foreach"])
def test_a_leaf_is_refused_where_gradients_are_recorded(variant):
    columns = lists(2)
    columns[0][1].requires_grad_()
    before = [[plain(t) for t in column] for column in columns]
    with pytest.raises(RuntimeError, match="parameter 1: a leaf Variable that requires grad"):
        call(columns, **FLAGS[variant])
    assert before == [[plain(t) for t in column] for column in columns]


@pytest.mark.parametrize("variant", ["single_tensor", "capturable_single", "differentiable"])
@pytest.mark.parametrize("size", [3, 20])
def test_autograd_goes_through_the_function_whatever_is_cut(variant, size):
    """Pieces of a tensor that autograd follows could not be written in place."""
    w = torch.ones(size, requires_grad=True)
    columns = lists(1, size=size)
    columns[0] = [w * 1]
    call(columns, decoupled_weight_decay=True, **(FLAGS | {"differentiable": dict(differentiable=True)})[variant])
    columns[0][0].sum().backward()
    torch.testing.assert_close(w.grad, torch.full((size,), 0.99))


# --- a step that the gradient scaler calls off


@pytest.mark.parametrize("library", [torch.optim, adamlib], ids=["torch", "adamlib"])
@pytest.mark.parametrize("overflows", [1.0, 2.0, 3.0])
def test_overflows_on_several_devices_call_the_step_off(library, overflows):
    """GradScaler.step hands on the sum over devices. torch's kernel compares with 1 and takes the step with the inf."""
    p = torch.ones(2, requires_grad=True)
    opt = library.Adam([p], lr=0.1, **(VARIANTS["triton"] if INTERPRETED and library is adamlib else dict(fused=True)))
    p.grad = torch.ones(2)
    opt.step()
    before, moment = p.detach().clone(), opt.state[p]["exp_avg"].clone()
    p.grad = torch.tensor([math.inf, 1.0])
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(overflows)
    opt.step()
    called_off = torch.equal(p, before) and torch.equal(opt.state[p]["exp_avg"], moment)
    assert called_off == (library is adamlib or overflows == 1.0)
    assert float(opt.state[p]["step"]) == (1.0 if called_off else 2.0 - overflows)


# --- what an error advises helps

CURES = {  # what happened, words of the advice, and the advice, followed
    "a parameter with gaps": ("contiguous()", lambda w: setattr(w.p, "data", w.p.data.contiguous())),
    "an expanded parameter": ("contiguous()", lambda w: setattr(w.p, "data", w.p.data.contiguous())),
    "a gradient of another dtype": (
        "p.grad_dtype = None; p.grad = p.grad.to(p.dtype)",
        lambda w: (setattr(w.p, "grad_dtype", None), setattr(w.p, "grad", w.p.grad.to(w.p.dtype))),
    ),
    "a gradient in another order": (
        "p.grad = torch.empty_like(p).copy_(p.grad)",
        lambda w: setattr(w.p, "grad", torch.empty_like(w.p, requires_grad=False).copy_(w.p.grad)),
    ),
    "a negated gradient": ("resolve_neg()", lambda w: setattr(w.p, "grad", w.p.grad.resolve_neg())),
    "a gradient of another shape": (
        "zero_grad(), then backward()",
        lambda w: (w.opt.zero_grad(), sum(p.sum() for p in w.params).backward()),
    ),
    "a shrunk parameter": (
        "zero_grad(), then backward()",
        lambda w: (w.opt.state.pop(w.p), setattr(w.p, "grad", torch.ones_like(w.p, requires_grad=False))),
    ),
    "exp_avg replaced, of another shape": ("del optimizer.state[p]", lambda w: w.opt.state.pop(w.p)),
    "exp_avg replaced, in another order": ("torch.empty_like(p)", lambda w: w.entry.update(
        exp_avg=torch.empty_like(w.p, requires_grad=False).copy_(w.entry["exp_avg"]))),
    "exp_avg negated": ("resolve_neg()", lambda w: w.entry.update(exp_avg=w.entry["exp_avg"].resolve_neg())),
    "a count of two": ("del optimizer.state[p]", lambda w: w.opt.state.pop(w.p)),
}  # fmt: skip


@pytest.mark.parametrize("name", CURES)
def test_the_cure_that_an_error_advises_helps(name):
    words, follow = CURES[name]
    for variant in set(VARIANTS) - SITUATIONS[name][0] - {"differentiable"}:
        w = World(VARIANTS[variant], {}, 1)
        SITUATIONS[name][2](w)
        with pytest.raises(RuntimeError) as error:
            w.opt.step()
        assert words in str(error.value) and "of group 1" in str(error.value), error.value
        before = w.p.detach().clone()
        follow(w)
        w.opt.step()
        assert not torch.equal(w.p, before) and w.p.isfinite().all(), variant
