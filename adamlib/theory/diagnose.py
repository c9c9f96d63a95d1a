"""Is this optimizer Adam? And if not, which slip is in it? An instrument in NumPy for any optimizer, in any library.

``diagnose`` hands an optimizer a few gradients, looks at where it goes, and compares that with Algorithm 1 and with
Algorithm 1 misread in one or two places (``SLIPS``). What it answers is a fact about the numbers it saw: the readings
that explain all of them, and the place where the right one and this one part.

>>> import numpy as np
>>> def sloppy(start, gradients, lr=1e-3, eps=1e-8):
...     theta, m, v, path = start.copy(), 0 * start, 0 * start, []
...     for t, g in enumerate(gradients, 1):
...         m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
...         theta = theta - lr * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t) + eps)
...         path.append(theta)
...     return np.array(path)
>>> diagnose(sloppy).slips
[('ε inside the root: √(v̂ + ε)',)]
"""

import functools
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np

__all__ = ["SLIPS", "Diagnosis", "diagnose", "probe"]

# name of the slip: (the place where the formula is misread, the reading). At most one reading for each place.
SLIPS = {
    "ε inside the root: √(v̂ + ε)": ("eps", "inside"),
    "ε inside the root of the uncorrected v: √(v + ε)/√c₂": ("eps", "inside v"),
    "ε̂ for ε: ε stands beside the uncorrected √v": ("eps", "hat"),
    "ε̂ without its root: (1−β₂ᵗ)ε": ("eps", "hat without root"),
    "ε beside the fraction: m̂/√v̂, and ε added to the weight": ("eps", "beside"),
    "no ε": ("eps", "none"),
    "m is not corrected": ("m", "not corrected"),
    "v is not corrected": ("v", "not corrected"),
    "the clock of the corrections stands at 1": ("clock", "stands"),
    "the clock of the corrections starts at 0": ("clock", "behind"),
    "the clock of the corrections starts at 2": ("clock", "ahead"),
    "the betas are exchanged": ("betas", "exchanged"),
    "the betas are exchanged in the corrections": ("betas", "exchanged in the corrections"),
    "no root: division by v̂": ("root", "missing"),
    "AMSGrad, the maximum before the correction (torch's)": ("maximum", "of v"),
    "AMSGrad, the maximum of the corrected v̂": ("maximum", "of v̂"),
    "weight decay in the gradient (L2)": ("decay", "in the gradient"),
    "decoupled weight decay, times α (AdamW)": ("decay", "times α"),
    "decoupled weight decay, not times α": ("decay", "alone"),
    "uphill: the sign of the gradient": ("sign", "uphill"),
}


class Diagnosis(NamedTuple):
    """What the numbers say. Printed, it is a sentence or two with the evidence."""

    is_adam: bool
    slips: list[tuple[str, ...]]  # the explanations, each a slip or a pair; empty: Adam, or nothing that is known here
    alike: list[tuple[str, ...]]  # if it is Adam: single slips that these hyperparameters cannot tell from it
    evidence: str  # which gradients, what Algorithm 1 does, what this one did

    def __repr__(self):
        if self.is_adam:
            verdict = "Adam"
        elif not self.slips:
            verdict = "not Adam, and no slip or pair of slips known here"
        else:
            verdict = "not Adam: " + ", or ".join(" and ".join(names) for names in self.slips)
        lines = [verdict, self.evidence]
        if self.is_adam and self.alike:
            lines.append("cannot be told from it here: " + "; ".join(" and ".join(names) for names in self.alike))
        return "\n".join(lines)


def probe(eps: float = 1e-8, steps: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Starts [n] and gradients [steps, n] that tell the slips apart: a column per weight, one idea each.

    Gradients near ε and near √ε show where ε stands; a burst that fades shows a maximum; silence and waking up show
    the corrections and the betas; starts that are not 0 show decay; and no column consists of ones, where most slips
    look right.
    """
    t = np.arange(steps)
    small, root = (eps, eps**0.5) if eps > 0 else (1e-8, 1e-4)
    columns = {
        "near ε": (0.0, small * (1.5 + np.cos(t))),
        "near √ε": (0.0, root * (1.5 + np.sin(2 * t))),
        "of size 300": (0.0, 300.0 * (1.2 + np.cos(3 * t))),
        "of changing sign": (0.0, 0.7 * np.cos(1.3 * t) + 0.1),
        "a burst that fades": (0.0, 5.0 * 0.6**t + 0.02),
        "waking up": (0.0, np.where(t < steps // 2, 1e-3, 1.0)),
        "growing": (0.0, 1e-2 * 1.4**t),
        "at the weight 3": (3.0, 0.05 * np.cos(t)),
        "at the weight -7": (-7.0, 2.0 + np.sin(t)),
    }
    starts, gradients = zip(*columns.values())
    return np.array(starts), np.stack(gradients, axis=1)


def diagnose(
    path: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    dtype=np.float64,
) -> Diagnosis:
    """Say whether an optimizer is Adam and, if not, which slip or pair of slips explains every number it gave.

    path: a function of the starts [n] and the gradients [T, n] that returns the weights after each of the T steps,
        an array [T, n]. It runs the optimizer with the hyperparameters below.
    lr, betas, eps: α, (β₁, β₂), ε.  weight_decay: λ, for the slips that decay weights when Adam should not.
    dtype: the precision that the optimizer computes in; np.float32 allows it larger rounding errors.

    Raises ValueError for hyperparameters that hide everything (lr = 0) and for a path of another shape.
    """
    if not (lr > 0 and all(0 <= beta < 1 for beta in betas) and eps >= 0):
        raise ValueError(f"lr={lr}, betas={betas}, eps={eps}: lr > 0, betas in [0, 1) and eps >= 0 are needed")
    starts, gradients, readings = _readings(lr, tuple(betas), eps, weight_decay, np.dtype(dtype).name)
    seen = np.asarray(path(starts.astype(dtype), gradients.astype(dtype)), np.float64)
    if seen.shape != gradients.shape:
        raise ValueError(f"path must return the weights after each step, shape {gradients.shape}; it gave {seen.shape}")

    explains = [names for names, (weights, room) in readings.items() if _agree(weights, seen, room)]
    is_adam = () in explains
    shortest = min(map(len, explains), default=0)
    slips = [] if is_adam else [names for names in explains if len(names) == shortest]
    alike = [names for names in explains if len(names) == 1] if is_adam else []
    return Diagnosis(is_adam, slips, alike, _evidence(starts, gradients, *readings[()], seen))


@functools.lru_cache(maxsize=8)
def _readings(lr, betas, eps, weight_decay, dtype):
    """The probe as this dtype rounds it, and where each explanation leads from there.

    Returns starts, gradients, {slips: (the weights they lead to [T, n], how far rounding may take another's [n])}.
    """
    starts, gradients = (x.astype(dtype).astype(np.float64) for x in probe(eps))
    options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    found = {}
    for names in _explanations():
        weights = read(starts, gradients, names, **options)
        found[names] = weights, _room(starts, weights, dtype)
    return starts, gradients, found


def _explanations():
    """No slip, each slip alone, and each pair of slips in two places."""
    yield ()
    for name in SLIPS:
        yield (name,)
    for one, two in combinations(SLIPS, 2):
        if SLIPS[one][0] != SLIPS[two][0]:
            yield one, two


def read(starts, gradients, names, *, lr, betas, eps, weight_decay):
    """The weights [T, n] after each step of Algorithm 1 with the slips `names` in it."""
    slip = dict(SLIPS[name] for name in names)
    beta1, beta2 = betas[::-1] if slip.get("betas") == "exchanged" else betas
    in_c1, in_c2 = betas[::-1] if slip.get("betas") == "exchanged in the corrections" else (beta1, beta2)
    theta, m, v = starts.copy(), np.zeros_like(starts), np.zeros_like(starts)
    largest, weights = np.zeros_like(starts), []
    with np.errstate(all="ignore"):  # a slip may divide by zero: that is a sign of it
        for t, g in enumerate(gradients, 1):
            t = {"stands": 1, "behind": t - 1, "ahead": t + 1}.get(slip.get("clock"), t)
            c1 = 1.0 if "m" in slip else 1 - in_c1**t
            c2 = 1.0 if "v" in slip else 1 - in_c2**t
            decay = slip.get("decay")
            g = -g if "sign" in slip else g
            g = g + weight_decay * theta if decay == "in the gradient" else g
            theta = theta * (1 - weight_decay * {"times α": lr, "alone": 1}.get(decay, 0))
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            largest = np.maximum(largest, v / c2 if slip.get("maximum") == "of v̂" else v)
            v_hat = {"of v": largest / c2, "of v̂": largest}.get(slip.get("maximum"), v / c2)
            theta = theta - lr * m / c1 / _denominator(v_hat, c2, eps, slip)
            theta = theta + eps if slip.get("eps") == "beside" else theta
            weights.append(theta)
    return np.array(weights)


def _denominator(v_hat, c2, eps, slip):
    root = (lambda x: x) if "root" in slip else np.sqrt
    return {
        "inside": lambda: root(v_hat + eps),
        "inside v": lambda: root(v_hat * c2 + eps) / root(c2),
        "hat": lambda: root(v_hat) + eps / root(c2),
        "hat without root": lambda: root(v_hat) + eps * root(c2),
        "beside": lambda: root(v_hat),
        "none": lambda: root(v_hat),
    }.get(slip.get("eps"), lambda: root(v_hat) + eps)()


def _room(starts, weights, dtype):
    """How far rounding may take each weight [n]: some roundings of the weight, more of the way it went.

    In float32 some libraries compute 1 - β**t in float32, too, which costs five digits at the first steps.
    """
    unit = np.finfo(dtype).eps
    with np.errstate(all="ignore"):
        way = np.abs(np.diff(weights, axis=0, prepend=starts[None])).sum(axis=0)
        room = 64 * unit * np.abs(starts) + 2e3 * unit * way
    return np.where(np.isfinite(room), room, 0.0)


def _agree(weights, seen, room):
    """Whether two runs agree up to rounding, infinities and NaN included."""
    with np.errstate(all="ignore"):
        near = np.abs(weights - seen) <= room
    return bool((near | (weights == seen) | (np.isnan(weights) & np.isnan(seen))).all())


def _evidence(starts, gradients, adam, room, seen):
    """The first step at which Algorithm 1 and this optimizer part, at the weight where they part the most."""

    def steps(weights):
        with np.errstate(all="ignore"):
            return -np.diff(weights, axis=0, prepend=starts[None])

    with np.errstate(all="ignore"):
        apart = np.where(np.isfinite(seen), np.abs(adam - seen) / room, np.inf)
    if apart.max() <= 1:
        return f"all {seen.size} weights agree with Algorithm 1, in {len(seen)} steps from {len(starts)} starts"
    t = np.argwhere(apart > 1)[0, 0]
    column = apart[t].argmax()
    want, got = steps(adam)[t, column], steps(seen)[t, column]
    before = ", ".join(f"{g:.3g}" for g in gradients[: t + 1, column][-3:])
    before = f"…, {before}" if t > 2 else before
    return (f"step {t + 1} of a weight that starts at {starts[column]:g}, after gradients {before}: "
            f"expected {want:.4g}, got {got:.4g}")
