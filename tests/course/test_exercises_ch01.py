"""The checks of chapter 01 accept the right answers and catch the plausible wrong ones."""

import math

import numpy as np
import pytest
from exercise_reports import caught

from course.exercises import ch01_math as check
from adamlib.theory.algorithm1 import algorithm1


# ------------------------------------------------------------------------------------------- for_summed_loss

WRONG_UNITS = {
    "nothing changes": lambda lr, eps, batch: (lr, eps),
    "lr divided, as for gradient descent": lambda lr, eps, batch: (lr / batch, eps),
    "both divided": lambda lr, eps, batch: (lr / batch, eps / batch),
    "lr divided, eps multiplied": lambda lr, eps, batch: (lr / batch, eps * batch),
    "eps the wrong way": lambda lr, eps, batch: (lr, eps / batch),
    "eps as if inside the root": lambda lr, eps, batch: (lr, eps * batch**2),
    "root of the batch": lambda lr, eps, batch: (lr, eps * math.sqrt(batch)),
    "square-root rule for lr": lambda lr, eps, batch: (lr * math.sqrt(batch), eps * batch),
    "the one batch of the text": lambda lr, eps, batch: (lr, eps * 256),
    "eps dropped": lambda lr, eps, batch: (lr, 0.0),
    "swapped": lambda lr, eps, batch: (eps * batch, lr),
    "only eps": lambda lr, eps, batch: eps * batch,
    "three numbers": lambda lr, eps, batch: (lr, eps * batch, batch),
    "negative": lambda lr, eps, batch: (lr, -eps * batch),
    "raises": lambda lr, eps, batch: (lr, eps * missing),  # noqa: F821
}


def test_for_summed_loss_right():
    assert check.for_summed_loss(lambda lr, eps, batch: (lr, eps * batch))
    assert check.for_summed_loss(lambda lr, eps, batch: [lr, batch * eps])


@pytest.mark.parametrize("name", WRONG_UNITS)
def test_for_summed_loss_wrong(name):
    caught(check.for_summed_loss(WRONG_UNITS[name]))


# -------------------------------------------------------------------------------------- step_without_epsilon

RIGHT_STEPS = {
    "the arctangent": lambda m, v: 4 / np.pi * np.arctan2(m, np.sqrt(v)),
    "by complex numbers": lambda m, v: np.angle(np.sqrt(v) + 1j * m) / np.angle(1 + 1j),
    "one by one": lambda m, v: [math.atan2(a, math.sqrt(b)) * 4 / math.pi for a, b in zip(m, v)],
    "a clipped quotient": lambda m, v: np.clip(np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0), -2, 2),
    "the sine of the angle": lambda m, v: math.sqrt(2) * np.sin(np.arctan2(m, np.sqrt(v))),
}
WRONG_STEPS = {
    "Adam's own": lambda m, v: m / (np.sqrt(v) + 1e-8),
    "a smaller ε": lambda m, v: m / (np.sqrt(v) + 1e-300),
    "no ε at all": lambda m, v: m / np.sqrt(v),
    "NaN made zero": lambda m, v: np.nan_to_num(m / np.sqrt(v)),
    "without the factor": lambda m, v: np.arctan2(m, np.sqrt(v)),
    "factor 2/π": lambda m, v: 2 / np.pi * np.arctan2(m, np.sqrt(v)),
    "the root forgotten": lambda m, v: 4 / np.pi * np.arctan2(m, v),
    "swapped": lambda m, v: 4 / np.pi * np.arctan2(np.sqrt(v), m),
    "the sign": lambda m, v: np.sign(m),
    "not bounded": lambda m, v: np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0),
    "a guard with a size": lambda m, v: 4 / np.pi * np.arctan2(m, np.sqrt(v)) * (np.abs(m) > 1e-12),
    "only the first": lambda m, v: 4 / np.pi * math.atan2(m[0], math.sqrt(v[0])),
    "nothing moves": lambda m, v: 0 * m,
    "raises": lambda m, v: np.arctan2(m),
}


@pytest.mark.parametrize("name", RIGHT_STEPS)
def test_step_without_epsilon_right(name):
    assert check.step_without_epsilon(RIGHT_STEPS[name]), check.step_without_epsilon(RIGHT_STEPS[name])


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_step_without_epsilon_wrong(name):
    caught(check.step_without_epsilon(WRONG_STEPS[name]))


# -------------------------------------------------------------------------------------------- longest_memory


def longest_memory(n, factor):
    return (factor - 1) / (factor * 2 ** (1 / n) - 1)


WRONG_MEMORIES = {
    "the speed limit": lambda n, f: 2 ** (-1 / n),
    "a half-life of n": lambda n, f: 0.5 ** (1 / n),
    "half of the limit's memory": lambda n, f: 0.5 ** (f / n),
    "memory of n steps": lambda n, f: 1 - 1 / n,
    "memory of n steps, divided by the factor": lambda n, f: 1 - 1 / (n * f),
    "doubling instead of halving": lambda n, f: (f - 1) / (f * 2 ** (-1 / n) - 1),
    "e instead of 2": lambda n, f: (f - 1) / (f * math.exp(1 / n) - 1),
    "the step instead of v": lambda n, f: longest_memory(n, f**2),
    "the root of the factor": lambda n, f: longest_memory(n, math.sqrt(f)),
    "the gradient halves, not its square": lambda n, f: (f - 1) / (f * 4 ** (1 / n) - 1),
    "swapped": lambda n, f: longest_memory(f, n),
    "without 1 − β2 in front": lambda n, f: (1 - 1 / f) * 2 ** (-1 / n),
    "the default": lambda n, f: 0.999,
    "rounded to two digits": lambda n, f: round(longest_memory(n, f), 2),
    "solved for 1 − β2": lambda n, f: 1 - longest_memory(n, f),
    "not a probability": lambda n, f: f,
    "a list": lambda n, f: [longest_memory(n, f)],
    "raises": lambda n, f: 1 / 0,
}


def by_bisection(n, factor):
    """Numerically: halve an interval for β2 until the sum over 40,000 ages is near the factor."""
    ages, low, high = np.arange(40_000), 0.0, 2 ** (-1 / n)
    for _ in range(30):
        middle = (low + high) / 2
        too_large = (1 - middle) * ((middle * 2 ** (1 / n)) ** ages).sum() > factor
        low, high = (low, middle) if too_large else (middle, high)
    return middle


RIGHT_MEMORIES = {
    "the formula": longest_memory,
    "rounded to four digits": lambda n, f: round(longest_memory(n, f), 4),
    "by bisection": by_bisection,
    "a simulation that is off by a thousandth": lambda n, f: longest_memory(n, f * 1.001),
}


@pytest.mark.parametrize("name", RIGHT_MEMORIES)
def test_longest_memory_right(name):
    assert check.longest_memory(RIGHT_MEMORIES[name]), check.longest_memory(RIGHT_MEMORIES[name])


def test_longest_memory_in_another_form():
    assert check.longest_memory(lambda n, f: (1 - f) / (1 - f * 2 ** (1 / n)))
    assert longest_memory(100, 2) == pytest.approx(0.98628, abs=5e-6)


def test_longest_memory_is_what_a_simulation_finds():
    n, factor = 100, 2.0
    beta2, v, second_moment = longest_memory(n, factor), 0.0, 1.0
    for _ in range(5000):
        second_moment *= 2 ** (-1 / n)
        v = beta2 * v + (1 - beta2) * second_moment
    assert v / second_moment == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize("name", WRONG_MEMORIES)
def test_longest_memory_wrong(name):
    caught(check.longest_memory(WRONG_MEMORIES[name]))


# ----------------------------------------------------------------------------------------- corrected_average


def average(gradients, betas, divisor, start=0.0, old_beta=False):
    m, out = start, []
    for t, g in enumerate(gradients, 1):
        beta = betas[max(t - 2, 0)] if old_beta else betas[t - 1]
        m = beta * m + (1 - beta) * g
        out.append(m / divisor(betas[:t], t))
    return out


def seen(betas, t):
    return 1 - np.prod(betas)


WRONG_AVERAGES = {
    "no correction": lambda g, b: average(g, b, lambda b, t: 1),
    "torch's formula, today's β to the power t": lambda g, b: average(g, b, lambda b, t: 1 - b[-1] ** t),
    "the first β to the power t": lambda g, b: average(g, b, lambda b, t: 1 - b[0] ** t),
    "the mean β to the power t": lambda g, b: average(g, b, lambda b, t: 1 - np.mean(b) ** t),
    "power t − 1": lambda g, b: average(g, b, lambda b, t: 1 - b[-1] ** max(t - 1, 1)),
    "product one step late": lambda g, b: average(g, b, lambda b, t: 1 - np.prod(b[: max(t - 1, 1)])),
    "product of 1 − β": lambda g, b: average(g, b, lambda b, t: np.prod(1 - b)),
    "sum of 1 − β": lambda g, b: average(g, b, lambda b, t: np.sum(1 - b)),
    "product itself": lambda g, b: average(g, b, lambda b, t: np.prod(b)),
    "minus, not divided": lambda g, b: np.array(average(g, b, lambda b, t: 1)) - np.cumprod(b),
    "corrects the stored average each step": lambda g, b: corrects_in_place(g, b),
    "starts at the first gradient": lambda g, b: average(g, b, lambda b, t: 1, start=g[0]),
    "starts there and corrects": lambda g, b: average(g, b, seen, start=g[0]),
    "uses the β of the step before": lambda g, b: average(g, b, seen, old_beta=True),
    "β and 1 − β swapped": lambda g, b: average(g, 1 - b, lambda b, t: 1 - np.prod(b)),
    "only the last one": lambda g, b: average(g, b, seen)[-1],
    "the plain mean": lambda g, b: np.cumsum(g) / np.arange(1, len(g) + 1),
    "the gradients": lambda g, b: g,
    "one step missing": lambda g, b: average(g, b, seen)[:-1],
    "raises": lambda g, b: g[len(g)],
}


def corrects_in_place(gradients, betas):
    m, out = 0.0, []
    for t, g in enumerate(gradients, 1):
        m = (betas[t - 1] * m + (1 - betas[t - 1]) * g) / seen(betas[:t], t)
        out.append(m)
    return out


def test_corrected_average_right():
    assert check.corrected_average(lambda g, b: average(g, b, seen))
    assert check.corrected_average(by_weights)


def by_weights(gradients, betas):
    """Another way to the same numbers: write out every weight and divide by their sum."""
    out = []
    for t in range(1, len(gradients) + 1):
        weights = [(1 - betas[i]) * np.prod(betas[i + 1 : t]) for i in range(t)]
        out.append(np.dot(weights, gradients[:t]) / np.sum(weights))
    return np.array(out)


@pytest.mark.parametrize("name", WRONG_AVERAGES)
def test_corrected_average_wrong(name):
    caught(check.corrected_average(WRONG_AVERAGES[name]))


# --------------------------------------------------------------------------------------------- adam_in_basis


def adam(gradients, lr, betas=(0.9, 0.999), eps=1e-8):
    return algorithm1(np.zeros(gradients.shape[1]), gradients, lr, betas, eps).delta


def moments(gradients, lr, for_m, for_v):
    """Adam with one set of coordinates for m and another for v."""
    m, v, out = 0.0, 0.0, []
    for t in range(1, len(gradients) + 1):
        m = 0.9 * m + 0.1 * for_m[t - 1]
        v = 0.999 * v + 0.001 * for_v[t - 1] ** 2
        out.append(lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return np.array(out)


WRONG_BASES = {
    "plain Adam": lambda g, Q, lr: adam(g, lr),
    "does not come back": lambda g, Q, lr: adam(g @ Q, lr),
    "turns the step only": lambda g, Q, lr: adam(g, lr) @ Q.T,
    "turns the step the other way": lambda g, Q, lr: adam(g, lr) @ Q,
    "there and back the wrong way round": lambda g, Q, lr: adam(g @ Q.T, lr) @ Q,
    "forwards twice": lambda g, Q, lr: adam(g @ Q, lr) @ Q,
    "backwards twice": lambda g, Q, lr: adam(g @ Q.T, lr) @ Q.T,
    "squares not turned": lambda g, Q, lr: moments(g, lr, g @ Q, g) @ Q.T,
    "only squares turned": lambda g, Q, lr: moments(g, lr, g, g @ Q),
    "squares turned after squaring": lambda g, Q, lr: moments(g, lr, g @ Q, np.sqrt(np.abs(g**2 @ Q))) @ Q.T,
    "moves along, not against": lambda g, Q, lr: -adam(g @ Q, lr) @ Q.T,
    "no lr": lambda g, Q, lr: adam(g @ Q, 1.0) @ Q.T,
    "the path, not the steps": lambda g, Q, lr: np.cumsum(adam(g @ Q, lr) @ Q.T, axis=0),
    "β1 = 0": lambda g, Q, lr: adam(g @ Q, lr, betas=(0.0, 0.999)) @ Q.T,
    "only the last step": lambda g, Q, lr: (adam(g @ Q, lr) @ Q.T)[-1],
    "raises": lambda g, Q, lr: adam(g @ Q[:1], lr),
}


def test_adam_in_basis_right():
    assert check.adam_in_basis(lambda g, Q, lr: adam(g @ Q, lr) @ Q.T)
    assert check.adam_in_basis(lambda g, Q, lr: (Q @ adam((Q.T @ g.T).T, lr).T).T)
    assert check.adam_in_basis(lambda g, Q, lr: moments(g, lr, g @ Q, g @ Q) @ Q.T)


@pytest.mark.parametrize("name", WRONG_BASES)
def test_adam_in_basis_wrong(name):
    caught(check.adam_in_basis(WRONG_BASES[name]))
