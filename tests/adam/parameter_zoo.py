"""What the tests of Adam share: awkward parameters with their gradients, small ones, values compared by their bits,
and two decorators that run a scenario with torch.optim and with adamlib: `as_in_torch` and `unlike_torch`."""

import contextlib
import functools
import inspect
import re
import types
import warnings
from typing import NamedTuple

import pytest
import torch
from torch.optim.adam import adam as torch_adam

import adamlib

FLAGS = {
    "single_tensor": dict(foreach=False),
    "foreach": dict(foreach=True),
    "fused": dict(fused=True),
    "capturable_single": dict(capturable=True, foreach=False),
    "capturable_foreach": dict(capturable=True, foreach=True),
}
ALL_FLAGS = FLAGS | {"differentiable": dict(differentiable=True)}  # which steps no leaf
SAME_BITS = ("single_tensor", "foreach", "fused")  # the variants that torch itself can run on a CPU
CAPTURABLE = ("capturable_single", "capturable_foreach")
# What adam() wants besides its lists.
SETTINGS = dict(amsgrad=False, beta1=0.9, beta2=0.99, lr=0.1, weight_decay=0.0, eps=1e-8, maximize=False)

each_variant = pytest.mark.parametrize("variant", FLAGS)
each_of_torchs = pytest.mark.parametrize("variant", SAME_BITS)
each_capturable = pytest.mark.parametrize("variant", CAPTURABLE)
each_class = pytest.mark.parametrize("name", ["Adam", "AdamW"])


# --- small parameters

def weights(n=2):
    """n parameters of 3, 4, ... elements."""
    return [torch.linspace(-1, 1, 3 + i).requires_grad_() for i in range(n)]


def give_gradients(params, step=0):
    for i, p in enumerate(params):
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + step + i).view_as(p)


def train(opt, params, steps):
    for step in range(steps) if isinstance(steps, int) else steps:
        give_gradients(params, step)
        opt.step()


def trained(cls=adamlib.Adam, steps=2, **options):
    """Two parameters and an optimizer that has stepped them."""
    params = weights()
    opt = cls(params, **options)
    train(opt, params, steps)
    return params, opt


def six_lists(params, grads=None, *, amsgrad=False):
    """What adam() takes before the first step: parameters, gradients (ones), m, v, with amsgrad maxima of v, counts."""
    zeros = [[torch.zeros_like(p) for p in params] for _ in range(3)]
    grads = [torch.ones_like(p) for p in params] if grads is None else grads
    return [params, grads, *zeros[:2], zeros[2] if amsgrad else [], [torch.zeros((), device=p.device) for p in params]]


def counts(opt):
    return [float(entry["step"]) for entry in opt.state.values()]


# --- awkward parameters: built twice, they are independent copies with the same bits

# The scale of a parameter's gradients: squares that underflow, squares near the top of float32, exact zeros.
_SCALE = {"tiny": 1e-30, "huge": 1e15, "zero_gradient": 0.0, "matrix": 30.0, "transposed": 1e-4}
_SLEEPS = {  # at which steps, from 1 on, it has no gradient
    "never": lambda step: True,
    "late": lambda step: step <= 4,
    "sleepy": lambda step: step % 3 != 1,
    "matrix": lambda step: step == 2,
}


def awkward_parameters(dtype, *, fused=False, device="cpu", seed=0):
    """Leaf tensors by name, of every shape, layout and kind that Adam has to cope with.

    dtype: float32 or float64; one parameter has the other of the two, so that a group holds mixed dtypes.
    fused=True leaves out what the fused kernel cannot take: gaps between the elements, a gradient laid out
    otherwise than its parameter, complex numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    other = torch.float64 if dtype == torch.float32 else torch.float32

    def values(*shape, of=dtype):  # e.g. values(5, 4), values(())
        return torch.randn(*shape, generator=generator, dtype=of).to(device)

    made = {
        "scalar": values(()),
        "one_element": values(1).as_strided((1, 1), (7, 7)),
        "empty": values(0),
        "empty_matrix": values(3, 0),
        "vector": values(37),  # no multiple of any vector width
        "matrix": values(5, 4),
        "transposed": values(4, 6).t(),
        "channels_last": values(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "one_channel": values(72).as_strided((8, 1, 3, 3), (9, 1, 3, 1)),  # other strides, same memory order
        "unaligned": values(24)[3:20],
        "other_dtype": values(7, of=other),
        "zero_gradient": values(5),
        "tiny": values(6),
        "huge": values(6),
        "late": values(9),
        "sleepy": values(2, 5),
        "never": values(3),
    }
    if not fused:
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        made |= {
            "slice": values(6, 10)[:, ::2],
            "gradient_laid_out_otherwise": values(3, 7).t(),
            "complex": values(3, 2, of=complex_dtype),
            "complex_scalar": values((), of=complex_dtype),
        }
    return {name: p.requires_grad_() for name, p in made.items()}


@functools.cache
def _values(kinds, step, seed):
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return [
        torch.randn(shape, generator=generator, dtype=dtype) * _SCALE.get(name, 1.0) for name, shape, dtype in kinds
    ]


def set_gradients(params, step, seed=1):
    """Fresh gradients, the same for the same names, shapes, step and seed."""
    kinds = tuple((name, tuple(p.shape), p.dtype) for name, p in params.items())
    for (name, p), value in zip(params.items(), _values(kinds, step, seed), strict=True):
        if name in _SLEEPS and _SLEEPS[name](step):
            p.grad = None
        elif name in ("gradient_laid_out_otherwise", "one_channel"):
            p.grad = value.clone().to(p.device)
        else:
            p.grad = torch.empty_like(p, requires_grad=False).copy_(value)


# --- what is compared

def same_bits(a, b):
    """Equal dtype, shape and every bit: NaN equals NaN, and -0.0 differs from 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)


def _bits(t):
    t = t.detach().to_dense() if t.is_sparse else t.detach()
    t = t.cpu().resolve_conj().resolve_neg()
    if t.dtype == torch.bfloat16:
        t = t.contiguous().view(torch.int16)
    return t.numpy().tobytes()


def comparable(value):
    """Plain values that are equal where tensors and optimizers have the same bits in the same layout."""
    if isinstance(value, torch.Tensor):
        looks = str(value.dtype), str(value.device), value.requires_grad, tuple(value.shape)
        return looks, value.stride() if value.layout == torch.strided else (), None if value.is_meta else _bits(value)
    if isinstance(value, torch.optim.Optimizer):
        return comparable([value.state_dict(), [group["params"] for group in value.param_groups]])
    if isinstance(value, dict):
        return [[key, comparable(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return value


def difference(ours, theirs):
    """The innermost parts of two comparable values that are not equal."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return difference(*next((a, b) for a, b in zip(ours, theirs) if a != b))
    return ours, theirs


def operations(function):
    """The names of all operations of torch that run inside of a function."""
    with torch.autograd.profiler.profile() as profile:
        function()
    return {event.name for event in profile.function_events}


# --- what must not change

def everything_of(opt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading .grad of a non-leaf warns
        params = [[(id(p), p, p.grad) for p in group["params"]] for group in opt.param_groups]
    options = [{key: value for key, value in group.items() if key != "params"} for group in opt.param_groups]
    amp = getattr(opt, "_step_supports_amp_scaling", False)
    return comparable([params, options, {id(p): entry for p, entry in opt.state.items()}, opt.defaults, amp])


@contextlib.contextmanager
def refused(opt, words="", error=(ValueError, RuntimeError, TypeError, KeyError)):
    """The block must raise an error that says these words, in a sentence; adamlib then has changed nothing of `opt`."""
    before = everything_of(opt)
    with pytest.raises(error) as raised:
        yield
    after, text = everything_of(opt), str(raised.value)
    assert before == after or not isinstance(opt, adamlib.Adam), f"changed: {difference(before, after)}"
    assert words in text and len(text.split()) >= (1 if raised.type is KeyError else 3), f"of little help: {text!r}"


# --- the same scenario with either library

TORCH = types.SimpleNamespace(Adam=torch.optim.Adam, AdamW=torch.optim.AdamW, adam=torch_adam)


class Raises(NamedTuple):
    """An expected error: its type, and words of it."""

    error: type
    words: str = ""


def as_in_torch(scenario):
    """Make a test of a scenario(library, ...): with adamlib it must return, or raise, what it does with torch.

    `library` has Adam, AdamW and adam. What it returns is compared by `comparable`; an error must be of torch's type
    and contain torch's words.
    """

    def judge(ours, theirs):
        if isinstance(theirs, AssertionError) and "assert" in str(theirs):
            raise theirs  # the scenario's own assertion, not torch's
        expect(ours, Raises(type(theirs), text_of(theirs)) if isinstance(theirs, Exception) else theirs)

    return _test_of(scenario, judge)


def unlike_torch(theirs, ours):
    """Make a test of a scenario(library, ...): what comes of it with torch, and what with adamlib."""

    def judge(of_ours, of_theirs):
        expect(of_theirs, theirs)
        expect(of_ours, ours)

    return functools.partial(_test_of, judge=judge)


def expect(outcome, expected):
    if isinstance(expected, Raises):
        assert isinstance(outcome, expected.error) and expected.words in text_of(outcome), repr(outcome)
    elif isinstance(outcome, Exception):
        raise outcome
    else:
        assert outcome == expected, f"they differ in {difference(outcome, expected)}"


def text_of(error):
    return re.sub("0x[0-9a-f]+", "", str(error))  # addresses differ


def _test_of(scenario, judge):
    def outcome(library, *args, **kwargs):
        try:
            return comparable(scenario(library, *args, **kwargs))
        except Exception as error:
            return error

    @functools.wraps(scenario)
    def test(*args, **kwargs):
        judge(outcome(adamlib, *args, **kwargs), outcome(TORCH, *args, **kwargs))

    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return test
