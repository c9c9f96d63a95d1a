"""The contract of every variant: a step is the for-loop's, or it raises before anything at all is written.

A situation is prepared in the second of two groups, before the first step or after two, in every variant, with every
set of options. If the variant takes the step, then parameters, moments and counts are those of the for-loop to
rounding, NaN and ±inf where they are; gradients were only read, and what is stepped keeps its memory. If it raises, no
parameter, moment, count or gradient of either group has changed and no state was made or dropped; once the situation
is undone, the next step has the bits of a run that never met it. The table says which variants must take the step, so
that refusing everything is no way to pass.

The Triton kernel takes part in its interpreter, in a process of its own (see test_triton_kernel.py).
"""

import math
import os

import numpy
import pytest
import torch
from parameter_zoo import ALL_FLAGS, SETTINGS, comparable, each_variant, six_lists

import adamlib

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPS = {"single_tensor", "foreach", "capturable_single", "capturable_foreach", "differentiable"}  # made of ATen's ops
RAW = {"fused", "triton"}  # kernels that walk raw memory
ANY, NOBODY = OPS | RAW, set()
VARIANTS = ALL_FLAGS
OPTIONS = [
    {},
    dict(weight_decay=0.1, amsgrad=True),
    dict(weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
]
STARTS = (0, 2)  # steps before the situation
if INTERPRETED:  # every step takes long there
    VARIANTS, OPTIONS, STARTS = {"triton": dict(fused="triton")}, OPTIONS[1:2], (0, 1)


class World:
    """Two groups, (3,) and (2, 3), then (4, 6) and (1,); `p` is the parameter (4, 6) to which things happen."""

    def __init__(self, flags, options, steps):
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.randn(shape, generator=generator) for shape in [(3,), (2, 3), (4, 6), (1,)]]
        self.gradients = [[torch.randn(p.shape, generator=generator) for p in self.params] for _ in range(3)]
        for p in self.params:
            p.requires_grad_("differentiable" not in flags)  # a differentiable step takes no leaf
        self.p, self.q, self.flags = *self.params[2:], flags
        groups = [dict(params=self.params[:2]), dict(params=self.params[2:])]
        self.opt = adamlib.Adam(groups, lr=0.1, **options, **flags)
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

    def looks(self):
        return {what: plain(value) for what, value in self.tensors().items()}

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
    """A tensor or a list as something that can be compared, memory and place included; the content is the last."""
    if not isinstance(value, torch.Tensor):
        return [value]
    looks, strides, content = comparable(value)
    return looks, strides, None if value.is_sparse else (value.data_ptr(), value.is_neg()), content


def agree(ours, loops):
    """Whether two values are equal to rounding, NaN and ±inf at the same places."""
    if not isinstance(ours, torch.Tensor):
        return ours == loops
    ours, loops = ours.detach().double(), loops.detach().double()
    return ours.shape == loops.shape and torch.allclose(ours, loops, rtol=2e-5, atol=2e-6, equal_nan=True)


# --- situations: what happens to `w.p`, a parameter of shape (4, 6), to its gradient, its state, its options

def data(get, change):
    """Other memory, shape, dtype or device for a tensor, as `t.data = ...` gives them behind everybody's back."""
    return lambda w: setattr(get(w), "data", change(get(w).data))


def param(change):
    return data(lambda w: w.p, change)


def entry(key, change):
    """Put another tensor, or whatever, into the state."""
    return lambda w: w.entry.update({key: change(w.entry[key])})


def entry_data(key, change):
    return data(lambda w: w.entry[key], change)


def gradient(change, dtype=None):
    def happen(w):
        grad, w.p.grad = w.p.grad, None
        w.p.grad_dtype = dtype
        w.p.grad = change(grad)

    return happen


def gradient_data(change):
    return data(lambda w: w.p.grad, change)


def option(**changes):
    return lambda w: w.opt.param_groups[1].update(changes)


def gaps(t):
    return torch.zeros(*t.shape, 2, dtype=t.dtype)[..., 0].copy_(t)


def other_order(t):
    return t.t().contiguous().t()


def expanded(t):
    return t[:1].expand(4, 6)


def on_meta(t):
    return t.to("meta")


def negated(t):
    """The same values in a tensor that is negated when it is read, like the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


SPECIAL = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e30])
LR, BETAS = torch.tensor(0.3), (torch.tensor(0.9), torch.tensor(0.99))
FOREACH = dict(foreach=True, fused=None, capturable=False, differentiable=False)

STATELESS = {  # what happens before any step or later: who must take the step, and how it is brought about
    "nothing": (ANY, lambda w: None),
    "infinite parameters": (ANY, lambda w: w.p.data[0].copy_(SPECIAL)),
    "infinite parameters, gradient 0": (ANY, lambda w: (w.p.data[:2].fill_(-math.inf), w.p.grad.zero_())),
    "infinite gradients": (ANY, lambda w: w.p.grad[0].copy_(SPECIAL)),
    "no gradient": (ANY, lambda w: setattr(w.p, "grad", None)),
    "no gradient at all": (ANY, lambda w: w.opt.zero_grad()),
    "a gradient that requires one": (ANY, lambda w: w.p.grad.requires_grad_("differentiable" not in w.flags)),
    "a parameter in other memory": (ANY, param(torch.clone)),
    "a parameter with gaps": (OPS, param(gaps)),
    "a parameter in another order": (OPS, param(other_order)),
    "an expanded parameter": (NOBODY, param(expanded)),
    "a shrunk parameter": (NOBODY, param(lambda t: t[:2])),
    "a grown parameter": (NOBODY, param(lambda t: torch.ones(8, 6))),
    "a flat parameter": (NOBODY, param(torch.flatten)),
    "a parameter in double": (NOBODY, param(torch.Tensor.double)),
    "a parameter in bfloat16": (NOBODY, param(torch.Tensor.bfloat16)),
    "a negated gradient": (OPS, gradient(negated)),
    "a negated gradient of one element": (OPS, lambda w: setattr(w.q, "grad", negated(w.q.grad))),
    "an expanded gradient": (OPS, gradient(expanded)),
    "a gradient with gaps": (OPS, gradient(gaps)),
    "a gradient in another order": (OPS, gradient(other_order)),
    "a gradient of another dtype": (NOBODY, gradient(torch.Tensor.bfloat16, torch.bfloat16)),
    "a gradient of another shape": (NOBODY, gradient_data(lambda g: g[:2])),
    "a gradient that would broadcast": (NOBODY, gradient_data(lambda g: g[:1])),
    "a sparse gradient": (NOBODY, gradient(torch.Tensor.to_sparse)),
    "beta1 = 1": (NOBODY, option(betas=(1.0, 0.9))),
    "no betas": (NOBODY, option(betas=None)),
    "one beta": (NOBODY, option(betas=(0.9,))),
    "three betas, one of them a tensor": (NOBODY, option(betas=(0.9, BETAS[1], 0.999))),
    "lr is a word": (NOBODY, option(lr="high")),
    "lr of two elements": (NOBODY, option(lr=torch.ones(2))),
    "a beta of two elements": (NOBODY, option(betas=(torch.ones(2), 0.9))),
    "eps is None": (NOBODY, option(eps=None)),
    "eps of two elements": (NOBODY, option(eps=torch.ones(2))),
    "eps of the parameter's shape": (NOBODY, option(eps=torch.ones(4, 6))),
    "weight_decay is an array": (NOBODY, option(weight_decay=numpy.full(1, 0.1))),
    "weight_decay of two elements": (NOBODY, option(weight_decay=torch.ones(2))),
    "a weight_decay that requires a gradient": (
        ANY, lambda w: option(weight_decay=torch.tensor(0.1, requires_grad="differentiable" not in w.flags))(w)
    ),
    "foreach and fused": (NOBODY, option(foreach=True, fused=True)),
    "foreach and differentiable": (NOBODY, option(foreach=True, differentiable=True, fused=None)),
    "fused and differentiable": (NOBODY, option(fused=True, differentiable=True, foreach=None)),
    "lr of 0": (ANY, option(lr=0.0)),
    "a tensor as lr": (ANY - {"foreach"}, option(lr=LR)),
    "tensors as betas": (ANY - {"foreach"}, option(betas=BETAS)),
    "a float beside a tensor beta": (ANY - {"foreach"}, option(betas=(0.9, BETAS[1]))),
    "foreach and a tensor as lr": (NOBODY, option(lr=LR, **FOREACH)),
    "foreach and tensors as betas": (NOBODY, option(betas=BETAS, **FOREACH)),
}
STATEFUL = {  # what happens after two steps
    "a count through .data": (ANY, entry_data("step", lambda t: torch.tensor(40.0))),
    "a count of one dimension": (ANY, entry("step", lambda t: t.reshape(1))),
    "a count in bfloat16": (ANY, entry("step", torch.Tensor.bfloat16)),
    "a count in int64": (ANY, entry("step", torch.Tensor.long)),
    "a count in double": (ANY, entry("step", torch.Tensor.double)),
    "a count that is a number": (ANY, entry("step", float)),
    "a count set in place": (ANY, lambda w: w.entry["step"].fill_(7.0)),
    "an entry dropped": (ANY, lambda w: w.opt.state.pop(w.p)),
    "an entry of copies": (ANY, lambda w: w.opt.state.update({w.p: {k: v.clone() for k, v in w.entry.items()}})),
    "parameters reversed": (ANY, lambda w: w.opt.param_groups[1]["params"].reverse()),
    "amsgrad switched": (ANY, lambda w: option(amsgrad=not w.opt.param_groups[1]["amsgrad"])(w)),
    "a count of two": (NOBODY, entry("step", lambda t: t.repeat(2))),
    "a count of two through .data": (NOBODY, entry_data("step", lambda t: t.repeat(2))),
    "a count on another device": (NOBODY, entry("step", on_meta)),
    "no count": (NOBODY, lambda w: w.entry.pop("step")),
}
for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
    for how, change in (("replaced", entry), ("through .data", entry_data)):
        STATEFUL |= {
            f"{key} {how}, in other memory": (ANY, change(key, torch.clone)),
            f"{key} {how}, with gaps": (OPS, change(key, gaps)),
            f"{key} {how}, in another order": (OPS, change(key, other_order)),
            f"{key} {how}, of another shape": (NOBODY, change(key, torch.flatten)),
            f"{key} {how}, that would broadcast": (NOBODY, change(key, lambda t: t[:1])),
            f"{key} {how}, too large": (NOBODY, change(key, lambda t: t.repeat(2, 1))),
            f"{key} {how}, expanded": (NOBODY, change(key, expanded)),
            f"{key} {how}, in double": (NOBODY, change(key, torch.Tensor.double)),
        }
    STATEFUL |= {
        f"{key} on another device": (NOBODY, entry(key, on_meta)),
        f"{key} negated": (NOBODY, entry(key, negated)),
        f"{key} missing": (ANY if key.startswith("max") else NOBODY, lambda w, key=key: w.entry.pop(key)),
    }
SITUATIONS = STATELESS | STATEFUL


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Cut as if only 8 elements fitted into the cache, so that small tensors meet what large ones do."""
    monkeypatch.setattr(adamlib.functional, "CPU_PART", 8)


def runs(name):
    """The options under which a situation can arise, and the steps before it."""
    for options in OPTIONS:
        if options.get("amsgrad") or not name.startswith("max_exp_avg_sq"):
            for steps in STARTS[name in STATEFUL :][: 1 if INTERPRETED else None]:
                yield options, steps


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_for_loops_or_changes_nothing(variant, name, tally):
    takes, happen = SITUATIONS[name]
    for options, steps in runs(name):
        w = World(VARIANTS[variant], options, steps)
        undo = w.remember()
        happen(w)
        before = w.looks()
        try:
            w.opt.step()
        except Exception as error:
            assert variant not in takes, f"{variant} {steps} {options} must take this step: {error!r}"
            assert "exp_avg" not in name or name.split()[0] in str(error), f"which moment? {error}"
            after = w.looks()
            assert before == after, [what for what in before | after if before.get(what) != after.get(what)]
            undo()
            w.opt.step()
            clean = World(VARIANTS[variant], options, steps)
            clean.opt.step()
            tally.add(f"contract, {variant}, refused and unchanged", True)
            for what, value in clean.looks().items():
                assert w.looks()[what][-1] == value[-1], f"{what}, in the step after"
        else:
            assert variant in takes, f"{variant} {steps} {options} must refuse this step"
            after = w.looks()
            assert all(after[what] == look for what, look in before.items() if what.startswith("gradient"))
            stepped = ("parameter", "exp_avg", "max_exp_avg", *["step"] * ("count" not in name))
            assert all(after[what][:-1] == look[:-1] for what, look in before.items() if what.startswith(stepped))
            loop = World(dict(foreach=False), options, steps)
            happen(loop)
            loop.opt.step()
            ours, loops = w.tensors(), loop.tensors()
            assert list(ours) == list(loops)
            for what, value in loops.items():
                assert agree(ours[what], value), (what, options, ours[what], value)
            tally.add(f"contract, {variant}, stepped like the for-loop", True)


def test_the_triton_kernel_keeps_the_contract_in_its_interpreter(passed_in_the_interpreter):
    assert passed_in_the_interpreter >= len(SITUATIONS)


@pytest.mark.parametrize("variant", sorted({"single_tensor", "foreach", "differentiable"} & {*VARIANTS}))
def test_a_count_below_0_is_refused_where_it_is_read(variant):
    """Of no use to anybody. The others do not read it, and compute with it."""
    w = World(VARIANTS[variant], {}, 2)
    w.entry["step"].fill_(-1)
    before = w.looks()
    with pytest.raises(RuntimeError, match="parameter 0 of group 1: its count is below 0"):
        w.opt.step()
    assert before == w.looks()


# --- the function, called directly

def call(columns, **options):
    adamlib.adam(*columns, **SETTINGS | dict(weight_decay=0.1) | options)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("short", range(6))
@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_of_unequal_length_are_refused(variant, short, left):
    columns = six_lists([torch.ones(3), torch.ones(3)], amsgrad=True)
    del columns[short][left:]
    before = [[plain(t) for t in column] for column in columns]
    with pytest.raises(IndexError, match="one length"), torch.no_grad():
        call(columns, **VARIANTS[variant] | {"amsgrad": True})
    assert before == [[plain(t) for t in column] for column in columns]


@each_variant
def test_a_leaf_is_refused_where_gradients_are_recorded(variant):
    columns = six_lists([torch.ones(3), torch.ones(3, requires_grad=True)])
    before = [[plain(t) for t in column] for column in columns]
    with pytest.raises(RuntimeError, match="parameter 1: a leaf Variable that requires grad"):
        call(columns, **ALL_FLAGS[variant])
    assert before == [[plain(t) for t in column] for column in columns]


@pytest.mark.parametrize("variant", ["single_tensor", "capturable_single", "differentiable"])
@pytest.mark.parametrize("size", [3, 20])
def test_autograd_goes_through_the_function_whatever_is_cut(variant, size):
    """Pieces of a tensor that autograd follows could not be written in place."""
    w = torch.ones(size, requires_grad=True)
    columns = six_lists([w * 1])
    call(columns, decoupled_weight_decay=True, **ALL_FLAGS[variant])
    columns[0][0].sum().backward()
    torch.testing.assert_close(w.grad, torch.full((size,), 0.99))


# --- what an error advises helps

def drop_state(w):
    w.opt.state.pop(w.p)


def backward_anew(w):
    w.opt.zero_grad()
    sum(p.sum() for p in w.params).backward()


def laid_out_like_p(t):
    return torch.empty(4, 6).copy_(t)


CURES = {  # what happened: words of the advice, and the advice, followed
    "a parameter with gaps": ("contiguous()", param(torch.Tensor.contiguous)),
    "an expanded parameter": ("contiguous()", param(torch.Tensor.contiguous)),
    "a shrunk parameter": ("zero_grad(), then backward()", lambda w: (drop_state(w), backward_anew(w))),
    "a gradient of another shape": ("zero_grad(), then backward()", backward_anew),
    "a gradient of another dtype": ("p.grad_dtype = None; p.grad = p.grad.to(p.dtype)", gradient(torch.Tensor.float)),
    "a gradient in another order": ("p.grad = torch.empty_like(p).copy_(p.grad)", gradient(laid_out_like_p)),
    "a negated gradient": ("resolve_neg()", gradient(torch.Tensor.resolve_neg)),
    "a sparse gradient": ("please consider SparseAdam instead", gradient(torch.Tensor.to_dense)),
    "exp_avg replaced, of another shape": ("del optimizer.state[p]", drop_state),
    "exp_avg replaced, in another order": ("torch.empty_like(p)", entry("exp_avg", laid_out_like_p)),
    "exp_avg negated": ("resolve_neg()", entry("exp_avg", torch.Tensor.resolve_neg)),
    "a count of two": ("del optimizer.state[p]", drop_state),
}


@pytest.mark.parametrize("name", CURES)
def test_the_cure_that_an_error_advises_helps(name):
    words, follow = CURES[name]
    takes, happen = SITUATIONS[name]
    for variant in set(VARIANTS) - takes - {"differentiable"}:
        w = World(VARIANTS[variant], {}, 1)
        happen(w)
        with pytest.raises(RuntimeError) as error:
            w.opt.step()
        assert words in str(error.value) and "of group 1" in str(error.value), error.value
        before = w.p.detach().clone()
        follow(w)
        w.opt.step()
        assert not torch.equal(w.p, before) and w.p.isfinite().all(), variant
