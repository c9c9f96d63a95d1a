"""diagnose names every slip, alone and in pairs, or says which others it cannot be told from."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

import adamlib
from adamlib.theory import diagnose as module
from adamlib.theory.diagnose import SLIPS, diagnose, probe, read

# Adam as a page might print it, and how each slip would be printed: a line of text is exchanged for another. Nothing
# of adamlib computes here, so that a slip of adamlib's own reading would show.
PAGE = """
for t, g in enumerate(gradients, 1):
    clock = t
    g = g  # sign
    g = g  # decay
    theta = theta
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    k1, k2 = b1, b2
    c1 = 1 - k1 ** clock
    c2 = 1 - k2 ** clock
    top = v / c2
    theta = theta - lr * (m / c1) / (ROOT(top) + eps)
    path.append(theta)
"""
DENOMINATOR = "(ROOT(top) + eps)"
MISPRINTS = {
    "ε inside the root: √(v̂ + ε)": (DENOMINATOR, "ROOT(top + eps)"),
    "ε inside the root of the uncorrected v: √(v + ε)/√c₂": (DENOMINATOR, "(ROOT(top * c2 + eps) / ROOT(c2))"),
    "ε̂ for ε: ε stands beside the uncorrected √v": (DENOMINATOR, "(ROOT(top) + eps / ROOT(c2))"),
    "ε̂ without its root: (1−β₂ᵗ)ε": (DENOMINATOR, "(ROOT(top) + eps * ROOT(c2))"),
    "ε beside the fraction: m̂/√v̂, and ε added to the weight": (DENOMINATOR, "ROOT(top) + eps"),
    "no ε": (DENOMINATOR, "ROOT(top)"),
    "m is not corrected": ("c1 = 1 - k1 ** clock", "c1 = g.dtype.type(1)"),
    "v is not corrected": ("c2 = 1 - k2 ** clock", "c2 = g.dtype.type(1)"),
    "the clock of the corrections stands at 1": ("clock = t", "clock = 1"),
    "the clock of the corrections starts at 0": ("clock = t", "clock = t - 1"),
    "the clock of the corrections starts at 2": ("clock = t", "clock = t + 1"),
    "the betas are exchanged": ("\nfor", "\nb1, b2 = b2, b1\nfor"),
    "the betas are exchanged in the corrections": ("k1, k2 = b1, b2", "k1, k2 = b2, b1"),
    "no root: division by v̂": ("ROOT", "same"),
    "AMSGrad, the maximum before the correction (torch's)":
        ("top = v / c2", "top = vmax = np.maximum(vmax, v); top = top / c2"),
    "AMSGrad, the maximum of the corrected v̂": ("top = v / c2", "top = vmax = np.maximum(vmax, v / c2)"),
    "weight decay in the gradient (L2)": ("g = g  # decay", "g = g + decay * theta"),
    "decoupled weight decay, times α (AdamW)": ("theta = theta\n", "theta = theta - lr * decay * theta\n"),
    "decoupled weight decay, not times α": ("theta = theta\n", "theta = theta - decay * theta\n"),
    "uphill: the sign of the gradient": ("g = g  # sign", "g = -g"),
}
BETAS = [(0.9, 0.999), (0.9, 0.95), (0.5, 0.99), (0.2, 0.9)]
in_both_precisions = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def printed(names, betas=(0.9, 0.999), lr=1e-3, eps=1e-8, decay=0.1):
    """The path of Adam with these misprints, computed in the precision of what it is given."""
    page = PAGE
    for name in sorted(names, key=list(MISPRINTS).index):
        old, new = MISPRINTS[name]
        assert old in page, f"{name} does not fit after the others of {names}"
        page = page.replace(old, new)
    page = page.replace("ROOT", "np.sqrt")

    def path(starts, gradients):
        zero = 0 * starts
        here = dict(theta=starts.copy(), gradients=gradients, m=zero, v=zero, vmax=zero, path=[], np=np,
                    same=lambda x: x, b1=betas[0], b2=betas[1], lr=lr, eps=eps, decay=decay)
        with np.errstate(all="ignore"):
            exec(page, here)
        return np.array(here["path"])

    return path


def test_every_slip_has_its_misprint():
    assert list(MISPRINTS) == list(SLIPS)


@in_both_precisions
@pytest.mark.parametrize("betas", BETAS)
def test_a_right_adam_is_adam(betas, dtype):
    found = diagnose(printed((), betas), betas=betas, dtype=dtype)
    assert found.is_adam and not found.slips
    assert repr(found).startswith("Adam\nall 216 weights agree with Algorithm 1")


@in_both_precisions
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_alone_is_named(name, betas, dtype):
    found = diagnose(printed((name,), betas), betas=betas, dtype=dtype)
    assert not found.is_adam and (name,) in found.slips
    assert all(same_reading((name,), other, betas, dtype) for other in found.slips), found.slips
    assert "expected" in found.evidence and "got" in found.evidence


def same_reading(one, two, betas, dtype):
    """Whether two explanations lead to the same weights, as far as this dtype shows them."""
    starts, gradients = probe()
    a, b = (read(starts, gradients, names, lr=1e-3, betas=betas, eps=1e-8, weight_decay=0.1) for names in (one, two))
    # float32: an ε of 1e-8 beside the fraction is a hundred-thousandth of a step of 1e-3, and looks like no ε
    near = dict(rtol=1e-9, atol=0) if dtype == np.float64 else dict(rtol=1e-5, atol=1e-6)
    return np.allclose(a, b, **near, equal_nan=True)


PAIRS = [pair for pair in combinations(SLIPS, 2) if SLIPS[pair[0]][0] != SLIPS[pair[1]][0]]


@in_both_precisions
@pytest.mark.parametrize("betas", BETAS[:3])
def test_pairs_of_slips_are_named_or_said_to_be_the_same(betas, dtype, tally):
    unique = 0
    for pair in PAIRS:
        found = diagnose(printed(pair, betas), betas=betas, dtype=dtype)
        assert not found.is_adam and found.slips, pair
        assert all(same_reading(pair, other, betas, dtype) for other in found.slips), (pair, found.slips)
        unique += found.slips == [pair]
    # A clock that starts at 0 divides 0 by 0 and leaves nothing to see of the other slip. Its pairs have an equal,
    # and so have some more, and in float32 those of "no ε" and "ε beside the fraction".
    least = 141 if dtype == np.float64 else 117
    assert unique >= least, f"{unique} of {len(PAIRS)} pairs are named without an equal"
    tally.figure(f"diagnose, betas {betas}, {np.dtype(dtype).name}",
                 f"{unique} of {len(PAIRS)} pairs of slips named alone")


def torch_path(make):
    def path(starts, gradients):
        w = torch.tensor(starts, requires_grad=True)
        optimizer, weights = make([w]), []
        for g in gradients:
            w.grad = torch.tensor(g)
            optimizer.step()
            weights.append(w.detach().numpy().copy())
        return np.array(weights)

    return path


@in_both_precisions
@pytest.mark.parametrize("library, options", [
    *product((torch.optim, adamlib), ({}, dict(fused=True), dict(foreach=True))), (adamlib, dict(capturable=True)),
])
def test_the_adams_that_one_can_buy(library, options, dtype):
    assert diagnose(torch_path(lambda p: library.Adam(p, **options)), dtype=dtype).is_adam


@pytest.mark.parametrize("cls, options, slips", [
    (torch.optim.Adam, dict(amsgrad=True), [("AMSGrad, the maximum before the correction (torch's)",)]),
    (torch.optim.AdamW, dict(weight_decay=0.1), [("decoupled weight decay, times α (AdamW)",)]),
    (torch.optim.Adam, dict(lr=2e-3), []),
    (torch.optim.SGD, dict(lr=1e-3), []),
    (torch.optim.NAdam, {}, []),
    (torch.optim.RMSprop, {}, []),
    (torch.optim.Adagrad, {}, []),
])
def test_torchs_options_are_named_and_another_optimizer_is_not_explained_away(cls, options, slips):
    found = diagnose(torch_path(lambda params: cls(params, **options)))
    assert not found.is_adam and found.slips == slips
    assert slips or repr(found).startswith("not Adam, and no slip or pair of slips known here\nstep ")


def test_one_probe_and_one_reading_serve_all_calls_with_the_same_hyperparameters(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "probe", lambda eps: calls.append(eps) or probe(eps))
    module._readings.cache_clear()
    for _ in range(2):
        assert diagnose(printed(())).is_adam
    assert len(calls) == 1


def test_what_the_hyperparameters_hide_is_said():
    equal = diagnose(printed((), (0.9, 0.9)), betas=(0.9, 0.9))
    assert equal.is_adam and ("the betas are exchanged",) in equal.alike
    assert "cannot be told from it here: the betas are exchanged" in repr(equal)
    no_memory = diagnose(printed(("m is not corrected",), (0.0, 0.9)), betas=(0.0, 0.9))
    assert no_memory.is_adam and ("m is not corrected",) in no_memory.alike
    no_eps = diagnose(printed((), eps=0.0), eps=0.0)
    assert no_eps.is_adam and {("no ε",), ("ε inside the root: √(v̂ + ε)",)} <= set(no_eps.alike)


def test_hyperparameters_that_hide_everything_and_a_path_of_another_shape_are_refused():
    for wrong in dict(lr=0.0), dict(betas=(1.0, 0.9)), dict(eps=-1.0):
        with pytest.raises(ValueError, match="are needed"):
            diagnose(printed(()), **wrong)
    with pytest.raises(ValueError, match="path must return the weights after each step, shape"):
        diagnose(lambda starts, gradients: gradients[:3])


def test_the_example_in_the_docstring():
    import doctest

    assert doctest.testmod(module).failed == 0
