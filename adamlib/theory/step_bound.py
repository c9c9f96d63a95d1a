"""How far can one step of Adam go? The exact answer, in NumPy.

Adam's step is Δ_t = α·m̂_t/√v̂_t (ε = 0), and both moments are averages of the same gradients. With the age
k = 0, 1, …, t−1 counted from the newest gradient, h_k = g_{t−k}, and the weights

    a_k = (1−β₁)β₁ᵏ/(1−β₁ᵗ)        b_k = (1−β₂)β₂ᵏ/(1−β₂ᵗ)        (each sums to one)

it is m̂_t = Σ a_k h_k and v̂_t = Σ b_k h_k². Cauchy–Schwarz then gives the largest step there can be,

    |Δ_t|/α ≤ C_t,     C_t² = Σ a_k²/b_k = 1 + χ²(a‖b)
                            = [(1−β₁)/(1−β₁ᵗ)]² · (1−β₂ᵗ)/(1−β₂) · Σ_{k<t} ρᵏ,      ρ = β₁²/β₂,

reached at every t at once by the gradients g_i = (β₂/β₁)^i. Chapter 02 proves this and what follows from it:
C_t = 1 for all t if β₁ = β₂, else C_t increases strictly in t; its supremum is finite iff ρ < 1.
Kingma & Ba (arXiv 1412.6980v9, section 2.1) give (1−β₁)/√(1−β₂) or 1 instead: the step after a single spike.

All ratios here are |Δ|/α, pure numbers. `t` may be a number or an array, and math.inf asks for the limit.

>>> float(worst_ratio(0.9, 0.999, 1)), round(float(worst_ratio(0.9, 0.999, math.inf)), 4)
(1.0, 7.2703)
"""

import math

import numpy as np

from adamlib.theory.algorithm1 import algorithm1

__all__ = [
    "averaging_weights",
    "chi_square",
    "constant_after_zeros_ratio",
    "extremal_gradients",
    "first_step_above",
    "growth_ratio",
    "noise_ratio",
    "spike_ratio",
    "spike_travel",
    "step_ratios",
    "worst_ratio",
]


def averaging_weights(beta: float, t: int) -> np.ndarray:
    """The weights that a bias-corrected moving average gives to the last t values, newest first.

    Shape (t,), sum 1. `averaging_weights(β₁, t)` are the a_k of m̂, `averaging_weights(β₂, t)` the b_k of v̂.
    """
    _check_betas(beta=beta)
    t = _one_t(t)
    return (1 - beta) / _fraction_of_window(beta, t) * beta ** np.arange(t)


def step_ratios(gradients, beta1: float, beta2: float) -> np.ndarray:
    """m̂_t/√v̂_t = Δ_t/α with ε = 0, for every t = 1 … T, signed; computed by Algorithm 1 itself.

    Args:
        gradients: shape (T,) or (T, n) for n sequences side by side.

    As long as all gradients were zero the step is taken to be 0 (it would be 0/0).
    """
    gradients = np.asarray(gradients, dtype=np.float64)
    if gradients.ndim == 0 or len(gradients) == 0:
        raise ValueError("gradients must hold at least one gradient: shape (T,) or (T, n)")
    run = algorithm1(np.zeros(gradients.shape[1:]), gradients, lr=1.0, betas=(beta1, beta2), eps=0.0)
    return np.where(run.v_hat > 0, run.delta, 0.0)


def worst_ratio(beta1: float, beta2: float, t, *, bias_correction: bool = True):
    """C_t, the largest |Δ_t|/α over all gradients, for t = 1, 2, … or math.inf (the supremum over t).

    Without bias correction (raw m and v in the same formula) the bound is
    U_t = (1−β₁)/√(1−β₂)·√Σ_{k<t} ρᵏ: the same limit, but at the first step the whole first factor.

    Returns inf where the supremum is infinite (β₁² ≥ β₂, t = inf) or above the largest double.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    t = _many_t(t)
    if beta2 == 0:  # v̂ = g_t² alone: any memory in m̂ makes the ratio unbounded from the second step on
        return np.where(t > 1, 1.0 if beta1 == 0 else math.inf, 1.0)[()]
    if beta1 == beta2 and bias_correction:
        return np.ones_like(t)[()]

    log_square = 2 * math.log1p(-beta1) - math.log1p(-beta2) + _log_geometric_sum(beta1, beta2, t)
    if bias_correction:
        log_square += np.log(_fraction_of_window(beta2, t)) - 2 * np.log(_fraction_of_window(beta1, t))
    with np.errstate(over="ignore"):
        ratio = np.exp(log_square / 2)
    return (np.where(t == 1, 1.0, np.maximum(ratio, 1.0)) if bias_correction else ratio)[()]


def chi_square(beta1: float, beta2: float, t: int) -> float:
    """χ²(a‖b) = Σ (a_k − b_k)²/b_k, the distance between Adam's two averaging windows; C_t² = 1 + χ².

    Summed as it stands, in O(t), without the closed form of `worst_ratio` and without its cancellation:
    accurate even where β₁ ≈ β₂ and χ² is far below the rounding of 1.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    t = _one_t(t)
    if beta2 == 0:
        return 0.0 if beta1 == 0 or t == 1 else math.inf
    k, a0, b0 = np.arange(t), averaging_weights(beta1, t)[0], averaging_weights(beta2, t)[0]
    with np.errstate(over="ignore"):  # (a_k − b_k)/√b_k without forming b_k, which underflows at great ages
        root_b0, root_beta2 = math.sqrt(b0), math.sqrt(beta2)
        distance = a0 / root_b0 * (beta1 / root_beta2) ** k - root_b0 * root_beta2**k
        return float(distance @ distance)


def extremal_gradients(beta1: float, beta2: float, t: int) -> np.ndarray:
    """t gradients, oldest first, that make |Δ_i|/α = C_i at every step i = 1 … t: g_i ∝ (β₂/β₁)^i.

    Scaled so that the newest and the oldest are each other's inverse; the scale does not matter to Adam.
    For β₁ = 0 only the newest gradient of the worst case is not zero, so it is extremal at step t alone.

    Raises:
        ValueError: the squares would leave the range of double precision; ask for fewer steps.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    t = _one_t(t)
    if beta1 == 0:
        return np.concatenate([np.zeros(t - 1), np.ones(1)])
    if beta2 == 0:
        raise ValueError("beta2 = 0 has no extremal gradients: the ratio is unbounded from step 2 on")
    log_growth = math.log(beta2 / beta1)
    exponents = np.arange(1, t + 1) - (t + 1) / 2
    if 2 * abs(log_growth * exponents[0]) > 700:  # exp(±708) is the range of a double
        longest = int(700 / abs(log_growth)) + 1
        raise ValueError(f"{t} steps of this growth overflow a squared double: ask for at most {longest}")
    return np.exp(log_growth * exponents)


def growth_ratio(growth, beta1: float, beta2: float, t=math.inf):
    """R(γ): |Δ_t|/α when every gradient is γ times the one before it (γ = 1: constant; inf: a spike).

    For γ ≤ β₂/β₁ it is also the exact bound for all gradients with |g_i| ≤ γ|g_{i−1}| (Theorem 3 of
    chapter 02), and γ = β₂/β₁ gives C_t. For larger γ the restriction does not bind: the bound is C_t.

    Args:
        growth: γ > 0, number or array, math.inf allowed.
        t: one step number, or math.inf for the limit, which needs γ² > β₂ (below it v̂ never forgets its
            largest, oldest gradients and there is no stationary ratio).
    """
    _check_betas(beta1=beta1, beta2=beta2)
    γ = np.asarray(growth, dtype=np.float64)
    if not np.all(γ > 0):
        raise ValueError("growth must be positive: it is the factor between one gradient and the next")
    t = float(_one_t(t, limit=True))
    if t == math.inf and not np.all(γ * γ > beta2):
        lowest = math.sqrt(beta2)
        raise ValueError(f"t = inf needs growth > sqrt(beta2) = {lowest:.6g}; give a finite t for less")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        m_hat = _geometric_sum(beta1 / γ, t) / _geometric_sum(beta1, t)
        v_hat = _geometric_sum(beta2 / γ**2, t) / _geometric_sum(beta2, t)
        return (m_hat / np.sqrt(v_hat))[()]


def spike_ratio(beta1: float, beta2: float, t):
    """|Δ_t|/α when g_t is the first gradient that is not zero. Its limit is the paper's (1−β₁)/√(1−β₂)."""
    _check_betas(beta1=beta1, beta2=beta2)
    t = _many_t(t)
    limit = (1 - beta1) / math.sqrt(1 - beta2)
    return (limit * np.sqrt(_fraction_of_window(beta2, t)) / _fraction_of_window(beta1, t))[()]


def spike_travel(beta1: float, beta2: float) -> float:
    """Total distance, in α, that one spike after a long silence moves a parameter if only zeros follow.

    (1−β₁)/√(1−β₂)/(1−β₁/√β₂), or inf if β₁² ≥ β₂: then the steps do not die out.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    if beta1 == 0:
        return 1 / math.sqrt(1 - beta2)
    if beta1**2 >= beta2:
        return math.inf
    return (1 - beta1) / math.sqrt(1 - beta2) / (1 - beta1 / math.sqrt(beta2))


def constant_after_zeros_ratio(beta1: float, beta2: float, n, zeros: float = math.inf):
    """|Δ|/α at the n-th of a run of equal gradients that follows `zeros` zero gradients ("waking up")."""
    _check_betas(beta1=beta1, beta2=beta2)
    n = _many_t(n)
    if not zeros >= 0:
        raise ValueError(f"zeros must not be negative, got {zeros}")
    m_hat = _fraction_of_window(beta1, n) / _fraction_of_window(beta1, n + zeros)
    v_hat = _fraction_of_window(beta2, n) / _fraction_of_window(beta2, n + zeros)
    return (m_hat / np.sqrt(v_hat))[()]


def first_step_above(level: float, beta1: float, beta2: float) -> int:
    """The first t with C_t > level.

    Raises:
        ValueError: C_t never exceeds `level` at these betas.
    """
    supremum = worst_ratio(beta1, beta2, math.inf)
    if not level < supremum:
        raise ValueError(f"C_t has the supremum {supremum:.6g} at these betas, which is not above {level}")
    above = 1
    while worst_ratio(beta1, beta2, above) <= level:  # C_t increases in t: double, then halve the interval
        above *= 2
        if above > 2**60:
            raise ValueError(f"{level} is too close to the supremum {supremum} to be told apart in doubles")
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if worst_ratio(beta1, beta2, middle) > level else (middle, above)
    return above


def noise_ratio(beta1: float, beta2: float) -> float:
    """Mean |Δ|/α when the gradients are pure noise, g ~ N(0, σ²) independent, long after the start.

    √(2/π)·√((1−β₁)/(1+β₁)) to leading order in 1−β₂, with the two next terms of expanding v̂^(−1/2):
    an approximation for β₂ near 1 (0.18302 against 0.18311 ± 0.00010 simulated at the defaults).
    """
    _check_betas(beta1=beta1, beta2=beta2)
    κ = (1 - beta2) * (1 - beta1**2) / (1 - beta1**2 * beta2)  # what m̂ and v̂ have in common
    second_order = 1 - κ / 2 + 0.75 * (1 - beta2) / (1 + beta2)
    return math.sqrt(2 / math.pi) * math.sqrt((1 - beta1) / (1 + beta1)) * second_order


def _fraction_of_window(beta: float, t):
    """1 − βᵗ, the fraction of an infinitely long window that t values fill, without cancellation near 0."""
    if beta == 0:
        return np.ones_like(np.asarray(t, dtype=np.float64))
    return -np.expm1(np.asarray(t, dtype=np.float64) * math.log(beta))


def _geometric_sum(x, t: float):
    """Σ_{k<t} xᵏ for x ≥ 0 (array) and t ≥ 1 or inf; inf where it diverges."""
    x = np.asarray(x, dtype=np.float64)
    log_x = np.log(x)
    ratio = np.where(x < 1, -np.expm1(t * log_x) / -np.expm1(log_x), np.expm1(t * log_x) / np.expm1(log_x))
    return np.where(x == 1, t, ratio)


def _log_geometric_sum(beta1: float, beta2: float, t):
    """log Σ_{k<t} ρᵏ with ρ = β₁²/β₂, in logarithms because ρᵗ overflows early where ρ > 1."""
    if beta1 == 0:
        return np.zeros_like(t)
    log_ρ = 2 * math.log(beta1) - math.log(beta2)
    if log_ρ == 0 or beta1 * beta1 == beta2:
        return np.log(t)
    if log_ρ < 0:
        return np.log(np.expm1(t * log_ρ) / math.expm1(log_ρ))
    return (t - 1) * log_ρ + np.log(np.expm1(-t * log_ρ) / math.expm1(-log_ρ))


def _check_betas(**betas: float) -> None:
    for name, β in betas.items():
        if not 0 <= β < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {β}")


def _many_t(t) -> np.ndarray:
    t = np.asarray(t, dtype=np.float64)
    if not np.all((t >= 1) & (t == np.floor(t))):
        raise ValueError("t counts steps: it must be 1, 2, 3, … or math.inf")
    return t


def _one_t(t, limit: bool = False):
    if np.ndim(t) != 0:
        raise ValueError("t must be one number here, not an array")
    if t == math.inf and not limit:
        raise ValueError("t must be finite here: there is one weight (or gradient) for each of the t steps")
    return t if t == math.inf else int(_many_t(t))
