"""Checks for the exercises of chapter 07. Each takes what the reader wrote and returns a Report."""

import math

import numpy as np
import torch

from . import check, expect, expect_that, not_written


@check(start="the formula −⟨g, u⟩ above: what else does the learning rate multiply in AdamW?")
def lr_slope(reader):
    """``lr_slope(next_grad, param, m, v, t, *, beta1, beta2, eps, weight_decay) -> float`` for AdamW.

    param is θ before step t, m and v are the averages after it, next_grad is the gradient of the loss then.
    """
    generator = torch.Generator().manual_seed(7)
    for t, decay, eps in ((1, 0.0, 1e-8), (7, 0.0, 0.5), (1, 0.3, 1e-8), (7, 0.3, 0.5), (400, 2.0, 1e-3)):
        next_grad, param, m, v = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        v = v * v
        betas = dict(beta1=0.8, beta2=0.95)
        push = m / (1 - 0.8**t) / ((v / (1 - 0.95**t)).sqrt() + eps) + decay * param
        given = [x.clone() for x in (next_grad, param, m, v)]
        yours = reader(*given, t, **betas, eps=eps, weight_decay=decay)
        look = "AdamW's step is −α·(m̂/(√v̂ + ε) + λθ): α multiplies the decay, too"
        if decay == 0:
            look = "the step is −α·m̂/(√v̂ + ε): m̂ and v̂ are corrected, ε stands outside the root"
        expect(yours, -(next_grad @ push).item(), rtol=1e-9, atol=1e-12,
               tried=f"random tensors, t = {t}, weight_decay = {decay}, eps = {eps}", look=look)  # fmt: skip
        for name, x, y in zip(("next_grad", "param", "m", "v"), given, (next_grad, param, m, v)):
            expect(x, y, tried=f"{name} after the call", look="in-place methods: it is the caller's")
    return "agrees for 5 states, with and without decay"


@check(start="the slope of the first step above; m̂ and v̂ are weighted sums of g and g²")
def push_slopes(reader):
    """``push_slopes(gradients, beta1, beta2, eps) -> list``: ∂u_t/∂g_i, i = 1 … t, of u_t = m̂_t/(√v̂_t + ε)."""
    cases = [
        ([1e-4], 0.9, 0.999, 1e-4, "the first step: ε/(|g| + ε)²"),
        ([-2.0], 0.9, 0.999, 0.5, "the sign of g: u is odd in g, so its slope is even"),
        ([1.0, 1.0], 0.9, 0.999, 1e-8, "g_i has the weight (1−β₁)β₁ᵗ⁻ⁱ/(1−β₁ᵗ) in m̂"),
        ([0.5, -1.0, 2.0, 0.1], 0.8, 0.95, 0.3, "∂v̂/∂g_i is 2·g_i times the weight of g_i² in v̂"),
        ([0.0, 3.0], 0.9, 0.99, 0.1, "a zero among the gradients: it has no part in v̂'s slope, but in m̂'s"),
        ([0.0, 0.0, 0.0], 0.9, 0.99, 0.1, "v̂ = 0: there m̂ = 0 too, and only ∂m̂/∂g_i divided by ε is left"),
    ]
    for gradients, beta1, beta2, eps, look in cases:
        tried = f"push_slopes({gradients}, {beta1}, {beta2}, {eps})"
        expect(reader(list(gradients), beta1, beta2, eps), _push_slopes(gradients, beta1, beta2, eps),
               rtol=1e-7, atol=1e-12, tried=tried, look=look)  # fmt: skip
    return "agrees for 6 histories, a zero and nothing but zeros among them"


@check(start="the four lines of `step`: differentiate each with respect to α, from top to bottom")
def forward_hypergradient(reader):
    """``forward_hypergradient(grad, hvp, theta, lr, steps, *, beta1, beta2, eps)`` -> (θ_K, dθ_K/dα) in NumPy.

    grad(θ) is the gradient, hvp(θ, d) the Hessian at θ times d.
    """
    start = np.array([0.7, -1.2, 0.3, 0.5])
    look = {
        1: "one step: dm and dv are 0, dθ is −m̂/(√v̂ + ε)",
        2: "two steps: α moved θ, so g moves by hvp(θ, dθ), and m and v with it",
        9: "nine steps: dm and dv are averages like m and v, and the corrections 1−βᵗ belong to both",
    }
    for steps in (1, 2, 9):
        for eps in (0.1, 1e-8):
            calls = []

            def grad(theta, calls=calls):
                calls.append(1)
                return _grad(theta)

            theta = start.copy()
            answer = reader(grad, _hvp, theta, 0.05, steps, beta1=0.8, beta2=0.95, eps=eps)
            if answer is None:
                not_written()
            tried = f"{steps} steps with lr 0.05, betas (0.8, 0.95), eps {eps}"
            expect_that(isinstance(answer, (tuple, list)) and len(answer) == 2, tried=tried,
                        yours=type(answer).__name__, expected="a tuple: θ, dθ/dα", look="return")  # fmt: skip
            want, slope = _forward(start, 0.05, steps, 0.8, 0.95, eps)
            expect(answer[0], want, rtol=1e-9, atol=1e-13, tried=f"θ after {tried}", look="the step itself")
            expect(np.isfinite(answer[1]), np.ones(4, bool), tried=f"is dθ/dα finite after {tried}?",
                   look="the coordinate whose gradient is always 0: any finite d√v̂ will do")  # fmt: skip
            expect(answer[1], slope, rtol=1e-7, atol=1e-11, tried=f"dθ/dα after {tried}", look=look[steps])
            expect_that(len(calls) <= steps, tried=f"calls of grad in {tried}", yours=f"{len(calls)} calls",
                        expected=f"at most {steps}", look="finite differences: one run will do")  # fmt: skip
            expect(theta, start, tried="the θ you were given", look="theta -= ... writes into it")
    return "agrees with the chain rule for 1, 2 and 9 steps, with one gradient a step and no graph"


_HESSIAN = np.array([[2.0, 0.4, 0.1], [0.4, 1.0, -0.3], [0.1, -0.3, 0.5]])


def _grad(theta):
    """A gradient whose last coordinate is always 0."""
    return np.append(_HESSIAN @ theta[:3] + theta[:3] ** 3, 0.0)


def _hvp(theta, d):
    return np.append(_HESSIAN @ d[:3] + 3 * theta[:3] ** 2 * d[:3], 0.0)


def _forward(theta, lr, steps, beta1, beta2, eps):
    theta = theta.copy()
    m, v, d_theta, dm, dv = (np.zeros_like(theta) for _ in range(5))
    for t in range(1, steps + 1):
        g, dg = _grad(theta), _hvp(theta, d_theta)
        m, dm = beta1 * m + (1 - beta1) * g, beta1 * dm + (1 - beta1) * dg
        v, dv = beta2 * v + (1 - beta2) * g * g, beta2 * dv + 2 * (1 - beta2) * g * dg
        c1, root = 1 - beta1**t, np.sqrt(v / (1 - beta2**t))
        d_root = dv / (1 - beta2**t) / np.where(root > 0, 2 * root, 1.0)
        below = root + eps
        d_theta = d_theta - m / c1 / below - lr / c1 * (dm / below - m * d_root / below**2)
        theta = theta - lr * m / c1 / below
    return theta, d_theta


def _push_slopes(gradients, beta1, beta2, eps):
    t = len(gradients)
    in_m = [(1 - beta1) * beta1 ** (t - i) / (1 - beta1**t) for i in range(1, t + 1)]
    in_v = [(1 - beta2) * beta2 ** (t - i) / (1 - beta2**t) for i in range(1, t + 1)]
    m_hat = sum(a * g for a, g in zip(in_m, gradients))
    root = math.sqrt(sum(b * g * g for b, g in zip(in_v, gradients)))
    below = root + eps
    return [a / below - (m_hat * b * g / (root * below**2) if root else 0.0)
            for a, b, g in zip(in_m, in_v, gradients)]  # fmt: skip
