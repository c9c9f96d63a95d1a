"""The checks of chapter 09, the errata.

    check.epsilon_hat(fn)      fn(eps, beta2, t) -> float
    check.frozen_clock(fn)     fn(beta1, beta2, t) -> float
    check.counter_limit(fn)    fn(dtype) -> int
    check.is_adam(fn)          fn(steps) -> bool, where steps(gradients, lr, betas, eps) -> the steps Δ_t, an array

The first three are compared with values from definitions: Algorithm 1 in float64, the recursion, counting. The last
exercise is a test that the reader writes; it is judged by its verdicts on right Adams and on misprinted ones.
"""

import contextlib
import math
import sys
import time

import numpy as np
import torch

from course.exercises import check, expect, expect_that, not_written
from adamlib.theory.algorithm1 import algorithm1

DIGITS = 1e-4  # a right formula in float32 keeps so many: 1 − β2ᵗ loses the others

__all__ = ["counter_limit", "epsilon_hat", "frozen_clock", "is_adam"]


@check(start="divide numerator and denominator of m̂/(√v̂ + ε) by what turns √v̂ into √v")
def epsilon_hat(reader):
    """fn(eps, beta2, t): the ε̂ with which α√(1−β2ᵗ)/(1−β1ᵗ) · m/(√v + ε̂) is the step of Algorithm 1."""
    cases = [
        (1e-8, 0.999, 1, "the root: it is √v, not v, that ε stands beside"),
        (1e-8, 0.999, 1000, "ε̂ changes with t: which power of β2 has the correction at step t?"),
        (0.3, 0.9, 7, "ε̂ is a multiple of ε; which multiple depends on β2 and t only"),
        (0.0, 0.99, 5, "ε = 0: then ε̂ is 0 too"),
    ]
    for eps, beta2, t, look in cases:
        want = eps * math.sqrt(1 - beta2**t)
        expect(reader(eps, beta2, t), want, tried=f"epsilon_hat({eps}, {beta2}, {t})", look=look, rtol=DIGITS)
    return "both forms take the same steps, for 4 choices of ε, β2 and t"


@check(start="m_t and v_t under a constant gradient are geometric sums; then divide by 1 − β1 and 1 − β2, for good")
def frozen_clock(reader):
    """fn(beta1, beta2, t): step t in α under a constant gradient (ε = 0) when the correction stays that of step 1."""
    cases = [
        (0.9, 0.999, 1, "at step 1 the clock is still right"),
        (0.9, 0.999, 12, "m_t = 1 − β1ᵗ for gradients of 1; v_t alike; the root is over v only"),
        (0.9, 0.999, 20_000, "after many steps both powers are gone: what is left of the correction?"),
        (0.9, 0.99, 30, "both betas: nothing may stay at the defaults"),
        (0.5, 0.5, 4, "β1 = β2 does not make it 1: m is divided by 1 − β1, √v by √(1 − β2)"),
        (0.0, 0.9, 5, "β1 = 0: m is the gradient itself"),
    ]
    for beta1, beta2, t, look in cases:
        want = (1 - beta1**t) / (1 - beta1) / math.sqrt((1 - beta2**t) / (1 - beta2))
        expect(reader(beta1, beta2, t), want, tried=f"frozen_clock({beta1}, {beta2}, {t})", look=look, rtol=DIGITS)
    return "agrees for 6 choices of betas and t, from the first step to the twenty-thousandth"


@check(start="double n until n + 1 == n, in a tensor of that dtype; or think in bits of the significand")
def counter_limit(reader):
    """fn(dtype): where a counter of this dtype stops: the smallest whole n with n + 1 == n."""
    cases = [
        (torch.float16, 2048, "between 2048 and 4096 float16 has only even numbers; 2049 rounds to even, to 2048"),
        (torch.bfloat16, 256, "bfloat16 has fewer bits of significand than float16, and more of exponent"),
        (torch.float32, 2**24, "the largest number of a dtype is not the question, the spacing is"),
        (torch.float64, 2**53, "float64 counts too far to try one by one: double n, or think in bits"),
    ]
    for dtype, want, look in cases:
        with _at_most(60, dtype, look):
            yours = reader(dtype)
        expect(yours, want, tried=f"counter_limit({dtype})", look=look)
    return "agrees for float16, bfloat16, float32 and float64"


class _TooLong(Exception):
    pass


@contextlib.contextmanager
def _at_most(seconds, dtype, look):
    """End a reader's loop that would count for years, and say so."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def trace(frame, event, argument):
        if time.monotonic() > end:
            raise _TooLong
        return trace

    sys.settrace(trace)
    try:
        yield
    except _TooLong:
        expect_that(False, tried=f"counter_limit({dtype})", yours=f"no answer after {seconds} seconds",
                    expected="an answer at once", look=look)  # fmt: skip
    finally:
        sys.settrace(before)


@check(start="compare with algorithm1(0.0, gradients, lr, betas, eps).delta; then ask what each of your choices hides")
def is_adam(reader):
    """fn(steps): whether ``steps`` takes the steps of Algorithm 1. Judged on four right Adams and twelve wrong ones."""
    for name, steps, look in _right():
        _verdict(reader, name, steps, True, look)
    for name, rule, look in _WRONG:
        _verdict(reader, name, _from_rule(rule), False, look)
    return f"accepts {len(list(_right()))} right Adams, rejects {len(_WRONG)} wrong ones"


def _verdict(reader, name, steps, expected, look):
    with np.errstate(all="ignore"):
        verdict = reader(steps)
    if verdict is None or verdict is Ellipsis:
        not_written()
    words = {True: "accepted", False: "rejected"}
    is_bool = isinstance(verdict, (bool, np.bool_)) or (isinstance(verdict, torch.Tensor) and verdict.numel() == 1)
    expect_that(
        is_bool and bool(verdict) is expected,
        tried=f"your test on {name}",
        yours=words[bool(verdict)] if is_bool else f"{type(verdict).__name__}, not True or False",
        expected=words[expected],
        look=look,
    )


def _from_rule(rule):
    """steps(gradients, lr, betas, eps) from rule(m, v, t, lr, β1, β2, ε, memory) -> Δ; ``memory`` is a dict."""

    def steps(gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        (b1, b2), taken, memory = betas, [], {}
        m = v = np.float64(0.0)
        with np.errstate(all="ignore"):
            for t, g in enumerate(np.asarray(gradients, dtype=np.float64), 1):
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
                taken.append(rule(m, v, t, lr, b1, b2, eps, memory))
        return np.array(taken)

    return steps


def _torch_steps(dtype):
    def steps(gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        w = torch.zeros((), dtype=dtype, requires_grad=True)
        optimizer = torch.optim.Adam([w], lr=lr, betas=tuple(map(float, betas)), eps=eps)
        taken = []
        for g in gradients:
            with torch.no_grad():
                w.zero_()  # from 0 each time: the step is not rounded to the grid of a large weight
            w.grad = torch.tensor(float(g), dtype=dtype)
            optimizer.step()
            taken.append(-w.item())
        return np.array(taken)

    return steps


def _right():
    def oracle(gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        return algorithm1(0.0, np.asarray(gradients, dtype=np.float64), lr, betas, eps).delta

    def reordered(m, v, t, lr, b1, b2, eps, _):
        root = math.sqrt(1 - b2**t)
        return lr * root / (1 - b1**t) * m / (np.sqrt(v) + eps * root)

    yield "Algorithm 1 itself", oracle, "what you compare with, and how near is near enough"
    yield "the paper's reordered form, with the right ε̂", _from_rule(reordered), "it rounds in its last digits"
    yield "torch.optim.Adam in float64", _torch_steps(torch.float64), "it rounds in its last digits"
    look = "an honest float32 is right to about six digits: your tolerance is tighter"
    yield "torch.optim.Adam in float32", _torch_steps(torch.float32), look


def _hats(m, v, t, b1, b2):
    return m / (1 - b1**t), v / (1 - b2**t)


def _no_root(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b1, b2)
    return lr * m / (v + eps)


def _eps_in_root(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b1, b2)
    return lr * m / np.sqrt(v + eps)


def _constant_eps_hat(m, v, t, lr, b1, b2, eps, _):
    return lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)


def _eps_hat_without_root(m, v, t, lr, b1, b2, eps, _):
    return lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + (1 - b2**t) * eps)


def _v_without_hat(m, v, t, lr, b1, b2, eps, _):
    return lr * m / (1 - b1**t) / (np.sqrt(v) + eps)


def _no_correction(m, v, t, lr, b1, b2, eps, _):
    return lr * m / (np.sqrt(v) + eps)


def _clock_stands(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, 1, b1, b2)
    return lr * m / (np.sqrt(v) + eps)


def _missing_parentheses(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b1, b2)
    return (lr * m / np.sqrt(v) if v else 0.0) - eps


def _betas_exchanged(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b2, b1)
    return lr * m / (np.sqrt(v) + eps)


def _centred(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b1, b2)
    return lr * m / (np.sqrt(np.maximum(v - m * m, 0)) + eps)


def _maximum(m, v, t, lr, b1, b2, eps, memory):
    memory["top"] = v = max(v, memory.get("top", 0.0))
    m, v = _hats(m, v, t, b1, b2)
    return lr * m / (np.sqrt(v) + eps)


def _sign(m, v, t, lr, b1, b2, eps, _):
    m, v = _hats(m, v, t, b1, b2)
    return lr * m / (abs(m) + eps)


_WRONG = [
    ("the step without the root, m̂/(v̂ + ε)", _no_root, "a gradient of 1 hides it: 1 and √1 are equal"),
    ("ε inside the root", _eps_in_root, "an ε that small is hidden by your tolerance; the test may choose its own ε"),
    ("ε̂ = ε at every step", _constant_eps_hat, "it shows where √v̂ is not far above ε; choose a larger ε"),
    ("ε̂ = (1−β2ᵗ)ε", _eps_hat_without_root, "it shows where √v̂ is not far above ε; choose a larger ε"),
    ("v in the place of v̂", _v_without_hat, "the first steps"),
    ("no bias correction", _no_correction, "the first steps"),
    ("a clock that stands at t = 1", _clock_stands, "the steps after the first"),
    ("ε outside the fraction", _missing_parentheses, "the step is off by ε itself; choose a larger ε"),
    ("a correction with the betas exchanged", _betas_exchanged, "betas that differ, and the first steps"),
    ("v̂ − m̂² in the place of v̂", _centred, "v is not centred: try gradients that are nearly equal"),
    ("a v that never falls (AMSGrad)", _maximum, "a v that falls: a large gradient, then small ones"),
    ("|m̂| in the place of √v̂", _sign, "gradients that change their size or their sign"),
]
