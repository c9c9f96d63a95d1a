"""The step bound: the theorems of chapter 02 as assertions, attacked by search and heavy tails."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from adamlib.theory import step_bound as sb
from adamlib.theory.algorithm1 import algorithm1

DEFAULTS = (0.9, 0.999)
SOME_BETAS = [DEFAULTS, (0.9, 0.99), (0.9, 0.95), (0.95, 0.98), (0.9, 0.85), (0.9, 0.81), (0.5, 0.999), (0.9, 0.7)]
ROUNDING = 1 + 1e-12


def each_of(betas):
    return pytest.mark.parametrize("betas", betas, ids=str)


def exact_square(β1, β2, t):
    """C_t² in rational arithmetic, from its definition Σ a_k²/b_k."""
    β1, β2 = Fraction(β1), Fraction(β2)
    a = [(1 - β1) * β1**k / (1 - β1**t) for k in range(t)]
    b = [(1 - β2) * β2**k / (1 - β2**t) for k in range(t)]
    return float(sum(x * x / y for x, y in zip(a, b, strict=True)))


# --- the formula

@each_of(SOME_BETAS + [(0.0, 0.999), (0.3, 0.30000001), (1e-9, 0.5)])
def test_closed_form_and_rational_arithmetic_are_one_number(betas):
    for t in (1, 2, 3, 10, 40):
        assert sb.worst_ratio(*betas, t) ** 2 == pytest.approx(exact_square(*betas, t), rel=1e-13)


def test_weights_are_probabilities_and_reproduce_both_moments():
    grads = np.random.default_rng(0).standard_t(2, size=300)
    run = algorithm1(0.0, grads, betas=DEFAULTS)
    for t in (1, 2, 50, 300):
        newest_first = grads[:t][::-1]
        for β, values, moment in zip(DEFAULTS, (newest_first, newest_first**2), (run.m_hat, run.v_hat)):
            weights = sb.averaging_weights(β, t)
            assert weights.sum() == pytest.approx(1, rel=1e-13)
            assert weights @ values == pytest.approx(moment[t - 1], rel=1e-11)
    assert sb.averaging_weights(0.0, 3).tolist() == [1.0, 0.0, 0.0]


def test_step_ratios_are_the_steps_of_torch_and_0_while_a_weight_sleeps():
    grads, θ, steps = np.random.default_rng(1).standard_t(2, size=100), torch.zeros((), dtype=torch.float64), []
    opt = torch.optim.Adam([θ], lr=1.0, eps=0.0)
    for g in grads:
        before, θ.grad = θ.item(), torch.tensor(g)
        opt.step()
        steps.append(before - θ.item())
    assert_allclose(sb.step_ratios(grads, *DEFAULTS), steps, atol=1e-12)
    assert sb.step_ratios([0.0, 0.0, -3.0], *DEFAULTS)[:2].tolist() == [0.0, 0.0]


# --- theorem 1: the bound is exact

@each_of(SOME_BETAS)
def test_one_sequence_attains_the_bound_at_every_step(betas):
    """As long as it may be: to where the squares leave the range of doubles."""
    T = min(6708, int(700 / abs(math.log(betas[1] / betas[0]))) + 1)
    grads = sb.extremal_gradients(*betas, T)
    assert np.isfinite(grads**2).all() and (grads**2 > 0).all()
    assert_allclose(sb.step_ratios(grads, *betas), sb.worst_ratio(*betas, np.arange(1, T + 1)), rtol=1e-12)
    assert_allclose(grads[1:] / grads[:-1], betas[1] / betas[0], rtol=1e-11)


def test_the_extremal_sequence_of_rmsprop_is_a_spike_at_the_end():
    spike = sb.extremal_gradients(0.0, 0.99, 50)
    assert spike.tolist() == [0.0] * 49 + [1.0]
    assert sb.step_ratios(spike, 0.0, 0.99)[-1] == pytest.approx(sb.worst_ratio(0.0, 0.99, 50), rel=1e-13)


@each_of([*SOME_BETAS, (0.0, 0.9), (0.99, 0.99), (0.8, 0.8)])
def test_heavy_tailed_gradients_never_exceed_the_bound(betas):
    rng = np.random.default_rng(2)
    T, n = 120, 3000
    cauchy = rng.standard_cauchy((T, n))
    bursts = np.exp(4 * rng.normal(size=(T, n))) * (rng.random((T, n)) < 0.1)
    growing = np.exp(np.cumsum(rng.exponential(rng.exponential(0.1, n), (T, n)), axis=0))
    for grads in (cauchy, bursts, growing):
        largest = np.abs(sb.step_ratios(grads, *betas)).max(axis=1)
        excess = largest / sb.worst_ratio(*betas, np.arange(1, T + 1))
        assert excess.max() <= ROUNDING
        assert betas[0] != betas[1] or largest.max() <= ROUNDING
    assert excess.max() > 0.5 or betas[0] == 0  # growing gradients come near: the test has teeth


@each_of([DEFAULTS, (0.9, 0.99), (0.9, 0.85), (0.9, 0.7), (0.3, 0.999), (0.95, 0.95)])
@pytest.mark.parametrize("t", [2, 5, 20])
def test_adversarial_search_ends_at_the_bound_and_not_above(betas, t):
    """Maximise |m̂_t|/√v̂_t over all gradients by L-BFGS through the recursion itself."""
    β1, β2 = betas

    def ratio(g):
        m = v = torch.zeros((), dtype=torch.float64)
        for x in g:
            m, v = β1 * m + (1 - β1) * x, β2 * v + (1 - β2) * x * x
        return m / (1 - β1**t) / (v / (1 - β2**t)).sqrt()

    generator = torch.Generator().manual_seed(t)
    g = (1 + 0.3 * torch.randn(t, generator=generator, dtype=torch.float64)).requires_grad_()
    tight = {"tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    search = torch.optim.LBFGS([g], max_iter=1000, history_size=30, line_search_fn="strong_wolfe", **tight)

    def closure():
        search.zero_grad()
        loss = -ratio(g)
        loss.backward()
        return loss

    search.step(closure)
    bound = sb.worst_ratio(*betas, t)
    assert bound * (1 - 1e-4) <= ratio(g).item() <= bound * ROUNDING


@pytest.mark.parametrize("ε", [1e-3, 0.1, 10.0])
def test_the_bound_with_epsilon(ε):
    """|Δ_t| ≤ α·C_t·G/(G + ε) with G the largest gradient so far."""
    worst = np.tile(sb.extremal_gradients(*DEFAULTS, 100)[:, None], 500)
    grads = np.vstack([np.random.default_rng(3).standard_t(2, size=(80, 500)), worst])
    delta = np.abs(algorithm1(np.zeros(500), grads, 1.0, DEFAULTS, ε).delta)
    G = np.maximum.accumulate(np.abs(grads), axis=0)
    limit = sb.worst_ratio(*DEFAULTS, np.arange(1, 181))[:, None] * G / (G + ε)
    assert (delta <= limit * ROUNDING).all()


def cosine(gradients, β1, β2):
    """Of the angle between √b·h and a/√b, the two vectors of Cauchy–Schwarz, from their definition."""
    t = len(gradients)
    a, b = ((1 - β) * β ** np.arange(t) / (1 - β**t) for β in (β1, β2))
    x, y = a / np.sqrt(b), np.sqrt(b) * gradients[::-1]
    return abs(x @ y) / math.sqrt((x @ x) * (y @ y))


@each_of([DEFAULTS, (0.9, 0.95), (0.9, 0.9), (0.9, 0.85), (0.9, 0.81), (0.9, 0.7)])
def test_the_angle_of_the_optimizers_state_is_the_angle_between_the_vectors(betas):
    cauchy = np.random.default_rng(8).standard_cauchy(60)
    grads = np.stack([cauchy, np.ones(60), sb.extremal_gradients(*betas, 60), np.zeros(60)])
    θ = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.Adam([θ], betas=betas)
    for g in grads.T:
        θ.grad = torch.tensor(g)
        opt.step()
    state = opt.state[θ]
    angle = sb.angle_to_worst(state["exp_avg"], state["exp_avg_sq"], state["step"], *betas)
    assert np.cos(np.radians(angle[:3])) == pytest.approx([cosine(g, *betas) for g in grads[:3]], rel=1e-11)
    assert angle[2] < 1e-4 and angle[3] == 90.0
    assert sb.angle_to_worst(0.05, 0.0025, 1, 0.95, 0.9975) < 1e-4  # the first step is as long as it can be


# --- theorem 2: it increases, to a supremum

@each_of(SOME_BETAS + [(0.0, 0.999)])
def test_strictly_increasing_from_one(betas):
    C = sb.worst_ratio(*betas, np.arange(1, 400))
    growth = np.diff(C)
    assert C[0] == 1.0 and (growth >= 0).all() and (growth[: 100 if betas[1] > betas[0] else 20] > 0).all()


@pytest.mark.parametrize("betas, supremum", [
    ((0.9, 0.999), 7.270292),
    ((0.9, 0.99), math.sqrt(5.5)),
    ((0.9, 0.95), 1.164965),
    ((0.95, 0.98), 1.2572),
    ((0.9, 0.85), 1.1902),
    ((0.9, 0.9999), 22.9465),
    ((0.0, 0.999), 31.6228),
    ((0.9, 0.9), 1.0),
    ((0.9, 0.81), math.inf),
    ((0.9, 0.7), math.inf),
])
def test_supremum(betas, supremum):
    C, (β1, β2) = sb.worst_ratio(*betas, math.inf), betas
    assert C == pytest.approx(supremum, rel=5e-5)
    if math.isfinite(supremum):
        assert C == pytest.approx(math.sqrt(1 + (β1 - β2) ** 2 / ((1 - β2) * (β2 - β1**2))), rel=1e-12)
        assert sb.worst_ratio(*betas, 10**6) == pytest.approx(C, rel=1e-12)


GRID = [(β1, β2) for β1 in np.round(np.arange(0, 1, 0.04), 2) for β2 in np.round(np.arange(0.04, 1, 0.04), 2)]


def test_alpha_is_a_bound_for_equal_betas_and_where_the_papers_bound_holds():
    """(1−β₁)/√(1−β₂) or 1, by the paper's cases: right for β₁ = 0 and β₁ = β₂, else exceeded by t = 600."""
    for β1, β2 in GRID:
        assert (sb.worst_ratio(β1, β2, 2) > 1) == (β1 != β2)
        paper = max((1 - β1) / math.sqrt(1 - β2), 1.0)
        assert (sb.worst_ratio(β1, β2, 600) <= paper * (1 + 1e-9)) == (β1 in (0.0, β2)), (β1, β2)


# --- theorem 3 and its corollary: gradients whose growth is limited

def test_growth_curve():
    γ = [1, 1.0001, 1.001, 1.01, 1.05, 1.11, 1.2, 2, 10, math.inf]
    R = [1, 1.0944, 1.7152, 4.1759, 6.7823, 7.2703, 7.0000, 4.9801, 3.4576, 3.1623]
    assert_allclose(sb.growth_ratio(γ, *DEFAULTS), R, atol=5e-5)
    for γ in (0.97, 1.0, 1.03, 1.11, 1.5):
        run = sb.step_ratios(γ ** np.arange(1.0, 601), *DEFAULTS)
        for t in (1, 2, 7, 100, 600):
            assert run[t - 1] == pytest.approx(sb.growth_ratio(γ, *DEFAULTS, t), rel=1e-11)
    worst, spike = sb.worst_ratio(*DEFAULTS, 50), sb.spike_ratio(*DEFAULTS, 50)
    assert sb.growth_ratio(0.999 / 0.9, *DEFAULTS, 50) == pytest.approx(worst, rel=1e-12)
    assert sb.growth_ratio(math.inf, *DEFAULTS, 50) == pytest.approx(spike, rel=1e-13)
    assert sb.growth_ratio(0.9, 0.95, 0.8) == math.inf  # only m̂ remembers the oldest gradients


@pytest.mark.parametrize("γ", [0.98, 1.0, 1.001, 1.02, 1.1])
def test_growth_limited_gradients_stay_under_the_curve(γ):
    rng = np.random.default_rng(4)
    T, n = 200, 4000
    shortfall = rng.exponential(rng.choice([1e-3, 1e-2, 0.3], n), (T, n))
    shortfall *= rng.random((T, n)) < rng.random(n)
    grads = np.exp(np.cumsum(math.log(γ) - shortfall, axis=0)) * np.where(rng.random((T, n)) < 0.02, -1, 1)
    limit = np.array([sb.growth_ratio(γ, *DEFAULTS, t) for t in range(1, T + 1)])
    assert (np.abs(sb.step_ratios(grads, *DEFAULTS)).max(axis=1) / limit).max() <= ROUNDING


@pytest.mark.parametrize("betas, order", [(DEFAULTS, -1), ((0.5, 0.6), -1), ((0.99, 0.9), 1), ((0.9, 0.9), 1)])
def test_monotone_gradients_keep_the_papers_promise(betas, order):
    """β₁ ≤ β₂ and |g| never increasing ⇒ |Δ| ≤ α; β₁ ≥ β₂ and |g| never decreasing ⇒ |Δ| ≤ α."""
    rng = np.random.default_rng(5)
    sizes = np.sort(np.abs(rng.standard_cauchy((100, 5000))), axis=0)[::order]
    for signs in (1, rng.choice([-1, 1], sizes.shape)):
        assert np.abs(sb.step_ratios(sizes * signs, *betas)).max() <= ROUNDING
    if betas[0] != betas[1]:  # the other way round it fails: the condition is needed
        assert np.abs(sb.step_ratios(sizes[::-1], *betas)).max() > 1.02


# --- spikes, waking up, the options

@pytest.mark.parametrize("t", [1, 2, 12, 106, 1000])
def test_single_spike(t):
    ratio = sb.step_ratios(np.append(np.zeros(t - 1), -5), *DEFAULTS)[-1]
    assert ratio == pytest.approx(-sb.spike_ratio(*DEFAULTS, t), rel=1e-12)


def test_waking_up():
    """20 000 zeros, then ones: the peak 6.5685 comes at the 12th one."""
    woken, n = sb.step_ratios(np.repeat([0.0, 1.0], [20_000, 200]), *DEFAULTS)[20_000:], np.arange(1, 201)
    assert woken.argmax() + 1 == 12 and woken.max() == pytest.approx(6.5685, abs=5e-5)
    assert_allclose(woken, sb.constant_after_zeros_ratio(*DEFAULTS, n, 20_000), rtol=1e-10)
    assert_allclose(woken, sb.constant_after_zeros_ratio(*DEFAULTS, n), rtol=1e-8)
    assert_allclose(sb.constant_after_zeros_ratio(*DEFAULTS, n, 0), 1.0, rtol=1e-13)


def test_without_bias_correction():
    bound = sb.worst_ratio(*DEFAULTS, np.arange(1, 400), bias_correction=False)
    assert bound[0] == pytest.approx(math.sqrt(10)) and (np.diff(bound[:100]) > 0).all()
    run = algorithm1(0.0, sb.extremal_gradients(*DEFAULTS, 399))
    assert_allclose(run.m / np.sqrt(run.v), bound, rtol=1e-11)
    for betas, limit in ((DEFAULTS, sb.worst_ratio(*DEFAULTS, math.inf)), ((0.9, 0.9), 1.0)):
        assert sb.worst_ratio(*betas, math.inf, bias_correction=False) == pytest.approx(limit, rel=1e-13)


def test_amsgrad_has_the_same_supremum_and_tames_the_unbounded_case():
    run = algorithm1(0.0, sb.extremal_gradients(*DEFAULTS, 500), 1.0, DEFAULTS, 0.0, amsgrad=True)
    assert_allclose(run.delta, sb.worst_ratio(*DEFAULTS, np.arange(1, 501)), rtol=1e-11)
    cauchy, t = np.random.default_rng(6).standard_cauchy((60, 2000)), np.arange(1, 61)
    wild = algorithm1(np.zeros(2000), cauchy, 1.0, (0.9, 0.7), 0.0, amsgrad=True)
    assert (np.abs(wild.delta).max(axis=1) <= np.sqrt((1 - 0.7**t) / (1 - 0.7)) * ROUNDING).all()


def test_decoupled_decay_keeps_the_parameter_within_its_limit():
    """|θ_t| ≤ max(|θ_0|, C_∞/λ) for αλ ≤ 1, nearly reached by gradients that never stop growing."""
    C, λ, α = sb.worst_ratio(*DEFAULTS, math.inf), 1.0, 5e-3
    grads = -sb.extremal_gradients(*DEFAULTS, 6000)
    run = algorithm1(0.0, grads, α, DEFAULTS, 0.0, weight_decay=λ, decoupled_weight_decay=True)
    assert 0.98 * C / λ < np.abs(run.theta).max() <= C / λ


# --- corners and errors

def test_corners():
    assert sb.worst_ratio(0.0, 0.0, math.inf) == sb.growth_ratio(math.inf, 0.0, 0.0) == 1.0
    assert sb.worst_ratio(0.5, 0.0, [1, 2]).tolist() == [1.0, math.inf]
    assert sb.worst_ratio(0.9, 0.0, [1, 2], bias_correction=False).tolist() == [1 - 0.9, math.inf]
    assert sb.step_ratios([1.0, 0.0], 0.9, 0.0).tolist() == [1.0, math.inf]
    assert (sb.worst_ratio(0.999999, 0.999999, np.arange(1, 1000)) == 1.0).all()
    assert (sb.worst_ratio(0.9, 0.9 + 1e-12, np.arange(1, 1000)) >= 1.0).all()
    assert sb.worst_ratio(*DEFAULTS, 10**12) == pytest.approx(7.270292, abs=5e-7)
    assert isinstance(sb.worst_ratio(*DEFAULTS, 7), float)
    # how fast it grows where it is unbounded
    assert sb.worst_ratio(0.9, 0.81, 10**8) == pytest.approx(math.sqrt(1e8 * 0.1 / 1.9), rel=1e-6)
    assert sb.worst_ratio(0.9, 0.7, 10**9) == math.inf
    # so close to one, 1 − βᵗ as it stands loses most of its digits
    near_one = 0.99999, 0.9999999999, 2
    assert sb.worst_ratio(*near_one) ** 2 == pytest.approx(exact_square(*near_one), rel=1e-13)
    # 0.7² is one rounding below 0.49: β₁² = β₂ all the same, and the terms of the sum are equal
    assert sb.worst_ratio(0.7, 0.49, math.inf) == math.inf
    assert sb.worst_ratio(0.7, 0.49, 10**6) == pytest.approx(math.sqrt(1e6 * 0.3 / 1.7), rel=1e-6)
    # γ = ½: the powers leave the range of a double, the ratio does not
    fades = np.log([sb.growth_ratio(0.5, *DEFAULTS, t) for t in (1000, 2000)])
    assert fades[1] - fades[0] == pytest.approx(1000 * math.log(0.9 / math.sqrt(0.999)), rel=2e-3)


@pytest.mark.parametrize("call, message", [
    (lambda: sb.worst_ratio(1.0, 0.999, 1), r"beta1 must lie in \[0, 1\), got 1.0"),
    (lambda: sb.worst_ratio(0.9, -0.1, 1), r"beta2 must lie in \[0, 1\)"),
    (lambda: sb.worst_ratio(0.9, math.nan, 1), r"beta2 must lie in \[0, 1\)"),
    (lambda: sb.worst_ratio(0.9, 0.999, 0), "t counts steps"),
    (lambda: sb.worst_ratio(0.9, 0.999, [1, 2.5]), "t counts steps"),
    (lambda: sb.averaging_weights(0.9, math.inf), "t must be finite here"),
    (lambda: sb.extremal_gradients(0.9, 0.999, [1, 2]), "t must be one number"),
    (lambda: sb.angle_to_worst(1.0, 1.0, 0, 0.9, 0.999), "t counts steps"),
    (lambda: sb.extremal_gradients(0.9, 0.999, 100_000), "overflow a squared double: .* at most 6708"),
    (lambda: sb.extremal_gradients(0.9, 0.0, 3), "no extremal gradients"),
    (lambda: sb.growth_ratio(0.0, 0.9, 0.999), "growth must be positive"),
    (lambda: sb.growth_ratio([1.0, 0.9], 0.9, 0.999), r"needs growth > sqrt\(beta2\) = 0.9995"),
    (lambda: sb.constant_after_zeros_ratio(0.9, 0.999, 1, -1), "zeros must not be negative"),
    (lambda: sb.step_ratios(3.0, 0.9, 0.999), "at least one gradient"),
])
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
