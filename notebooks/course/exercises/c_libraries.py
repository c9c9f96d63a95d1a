"""Checks for the exercises of appendix C. Each takes what the reader wrote and returns a Report."""

import math

from . import check, expect, expect_that, not_written

_BETAS = ((0.9, 0.999), (0.9, 0.99), (0.8, 0.95), (0.0, 0.9), (0.5, 0.001))


@check(start="the gradients 10, 0.1, 0.1, … above, for which the variants take different steps")
def which_amsgrad(reader):
    """``which_amsgrad(run, beta1, beta2) -> "adam" | "torch" | "corrected max" | "paper"``.

    run(gradients) is the unknown optimizer on one weight: a list of steps in units of lr, positive downhill.
    """
    for beta1, beta2 in _BETAS:
        for kind in ("torch", "paper", "corrected max", "adam"):
            asked = []

            def run(gradients, kind=kind):
                asked.append(len(list(gradients)))
                return list(_steps(kind, list(gradients), beta1, beta2))

            answer = reader(run, beta1, beta2)
            if answer is None:
                not_written()
            expect_that(
                bool(asked), tried=f"a black box with betas ({beta1}, {beta2})",
                yours=f"{answer!r} without a look", expected="a call of run(gradients)",
                look="run: it is the only way to learn what is inside",
            )  # fmt: skip
            tried = f"the {kind!r} box, betas ({beta1}, {beta2})"
            expect(answer, kind, tried=tried, look=_why(kind, beta1, beta2))
    return "told 20 of 20 black boxes apart: four kinds, five pairs of betas"


@check(start="θ ← (1 − αλ)θ + αλ·(−u/λ): what is left of a step after the next one? And after all later ones?")
def shares_in_the_end(reader):
    """``shares_in_the_end(lrs, weight_decay)``: the shares of θ₀ and of each −u_t/λ in AdamW's final weight."""
    cases = [
        ([0.1, 0.1, 0.1], 0.5, "equal rates"),
        ([0.3, 0.2, 0.1, 0.05], 1.0, "each step has its own rate: its share is α_t·λ, times what all LATER steps left"),
        ([0.1, 0.0, 0.2], 0.5, "a rate of 0 adds nothing and forgets nothing"),
        ([0.2, 0.5, 0.1], 2.0, "αλ = 1: this step forgets all that was before it"),
        ([0.1, 0.2], 0.0, "no decay: θ₀ is never forgotten, and the shares of the average are 0"),
        ([], 0.1, "no steps: all of the weight is θ₀"),
    ]
    for lrs, decay, look in cases:
        tried = f"shares_in_the_end({lrs}, {decay})"
        yours = reader(list(lrs), decay)
        want = [math.prod(1 - lr * decay for lr in lrs)]
        want += [lr * decay * math.prod(1 - later * decay for later in lrs[t + 1 :]) for t, lr in enumerate(lrs)]
        expect_that(
            not hasattr(yours, "__len__") or len(yours) == len(want), tried=tried, yours=f"{yours!s:.60}",
            expected=f"{len(want)} numbers", look="θ₀ has a share, too: it comes first",
        )  # fmt: skip
        expect(yours, want, rtol=1e-9, atol=1e-15, tried=tried, look=look)
    lrs = [0.01 * (1 - t / 500) for t in range(500)]
    yours = reader(list(lrs), 0.5)
    expect(float(sum(yours)), 1.0, rtol=1e-9, tried="the sum for a rate that falls to 0 in 500 steps",
           look="an average: its shares add up to 1")  # fmt: skip
    return "agrees for 7 schedules, also where a rate is 0 and where αλ is 1"


def _steps(kind, gradients, beta1, beta2, eps=1e-8):
    """Steps in units of lr of one weight, for the four kinds of `which_amsgrad`."""
    m = v = top = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        top = max(top, v / c2 if kind == "corrected max" else v)
        below = {"adam": v / c2, "torch": top / c2, "corrected max": top, "paper": top}[kind]
        yield (m if kind == "paper" else m / c1) / (math.sqrt(below) + eps)


def _why(kind, beta1, beta2):
    if beta1 == 0:
        return "your gradients: with β₁ = 0 a step sees its own gradient only; zeros teach nothing"
    if kind == "paper" and abs((1 - beta1) ** 2 - (1 - beta2)) < 1e-9:
        return "the first step (1−β₁)/√(1−β₂): for these betas it is 1 without any correction, too"
    return {
        "torch": "the second step after a large gradient: torch divides the old maximum by the new 1 − β₂ᵗ",
        "paper": "the first step: without bias corrections it is (1−β₁)/√(1−β₂)",
        "corrected max": "a large gradient, then small ones: the maximum of v̂ does not come down again",
        "adam": "a large gradient, then many small ones: Adam forgets it, no AMSGrad does",
    }[kind]
