"""The checks of chapter 07 accept the right answers and catch the plausible wrong ones."""

import math

import numpy as np
import pytest
import torch
from exercise_reports import caught

import adamlib
from course.exercises import ch07_differentiable as check

# ------------------------------------------------------------------------------------------------ lr_slope


def lr_slope(next_grad, param, m, v, t, *, beta1, beta2, eps, weight_decay, **wrong):
    c1, c2 = (1, 1) if wrong.get("uncorrected") else (1 - beta1**t, 1 - beta2**t)
    below = (v / c2 + eps).sqrt() if wrong.get("eps_inside") else (v / c2).sqrt() + eps
    push = m / c1 / below
    if wrong.get("corrects_late"):
        push = m / c1 / (v.sqrt() + eps)
    if wrong.get("no_root"):
        push = m / c1 / (v / c2 + eps)
    after = param - 1e-3 * push
    decayed = after if wrong.get("decays_after") else param
    push = push + wrong.get("times", 1.0) * weight_decay * decayed * (not wrong.get("no_decay"))
    if wrong.get("L2"):
        push = (m + weight_decay * param) / c1 / below
    slope = next_grad @ push * (1 if wrong.get("uphill") else -1)
    return -(next_grad * push) if wrong.get("no_sum") else slope.item()


WRONG_SLOPES = ["uncorrected", "eps_inside", "corrects_late", "no_root", "decays_after", "no_decay", "L2",
                "uphill", "no_sum"]  # fmt: skip


def test_lr_slope_right():
    assert check.lr_slope(lr_slope)


@pytest.mark.parametrize("name", WRONG_SLOPES)
def test_lr_slope_wrong(name):
    caught(check.lr_slope(lambda *a, **o: lr_slope(*a, **o, **{name: True})))


def test_lr_slope_wrong_in_other_ways():
    caught(check.lr_slope(lambda *a, **o: lr_slope(*a, **o, times=1e-3)))  # λ multiplied by a learning rate

    def in_place(next_grad, param, m, v, t, **options):
        answer = lr_slope(next_grad, param, m, v, t, **options)
        m.div_(1 - options["beta1"] ** t)
        return answer

    caught(check.lr_slope(in_place))


def test_lr_slope_is_what_autograd_says():
    """The formula the check expects, against autograd through adamlib's step."""
    p0, g, next_grad = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    p = p0.clone()
    opt = adamlib.AdamW([p], lr=lr, betas=(0.8, 0.95), eps=0.5, weight_decay=0.3, differentiable=True)
    p.grad = g
    opt.step()
    (want,) = torch.autograd.grad(next_grad @ p, lr)
    m, v = (opt.state[p][name].detach() for name in ("exp_avg", "exp_avg_sq"))
    yours = lr_slope(next_grad, p0, m, v, 1, beta1=0.8, beta2=0.95, eps=0.5, weight_decay=0.3)
    assert math.isclose(yours, want.item(), rel_tol=1e-12)


# --------------------------------------------------------------------------------------------- push_slopes


def push_slopes(gradients, beta1, beta2, eps):
    g = torch.tensor(gradients, dtype=torch.float64, requires_grad=True)
    m = v = torch.zeros((), dtype=torch.float64)
    for x in g:
        m, v = beta1 * m + (1 - beta1) * x, beta2 * v + (1 - beta2) * x * x
    t = len(gradients)
    harmless = torch.where(v == 0, 1.0, v).sqrt()
    root = torch.where(v == 0, 0.0, harmless)
    push = m / (1 - beta1**t) / (root / (1 - beta2**t) ** 0.5 + eps)
    return torch.autograd.grad(push, g)[0].tolist()


def closed_form(gradients, beta1, beta2, eps, *, m_only=False, no_factor=False, plus=False, backwards=False,
                uncorrected=False, squared_root=False, zero_is_zero=False, no_eps=False,
                sign=False):  # fmt: skip
    t = len(gradients)
    a = [(1 - beta1) * beta1 ** (t - i) for i in range(1, t + 1)]
    b = [(1 - beta2) * beta2 ** (t - i) for i in range(1, t + 1)]
    if not uncorrected:
        a, b = [x / (1 - beta1**t) for x in a], [x / (1 - beta2**t) for x in b]
    if backwards:
        a, b = a[::-1], b[::-1]
    m = sum(x * g for x, g in zip(a, gradients))
    root = math.sqrt(sum(x * g * g for x, g in zip(b, gradients)))
    if root == 0:
        return [0.0 if zero_is_zero else x / eps for x in a]
    below = root if no_eps else root + eps
    power = 1 if squared_root else 2
    second = [m * x * (abs(g) if sign else g) / root / below**power for x, g in zip(b, gradients)]
    factor = 0 if m_only else 2 if no_factor else -1 if plus else 1
    return [x / below - factor * y for x, y in zip(a, second)]


WRONG_PUSHES = ["m_only", "no_factor", "plus", "backwards", "uncorrected", "squared_root", "zero_is_zero",
                "no_eps", "sign"]  # fmt: skip


def test_push_slopes_right():
    assert check.push_slopes(push_slopes) and check.push_slopes(closed_form)


@pytest.mark.parametrize("name", WRONG_PUSHES)
def test_push_slopes_wrong(name):
    caught(check.push_slopes(lambda *a: closed_form(*a, **{name: True})))


def test_push_slopes_wrong_in_other_ways():
    caught(check.push_slopes(lambda *a: closed_form(*a)[::-1]))
    caught(check.push_slopes(lambda *a: closed_form(*a)[-1]))  # the last gradient only
    caught(check.push_slopes(lambda *a: [-x for x in closed_form(*a)]))

    def nan_at_zero(gradients, *rest):
        return [math.nan] * len(gradients) if not any(gradients) else closed_form(gradients, *rest)

    caught(check.push_slopes(nan_at_zero))


# ---------------------------------------------------------------------------------- forward_hypergradient


def forward(grad, hvp, theta, lr, steps, *, beta1, beta2, eps, **wrong):
    theta = theta if wrong.get("in_place") else theta.copy()
    m = v = d_theta = dm = dv = np.zeros_like(theta)
    for t in range(1, steps + 1):
        g, dg = grad(theta), hvp(theta, d_theta)
        if wrong.get("constant_gradient"):
            dg = 0 * g
        m, dm = beta1 * m + (1 - beta1) * g, beta1 * dm + (1 - beta1) * dg
        dv = beta2 * dv + (1 if wrong.get("no_two") else 2) * (1 - beta2) * g * dg
        v = beta2 * v + (1 - beta2) * g * g
        if wrong.get("forgets_history"):
            dm, dv = (1 - beta1) * dg, 2 * (1 - beta2) * g * dg
        if wrong.get("v_constant"):
            dv = 0 * g
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        k1, k2 = (1, 1) if wrong.get("slopes_uncorrected") else (c1, c2)
        root = np.sqrt(v / c2)
        with np.errstate(all="ignore"):
            d_root = dv / k2 / (2 * root)
        if not wrong.get("nan"):
            d_root = np.where(root > 0, d_root, 5.0)  # any finite number
        below = root + eps
        old = 0 if wrong.get("last_step_only") else d_theta
        direct = 0 if wrong.get("no_direct") else m / c1 / below
        d_theta = old - direct - lr * (dm / k1 / below - m / c1 * d_root / below**2)
        if wrong.get("in_place"):
            theta -= lr * m / c1 / below
        else:
            theta = theta - lr * m / c1 / below
    return [theta, d_theta] if wrong.get("a_list") else (theta, d_theta)


WRONG_FORWARDS = ["in_place", "constant_gradient", "no_two", "forgets_history", "v_constant",
                  "slopes_uncorrected", "nan", "last_step_only", "no_direct"]  # fmt: skip


def differences(grad, hvp, theta, lr, steps, **options):
    a, b = (forward(grad, hvp, theta, lr + h, steps, **options)[0] for h in (1e-6, -1e-6))
    return forward(grad, hvp, theta, lr, steps, **options)[0], (a - b) / 2e-6


def test_forward_right():
    assert check.forward_hypergradient(forward), check.forward_hypergradient(forward)
    as_list = check.forward_hypergradient(lambda *a, **o: forward(*a, **o, a_list=True))
    assert as_list, as_list


@pytest.mark.parametrize("name", WRONG_FORWARDS)
def test_forward_wrong(name):
    caught(check.forward_hypergradient(lambda *a, **o: forward(*a, **o, **{name: True})))


def test_forward_by_differences_is_told_apart():
    caught(check.forward_hypergradient(differences))
    caught(check.forward_hypergradient(lambda *a, **o: forward(*a, **o)[::-1]))


def test_forward_agrees_with_differences():
    start, options = np.array([0.7, -1.2, 0.3, 0.5]), dict(beta1=0.8, beta2=0.95, eps=0.1)
    a, b = (way(check._grad, check._hvp, start, 0.05, 9, **options) for way in (forward, differences))
    assert np.allclose(a[1], b[1], rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------ all the checks


@pytest.mark.parametrize("one", [check.lr_slope, check.push_slopes, check.forward_hypergradient])
def test_what_is_not_a_number_is_caught(one):
    caught(one(lambda *_, **__: "text"))
