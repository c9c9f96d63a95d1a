"""How far can one step of Adam go? The exact answer, in NumPy.

Adam's step is Δ_t = α·m̂_t/√v̂_t (ε = 0), and both moments are averages of the same gradients. With the age
k = 0, 1, …, t−1 counted from the newest gradient, h_k = g_{t−k}, and the weights

    a_k = (1−β₁)β₁ᵏ/(1−β₁ᵗ)        b_k = (1−β₂)β₂ᵏ/(1−β₂ᵗ)        (each sums to one)

it is m̂_t = Σ a_k h_k and v̂_t = Σ b_k h_k². Cauchy–Schwarz then gives the largest step there can be,

    |Δ_t|/α ≤ C_t,     C_t² = Σ a_k²/b_k = 1 + χ²(a‖b)
                            = [(1−β₁)/(1−β₁ᵗ)]² · (1−β₂ᵗ)/(1−β₂) · Σ_{k<t} ρᵏ,      ρ = β₁²/β₂,

reached at every t at once by the gradients g_i = (β₂/β₁)^i. Chapter 02 and its appendix B prove this and what follows:
C_t = 1 for all t if β₁ = β₂, else C_t increases strictly in t; its supremum is finite iff ρ < 1,

    C_∞² = 1 + (β₁−β₂)²/((1−β₂)(β₂−β₁²)).

Kingma & Ba (arXiv 1412.6980v9, section 2.1) give (1−β₁)/√(1−β₂) or 1 instead: the step after a single spike.

All ratios here are |Δ|/α, pure numbers. `t` may be a number or an array, and math.inf asks for the limit.

>>> float(worst_ratio(0.9, 0.999, 1)), round(float(worst_ratio(0.9, 0.999, math.inf)), 4)
(1.0, 7.2703)
"""

import math

import numpy as np

from adamlib.theory.algorithm1 import algorithm1

__all__ = [
    "angle_to_worst",
    "averaging_weights",
    "constant_after_zeros_ratio",
    "extremal_gradients",
    "growth_ratio",
    "spike_ratio",
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

    As long as all gradients were zero the step is taken to be 0 (it would be 0/0). Where v̂ has forgotten what m̂
    still remembers (β₂ = 0, or squares that leave the range of a double) the ratio is infinite.
    """
    gradients = np.asarray(gradients, dtype=np.float64)
    if gradients.ndim == 0 or len(gradients) == 0:
        raise ValueError("gradients must hold at least one gradient: shape (T,) or (T, n)")
    with np.errstate(divide="ignore", invalid="ignore"):
        run = algorithm1(np.zeros(gradients.shape[1:]), gradients, lr=1.0, betas=(beta1, beta2), eps=0.0)
    return np.where(run.m_hat == 0, 0.0, run.delta)


def worst_ratio(beta1: float, beta2: float, t, *, bias_correction: bool = True):
    """C_t, the largest |Δ_t|/α over all gradients, for t = 1, 2, … or math.inf (the supremum over t).

    Without bias correction (raw m and v in the same formula) the bound is
    U_t = (1−β₁)/√(1−β₂)·√Σ_{k<t} ρᵏ: the same limit, but at the first step the whole first factor.

    Returns inf where the supremum is infinite (β₁² ≥ β₂, t = inf) or above the largest double.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    t = _many_t(t)
    if beta2 == 0:  # v̂ = g_t² alone: any memory in m̂ makes the ratio unbounded from the second step on
        first = 1.0 if bias_correction else 1 - beta1
        return np.where(t > 1, 1.0 if beta1 == 0 else math.inf, first)[()]
    if beta1 == beta2 and bias_correction:
        return np.ones_like(t)[()]

    log_square = 2 * math.log1p(-beta1) - math.log1p(-beta2) + _log_geometric_sum(beta1 * beta1, math.log(beta2), t)
    if bias_correction:
        log_square += np.log(_fraction_of_window(beta2, t)) - 2 * np.log(_fraction_of_window(beta1, t))
    with np.errstate(over="ignore"):
        ratio = np.exp(log_square / 2)
    return (np.where(t == 1, 1.0, np.maximum(ratio, 1.0)) if bias_correction else ratio)[()]


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


def angle_to_worst(m, v, t, beta1: float, beta2: float):
    """How near each weight is to its worst case, in degrees: cos(angle) = (|Δ_t|/α)/C_t with ε = 0.

    Cauchy–Schwarz says that a cosine is at most 1. Here it is the cosine of the angle between the weight's gradients,
    h_k·√b_k, and the extremal ones, a_k/√b_k: at 0° the step has length C_t·α, at 90° there is no step. The gradients
    themselves are not needed, because m and v know enough of them.

    Args:
        m, v, t: the moments as the optimizer holds them, not bias-corrected, and the number of steps: for torch
            `state["exp_avg"]`, `state["exp_avg_sq"]` and `state["step"]`, on the CPU. m and v of one shape.

    A weight whose gradients have all been zero takes no step: 90°.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    t = float(_one_t(float(t)))
    m_hat = np.abs(np.asarray(m, dtype=np.float64)) / _fraction_of_window(beta1, t)
    v_hat = np.asarray(v, dtype=np.float64) / _fraction_of_window(beta2, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = m_hat / np.sqrt(v_hat) / worst_ratio(beta1, beta2, t)
    return np.degrees(np.arccos(np.where(m_hat == 0, 0.0, np.minimum(cosine, 1.0))))[()]


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
    log_γ = np.log(γ)
    log_m_hat = _log_geometric_sum(beta1, log_γ, t) - _log_geometric_sum(beta1, 0.0, t)
    log_v_hat = _log_geometric_sum(beta2, 2 * log_γ, t) - _log_geometric_sum(beta2, 0.0, t)
    with np.errstate(over="ignore"):
        return np.exp(log_m_hat - log_v_hat / 2)[()]


def spike_ratio(beta1: float, beta2: float, t):
    """|Δ_t|/α when g_t is the first gradient that is not zero. Its limit is the paper's (1−β₁)/√(1−β₂)."""
    _check_betas(beta1=beta1, beta2=beta2)
    t = _many_t(t)
    limit = (1 - beta1) / math.sqrt(1 - beta2)
    return (limit * np.sqrt(_fraction_of_window(beta2, t)) / _fraction_of_window(beta1, t))[()]


def constant_after_zeros_ratio(beta1: float, beta2: float, n, zeros: float = math.inf):
    """|Δ|/α at the n-th of a run of equal gradients that follows `zeros` zero gradients ("waking up")."""
    _check_betas(beta1=beta1, beta2=beta2)
    n = _many_t(n)
    if not zeros >= 0:
        raise ValueError(f"zeros must not be negative, got {zeros}")
    m_hat = _fraction_of_window(beta1, n) / _fraction_of_window(beta1, n + zeros)
    v_hat = _fraction_of_window(beta2, n) / _fraction_of_window(beta2, n + zeros)
    return (m_hat / np.sqrt(v_hat))[()]


def _fraction_of_window(beta: float, t):
    """1 − βᵗ, the fraction of an infinitely long window that t values fill, without cancellation near 0."""
    if beta == 0:
        return np.ones_like(np.asarray(t, dtype=np.float64))
    return -np.expm1(np.asarray(t, dtype=np.float64) * math.log(beta))


def _log_geometric_sum(beta: float, log_divisor, t):
    """log Σ_{k<t} (β/divisor)ᵏ; in logarithms, because the powers overflow early where the ratio is above 1.

    A ratio that differs from 1 by less than a few roundings counts as 1: then every term is 1 and the sum is t.
    """
    if beta == 0:
        return np.zeros(np.broadcast_shapes(np.shape(log_divisor), np.shape(t)))
    log_x = np.asarray(math.log(beta) - log_divisor)
    log_x = np.where(np.abs(log_x) < 1e-14, 0.0, log_x)
    away = np.where(log_x == 0, -1.0, -np.abs(log_x))  # below 0 from here on, so that nothing overflows
    with np.errstate(invalid="ignore", divide="ignore"):
        shrinking = np.log(np.expm1(t * away) / np.expm1(away))
        return np.where(log_x == 0, np.log(t), shrinking + np.where(log_x > 0, (t - 1) * log_x, 0.0))


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
