"""The checks of chapter 05 accept the right answers and catch the plausible wrong ones."""

import math
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from exercise_reports import caught

from course.parameter_sets import SETS
from course.exercises import ch05_fused_cuda as check

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# ---------------------------------------------------------------------------------------------- step_bytes


def step_bytes(param, grad, state, amsgrad=False, scaled=False):
    return 2 * param + grad + 2 * state * (3 if amsgrad else 2) + (grad if scaled else 0)


WRONG_BYTES = {
    "reads only": lambda p, g, s, a, x: p + g + 2 * s + a * s,
    "writes what it reads": lambda p, g, s, a, x: 2 * (p + g + 2 * s + a * s),
    "never writes g": lambda p, g, s, a, x: step_bytes(p, g, s, a, False),
    "always writes g": lambda p, g, s, a, x: step_bytes(p, g, s, a, True),
    "the maximum is only written": lambda p, g, s, a, x: step_bytes(p, g, s, False, x) + a * s,
    "forgets the maximum": lambda p, g, s, a, x: step_bytes(p, g, s, False, x),
    "all of one size": lambda p, g, s, a, x: step_bytes(p, p, p, a, x),
    "the gradient is read twice": lambda p, g, s, a, x: step_bytes(p, g, s, a, x) + g,
    "scaled gradients in float32": lambda p, g, s, a, x: step_bytes(p, g, s, a, False) + 4 * x,
    "the seven operations": lambda p, g, s, a, x: 76,
    "text": lambda p, g, s, a, x: "28 bytes",
}


def test_step_bytes_right():
    assert check.step_bytes(step_bytes)


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_step_bytes_wrong(name):
    caught(check.step_bytes(WRONG_BYTES[name]))


# ------------------------------------------------------------------------------------------------- reorder


def evenly(numels, max_tensors, max_blocks):
    blocks = [-(-numel // 65_536) for numel in numels]
    left, order, used = sorted(range(len(numels)), key=numels.__getitem__), [], 0
    while left:
        order.append(left.pop() if used * len(numels) <= len(order) * sum(blocks) else left.pop(0))
        used += blocks[order[-1]]
    return order


def zipped(numels, *_):
    small_first = sorted(range(len(numels)), key=numels.__getitem__)
    return [i for pair in zip(small_first, reversed(small_first)) for i in pair][: len(numels)]


def sorts_in_place(numels, *limits):
    order = evenly(numels, *limits)
    numels.sort()
    return order


WRONG_ORDERS = {
    "as given": lambda numels, *_: range(len(numels)),
    "small first": lambda numels, *_: sorted(range(len(numels)), key=numels.__getitem__),
    "large first": lambda numels, *_: sorted(range(len(numels)), key=numels.__getitem__, reverse=True),
    "at random": lambda numels, *_: random.Random(0).sample(range(len(numels)), len(numels)),
    "smallest, largest, smallest, with repetitions": zipped,
    "sizes instead of indices": lambda numels, *limits: [numels[i] for i in evenly(numels, *limits)],
    "drops the empty tensors": lambda numels, *limits: [i for i in evenly(numels, *limits) if numels[i]],
    "drops one": lambda numels, *limits: evenly(numels, *limits)[:-1],
    "counts from 1": lambda numels, *limits: [i + 1 for i in evenly(numels, *limits)],
    "sorts the caller's list": sorts_in_place,
    "a number": lambda *_: 7,
}


def test_reorder_right():
    assert check.reorder(evenly)


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_reorder_wrong(name):
    caught(check.reorder(WRONG_ORDERS[name]))


@pytest.mark.parametrize("name, old, new", [
    ("resnet18", 2, 1), ("gpt2_small", 7, 1), ("large_8x8m", 4, 1), ("small_200x1k", 6, 1),
])
def test_launches_of_fused_adam(name, old, new):
    """torch 2.11: 36 tensors and 320 blocks a launch; 2.12 and newer for CUDA 13: 252 and 2240."""
    numels = [math.prod(shape) for shape in SETS[name]()]
    assert (check._launches(numels, 36, 320), check._launches(numels, 252, 2240)) == (old, new)


def test_launches_end_where_a_limit_is_met():
    assert check._launches([], 2, 3) == check._launches([0, 0], 2, 3) == 0
    assert check._launches([1, 1], 2, 3) == 1 and check._launches([1, 1, 1], 2, 3) == 2
    assert check._launches([3 * 65_536], 2, 3) == 1 and check._launches([3 * 65_536 + 1], 2, 3) == 2
    assert check._launches([4 * 65_536, 1, 1], 2, 3) == 3  # the rest of a tensor is one in the next launch


# --------------------------------------------------------------------------------------------- scaled_step


def scaled_step(
    params, grads, exp_avgs, exp_avg_sqs, steps, scale, *, advance=1, back=True, looks=None,
    how="finite", unscale=None, hand_scale=True, hand_inf=True, host=False, late=False, lr=1e-3, decay=0.0,
):  # fmt: skip
    seen = grads if looks is None else grads[looks]
    if how == "finite":
        found = torch.stack([g.isfinite().all() for g in seen]).all().logical_not().float()
    elif how == "inf only":
        found = torch.stack([g.isinf().any() for g in seen]).any().float()
    elif how == "sum":
        found = sum(g.sum() for g in seen).isfinite().logical_not().float()
    elif how == "+inf or nan":
        found = torch.stack([((g == math.inf) | g.isnan()).any() for g in seen]).any().float()
    if host and found.item():
        return
    if unscale:
        for g in grads:
            g.div_(scale) if unscale == "divide" else g.mul_(scale)
    if not late:
        torch._foreach_add_(steps, advance)
    torch._fused_adam_(
        params, grads, exp_avgs, exp_avg_sqs, [], steps, lr=lr, beta1=0.9, beta2=0.999, eps=1e-8,
        weight_decay=decay, amsgrad=False, maximize=False, grad_scale=scale if hand_scale else None,
        found_inf=found if hand_inf else None,
    )  # fmt: skip
    if late:
        torch._foreach_add_(steps, advance)
    if back:
        torch._foreach_sub_(steps, [found] * len(steps))


WRONG_STEPS = {
    "counts the step that was called off": dict(back=False),
    "does not count": dict(advance=0, back=False),
    "does not advance, but takes back": dict(advance=0),
    "advances after the kernel": dict(late=True),
    "asks the host": dict(host=True),
    "looks at the first tensor": dict(looks=slice(0, 1)),
    "forgets the first tensor": dict(looks=slice(1, None)),
    "sees inf, not nan": dict(how="inf only"),
    "looks at the sum": dict(how="sum"),
    "misses -inf": dict(how="+inf or nan"),
    "unscales twice": dict(unscale="divide"),
    "unscales itself, also when called off": dict(unscale="divide", hand_scale=False),
    "does not unscale": dict(hand_scale=False),
    "multiplies": dict(unscale="multiply", hand_scale=False),
    "does not say what it found": dict(hand_inf=False),
    "another learning rate": dict(lr=1e-2),
    "weight decay": dict(decay=0.1),
}


def test_scaled_step_right():
    assert check.scaled_step(scaled_step)


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_scaled_step_wrong(name):
    caught(check.scaled_step(lambda *args: scaled_step(*args, **WRONG_STEPS[name])))


@pytest.mark.parametrize("question", [
    bool, float, torch.Tensor.item, lambda tensor: 1 if tensor else 0,
])
def test_scaled_step_sees_every_question(question):
    def asks(params, grads, *rest):
        question(grads[0].isfinite().all())
        scaled_step(params, grads, *rest)

    assert "asked a tensor" in repr(check.scaled_step(asks))


# ------------------------------------------------------------------------------------------------ momentum

try:
    import triton
    import triton.language as tl
except ImportError:
    pass
else:

    @triton.jit
    def right(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i < n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def nothing(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        pass

    @triton.jit
    def no_mask(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i) + tl.load(g + i)
        tl.store(m + i, new_m)
        tl.store(p + i, tl.load(p + i) - lr * new_m)

    @triton.jit
    def masks_its_stores_only(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i) + tl.load(g + i)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i) - lr * new_m, mask=i < n)

    @triton.jit
    def loads_one_too_many(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i <= n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def one_too_many(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i <= n) + tl.load(g + i, mask=i <= n)
        tl.store(m + i, new_m, mask=i <= n)
        tl.store(p + i, tl.load(p + i, mask=i <= n) - lr * new_m, mask=i <= n)

    @triton.jit
    def first_block_only(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i < n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def forgets_m(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def old_m(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        before = tl.load(m + i, mask=i < n)
        tl.store(m + i, beta * before + tl.load(g + i, mask=i < n), mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * before, mask=i < n)

    @triton.jit
    def an_average(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + (1 - beta) * tl.load(g + i, mask=i < n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def uphill(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i < n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) + lr * new_m, mask=i < n)

    @triton.jit
    def spoils_g(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        new_m = beta * tl.load(m + i, mask=i < n) + tl.load(g + i, mask=i < n)
        tl.store(m + i, new_m, mask=i < n)
        tl.store(g + i, new_m, mask=i < n)
        tl.store(p + i, tl.load(p + i, mask=i < n) - lr * new_m, mask=i < n)

    @triton.jit
    def drops_the_end(p, g, m, n, lr, beta, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n // BLOCK * BLOCK
        new_m = beta * tl.load(m + i, mask=inside) + tl.load(g + i, mask=inside)
        tl.store(m + i, new_m, mask=inside)
        tl.store(p + i, tl.load(p + i, mask=inside) - lr * new_m, mask=inside)


WRONG_KERNELS = (
    "no_mask", "masks_its_stores_only", "loads_one_too_many", "one_too_many", "first_block_only", "forgets_m",
    "old_m", "an_average", "uphill", "spoils_g", "drops_the_end",
)  # fmt: skip


def test_momentum_in_the_interpreter():
    """Triton settles whether it interprets when it is imported, so these tests get a process of their own."""
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "kernel", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= len(WRONG_KERNELS) + 2, run.stdout


interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in test_momentum_in_the_interpreter")


@interpreted
def test_right_kernel():
    assert check.momentum(right)


@interpreted
@pytest.mark.parametrize("name", WRONG_KERNELS)
def test_wrong_kernel(name):
    caught(check.momentum(globals()[name]))


@interpreted
@pytest.mark.parametrize("name", ["masks_its_stores_only", "loads_one_too_many"])
def test_kernel_with_stray_loads(name):
    assert "in every load" in repr(check.momentum(globals()[name]))


@interpreted
def test_unfinished_kernel():
    assert repr(check.momentum(nothing)).startswith("not written yet: momentum")


def test_momentum_that_is_no_kernel():
    caught(check.momentum(lambda p, g, m, n, lr, beta, BLOCK: None))
