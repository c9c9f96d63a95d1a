"""The check of chapter 00: the right answer passes however it is written, plausible wrong ones do not."""

import math

import pytest
import torch

from course.exercises import ch00_start_here as check


def by_the_five_lines(g, lr=1e-3, eps=1e-8, beta1=0.9, beta2=0.999):
    m, v = (1 - beta1) * g, (1 - beta2) * g * g
    return -lr * (m / (1 - beta1)) / (math.sqrt(v / (1 - beta2)) + eps)


def by_torch(g, lr=1e-3, eps=1e-8):
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor(g, dtype=torch.float64)
    torch.optim.Adam([p], lr=lr, eps=eps).step()
    return p.detach()


@pytest.mark.parametrize("right", [by_the_five_lines, by_torch, lambda g, lr=1e-3, eps=1e-8: -lr * g / (abs(g) + eps)])
def test_right_answers_pass(right):
    assert check.first_step(right), check.first_step(right)


def sign(g):
    return (g > 0) - (g < 0)


WRONG = {
    "gradient descent": lambda g, lr=1e-3, eps=1e-8: -lr * g,
    "up the hill": lambda g, lr=1e-3, eps=1e-8: lr * g / (abs(g) + eps),
    "no bias correction": lambda g, lr=1e-3, eps=1e-8: -lr * 0.1 * g / (math.sqrt(0.001) * abs(g) + eps),
    "sign descent": lambda g, lr=1e-3, eps=1e-8: -lr * sign(g),
    "eps inside the root": lambda g, lr=1e-3, eps=1e-8: -lr * g / math.sqrt(g * g + eps),
    "no eps": lambda g, lr=1e-3, eps=1e-8: -lr * g / abs(g),
    "no root": lambda g, lr=1e-3, eps=1e-8: -lr * g / (g * g + eps),
    "eps not scaled by the correction": lambda g, lr=1e-3, eps=1e-8: -lr * g / (abs(g) + eps / math.sqrt(0.001)),
    "only m corrected": lambda g, lr=1e-3, eps=1e-8: -lr * g / (math.sqrt(0.001) * abs(g) + eps),
    "lr written down": lambda g, lr=1e-3, eps=1e-8: -1e-3 * g / (abs(g) + eps),
    "eps written down": lambda g, lr=1e-3, eps=1e-8: -lr * g / (abs(g) + 1e-8),
    "the length of the step": lambda g, lr=1e-3, eps=1e-8: lr * abs(g) / (abs(g) + eps),
    "no lr": lambda g, lr=1e-3, eps=1e-8: -g / (abs(g) + eps),
    "zero": lambda g, lr=1e-3, eps=1e-8: 0.0,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_caught(name):
    report = check.first_step(WRONG[name])
    assert not report and repr(report).startswith("not yet: first_step"), report
