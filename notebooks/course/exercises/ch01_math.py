"""The checks of chapter 01, the math.

    check.for_summed_loss(fn)        fn(lr, eps, batch) -> (lr, eps)
    check.step_without_epsilon(fn)   fn(m_hat, v_hat) -> the step in units of the learning rate
    check.longest_memory(fn)         fn(n, factor) -> beta2
    check.corrected_average(fn)      fn(gradients, betas) -> one corrected average per step
    check.adam_in_basis(fn)          fn(gradients, Q, lr) -> Adam's steps, counted along the columns of Q
    check.settings(fn)               fn(ancestor, alpha, t) -> (lr at step t, beta1, beta2, eps)

Each compares what the reader's function *does* with what it should do (the steps Adam takes with it, the
value the average settles at), so that any correct formula passes, however it is written.
"""

import warnings

import numpy as np

from course.exercises import check, expect, expect_that, not_written
from adamlib.theory.algorithm1 import algorithm1

__all__ = [
    "adam_in_basis", "corrected_average", "for_summed_loss", "longest_memory", "settings", "step_without_epsilon",
]  # fmt: skip


@check(start="section 5: what happens to Δ when every gradient is multiplied by c, with ε > 0?")
def for_summed_loss(reader):
    """fn(lr, eps, batch): the (lr, eps) with which Adam on the summed loss steps as on the mean loss."""
    gradients = np.array([[3e-9, -2e-6, 0.5], [-1e-8, 5e-6, 0.25], [2e-8, 1e-6, -1.5], [4e-9, -3e-6, 0.75]])
    cases = (1e-3, 1e-8, 256), (1e-3, 1e-8, 32), (0.5, 1e-3, 8), (1e-2, 1e-6, 100), (1e-3, 1e-8, 1)
    for lr, eps, batch in cases:
        call = f"for_summed_loss({lr:g}, {eps:g}, {batch})"
        new_lr, new_eps = _numbers(reader(lr, eps, batch), 2, "a pair of numbers, (lr, eps)", call)
        expect_that(
            new_lr >= 0 and new_eps >= 0,
            tried=call,
            yours=f"({new_lr:g}, {new_eps:g})",
            expected="two numbers that are not negative",
            look="the sign: Adam refuses a negative lr or ε",
        )
        bitwise = batch & (batch - 1) == 0  # a power of two only moves the exponents
        expect(
            algorithm1(np.zeros(3), batch * gradients, new_lr, eps=new_eps).delta,
            algorithm1(np.zeros(3), gradients, lr, eps=eps).delta,
            tried=f"{call}, then Adam on {batch} × the gradients, [step, weight]",
            look="Δ = α·c·m̂ / (c·√v̂ + ε): which ε gives the old Δ back? Is anything left for α to do?",
            rtol=0.0 if bitwise else 1e-12,
        )
    return "the same steps for batches of 256, 32, 8 and 1, bit for bit, and for 100 up to rounding"


@check(start="np.arctan2(a, b) is the angle of the point (b, a): which one belongs to m̂ = √v̂?")
def step_without_epsilon(reader):
    """fn(m_hat, v_hat): a step in units of α that needs no ε. Any function with the properties asked for is right."""
    m_hat = np.array([1.0, -1.0, 0.5, 3.0, -0.001, 40.0, 0.0])
    v_hat = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a division by zero must not pass unseen
        rest = reader(np.zeros(2), np.zeros(2))
        expect(rest, np.zeros(2), tried="m̂ = [0, 0], v̂ = [0, 0]", look="0/0: a weight without gradients must stay")
        steps = reader(m_hat.copy(), v_hat.copy())
        expect(
            np.asarray(steps, dtype=float)[:2], [1.0, -1.0],
            tried="m̂ = [1, -1, …], v̂ = [1, 1, …]: a constant gradient",
            look="the step where m̂ = ±√v̂: which factor makes it ±1?",
            rtol=1e-9,
        )  # fmt: skip
        for c in (1000.0, 1e-10, 1e-150):
            expect(
                reader(c * m_hat, c * c * v_hat), steps,
                tried=f"gradients × {c:g}: m̂ × {c:g}, v̂ × {c * c:g}",
                look="what is added to √v̂ or compared with it: does it have a size of its own?",
                rtol=1e-9, atol=1e-12,
            )  # fmt: skip
    steps = np.asarray(steps, dtype=float)
    expect_that(
        0 < steps[2] < 1 and -1 < steps[4] < 0 and steps[6] == 0,
        tried="m̂ = 0.5, -0.001 and 0 with v̂ = 1",
        yours=f"{steps[2]:.4g}, {steps[4]:.4g} and {steps[6]:.4g}",
        expected="shorter steps than for m̂ = ±1, in the direction of m̂, and 0",
        look="gradients that partly cancel must give a shorter step",
    )
    expect_that(
        (abs(steps) <= 2 * (1 + 1e-12)).all(),
        tried="m̂ = 3 and 40 with v̂ = 1",
        yours=f"{steps[3]:.4g} and {steps[5]:.4g}",
        expected="at most 2",
        look="what a quotient does when its denominator is small, and what an angle does",
    )
    return "no ε, no 0/0, gradients × 1000 to 1e-150 give the same steps, and none is longer than 2"


@check(start="section 3: write the sum for v_t with E[g²] = 2^(−i/n), let t grow, and solve for β2")
def longest_memory(reader):
    """fn(n, factor): the β2 with which v̂ settles at factor·E[g_t²] when E[g²] halves every n steps."""
    for n, factor in ((100, 2.0), (100, 1.1), (10, 4.0), (1000, 2.0), (1, 3.0)):
        call, growth = f"longest_memory({n}, {factor:g})", 2 ** (1 / n)
        (beta2,) = _numbers(reader(n, factor), 1, "one number, β2", call)
        expect_that(
            0 <= beta2 < 1,
            tried=call,
            yours=f"β2 = {beta2:.6g}",
            expected="0 ≤ β2 < 1",
            look="the sign of the exponent: an old gradient was larger than today's, by 2^(k/n)",
        )
        expect_that(
            beta2 * growth < 1,
            tried=f"{call}, which gave β2 = {beta2:.6g}",
            yours="a ratio that grows for ever: with this β2, v cannot fall faster than E[g²] does",
            expected=f"v̂ / E[g²] → {factor:g}",
            look=f"the geometric sum Σ (β2·2^(1/n))^k: it needs β2 < 2^(−1/{n}) = {1 / growth:.6g}",
        )
        expect(
            (1 - beta2) / (1 - beta2 * growth), factor,
            tried=f"v̂ / E[g²] in the long run, with the β2 of {call}",
            look="(1−β2)·Σ β2^k·2^(k/n) over all ages k: E[g²] was 2^(k/n) times as large then; "
                 "and if you are near, give β2 with more digits",
            rtol=0.02,  # four digits of β2 are right to about a percent, and so is a long simulation
        )
    return "v̂ settles at the factor asked for, for n = 1, 10, 100 and 1000"


@check(start="section 3: unroll m_t with a β of its own at every step. What weight does gradient i carry?")
def corrected_average(reader):
    """fn(gradients, betas): the moving average with one β per step, divided by the sum of its weights."""
    rng = np.random.default_rng(1)
    cases = {
        "gradients all 1, β = .9, .8, .7, .6": (np.ones(4), np.array([0.9, 0.8, 0.7, 0.6])),
        "one β for all steps, .9": (np.array([4.0, -2.0, 1.0, 3.0]), np.full(4, 0.9)),
        "β rising from .5 to .99": (rng.standard_normal(30), np.linspace(0.5, 0.99, 30)),
        "β falling from .95 to .85, as in OneCycleLR": (rng.standard_normal(30), np.linspace(0.95, 0.85, 30)),
        "a β of 0 at the 3rd step": (np.array([5.0, 1.0, -2.0, 3.0]), np.array([0.9, 0.9, 0.0, 0.9])),
        "a single gradient": (np.array([7.0]), np.array([0.999])),
    }
    for name, (gradients, betas) in cases.items():
        m, unseen, expected = 0.0, 1.0, []
        for g, beta in zip(gradients, betas):
            m = beta * m + (1 - beta) * g
            unseen *= beta  # the share of the weight that still lies on the zero at the start
            expected.append(m / (1 - unseen))
        expect(
            reader(gradients.copy(), betas.copy()), expected,
            tried=name,
            look="the sum of the weights (1−βᵢ)·βᵢ₊₁·…·β_t: what is m_t if every gradient is 1?",
            rtol=1e-9, atol=1e-12,
        )  # fmt: skip
    return "agrees for constant, rising and falling β, for a β of 0, and for one gradient"


@check(start="section 6: what are the gradient's coordinates along Q's columns? Adam may see only those")
def adam_in_basis(reader):
    """fn(gradients [T, n], Q [n, n] orthogonal, lr): the steps Δ [T, n], in the original coordinates."""
    rng = np.random.default_rng(2)
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    cases = {
        "Q = 1 (no turn)": (2, np.eye(2)),
        "Q = a turn by 30°": (2, np.array([[c, -s], [s, c]])),
        "Q = a random orthogonal 4×4 matrix": (4, np.linalg.qr(rng.standard_normal((4, 4)))[0]),
        "Q = a permutation": (3, np.eye(3)[[1, 2, 0]]),
    }
    for name, (n, Q) in cases.items():
        gradients = rng.standard_normal((20, n)) * np.logspace(0, 3, n)
        expect(
            reader(gradients.copy(), Q.copy(), 0.01),
            algorithm1(np.zeros(n), gradients @ Q, 0.01).delta @ Q.T,
            tried=f"adam_in_basis with {name}, lr=0.01, defaults otherwise; Δ[step, weight]",
            look="the way there and back: coordinates along Q's columns are Qᵀg, a vector returns by Q",
            rtol=1e-9, atol=1e-12,
        )  # fmt: skip
    return "agrees for no turn, 30°, a random basis in four dimensions, and a permutation"


@check(start="section 7: with β1 = 0 Adam is RMSprop with a correction. Which learning rate takes the correction back?")
def settings(reader):
    """fn(ancestor, α, t): the (lr, β1, β2, ε) with which Adam steps as an ancestor does with the rate α."""
    gradients = np.random.default_rng(1).standard_normal((200, 20)) * np.logspace(-2, 2, 20)
    for ancestor, (expected, look) in _ancestors(gradients).items():
        for alpha in (1.0, 0.01):
            asked = "settings({!r}, {:g}, {})".format
            rows = np.array([
                _numbers(reader(ancestor, alpha, t), 4, "four numbers, lr, β1, β2 and ε", asked(ancestor, alpha, t))
                for t in range(1, len(gradients) + 1)
            ])  # fmt: skip
            lr, (beta1, beta2, eps) = rows[:, 0], rows[0, 1:]
            expect_that(
                (rows[:, 1:] == rows[0, 1:]).all(),
                tried=f"{asked(ancestor, alpha, 't')} for t = 1 to {len(rows)}",
                yours="β1, β2 or ε that change with t",
                expected="the same at every step",
                look="only the learning rate may depend on t",
            )
            expect_that(
                0 <= beta1 < 1 and 0 <= beta2 < 1 and eps >= 0 and (lr >= 0).all(),
                tried=asked(ancestor, alpha, 1),
                yours=f"β1 = {beta1:.6g}, β2 = {beta2:.6g}, ε = {eps:.6g}, lr = {lr[0]:.6g}",
                expected="0 ≤ β < 1, and no negative ε or lr",
                look="a limit that is forbidden itself: come near it",
            )
            expect(
                algorithm1(np.zeros(20), gradients, lr, betas=(beta1, beta2), eps=eps).delta / alpha, expected,
                tried=f"{ancestor}: 200 steps of Adam with {asked(ancestor, alpha, 't')}, in units of α [step, weight]",
                look=look, rtol=1e-3, atol=1e-9,
            )  # fmt: skip
    return "Adam steps as sign descent, RMSprop, momentum and AdaGrad do, over 200 random gradients"


def _ancestors(gradients):
    """{name: (its steps in units of α, where to look when they differ)}."""
    squares, b, v, momentum, rmsprop = gradients**2, 0, 0, [], []
    for g in gradients:
        b, v = 0.9 * b + g, 0.99 * v + 0.01 * g**2
        momentum.append(b)
        rmsprop.append(g / np.sqrt(v))
    return {
        "sign": (np.sign(gradients), "what is √v̂ if v̂ remembers nothing?"),
        "RMSprop": (np.array(rmsprop), "v̂ = v/(1 − β2^t): what does the root of that divisor do to the step?"),
        "momentum": (
            np.array(momentum), "√v̂ must not matter, and b is 10·m: what hides √v̂, and who divides by 1 − 0.9^t?",
        ),
        "AdaGrad": (
            gradients / np.sqrt(np.cumsum(squares, axis=0)), "G is a sum. What is v̂ if all t squares weigh the same?",
        ),
    }  # fmt: skip


def _numbers(answer, count, wanted, call):
    """The reader's answer as ``count`` floats, or the end of the check."""
    if answer is None or answer is Ellipsis:
        not_written()
    try:
        numbers = [float(value) for value in (answer if count > 1 else [answer])]
    except (TypeError, ValueError):
        numbers = []
    expect_that(
        len(numbers) == count, tried=call, yours=answer, expected=wanted, look="what the function returns"
    )  # fmt: skip
    return numbers
