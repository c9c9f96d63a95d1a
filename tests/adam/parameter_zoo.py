"""Parameter sets that are awkward on purpose, their gradients, and how to compare two runs bit by bit.

A set is a dict name -> leaf tensor. Building it twice gives two independent copies with the same bits, one
for torch.optim and one for adamlib. `set_gradients` gives both the same gradients, and leaves out the same.
"""

import contextlib
import copy
import functools
import inspect
import re
import types
import warnings

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
SAME_BITS = ("single_tensor", "foreach", "fused")  # the variants that torch itself can run on a CPU

# Scale of the gradients: squares that underflow, squares near the top of float32, exact zeros.
_SCALE = {"tiny": 1e-30, "huge": 1e15, "zero_gradient": 0.0, "matrix": 30.0, "transposed": 1e-4}


def awkward_parameters(dtype, *, fused=False, device="cpu", seed=0):
    """Leaf tensors of every shape, layout and kind that Adam has to cope with.

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


def has_gradient(name, step):
    """Which parameters get a gradient at this step (steps count from 1)."""
    if name == "never":
        return False
    if name == "late":
        return step > 4
    if name == "sleepy":
        return step % 3 == 1
    return not (name == "matrix" and step == 2)


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
        if not has_gradient(name, step):
            p.grad = None
            continue
        if name in ("gradient_laid_out_otherwise", "one_channel"):
            p.grad = value.clone().to(p.device)
        else:
            p.grad = torch.empty_like(p, requires_grad=False).copy_(value)


def same_bits(a, b):
    """Equal dtype, shape and every bit: NaN equals NaN, and -0.0 differs from 0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return _bits(a) == _bits(b)


def _bits(t):
    t = t.detach().cpu().resolve_conj().resolve_neg()
    if t.dtype == torch.bfloat16:
        t = t.contiguous().view(torch.int16)
    return t.numpy().tobytes()


def differences(ours, theirs, our_params, their_params):
    """Names of everything in which the two optimizers differ: parameters, state, keys, dtypes, strides."""
    found = []
    for name in our_params:
        p, q = our_params[name], their_params[name]
        if not same_bits(p, q):
            found.append(f"parameter {name}")
        mine, other = ours.state.get(p, {}), theirs.state.get(q, {})
        if list(mine) != list(other):
            found.append(f"state of {name}: keys {list(mine)}, torch has {list(other)}")
            continue
        for key in mine:
            if not same_bits(mine[key], other[key]):
                found.append(f"{key} of {name}")
            if mine[key].stride() != other[key].stride():
                found.append(f"{key} of {name}: strides {mine[key].stride()}, torch has {other[key].stride()}")
    return found


def frozen(opt):
    """Everything that must not change when a call fails, as plain comparable values."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            if value.is_sparse:
                value = value.to_dense()
            return (str(value.dtype), tuple(value.shape), value.stride(), _bits(value))
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value), [plain(v) for v in value]
        return repr(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading .grad of a non-leaf warns
        return {
            "groups": [
                {k: plain(v) if k != "params" else [id(p) for p in v] for k, v in group.items()}
                for group in opt.param_groups
            ],
            "values": [plain(p) for group in opt.param_groups for p in group["params"]],
            "gradients": [plain(p.grad) for group in opt.param_groups for p in group["params"]],
            "state": {id(k): plain(v) for k, v in opt.state.items()},
            "defaults": plain(opt.defaults),
            "amp": getattr(opt, "_step_supports_amp_scaling", False),
        }


@contextlib.contextmanager
def nothing_changes(opt):
    """Assert that the block leaves parameters, gradients, state and options of `opt` as they were."""
    before = copy.deepcopy(frozen(opt))
    yield
    after = frozen(opt)
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed although the call failed: {changed}"


# --- the same scenario with either library

TORCH = types.SimpleNamespace(Adam=torch.optim.Adam, AdamW=torch.optim.AdamW, adam=torch_adam)


def as_in_torch(scenario):
    """Make a test of a scenario(library, ...): with adamlib it must return, or raise, what it does with torch.

    `library` has Adam, AdamW and adam. Tensors are compared by their bits, models by their parameters, optimizers by
    their state_dict and values, anything else by ==; errors by their type, and ours must contain torch's words.
    """

    def outcome(library, *args, **kwargs):
        try:
            return comparable(scenario(library, *args, **kwargs))
        except Exception as error:
            return error

    @functools.wraps(scenario)
    def test(*args, **kwargs):
        ours, theirs = (outcome(library, *args, **kwargs) for library in (adamlib, TORCH))
        if not isinstance(theirs, Exception):
            if isinstance(ours, Exception):
                raise ours
            assert ours == theirs, f"not what torch gives: {difference(ours, theirs)}"
        elif isinstance(theirs, AssertionError) and "assert" in str(theirs):
            raise theirs  # the scenario's own assertion, not torch's
        else:
            assert isinstance(ours, Exception), f"adamlib does what torch refuses: {theirs!r}"
            words, of_torch = (re.sub("0x[0-9a-f]+", "", str(error)) for error in (ours, theirs))
            assert isinstance(ours, type(theirs)) and of_torch in words, f"{ours!r}, torch says {theirs!r}"

    signature = inspect.signature(scenario)
    test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    return test


def comparable(value):
    """Plain values that are equal where tensors, models and optimizers have the same bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), None if value.is_meta else _bits(value)
    if isinstance(value, torch.nn.Module):
        return comparable(list(value.parameters()))
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
