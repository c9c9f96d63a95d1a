"""The checks of chapter 02 accept the right answers and catch the plausible wrong ones."""

import itertools
import math

import numpy as np
import pytest
import torch
from exercise_reports import caught

from course.exercises import ch02_step_bound as check
from adamlib.theory.step_bound import spike_ratio, worst_ratio


# ---------------------------------------- zeros_to_exceed


def peak(zeros, beta1, beta2, count=300, corrected=True, root=0.5):
    """The largest step of a constant gradient of 1 after `zeros` zeros, from the recursion."""
    m = v = largest = 0.0
    for t in range(zeros + 1, zeros + count + 1):
        m, v = beta1 * m + (1 - beta1), beta2 * v + (1 - beta2)
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
        largest = max(largest, m / c1 / (v / c2) ** root)
    return largest


def search(level, test):
    return next(z for z in range(5000) if test(z) > level)


def test_zeros_to_exceed_right():
    assert check.zeros_to_exceed(lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2)))


WRONG_ZEROS = {
    "one too few": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2)) - 1,
    "counts the first gradient too": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2)) + 1,
    "only the first step after": lambda level, β1, β2: search(level, lambda z: spike_ratio(β1, β2, z + 1)),
    "stops after five steps": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2, 5)),
    "the twelfth step only": lambda level, β1, β2: search(
        level, lambda z: peak(z, β1, β2, 12) if peak(z, β1, β2, 12) > peak(z, β1, β2, 11) else 0
    ),
    "root forgotten": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2, root=1.0)),
    "no bias correction": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2, corrected=False)),
    "betas at the defaults": lambda level, β1, β2: search(level, lambda z: peak(z, 0.9, 0.999)),
    "the bound, not the peak": lambda level, β1, β2: search(level, lambda z: worst_ratio(β1, β2, z + 1)),
    "the number of the text": lambda level, β1, β2: 20_000,
    "the number at the defaults": lambda level, β1, β2: 252 if level > 3 else 85,
    "a float that is not whole": lambda level, β1, β2: search(level, lambda z: peak(z, β1, β2)) + 0.5,
}


@pytest.mark.parametrize("name", WRONG_ZEROS)
def test_zeros_to_exceed_wrong(name):
    caught(check.zeros_to_exceed(WRONG_ZEROS[name]))


# ---------------------------------------- worst_wake_up


def test_worst_wake_up_right():
    assert check.worst_wake_up(lambda β1, β2, n: [(β2 / β1) ** i for i in range(n)])
    assert check.worst_wake_up(lambda β1, β2, n: -5 * (β2 / β1) ** torch.arange(n))
    assert check.worst_wake_up(lambda β1, β2, n: (β1 / β2) ** np.arange(n)[::-1])


WRONG_WAKES = {
    "constant": lambda β1, β2, n: np.ones(n),
    "a spike at the end": lambda β1, β2, n: np.eye(n)[-1],
    "a spike at the start": lambda β1, β2, n: np.eye(n)[0],
    "newest first": lambda β1, β2, n: (β1 / β2) ** np.arange(n),
    "the weights of m": lambda β1, β2, n: β1 ** np.arange(n)[::-1],
    "half the growth": lambda β1, β2, n: math.sqrt(β2 / β1) ** np.arange(n),
    "twice the growth": lambda β1, β2, n: (β2 / β1) ** (2 * np.arange(n)),
    "the growth of the defaults": lambda β1, β2, n: 1.11 ** np.arange(n),
    "one too many": lambda β1, β2, n: (β2 / β1) ** np.arange(n + 1),
    "with the silence": lambda β1, β2, n: np.r_[np.zeros(100), (β2 / β1) ** np.arange(n)],
    "all zero": lambda β1, β2, n: np.zeros(n),
    "nan": lambda β1, β2, n: np.full(n, np.nan),
    "one number": lambda β1, β2, n: (β2 / β1) ** n,
    "text": lambda β1, β2, n: "growing",
}


@pytest.mark.parametrize("name", WRONG_WAKES)
def test_worst_wake_up_wrong(name):
    caught(check.worst_wake_up(WRONG_WAKES[name]))


# ---------------------------------------- worst_without_correction


def worst(β1, β2, t, a=None, b=None):
    k = np.arange(t)
    a = (1 - β1) * β1**k if a is None else a
    b = (1 - β2) * β2**k if b is None else b
    return math.sqrt((a**2 / b).sum())


def geometric(ratio, t):
    return t if ratio == 1 else (1 - ratio**t) / (1 - ratio)


def closed_form(β1, β2, t):
    return (1 - β1) / math.sqrt(1 - β2) * math.sqrt(geometric(β1 * β1 / β2, t))


def careless_form(β1, β2, t):
    ρ = round(β1 * β1 / β2, 12)
    return (1 - β1) / math.sqrt(1 - β2) * math.sqrt((1 - ρ**t) / (1 - ρ))


def test_worst_without_correction_right():
    assert check.worst_without_correction(worst)
    assert check.worst_without_correction(closed_form)


WRONG_BOUNDS = {
    "with the correction": worst_ratio,
    "only m corrected": lambda β1, β2, t: worst(β1, β2, t) / (1 - β1**t),
    "only v corrected": lambda β1, β2, t: worst(β1, β2, t) * math.sqrt(1 - β2**t),
    "the square": lambda β1, β2, t: worst(β1, β2, t) ** 2,
    "one term too many": lambda β1, β2, t: worst(β1, β2, t + 1),
    "one term too few": lambda β1, β2, t: worst(β1, β2, t - 1),
    "a over b, not a squared": lambda β1, β2, t: math.sqrt(geometric(β1 / β2, t) * (1 - β1) / (1 - β2)),
    "the limit at every t": lambda β1, β2, t: worst_ratio(β1, β2, math.inf, bias_correction=False),
    "the paper's number": lambda β1, β2, t: (1 - β1) / math.sqrt(1 - β2),
    "the triangle inequality": lambda β1, β2, t: worst(β1, β2, 1) * geometric(β1 / math.sqrt(β2), t),
    "closed form that divides by zero": careless_form,
    "one for equal betas": lambda β1, β2, t: 1.0 if β1 == β2 else worst(β1, β2, t),
}


@pytest.mark.parametrize("name", WRONG_BOUNDS)
def test_worst_without_correction_wrong(name):
    caught(check.worst_without_correction(WRONG_BOUNDS[name]))


def test_a_closed_form_that_divides_by_zero_is_told_where():
    report = check.worst_without_correction(lambda *betas_t: 1 / 0 if betas_t[1] == 0.81 else closed_form(*betas_t))
    assert not report and "worst_without_correction(0.9, 0.81, 30)" in repr(report) and "β1² = β2" in repr(report)


# ---------------------------------------- first_response


def response(β1, β2, δ=1e-6):
    def ratio(γ):
        return (1 - β1) / (1 - β1 / γ) * math.sqrt((1 - β2 / γ**2) / (1 - β2))

    return (ratio(1 + δ) - ratio(1 - δ)) / (2 * δ)


def test_first_response_right():
    assert check.first_response(response)
    assert check.first_response(lambda β1, β2: (β2 - β1) / ((1 - β1) * (1 - β2)))
    assert check.first_response(lambda β1, β2: 1 / (1 - β2) - 1 / (1 - β1))


WRONG_RESPONSES = {
    "half of the long window": lambda β1, β2: β2 / (1 - β2) / 2 - β1 / (1 - β1),
    "twice the long window": lambda β1, β2: 2 * β2 / (1 - β2) - β1 / (1 - β1),
    "the other sign": lambda β1, β2: β1 / (1 - β1) - β2 / (1 - β2),
    "the long window alone": lambda β1, β2: β2 / (1 - β2),
    "the absolute value": lambda β1, β2: abs(β2 / (1 - β2) - β1 / (1 - β1)),
    "the sum": lambda β1, β2: β2 / (1 - β2) + β1 / (1 - β1),
    "the number at the defaults": lambda β1, β2: 990.0,
    "too coarse a difference": lambda β1, β2: response(β1, β2, δ=1e-2 if β2 > 0.99 else 1e-3),
    "R itself": lambda β1, β2: 1.0,
}


@pytest.mark.parametrize("name", WRONG_RESPONSES)
def test_first_response_wrong(name):
    caught(check.first_response(WRONG_RESPONSES[name]))


# ---------------------------------------- runaway_loss


def test_runaway_loss_right():
    for k in (11.0, 14.354, 18.0):
        report = check.runaway_loss(lambda x, k=k: -torch.exp(k * x) / k)
        assert report and "exceeds 7α at step" in repr(report)


def counting():
    calls = itertools.count()
    return lambda x: x * 1.11 ** (next(calls) / 10)


WRONG_LOSSES = {
    "downhill runs flat": lambda x: torch.exp(-14 * x),
    "a parabola upside down": lambda x: -((x + 1) ** 2),
    "a high power": lambda x: -((1 + x) ** 8),
    "grows too slowly": lambda x: -torch.exp(x),
    "grows too fast": lambda x: -torch.exp(1000 * x),
    "much too fast at once": lambda x: -torch.exp(x * 1e6),
    "a constant slope": lambda x: -x,
    "a flat start": lambda x: -(x**4),
    "counts its calls": counting(),
    "a float": lambda x: -math.exp(14.354 * x.item()),
    "cut from the graph": lambda x: -torch.exp(14.354 * x.detach()),
    "not a function of x": lambda x: torch.ones((), requires_grad=True) * 2,
    "two numbers": lambda x: torch.stack([x, x]),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_runaway_loss_wrong(name):
    caught(check.runaway_loss(WRONG_LOSSES[name]))
