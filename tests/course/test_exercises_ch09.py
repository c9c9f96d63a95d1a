"""The checks of chapter 09 accept right answers and catch plausible wrong ones."""

import math

import numpy as np
import pytest
import torch
from exercise_reports import caught

from course.exercises import ch09_errata as check
from adamlib.theory.algorithm1 import algorithm1


# ---------------------------------------- epsilon_hat


def test_epsilon_hat_right():
    assert check.epsilon_hat(lambda ε, β2, t: ε * math.sqrt(1 - β2**t))
    assert check.epsilon_hat(lambda ε, β2, t: torch.tensor(1 - β2**t, dtype=torch.float64) ** 0.5 * ε)


def test_the_right_epsilon_hat_gives_the_steps_of_algorithm_1():
    g, β1, β2, ε = np.random.default_rng(0).normal(0, 1e-3, 50), 0.8, 0.97, 1e-3
    want = algorithm1(0.0, g, 1.0, (β1, β2), ε).delta
    m = v = 0.0
    for t in range(1, 51):
        m, v = β1 * m + (1 - β1) * g[t - 1], β2 * v + (1 - β2) * g[t - 1] ** 2
        root = math.sqrt(1 - β2**t)
        assert root / (1 - β1**t) * m / (math.sqrt(v) + ε * root) == pytest.approx(want[t - 1], rel=1e-12)


WRONG_EPSILONS = {
    "without the root": lambda ε, β2, t: (1 - β2**t) * ε,
    "constant": lambda ε, β2, t: ε,
    "of the first step": lambda ε, β2, t: ε * math.sqrt(1 - β2),
    "the other way round": lambda ε, β2, t: ε / math.sqrt(1 - β2**t),
    "one step late": lambda ε, β2, t: ε * math.sqrt(1 - β2 ** (t - 1)),
    "the root of epsilon too": lambda ε, β2, t: math.sqrt(ε * (1 - β2**t)),
    "the default beta": lambda ε, β2, t: ε * math.sqrt(1 - 0.999**t),
    "a list": lambda ε, β2, t: [ε],
    "text": lambda ε, β2, t: "√(1−β2ᵗ)ε",
}


@pytest.mark.parametrize("name", WRONG_EPSILONS)
def test_epsilon_hat_wrong(name):
    caught(check.epsilon_hat(WRONG_EPSILONS[name]))


# ---------------------------------------- frozen_clock


def by_recursion(β1, β2, t):
    m = v = 0.0
    for _ in range(t):
        m, v = β1 * m + (1 - β1), β2 * v + (1 - β2)
    return m / (1 - β1) / math.sqrt(v / (1 - β2))


def closed(β1, β2, t):
    return (1 - β1**t) / (1 - β1) / math.sqrt((1 - β2**t) / (1 - β2))


def test_frozen_clock_right():
    assert check.frozen_clock(by_recursion)
    assert check.frozen_clock(closed)


WRONG_CLOCKS = {
    "a clock that runs": lambda β1, β2, t: 1.0,
    "no correction": lambda β1, β2, t: (1 - β1**t) / math.sqrt(1 - β2**t),
    "only m": lambda β1, β2, t: (1 - β1**t) / (1 - β1) / math.sqrt(1 - β2**t),
    "only v": lambda β1, β2, t: (1 - β1**t) / math.sqrt((1 - β2**t) / (1 - β2)),
    "no root": lambda β1, β2, t: (1 - β1**t) / (1 - β1) / ((1 - β2**t) / (1 - β2)),
    "the limit": lambda β1, β2, t: math.sqrt(1 - β2) / (1 - β1),
    "one step late": lambda β1, β2, t: closed(β1, β2, t + 1),
    "the defaults": lambda β1, β2, t: closed(0.9, 0.999, t),
    "upside down": lambda β1, β2, t: 1 / closed(β1, β2, t),
    "nan": lambda β1, β2, t: math.nan,
}


@pytest.mark.parametrize("name", WRONG_CLOCKS)
def test_frozen_clock_wrong(name):
    caught(check.frozen_clock(WRONG_CLOCKS[name]))


# ---------------------------------------- counter_limit


def doubling(dtype):
    n = torch.ones((), dtype=dtype)
    while not torch.equal(n + 1, n):
        n = n * 2
    return int(n)


def test_counter_limit_right():
    assert check.counter_limit(doubling)
    assert check.counter_limit(lambda dtype: 2 / torch.finfo(dtype).eps)


WRONG_LIMITS = {
    "the largest number": lambda dtype: torch.finfo(dtype).max,
    "one bit less": lambda dtype: round(1 / torch.finfo(dtype).eps),
    "one more": lambda dtype: doubling(dtype) + 1,
    "one less": lambda dtype: doubling(dtype) - 1,
    "float16's": lambda dtype: 2048,
    "by the number of bits": lambda dtype: 2 ** torch.finfo(dtype).bits,
    "the smallest step": lambda dtype: torch.finfo(dtype).eps,
    "a dtype": lambda dtype: dtype,
}


@pytest.mark.parametrize("name", WRONG_LIMITS)
def test_counter_limit_wrong(name):
    caught(check.counter_limit(WRONG_LIMITS[name]))


# ---------------------------------------- is_adam


def test_against(gradients, lr=0.01, betas=(0.7, 0.95), eps=0.1, rtol=1e-4, atol=0.0):
    """A reader's test: compare with Algorithm 1 on these gradients."""
    want = algorithm1(0.0, np.array(gradients, dtype=float), lr, betas, eps).delta

    def verdict(steps):
        return bool(np.allclose(steps(gradients, lr=lr, betas=betas, eps=eps), want, rtol=rtol, atol=atol))

    return verdict


test_against.__test__ = False  # a helper, whatever pytest thinks of its name

GOOD = [3.0, -0.5, 0.2, 0.21, 0.0, 0.02, 0.3, -1.0]


def test_is_adam_right():
    assert check.is_adam(test_against(GOOD))
    assert check.is_adam(test_against(np.random.default_rng(0).normal(0.5, 1, 40), eps=0.5, betas=(0.8, 0.9)))


WRONG_TESTS = {
    "accepts everything": lambda steps: True,
    "rejects everything": lambda steps: False,
    "one step, gradient 1": test_against([1.0]),
    "the defaults of everything": test_against(GOOD, 1e-3, (0.9, 0.999), 1e-8),
    "a small epsilon": test_against(GOOD, eps=1e-8),
    "the first step only": test_against([0.3]),
    "constant gradients": test_against([0.3] * 20),
    "growing gradients": test_against([0.1 * 2**i for i in range(8)]),
    "wants equality": test_against(GOOD, rtol=0.0),
    "too strict": test_against(GOOD, rtol=1e-12),
    "too lenient": test_against(GOOD, rtol=0.0, atol=0.05),
    "returns the difference": lambda steps: float(np.abs(steps(GOOD)).max()),
    "only asks for a falling loss": lambda steps: bool(steps([1.0, 1.0])[0] > 0),
}


@pytest.mark.parametrize("name", WRONG_TESTS)
def test_is_adam_wrong(name):
    caught(check.is_adam(WRONG_TESTS[name]))


def test_each_wrong_adam_is_the_only_reason_to_reject_somewhere():
    """No two of the wrong Adams are one and the same on the good test."""
    seen = [tuple(np.round(check._from_rule(rule)(GOOD, 0.01, (0.7, 0.95), 0.1), 9)) for _, rule, _ in check._WRONG]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("dtype, stop", [(torch.float16, 2048), (torch.bfloat16, 256), (torch.float32, 2**24), (torch.float64, 2**53)])
def test_the_limits_that_the_check_of_counters_expects(dtype, stop):
    n = torch.tensor(float(stop), dtype=dtype)
    assert torch.equal(n + 1, n) and not torch.equal(n - 1 + 1, n - 1)


# ---------------------------------------- right answers in float32, and answers that never come


def test_a_right_formula_in_float32_is_right():
    assert check.epsilon_hat(lambda ε, β2, t: (ε * (1 - torch.tensor(β2) ** t).sqrt()).item())


def test_counting_one_by_one_is_ended_and_told_why(monkeypatch):
    limit = check._at_most
    monkeypatch.setattr(check, "_at_most", lambda _, *rest: limit(0.2, *rest))

    def one_by_one(dtype):
        n = torch.zeros((), dtype=dtype) if dtype is torch.float64 else torch.tensor(2.0 ** {
            torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}[dtype])  # fmt: skip
        while dtype is torch.float64 and not torch.equal(n + 1, n):
            n += 1
        return int(n)

    report = check.counter_limit(one_by_one)
    assert not report and "too far to try one by one" in str(report)
