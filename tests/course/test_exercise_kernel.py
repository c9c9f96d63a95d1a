"""Exercise 05.3, a kernel, in Triton's interpreter: the right one passes, wrong ones are told what is wrong."""

import functools
import os

import pytest
from exercise_reports import caught, unfinished

from course.exercises import ch05_fused_cuda as check

WRONG = {
    "no mask": "in every store",
    "no mask in loads": "in every load",
    "loads one too many": "in every load",
    "one too many": "in every store",
    "first block only": "program_id",
    "forgets m": "m ← βm + g, stored",
    "old m": "with the new m",
    "an average": "m ← βm + g",
    "uphill": "θ ← θ − lr·m",
    "spoils g": "only θ and m are written",
    "drops the end": "m ← βm + g",
}

try:
    import triton
    import triton.language as tl
except ImportError:
    pass
else:

    @triton.jit
    def momentum(p, g, m, n, lr, beta, BLOCK: tl.constexpr, WRONG: tl.constexpr):
        i = tl.program_id(0) * (0 if WRONG == "first block only" else BLOCK) + tl.arange(0, BLOCK)
        inside = i < (n // BLOCK * BLOCK if WRONG == "drops the end" else n)
        inside |= (WRONG == "no mask") | ((WRONG == "one too many") & (i == n))
        loads = inside | (WRONG == "no mask in loads")
        old = tl.load(m + i, mask=loads)
        grad = tl.load(g + i, mask=loads | ((WRONG == "loads one too many") & (i == n)))
        new = beta * old + (1 - beta if WRONG == "an average" else 1) * grad
        tl.store(m + i, old if WRONG == "forgets m" else new, mask=inside)
        tl.store(g + i, new if WRONG == "spoils g" else grad, mask=inside)
        step = (-lr if WRONG == "uphill" else lr) * (old if WRONG == "old m" else new)
        tl.store(p + i, tl.load(p + i, mask=loads) - step, mask=inside)

    @triton.jit
    def nothing(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        pass


class Kernel:
    def __init__(self, wrong=""):
        self.wrong = wrong

    def __getitem__(self, grid):
        return functools.partial(momentum[grid], WRONG=self.wrong)


def test_in_the_interpreter(passed_in_the_interpreter):
    assert passed_in_the_interpreter == len(WRONG) + 2


interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in test_in_the_interpreter")


@interpreted
def test_the_right_kernel_passes():
    report = check.momentum(Kernel())
    assert report, report


@interpreted
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_is_told_what_is_wrong(wrong):
    report = check.momentum(Kernel(wrong))
    caught(report)
    assert WRONG[wrong] in repr(report), report


@interpreted
def test_an_empty_kernel_is_a_stub():
    unfinished(check.momentum(nothing))
