"""The checks of chapter 02, the step bound.

    check.zeros_to_exceed(fn)            fn(level, beta1, beta2) -> int
    check.worst_wake_up(fn)              fn(beta1, beta2, n) -> n gradients, oldest first
    check.worst_without_correction(fn)   fn(beta1, beta2, t) -> float
    check.first_response(fn)             fn(beta1, beta2) -> float
    check.runaway_loss(fn)               fn(x) -> loss, torch float64

Three are compared with the exact values. The gradients and the loss are judged by the steps they make
Adam take: the oracle of adamlib.theory for the gradients, torch.optim.Adam itself for the loss.
"""

import functools
import math

import numpy as np
import torch

from course.exercises import check, expect, expect_that, not_written
from adamlib.theory.algorithm1 import State, algorithm1
from adamlib.theory.step_bound import constant_after_zeros_ratio, worst_ratio

__all__ = ["first_response", "runaway_loss", "worst_wake_up", "worst_without_correction", "zeros_to_exceed"]


@check(
    start="the largest of steps_in_alpha([0.0] * z + [1.0] * 100, eps=1e-30), for a few z; "
    "with ε = 0 zeros give 0/0"
)
def zeros_to_exceed(reader):
    """fn(level, beta1, beta2): the fewest zeros after which a constant gradient steps above level·α."""
    cases = [
        (2.0, 0.9, 0.999, "the largest of *all* later steps, in the formula with root and bias correction"),
        (math.sqrt(10), 0.9, 0.999, "t counts the zeros too, and so does bias correction"),
        (1.5, 0.9, 0.99, "both betas: nothing may stay at the defaults"),
        (3.0, 0.0, 0.99, "β1 = 0: the first gradient after the silence makes the largest step"),
        (1.1, 0.6, 0.9, "short windows: fewer zeros, and an earlier peak"),
        (0.5, 0.9, 0.999, "without a silence a constant gradient makes steps of α: then no zero is needed"),
    ]
    for level, beta1, beta2, look in cases:
        want = _zeros_to_exceed(level, beta1, beta2)
        call = f"zeros_to_exceed({level:.4g}, {beta1}, {beta2})"
        expect(reader(level, beta1, beta2), want, tried=call, look=look)
    return "agrees for 6 levels and betas"


@check(start="the proof of Theorem 1: which h_k give equality when only k < n are free?")
def worst_wake_up(reader):
    """fn(beta1, beta2, n): the n gradients after endless silence with the longest last step."""
    cases = (0.9, 0.999, 2), (0.9, 0.999, 10), (0.9, 0.99, 5), (0.5, 0.999, 4), (0.9, 0.85, 6)
    for beta1, beta2, n in cases:
        call = f"worst_wake_up({beta1}, {beta2}, {n})"
        answer = reader(beta1, beta2, n)
        if answer is None or answer is Ellipsis:
            not_written()
        gradients = np.asarray(answer, dtype=np.float64)
        expect_that(
            gradients.shape == (n,) and np.isfinite(gradients).all() and gradients.any(),
            tried=call,
            yours=np.array2string(gradients, precision=4, threshold=6),
            expected=f"{n} finite numbers, not all zero, the oldest first",
            look="one gradient for each step after the silence; the silence itself is not part of the answer",
        )
        silence = State(10**7, np.zeros(()), np.zeros(()), None)  # both corrections are 1 by now
        steps = algorithm1(0.0, gradients, 1.0, (beta1, beta2), 0.0, state=silence).delta
        expect(
            abs(steps[-1]),
            worst_ratio(beta1, beta2, n, bias_correction=False),
            tried=f"the last step, in α, that {call} makes Adam take",
            look="equality needs √b_k·h_k ∝ a_k/√b_k; k = 0 is the newest gradient, the last in your list",
            rtol=1e-9,
        )
    return "no other gradients make a longer step, for 5 choices of betas and n"


@check(start="the proof of Theorem 1, with the weights (1−β1)β1ᵏ and (1−β2)β2ᵏ as they stand")
def worst_without_correction(reader):
    """fn(beta1, beta2, t): the largest |m_t|/√v_t over all gradients, moments without bias correction."""
    cases = [
        (0.9, 0.999, 1, "t = 1: m and v hold one gradient, with the weights 1−β1 and 1−β2"),
        (0.9, 0.999, 2, "two terms: k = 0 and k = 1"),
        (0.9, 0.999, 100, "the sum of (weight of m)²/(weight of v), then the root"),
        (0.0, 0.99, 50, "β1 = 0: only k = 0 has a weight in m"),
        (0.9, 0.81, 30, "β1² = β2: each of the t terms is equal; a closed form must not divide by zero here"),
        (0.9, 0.7, 20, "β1² > β2: the terms grow"),
        (0.9, 0.9, 5, "β1 = β2: without the correction the bound is not 1"),
    ]
    for beta1, beta2, t, look in cases:
        want = worst_ratio(beta1, beta2, t, bias_correction=False)
        call = f"worst_without_correction({beta1}, {beta2}, {t})"
        try:
            answer = reader(beta1, beta2, t)
        except ZeroDivisionError:  # a closed form at β1² = β2: the line to look at says more than the exception
            answer = math.nan
        expect(answer, want, tried=call, look=look, rtol=1e-9)
    return "agrees for 7 choices of betas and t, from the first step to β1² > β2"


@check(start="ln R(γ) is a sum of four logarithms: differentiate each by γ, then put γ = 1")
def first_response(reader):
    """fn(beta1, beta2): R'(1), by how much the step answers to the first bit of growth of a constant gradient."""
    cases = [
        (0.9, 0.999, "the two roots: d/dγ of ½·ln(1 − β2/γ²) at γ = 1 is β2/(1 − β2)"),
        (0.9, 0.99, "both betas: nothing may stay at the defaults"),
        (0.0, 0.99, "β1 = 0: the short window is one gradient, of age 0"),
        (0.9, 0.9, "equal windows: what one average gains, the other gains too"),
        (0.9, 0.8, "the sign: with the longer window on top the step gets shorter"),
    ]
    for beta1, beta2, look in cases:
        want = beta2 / (1 - beta2) - beta1 / (1 - beta1)
        tried = f"first_response({beta1}, {beta2})"
        expect(reader(beta1, beta2), want, tried=tried, look=look, rtol=1e-3, atol=1e-3)
    return "agrees for 5 pairs of betas: the difference of the mean ages"


@check(start="Theorem 3: steps near 7α need gradients that grow by 11 % a step, for as long as β2 remembers")
def runaway_loss(reader):
    """fn(x): a loss on which torch.optim.Adam, all defaults, from x = 0, takes a step of more than 7α."""
    lr, steps, level = 1e-3, 5000, 7.0
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=lr)
    longest, visited = 0.0, []
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        gradient = _gradient(reader, x, t)
        x.grad = gradient
        before = x.item()
        optimizer.step()
        visited.append((before, gradient.item()))
        longest = max(longest, abs(x.item() - before) / lr)
        if longest > level:
            break
    for before, gradient in visited[:: max(1, len(visited) // 50)]:
        where = torch.tensor(before, dtype=torch.float64, requires_grad=True)
        again = _gradient(reader, where, t)
        expect(
            again.item(), gradient, tried=f"the gradient at x = {before:.4g} once more", rtol=1e-9,
            look="what the loss depends on: it may be a function of x alone, not of how often it was called",
        )  # fmt: skip
    expect_that(
        longest > level,
        tried=f"{steps} steps of torch.optim.Adam([x], lr={lr}) from x = 0",
        yours=f"longest step {longest:.4f}α",
        expected=f"a step of more than {level:.0f}α",
        look="how fast |gradient| grows from one step to the next, while x moves by about 7α a step",
    )
    return f"exceeds {level:.0f}α at step {t}"


def _gradient(reader, x, t):
    loss = reader(x)
    if loss is None or loss is Ellipsis:
        not_written()
    differentiable = isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad
    expect_that(
        differentiable, tried=f"your loss at step {t}, x = {x.item():.4g}",
        yours=f"a tensor of shape {list(loss.shape)}, requires_grad={loss.requires_grad}"
        if isinstance(loss, torch.Tensor) else type(loss).__name__,
        expected="one number as a torch tensor, computed from x",
        look="torch.exp and friends keep the graph; math.exp, .item() and .detach() cut it",
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.sum(), x, allow_unused=True)
    expect_that(
        gradient is not None, tried=f"the gradient at step {t}", yours="none: the loss does not depend on x",
        expected="a loss computed from x", look="where x enters your formula",
    )  # fmt: skip
    expect_that(
        math.isfinite(gradient.item()), tried=f"the gradient at step {t}, x = {x.item():.4g}",
        yours=f"{gradient.item()}", expected="a finite number",
        look="how large the loss gets on the way: a double ends at 1.8e308",
    )  # fmt: skip
    return gradient


@functools.cache
def _zeros_to_exceed(level, beta1, beta2):
    n = np.arange(1, 2001)
    zeros = 0
    while not constant_after_zeros_ratio(beta1, beta2, n, zeros).max() > level:
        zeros += 1
    return zeros
