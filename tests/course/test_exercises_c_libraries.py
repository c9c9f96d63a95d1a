"""The checks of appendix C accept the right answers and catch the plausible wrong ones."""

import pytest
import torch
from exercise_reports import caught

from course.exercises import c_libraries as check

# ------------------------------------------------------------------------------------------- which_amsgrad

KINDS = ("adam", "torch", "corrected max", "paper")


def nearest(gradients):
    def which(run, beta1, beta2):
        seen = run(gradients)
        wanted = {kind: list(check._steps(kind, gradients, beta1, beta2)) for kind in KINDS}
        return min(KINDS, key=lambda kind: sum((a - b) ** 2 for a, b in zip(seen, wanted[kind])))

    return which


def by_first_step(run, beta1, beta2):
    return "torch" if abs(run([1.0])[0] - 1) < 1e-3 else "paper"


def by_defaults(run, beta1, beta2):
    steps = [round(step, 3) for step in run([10.0] + [0.1] * 50)]
    return {1.0: {0.677: "torch", 0.479: "corrected max"}.get(steps[1], "adam")}.get(steps[0], "paper")


WRONG_WHICH = {
    "looks at the first step": by_first_step,
    "numbers of the default betas": by_defaults,
    "always torch": lambda run, b1, b2: run([1.0]) and "torch",
    "does not look": lambda run, b1, b2: "torch",
    "equal gradients": nearest([1.0] * 50),
    "growing gradients": nearest([1.1**k for k in range(50)]),
    "one spike, then zeros": nearest([10.0] + [0.0] * 50),
    "one gradient": nearest([10.0]),
    "answers with the step": lambda run, b1, b2: run([10.0, 0.1])[1],
    "takes small differences for none": lambda run, b1, b2: nearest([10.0] + [0.1] * 50)(
        lambda gradients: [round(step, 2) for step in run(gradients)], b1, b2
    ),
    "wrong name": lambda run, b1, b2: {"torch": "PyTorch"}.get(nearest([9.0, 0.1])(run, b1, b2), "paper"),
}


def test_which_amsgrad_right():
    assert check.which_amsgrad(nearest([10.0] + [0.1] * 50))


@pytest.mark.parametrize("name", WRONG_WHICH)
def test_which_amsgrad_wrong(name):
    caught(check.which_amsgrad(WRONG_WHICH[name]))


@pytest.mark.parametrize("beta1", (0.0, 0.5))
def test_without_beta2_two_of_the_four_are_one(beta1):
    """Why the exercise asks for a positive β₂."""
    gradients = [10.0] + [0.1] * 30
    torchs, corrected, paper = (list(check._steps(kind, gradients, beta1, 0.0)) for kind in KINDS[1:])
    assert torchs == corrected
    assert (torchs == paper) == (beta1 == 0)


@pytest.mark.parametrize("kind", ("adam", "torch"))
@pytest.mark.parametrize("betas", check._BETAS)
def test_black_boxes_are_what_they_say(kind, betas):
    """The oracle of which_amsgrad against torch itself."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, amsgrad=kind == "torch", foreach=False)
    gradients = [10.0] + [0.1] * 30
    for g, step in zip(gradients, check._steps(kind, gradients, *betas)):
        before = weight.item()
        weight.grad = torch.full_like(weight, g)
        optimizer.step()
        assert before - weight.item() == pytest.approx(step, rel=1e-9)


# --------------------------------------------------------------------------------------- shares_in_the_end


def shares(lrs, weight_decay):
    kept, result = 1.0, []
    for lr in reversed(lrs):
        result.append(kept * lr * weight_decay)
        kept *= 1 - lr * weight_decay
    return [kept, *reversed(result)]


def shares_by_columns(lrs, weight_decay):
    """Another way: every source starts at 0, its own step sets its share, each later one shrinks all."""
    all_of_them = torch.zeros(len(lrs) + 1, dtype=torch.float64)
    all_of_them[0] = 1
    for t, lr in enumerate(lrs, 1):
        all_of_them *= 1 - lr * weight_decay
        all_of_them[t] += lr * weight_decay
    return all_of_them


def forgets_with_its_own_rate(lrs, weight_decay):
    T = len(lrs)
    own = [lr * weight_decay * (1 - lr * weight_decay) ** (T - 1 - t) for t, lr in enumerate(lrs)]
    return [1 - sum(own), *own]


WRONG_SHARES = {
    "forgets with its own rate": forgets_with_its_own_rate,
    "without the start": lambda lrs, w: shares(lrs, w)[1:],
    "newest first": lambda lrs, w: shares(lrs, w)[::-1],
    "earlier instead of later steps": lambda lrs, w: shares(lrs, w)[:1] + shares(lrs[::-1], w)[:0:-1],
    "no decay in the share": lambda lrs, w: shares(lrs, w)[:1] + [x / w if w else x for x in shares(lrs, w)[1:]],
    "by exponentials": lambda lrs, w: shares([-torch.expm1(torch.tensor(-lr * w)).item() / (w or 1) for lr in lrs], w),
    "equal shares": lambda lrs, w: [1 / (len(lrs) + 1)] * (len(lrs) + 1),
    "rates alone": lambda lrs, w: [0.0, *(lr / (sum(lrs) or 1) for lr in lrs)],
    "one number": lambda lrs, w: 1.0,
}


@pytest.mark.parametrize("right", [shares, shares_by_columns], ids=["backwards", "columns"])
def test_shares_right(right):
    assert check.shares_in_the_end(right)


@pytest.mark.parametrize("name", WRONG_SHARES)
def test_shares_wrong(name):
    caught(check.shares_in_the_end(WRONG_SHARES[name]))


def test_the_shares_are_those_of_torch():
    lrs, decay = [0.1, 0.05, 0.2, 0.01], 0.5
    weight = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer, parts = torch.optim.AdamW([weight], weight_decay=decay, eps=0.0), [3.0]
    for t, lr in enumerate(lrs, 1):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor([(-1.5) ** t], dtype=torch.float64)
        optimizer.step()
        m, v = optimizer.state[weight]["exp_avg"].item(), optimizer.state[weight]["exp_avg_sq"].item()
        parts.append(-m / (1 - 0.9**t) / (v / (1 - 0.999**t)) ** 0.5 / decay)
    assert weight.item() == pytest.approx(sum(s * x for s, x in zip(shares(lrs, decay), parts)), rel=1e-12)
