"""The checks of the exercises: right answers pass however they were found, wrong ones are told what is wrong.

ANSWERS holds, for each check, right answers that are found in another way than the notebook's solution, and up to three
wrong ones that no small change of a solution makes: those that the lecturer's guide and the checks' own hints name.
Thousands of other wrong answers are made from the solutions, in test_mutants.py; the kernel is in
test_exercise_kernel.py.
"""

import copy
import importlib
import inspect
import itertools
import math
import pkgutil
import random

import numpy as np
import pytest
import torch
from exercise_reports import caught, stub, unfinished

import adamlib
from adamlib.theory.algorithm1 import algorithm1
from course import exercises
from course.exercises import c_libraries as libraries
from course.exercises import ch05_fused_cuda as ch05
from course.exercises import ch06_capturable as ch06
from course.exercises import ch07_differentiable as ch07
from course.exercises import ch09_errata as ch09
from course.parameter_sets import SETS

MODULES = {
    name: importlib.import_module(f"{exercises.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(exercises.__path__)
}
CHECKS = {
    name: one
    for module in MODULES.values()
    for name, one in vars(module).items()
    if not name.startswith("_") and hasattr(one, "__wrapped__") and one.__module__ == module.__name__
}
ANSWERS = {}


def answers(check, *, right, wrong):
    """right: answers. wrong: {what is wrong: (answer, words of the reply)}."""
    ANSWERS[check] = right, wrong


# ----------------------------------------------------------------------------------------------------- 00, 01


def first_step_by_torch(g, lr, eps):
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor(g, dtype=torch.float64)
    torch.optim.Adam([p], lr=lr, eps=eps).step()
    return p.detach()


answers(
    "first_step",
    right=[first_step_by_torch, lambda g, lr, eps: -lr * (0.1 * g / 0.1) / (math.sqrt(0.001 * g * g / 0.001) + eps)],
    wrong={
        "keeps the gradient's size": (lambda g, lr, eps: -lr * g, "what is left of g"),
        "no bias correction": (lambda g, lr, eps: -lr * 0.1 * g / (math.sqrt(0.001) * abs(g) + eps), "-0.00316228"),
        "ε inside the root": (lambda g, lr, eps: -lr * g / math.sqrt(g * g + eps), "outside the root"),
    },
)
answers(
    "for_summed_loss",
    right=[lambda lr, eps, batch: [lr, batch * eps]],
    wrong={
        "lr divided, as for gradient descent": (
            lambda lr, eps, batch: (lr / batch, eps), "which ε gives the old Δ back",
        ),
        "the one batch of the text": (lambda lr, eps, batch: (lr, eps * 256), "for_summed_loss(0.001, 1e-08, 32)"),
        "negative": (lambda lr, eps, batch: (lr, -eps * batch), "Adam refuses a negative lr or ε"),
    },
)
answers(
    "step_without_epsilon",
    right=[
        lambda m, v: [math.atan2(a, math.sqrt(b)) * 4 / math.pi for a, b in zip(m, v)],
        lambda m, v: np.clip(np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0), -2, 2),
    ],
    wrong={
        "a smaller ε": (lambda m, v: m / (np.sqrt(v) + 1e-12), "gradients × 1e-10"),
        "the sign": (lambda m, v: np.sign(m), "partly cancel"),
        "not bounded": (lambda m, v: np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0), "at most 2"),
    },
)


def longest_memory(n, factor):
    return (factor - 1) / (factor * 2 ** (1 / n) - 1)


def longest_memory_by_bisection(n, factor):
    ages, low, high = np.arange(40_000), 0.0, 2 ** (-1 / n)
    for _ in range(30):
        middle = (low + high) / 2
        too_large = (1 - middle) * ((middle * 2 ** (1 / n)) ** ages).sum() > factor
        low, high = (low, middle) if too_large else (middle, high)
    return middle


answers(
    "longest_memory",
    right=[longest_memory_by_bisection, lambda n, f: round(longest_memory(n, f), 4)],
    wrong={
        "slower than the gradients fall": (lambda n, f: 2 ** (-0.5 / n), "a ratio that grows for ever"),
        "memory of n steps": (lambda n, f: 1 - 1 / n, "over all ages k"),
        "rounded to two digits": (lambda n, f: round(longest_memory(n, f), 2), "give β2 with more digits"),
    },
)


def test_the_longest_memory_is_what_a_simulation_finds():
    n, factor = 100, 2.0
    beta2, v, second_moment = longest_memory(n, factor), 0.0, 1.0
    for _ in range(5000):
        second_moment *= 2 ** (-1 / n)
        v = beta2 * v + (1 - beta2) * second_moment
    assert v / second_moment == pytest.approx(factor, rel=1e-9)


def average(gradients, betas, divisor):
    m, out = 0.0, []
    for t, g in enumerate(gradients, 1):
        m = betas[t - 1] * m + (1 - betas[t - 1]) * g
        out.append(m / divisor(betas[:t]))
    return out


def average_by_weights(gradients, betas):
    """Write out every weight and divide by their sum."""
    out = []
    for t in range(1, len(gradients) + 1):
        weights = [(1 - betas[i]) * np.prod(betas[i + 1 : t]) for i in range(t)]
        out.append(np.dot(weights, gradients[:t]) / np.sum(weights))
    return np.array(out)


answers(
    "corrected_average",
    right=[average_by_weights, lambda g, b: average(g, b, lambda b: 1 - math.prod(b))],
    wrong={
        "today's β to the power t": (
            lambda g, b: average(g, b, lambda b: 1 - b[-1] ** len(b)), "the sum of the weights",
        ),
        "no correction": (lambda g, b: average(g, b, lambda b: 1), "the sum of the weights"),
        "only the last one": (lambda g, b: average_by_weights(g, b)[-1], "shape [4]"),
    },
)


def adam(gradients, lr):
    return algorithm1(np.zeros(gradients.shape[1]), gradients, lr).delta


answers(
    "adam_in_basis",
    right=[
        lambda g, Q, lr: (Q @ adam((Q.T @ g.T).T, lr).T).T,
        lambda g, Q, lr: np.einsum("ij,tj->ti", Q, adam(g @ Q, lr)),
    ],
    wrong={
        "does not come back": (lambda g, Q, lr: adam(g @ Q, lr), "a turn by 30°"),
        "turns the step only": (lambda g, Q, lr: adam(g, lr) @ Q.T, "coordinates along Q's columns are Qᵀg"),
        "there and back the wrong way round": (lambda g, Q, lr: adam(g @ Q.T, lr) @ Q, "a vector returns by Q"),
    },
)


def ancestor(name, alpha, t, *, sign=None, rmsprop=None, momentum=None, adagrad=None):
    """Adam's settings for its ancestors; the keywords replace one of them."""
    return {
        "sign": sign or (alpha, 0.0, 0.0, 0.0),
        "RMSprop": rmsprop or (alpha / math.sqrt(1 - 0.99**t), 0.0, 0.99, 0.0),
        "momentum": momentum or (alpha * 1e9 * (1 - 0.9**t) / 0.1, 0.9, 0.0, 1e9),
        "AdaGrad": adagrad or (alpha / math.sqrt(t), 0.0, 1 - 1e-7, 0.0),
    }[name]


answers(
    "settings",
    right=[ancestor, lambda name, α, t: list(ancestor(name, α, t, sign=(α, 0, 0, 1e-12)))],
    wrong={
        "the correction left in": (
            lambda name, α, t: ancestor(name, α, t, rmsprop=(α, 0, 0.99, 0)), "the root of that divisor",
        ),
        "momentum as an average": (
            lambda name, α, t: ancestor(name, α, t, momentum=(α * 1e9, 0.9, 0, 1e9)), "b is 10·m",
        ),
        "the limit itself": (
            lambda name, α, t: ancestor(name, α, t, adagrad=(α / math.sqrt(t), 0, 1, 0)), "come near it",
        ),
    },
)

# ------------------------------------------------------------------------------------------------------ 02, B


def peak(zeros, beta1, beta2, count=300):
    """The largest step of a constant gradient of 1 after `zeros` zeros, from the recursion."""
    m = v = largest = 0.0
    for t in range(zeros + 1, zeros + count + 1):
        m, v = beta1 * m + (1 - beta1), beta2 * v + (1 - beta2)
        largest = max(largest, m / (1 - beta1**t) / math.sqrt(v / (1 - beta2**t)))
    return largest


def zeros_by_halves(level, beta1, beta2, count=300):
    """The peak grows with the silence, so the answer can be found by halving an interval."""
    low, high = 0, 1024
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if peak(middle, beta1, beta2, count) > level else (middle + 1, high)
    return low


answers(
    "zeros_to_exceed",
    right=[zeros_by_halves],
    wrong={
        "only the first step after": (
            lambda *given: zeros_by_halves(*given, count=1), "the largest of *all* later steps",
        ),
        "counts the first gradient too": (lambda *given: zeros_by_halves(*given) + 1, "86"),
        "the number at the defaults": (
            lambda level, β1, β2: 252 if level > 3 else 85, "nothing may stay at the defaults",
        ),
    },
)
answers(
    "worst_wake_up",
    right=[lambda β1, β2, n: -5 * (β2 / β1) ** torch.arange(n), lambda β1, β2, n: (β1 / β2) ** np.arange(n)[::-1]],
    wrong={
        "newest first": (lambda β1, β2, n: (β1 / β2) ** np.arange(n), "k = 0 is the newest gradient"),
        "with the silence": (lambda β1, β2, n: np.r_[np.zeros(100), (β2 / β1) ** np.arange(n)], "2 finite numbers"),
        "all zero": (lambda β1, β2, n: np.zeros(n), "not all zero"),
    },
)


def geometric(ratio, t):
    return t if abs(ratio - 1) < 1e-12 else (1 - ratio**t) / (1 - ratio)


def worst_in_closed_form(β1, β2, t):
    return (1 - β1) / math.sqrt(1 - β2) * math.sqrt(geometric(β1 * β1 / β2, t))


answers(
    "worst_without_correction",
    right=[worst_in_closed_form],
    wrong={
        "with the correction": (adamlib.theory.step_bound.worst_ratio, "t = 1"),
        "the limit": (lambda β1, β2, t: worst_in_closed_form(β1, β2, 10**6), "3.16228"),
        "divides by zero": (lambda *given: 1 / 0 if given[1] == 0.81 else worst_in_closed_form(*given), "β1² = β2"),
    },
)


def response(β1, β2, δ=1e-6):
    def ratio(γ):
        return (1 - β1) / (1 - β1 / γ) * math.sqrt((1 - β2 / γ**2) / (1 - β2))

    return (ratio(1 + δ) - ratio(1 - δ)) / (2 * δ)


answers(
    "first_response",
    right=[response, lambda β1, β2: 1 / (1 - β2) - 1 / (1 - β1)],
    wrong={
        "too coarse a difference": (lambda β1, β2: response(β1, β2, δ=1e-3 / 2), "the two roots"),
        "the absolute value": (lambda β1, β2: abs(β2 / (1 - β2) - β1 / (1 - β1)), "the sign"),
        "the number at the defaults": (lambda β1, β2: 990.0, "nothing may stay at the defaults"),
    },
)
calls = itertools.count()
answers(
    "runaway_loss",
    right=[lambda x: -torch.exp(11 * x), lambda x: -(math.e ** (18 * x)) / 18],
    wrong={
        "a high power": (lambda x: -((1 + x) ** 8), "how fast |gradient| grows"),
        "counts its calls": (lambda x: x * 1.11 ** (next(calls) / 10), "a function of x alone"),
        "cut from the graph": (lambda x: -torch.exp(14 * x.detach()), ".detach() cut it"),
    },
)

# --------------------------------------------------------------------------------------------------------- 03


def rest_point_by_bisection(g, weight_decay, eps, decoupled):
    """Where the direction of the step changes its sign."""
    low, high = -64.0, 64.0
    for _ in range(200):
        middle = (low + high) / 2
        pull = g / (abs(g) + eps) + weight_decay * middle if decoupled else g + weight_decay * middle
        low, high = (low, middle) if pull > 0 else (middle, high)
    return middle if abs(middle) > 1e-15 else 0.0


answers(
    "rest_point",
    right=[rest_point_by_bisection],
    wrong={
        "ε beside the decay of L2": (
            lambda g, w, e, d: -g / (abs(g) + e) / w if d else -g / (w + e), "L2 does not feel ε",
        ),
        "an ε of its own": (lambda g, w, e, d: -g / (abs(g) + 1e-8) / w if d else -g / w, "take the one you are given"),
        "divides 0 by 0": (
            lambda g, w, e, d: -g / abs(g) / w if d else -g / w, "ε: here it is as large as the gradient",
        ),
    },
)


def corrected_max_step(
    param, grad, m, v, top, t, *, lr, beta1, beta2, eps, weight_decay, raw=False, out=True, own=True
):
    if own:
        grad = grad + weight_decay * param
    else:
        grad.add_(param, alpha=weight_decay)
    new_m, new_v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    new_top = torch.max(top, new_v if raw else new_v / (1 - beta2**t))
    below = (new_top / (1 - beta2**t) if raw else new_top) ** 0.5 + eps
    moved = param - lr / (1 - beta1**t) * new_m / below
    if out:
        param[:], m[:], v[:], top[:] = moved, new_m, new_v, new_top
    else:
        param, m, v, top = moved, new_m, new_v, new_top


answers(
    "corrected_max_step",
    right=[corrected_max_step],
    wrong={
        "torch's maximum, of the raw v": (lambda *a, **o: corrected_max_step(*a, **o, raw=True), "top after step 1"),
        "out of place": (lambda *a, **o: corrected_max_step(*a, **o, out=False), "gives a new tensor the name m"),
        "decay into the caller's gradient": (
            lambda *a, **o: corrected_max_step(*a, **o, own=False), "use add, not add_",
        ),
    },
)


class AdamW(torch.optim.Optimizer):
    """A right one; subclasses change one place of it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def fresh(self, param):
        state = self.state[param]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        return state

    def options(self, group):
        return group

    def decay(self, param, grad, lr, decay):
        param.mul_(1 - lr * decay)
        return grad

    def count(self, step):
        return step.item()

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, (beta1, beta2), eps, decay = (self.options(group)[k] for k in ("lr", "betas", "eps", "weight_decay"))
            for param in (p for p in group["params"] if p.grad is not None):
                state = self.fresh(param)
                state["step"] += 1
                t = self.count(state["step"])
                grad = self.decay(param, param.grad, lr, decay)
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                below = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + eps
                param.sub_(lr * state["exp_avg"] / (1 - beta1**t) / below)


def changed(**methods):
    return type("Changed", (AdamW,), methods)


class EveryKey(AdamW):
    """A scheduler and torch's checkpoints put keys of their own into a group."""

    def options(self, group):
        (lambda *, lr, betas, eps, weight_decay: None)(
            **{name: value for name, value in group.items() if name != "params"}
        )
        return group


class OwnNames(AdamW):
    def fresh(self, param):
        state = self.state[param]
        state.setdefault("step", torch.tensor(0.0))
        m, v = (state.setdefault(name, torch.zeros_like(param)) for name in "mv")
        return {"step": state["step"], "exp_avg": m, "exp_avg_sq": v}


class Tracked(AdamW):
    def step(self):
        with torch.enable_grad():
            inspect.unwrap(AdamW.step)(self)


class NotLazy(AdamW):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for group in self.param_groups:
            [self.fresh(param) for param in group["params"]]


class IntCount(AdamW):
    def fresh(self, param):
        state = super().fresh(param)
        state["step"] = int(state["step"])
        return state

    def count(self, step):
        return step


answers(
    "adamw",
    right=[AdamW, torch.optim.AdamW],
    wrong={  # a class can go wrong in more places than a function
        "L2": (changed(decay=lambda self, param, grad, lr, decay: grad.add(param, alpha=decay)), "L2 or decoupled?"),
        "L2 into the gradient": (
            changed(decay=lambda self, p, grad, lr, decay: grad.add_(p, alpha=decay)), "step() only reads it",
        ),
        "a count that stays a tensor": (changed(count=lambda self, step: step), "step'].item()"),
        "reads defaults, not groups": (
            changed(options=lambda self, group: self.defaults), "a group has its own options",
        ),
        "one count for all tensors": (
            changed(count=lambda self, step: max(float(state["step"]) for state in self.state.values())),
            "its own state['step']",
        ),
        "an int count": (IntCount, "a 0-dim float32 tensor"),
        "state made in the constructor": (NotLazy, "lazy state"),
        "hands on every key of a group": (EveryKey, "unexpected keyword argument"),
        "other names in the state": (OwnNames, "torch's checkpoints use them"),
        "without no_grad": (Tracked, "raised RuntimeError"),
    },
)


@pytest.mark.parametrize("step", [stub, lambda self: None])
def test_an_unfinished_class_is_told_so(step):
    unfinished(CHECKS["adamw"](changed(step=step)))


# --------------------------------------------------------------------------------------------------------- 04


def clip(grads, max_norm, scale_of=lambda norm, n: torch.minimum(torch.tensor(1.0), n / (norm + 1e-6))):
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, scale_of(norm, max_norm))
    return norm


def clip_each(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    for grad in grads:
        grad.mul_((max_norm / (grad.norm() + 1e-6)).clamp(max=1.0))
    return norm


def clip_new_list(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    grads[:] = torch._foreach_mul(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clip_in_a_loop(grads, max_norm):
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    for grad in grads:
        grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def counted_bytes(itemsize, decay, decoupled, amsgrad, maximize):
    """By the list of what each operation reads and writes."""
    extra = {"neg": 2 * maximize, "add": 3 * (decay != 0 and not decoupled), "mul_": 2 * (decay != 0 and decoupled)}
    return itemsize * (19 + sum(extra.values()) + 3 * amsgrad)


answers(
    "bytes_per_weight",
    right=[counted_bytes],
    wrong={
        "L2 in place": (lambda size, w, d, *o: counted_bytes(size, w, bool(w), *o), "L2: add reads g and p"),
        "a decay of 0 costs": (
            lambda size, w, d, *o: counted_bytes(size, 1.0 if d else w, d, *o), "the flag alone adds no line",
        ),
        "always float32": (lambda size, *o: counted_bytes(4, *o), "a float64 has 8 bytes"),
    },
)
answers(
    "clip_in_lists",
    right=[clip, lambda g, n: clip(g, n, lambda norm, n: torch.where(norm > n, n / norm, 1.0))],
    wrong={
        "each tensor by itself": (clip_each, "the norm of all gradients together"),
        "asks the norm with if": (
            lambda g, n: clip(g, n, lambda norm, n: n / norm if norm > n else 1.0), ".item(), float() or `if`",
        ),
        "asks the norm with tolist": (
            lambda g, n: clip(g, n, lambda norm, n: min(1.0, n / (norm.tolist() + 1e-6))), "meta",
        ),
        "new tensors in the old list": (clip_new_list, "with an underscore at its end"),
        "a loop over the tensors": (clip_in_a_loop, "take all of them at once"),
    },
)


def pack(pieces, room):
    buckets, elements = [], 0
    for piece in pieces:
        if not buckets or elements + piece.numel() > room:
            buckets.append([])
            elements = 0
        buckets[-1].append(piece)
        elements += piece.numel()
    return buckets


def pieces_of(tensors, room, flat=lambda t: t.view(-1), strided=False):
    for tensor in tensors:
        whole = tensor.numel() <= room or not (tensor.is_contiguous() or strided)
        yield from [tensor] if whole else flat(tensor).split(room)


def exactly_full(tensors, room):
    """Fills every bucket to the brim."""
    buckets, left = [], 0
    for tensor in tensors:
        if not tensor.is_contiguous():
            buckets.append([tensor])
            left = 0
            continue
        flat = tensor.view(-1)
        while flat.numel():
            if left == 0:
                buckets.append([])
                left = room
            buckets[-1].append(flat[:left])
            taken = min(left, flat.numel())
            flat, left = flat[taken:], left - taken
    return buckets


def every_other(tensors, room):
    return pack(
        [x for t in pieces_of(tensors, 2 * room) for x in ([t] if t.numel() <= room else [t[::2], t[1::2]])], room
    )


answers(
    "cut",
    right=[lambda tensors, room: pack(pieces_of(tensors, room), room), exactly_full],
    wrong={
        "copies": (lambda ts, room: pack(pieces_of(ts, room, lambda t: t.clone().view(-1)), room), "views, not copies"),
        "reshapes what has gaps": (
            lambda ts, room: pack(pieces_of(ts, room, lambda t: t.reshape(-1), True), room), "views, not copies",
        ),
        "whole tensors only": (lambda ts, room: pack(ts, room), "the next piece does not fit"),
        "one piece in each bucket": (lambda ts, room: [[x] for x in pieces_of(ts, room)], "while there is room"),
        "every other element": (every_other, "a run of neighbours in memory"),
        "sorted by size": (
            lambda ts, room: pack(sorted(pieces_of(ts, room), key=torch.Tensor.numel), room),
            "cut alike and must match",
        ),
        "begins with an empty bucket": (
            lambda ts, room: [[]] + pack(pieces_of(ts, room), room), "foreach refuses empty lists",
        ),
    },
)

# ------------------------------------------------------------------------------------------------------ 05, D


def evenly(numels, max_tensors, max_blocks):
    blocks = [-(-numel // 65_536) for numel in numels]
    left, order, used = sorted(range(len(numels)), key=numels.__getitem__), [], 0
    while left:
        order.append(left.pop() if used * len(numels) <= len(order) * sum(blocks) else left.pop(0))
        used += blocks[order[-1]]
    return order


def sorts_in_place(numels, *limits):
    order = evenly(numels, *limits)
    numels.sort()
    return order


answers(
    "step_bytes",
    right=[lambda p, g, s, a, x: sum([p, p, g, s, s, s, s] + [s, s] * a + [g] * x)],
    wrong={
        "all of one size": (lambda p, g, s, a, x: 7 * p + 2 * p * a + p * x, "in their own size"),
        "never writes g": (lambda p, g, s, a, x: 2 * p + g + (6 if a else 4) * s, "writes the unscaled gradient back"),
        "the seven operations": (lambda p, g, s, a, x: 76, "four numbers in, three out"),
    },
)
answers(
    "reorder",
    right=[evenly, lambda *given: evenly(*given)[::-1]],
    wrong={
        "at random": (lambda numels, *_: random.Random(0).sample(range(len(numels)), len(numels)), "has blocks left"),
        "drops the empty tensors": (
            lambda numels, *limits: [i for i in evenly(numels, *limits) if numels[i]], "has one, too",
        ),
        "sorts the caller's list": (sorts_in_place, "take sorted(...)"),
    },
)


@pytest.mark.parametrize(
    "name, old, new", [("resnet18", 2, 1), ("gpt2_small", 7, 1), ("large_8x8m", 4, 1), ("small_200x1k", 6, 1)]
)
def test_launches_of_fused_adam(name, old, new):
    """torch 2.11: 36 tensors and 320 blocks a launch; 2.12 and newer for CUDA 13: 252 and 2240."""
    numels = [math.prod(shape) for shape in SETS[name]()]
    assert (ch05._launches(numels, 36, 320), ch05._launches(numels, 252, 2240)) == (old, new)


def test_launches_end_where_a_limit_is_met():
    assert ch05._launches([], 2, 3) == ch05._launches([0, 0], 2, 3) == 0
    assert ch05._launches([1, 1], 2, 3) == 1 and ch05._launches([1, 1, 1], 2, 3) == 2
    assert ch05._launches([3 * 65_536], 2, 3) == 1 and ch05._launches([3 * 65_536 + 1], 2, 3) == 2
    assert ch05._launches([4 * 65_536, 1, 1], 2, 3) == 3  # the rest of a tensor is one in the next launch


def scaled_step(params, grads, exp_avgs, exp_avg_sqs, steps, scale, found=None, ask=None, back=True, divide=False):
    if found is None:
        found = (torch.stack([(~g.isfinite()).sum() for g in grads]).sum() > 0).float()
    else:
        found = found(grads)
    if ask:
        ask(found)
    if divide:
        torch._foreach_div_(grads, scale)
    torch._foreach_add_(steps, 1)
    scaler = dict(grad_scale=None if divide else scale, found_inf=found)
    settings = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)
    torch._fused_adam_(params, grads, exp_avgs, exp_avg_sqs, [], steps, **settings, **scaler)
    for step in steps if back else ():
        step.sub_(found)


def wrong_steps(**how):
    return lambda *args: scaled_step(*args, **how)


answers(
    "scaled_step",
    right=[scaled_step],
    wrong={
        "counts the step that was called off": (wrong_steps(back=False), "and t, which it takes back"),
        "looks at the sum": (
            wrong_steps(found=lambda gs: (~sum(g.sum() for g in gs).isfinite()).float()), "huge but finite",
        ),
        "sees inf, not nan": (
            wrong_steps(found=lambda gs: torch.stack([g.isinf().any() for g in gs]).any().float()), "a nan in",
        ),
        "unscales itself, also when called off": (wrong_steps(divide=True), "nothing in a step called off"),
        **{
            f"asks by {ask}": (wrong_steps(ask=ask), "asked a tensor for its value")
            for ask in (bool, float, torch.Tensor.item)
        },
    },
)

# --------------------------------------------------------------------------------------------------------- 06


def clip_with(factor_of):
    def clip_(grads, max_norm):
        norm = torch.sqrt(sum(grad.square().sum() for grad in grads))
        for grad in grads:
            grad.copy_(factor_of(grad, norm, max_norm))

    return clip_


def clip_out_of_place(grads, max_norm):
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    grads[:] = [grad * (max_norm / norm).clamp(max=1.0) for grad in grads]


answers(
    "clip_",
    right=[
        clip_with(lambda g, norm, n: torch.where(norm > n, g * (n / norm), g)),
        clip_with(
            lambda g, norm, n: g * (torch.tensor(n) / (norm + 1e-6)).clamp(max=1.0)
        ),  # a 0-dim host tensor is frozen
    ],
    wrong={
        "each tensor for itself": (clip_with(lambda g, norm, n: g * (n / g.norm()).clamp(max=1.0)), "long gradients"),
        "divides 0 by 0": (
            clip_with(lambda g, norm, n: torch.where(norm > n, g * n / norm, g / norm * norm)), "NaN on its way",
        ),
        "asks the host": (clip_with(lambda g, norm, n: g * (n / norm) if norm > n else g), "(torch.where)"),
        "out of place": (clip_out_of_place, "in the same tensors"),
        "copies from the host": (
            clip_with(lambda g, norm, n: g * (torch.tensor(n).to(g.device) / norm).clamp(max=1)),
            "torch.full",
        ),
    },
)


def safe_capture(beta1, beta2, tolerance, horizon=25_000):
    t = np.arange(1, horizon + 1)
    size = (1 - beta1**t) / np.sqrt(1 - beta2**t)
    top, bottom = (way.accumulate(size[::-1])[::-1] for way in (np.maximum, np.minimum))
    return int(np.argmax(np.maximum(top / size - 1, 1 - bottom / size) <= tolerance)) + 1


answers(
    "safe_capture",
    right=[safe_capture, lambda *given: safe_capture(*given, horizon=15_000)],
    wrong={
        "a look ahead of 1000 steps": (lambda *given: safe_capture(*given, horizon=1000), "as far as t → ∞"),
        "v alone": (lambda b1, b2, tol: math.ceil(math.log(2 * tol - tol**2) / math.log(b2)), "expected"),
        "counts from 0": (lambda *given: safe_capture(*given) - 1, "as far as"),
    },
)


def test_the_oracle_of_safe_capture_meets_its_definition():
    def drift(t, s, beta1, beta2):
        return (1 - beta1**t) / (1 - beta1**s) * ((1 - beta2**s) / (1 - beta2**t)) ** 0.5

    for beta1, beta2, tolerance in ((0.9, 0.999, 0.1), (0.9, 0.95, 0.01), (0.9, 0.5, 0.01)):
        s = ch06._safe_capture(beta1, beta2, tolerance)
        later = np.arange(s, 20_000)
        assert np.abs(drift(later, s, beta1, beta2) - 1).max() <= tolerance
        assert np.abs(drift(later, s - 1, beta1, beta2) - 1).max() > tolerance


def schedule_(lr, t, peak, warmup, total, number=float):
    progress = (t.clamp(warmup, total) - warmup) / (total - warmup)
    rise = t.minimum(torch.full_like(t, warmup)) / number(warmup)
    lr.copy_(peak * rise * (0.5 + 0.5 * (math.pi * progress).cos()))


def schedule_by_if(lr, t, peak, warmup, total):
    if t < warmup:
        lr.copy_(peak * t / warmup)
    else:
        schedule_(lr, t, peak, warmup, total)


def schedule_by_masked_fill(lr, t, peak, warmup, total):  # CUDA reads the value that is filled in on the host
    schedule_(lr, t, peak, warmup, total)
    lr.masked_fill_(t < warmup, peak * t / warmup)


def schedule_of_another_tensor(lr, t, peak, warmup, total):
    new = torch.empty_like(lr)
    schedule_(new, t, peak, warmup, total)
    lr = new


def schedule_from_host(way):
    return lambda lr, *given: schedule_(lr, *given, number=lambda x: way(torch.tensor(float(x)), lr))


answers(
    "schedule_",
    right=[
        schedule_,
        schedule_from_host(lambda x, lr: x),
        schedule_from_host(lambda x, lr: torch.full((), x.item(), device=lr.device)),
    ],
    wrong={
        "replaces lr": (schedule_of_another_tensor, "in the same tensor"),
        "by if": (schedule_by_if, "not permitted when stream is capturing"),
        "by masked_fill": (schedule_by_masked_fill, "masked_fill"),
        "a host tensor, moved": (schedule_from_host(lambda x, lr: x.to(lr.device)), "torch.full"),
        "a host tensor, moved otherwise": (
            schedule_from_host(lambda x, lr: x.to(lr)), "torch.full",
        ),
        "counts as well": (lambda lr, t, *given: (schedule_(lr, t, *given), t.add_(1)), "the count is the optimizer's"),
    },
)


def load_and_copy_back(optimizer, state_dict, keep=True):
    """Let the optimizer load, then move what it loaded to where the graph reads."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    old = {param: dict(entry) for param, entry in optimizer.state.items()}
    optimizer.load_state_dict(state_dict)
    for group, lr in zip(optimizer.param_groups, lrs):
        lr.fill_(group["lr"])
        group["lr"] = lr if keep else group["lr"]
    for param, entry in old.items():
        for name, tensor in entry.items():
            tensor.copy_(optimizer.state[param][name])
            if keep:
                optimizer.state[param][name] = tensor


def load_but(name):
    """Everything but one entry, which stays what it was."""

    def load(optimizer, state_dict):
        lr = optimizer.param_groups[0]["lr"].clone()
        kept = {param: entry[name].clone() for param, entry in optimizer.state.items() if name in entry}
        load_and_copy_back(optimizer, state_dict)
        for param, tensor in kept.items():
            optimizer.state[param][name].copy_(tensor)
        if name == "lr":
            optimizer.param_groups[0]["lr"].copy_(lr)

    return load


def loads_and_moves_into_data(optimizer, state_dict):
    load_and_copy_back(optimizer, state_dict)
    for entry in state_dict["state"].values():
        entry["exp_avg"].zero_()


answers(
    "load_in_place",
    right=[load_and_copy_back],
    wrong={
        "load_state_dict": (lambda optimizer, saved: optimizer.load_state_dict(saved), "load_state_dict puts new ones"),
        "other tensors in the optimizer than in the graph": (
            lambda o, s: load_and_copy_back(o, s, keep=False), "the same tensors",
        ),
        "the checkpoint changed": (loads_and_moves_into_data, "the checkpoint belongs to the caller"),
        "without the maximum": (load_but("max_exp_avg_sq"), "not only the three of plain Adam"),
        "without the count": (load_but("step"), "load_state_dict puts new ones"),
        "without lr": (load_but("lr"), 'group["lr"]'),
    },
)

# --------------------------------------------------------------------------------------------------------- 07


def lr_slope(next_grad, param, m, v, t, *, beta1, beta2, eps, weight_decay, decay_by_lr=True, L2=False):
    """By autograd, through the step as a function of the learning rate."""
    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    m = m + weight_decay * param if L2 else m
    push = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
    after = param - lr * push - (0 if L2 else (lr if decay_by_lr else lr.detach()) * weight_decay * param)
    return torch.autograd.grad(next_grad @ after, lr)[0].item()


def changes_m(next_grad, param, m, v, t, **options):
    answer = lr_slope(next_grad, param, m, v, t, **options)
    m.div_(1 - options["beta1"] ** t)
    return answer


answers(
    "lr_slope",
    right=[lr_slope],
    wrong={
        "no decay": (lambda *a, **o: lr_slope(*a, **o, decay_by_lr=False), "α multiplies the decay, too"),
        "L2": (lambda *a, **o: lr_slope(*a, **o, L2=True), "α multiplies the decay, too"),
        "changes m": (changes_m, "it is the caller's"),
    },
)


def test_lr_slope_is_what_autograd_says_through_a_step_of_adamlib():
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


def push_slopes(gradients, beta1, beta2, eps, masked=True):
    """By autograd; the root of 0 is masked before and after it is taken, or after it alone."""
    g = torch.tensor(gradients, dtype=torch.float64, requires_grad=True)
    m = v = torch.zeros((), dtype=torch.float64)
    for x in g:
        m, v = beta1 * m + (1 - beta1) * x, beta2 * v + (1 - beta2) * x * x
    t = len(gradients)
    root = torch.where(v == 0, 0.0, (torch.where(v == 0, 1.0, v) if masked else v).sqrt())
    push = m / (1 - beta1**t) / (root / (1 - beta2**t) ** 0.5 + eps)
    return torch.autograd.grad(push, g)[0].tolist()


answers(
    "push_slopes",
    right=[push_slopes],
    wrong={
        "a mask behind the root": (lambda *a: push_slopes(*a, masked=False), "only ∂m̂/∂g_i divided by ε is left"),
        "newest first": (lambda *a: push_slopes(*a)[::-1], "the weight (1−β₁)β₁ᵗ⁻ⁱ"),
        "the last gradient only": (lambda *a: push_slopes(*a)[-1], "shape [1]"),
    },
)


def forward(grad, hvp, theta, lr, steps, *, beta1, beta2, eps, own=True, guard=True, history=True):
    """The chain rule, in terms of m̂ and v̂ and their slopes."""
    theta = theta.copy() if own else theta
    m = v = d_theta = dm = dv = np.zeros_like(theta)
    for t in range(1, steps + 1):
        g, dg = grad(theta), hvp(theta, d_theta)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        dm, dv = beta1 * dm * history + (1 - beta1) * dg, beta2 * dv * history + 2 * (1 - beta2) * g * dg
        m_hat, dm_hat = m / (1 - beta1**t), dm / (1 - beta1**t)
        root = np.sqrt(v / (1 - beta2**t))
        with np.errstate(all="ignore"):
            d_root = dv / (1 - beta2**t) / (2 * root)
        d_root = np.where(root > 0, d_root, 5.0) if guard else d_root  # any finite number
        d_theta = d_theta - m_hat / (root + eps) - lr * (dm_hat / (root + eps) - m_hat * d_root / (root + eps) ** 2)
        theta -= lr * m_hat / (root + eps)
    return [theta, d_theta]


def differences(grad, hvp, theta, lr, steps, **options):
    a, b = (forward(grad, hvp, theta, lr + h, steps, **options)[0] for h in (1e-6, -1e-6))
    return forward(grad, hvp, theta, lr, steps, **options)[0], (a - b) / 2e-6


answers(
    "forward_hypergradient",
    right=[forward],
    wrong={
        "finite differences": (differences, "one run will do"),
        "writes into the given θ": (lambda *a, **o: forward(*a, **o, own=False), "writes into it"),
        "nan where no gradient comes": (lambda *a, **o: forward(*a, **o, guard=False), "any finite d√v̂ will do"),
        "forgets the history": (lambda *a, **o: forward(*a, **o, history=False), "dm and dv are averages"),
    },
)


def test_the_forward_slope_agrees_with_differences():
    start, options = np.array([0.7, -1.2, 0.3, 0.5]), dict(beta1=0.8, beta2=0.95, eps=0.1)
    a, b = (way(ch07._grad, ch07._hvp, start, 0.05, 9, **options) for way in (forward, differences))
    assert np.allclose(a[1], b[1], rtol=1e-6, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- 08

FLAGS = ("foreach", "fused", "capturable")


def resume_with(optimizer, checkpoint, flags=FLAGS, clone=True, after=False, groups=None):
    """Without a deep copy: new dictionaries, and clones of the tensors."""
    own = [{flag: group[flag] for flag in flags} for group in optimizer.param_groups[:groups]]
    copied = {
        "state": {
            i: {k: x.clone() for k, x in entry.items()} if clone else entry for i, entry in checkpoint["state"].items()
        },
        "param_groups": [
            {**saved, **({} if after else mine)}
            for saved, mine in itertools.zip_longest(checkpoint["param_groups"], own, fillvalue={})
        ],
    }
    optimizer.load_state_dict(copied)
    for group, mine in zip(optimizer.param_groups, own if after else ()):
        group.update(mine)


def gap(w, towards):
    return (w.float() - torch.nextafter(w, torch.full_like(w, towards) * w.sign()).float()).abs()


answers(
    "smallest_step",
    right=[
        lambda w: (w.float() - (w.view(torch.int16) - 1).view(torch.bfloat16).float()).abs() / 2,
        lambda w: gap(w, 0.0) / 2,
    ],
    wrong={
        "the whole gap": (lambda w: gap(w, 0.0), "half way"),
        "the gap on the other side": (lambda w: gap(w, math.inf) / 2, "a power of two"),
        "eps times the weight": (lambda w: w.float().abs() * torch.finfo(torch.bfloat16).eps / 2, "the gap"),
    },
)
answers(
    "resume_with",
    right=[resume_with],
    wrong={
        "plain load": (
            lambda optimizer, checkpoint: optimizer.load_state_dict(copy.deepcopy(checkpoint)), "`fused` is to survive",
        ),
        "flags put back afterwards": (lambda o, c: resume_with(o, c, after=True), "change them before"),
        "the caller's tensors": (lambda o, c: resume_with(o, c, clone=False), "work on a deep copy"),
        "the first group only": (lambda o, c: resume_with(o, c, groups=1), "every group has its own flags"),
        "does not load": (lambda o, c: None, "load_state_dict has to be called"),
        **{
            f"keeps its {option}": (
                lambda o, c, option=option: resume_with(o, c, (*FLAGS, option)),
                "all but the three flags",
            )
            for option in (
                "lr",
                "betas",
                "eps",
                "weight_decay",
                "amsgrad",
                "maximize",
                "differentiable",
                "decoupled_weight_decay",
            )
        },
        **{
            f"without {flag}": (lambda o, c, flag=flag: resume_with(o, c, [f for f in FLAGS if f != flag]), f"`{flag}`")
            for flag in FLAGS
        },
    },
)


def as_keras(optimizer, from_state=True, compound=False, beta2_of=lambda group: group["betas"][1]):
    eps_hat, taken = [group["eps"] for group in optimizer.param_groups], itertools.count()

    def before(optimizer, args, kwargs):
        here = next(taken)
        for group, eps in zip(optimizer.param_groups, eps_hat):
            t = optimizer.state[group["params"][0]].get("step", 0) if from_state else here
            eps = group["eps"] if compound else eps
            group["eps"] = eps / math.sqrt(1 - beta2_of(group) ** (int(t) + 1))

    optimizer.register_step_pre_hook(before)


def once(optimizer):
    for group in optimizer.param_groups:
        group["eps"] /= (1 - group["betas"][1]) ** 0.5


answers(
    "as_keras",
    right=[as_keras],
    wrong={
        "counts from here": (lambda o: as_keras(o, from_state=False), "may have taken steps before"),
        "compounds": (lambda o: as_keras(o, compound=True), "after step 2"),
        "once": (once, "after step 2"),
        "a fixed β₂": (lambda o: as_keras(o, beta2_of=lambda group: 0.999), "every group has its own"),
    },
)


def neighbours(exact):
    low = (exact.view(torch.int32) & -65536).view(torch.float32)
    return low, ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)


def round_randomly_(target, exact, generator, shape=None, share=None):
    low, high = neighbours(exact)
    share = (exact - low) / (high - low) if share is None else share * (exact != low)
    target.copy_(torch.where(torch.rand(shape or exact.shape, generator=generator) < share, high, low))


def noise_over_the_nearest(target, exact, generator):
    noise = torch.randint(0, 2**16, exact.shape, generator=generator, dtype=torch.int32)
    target.copy_((exact.view(torch.int32) + noise).view(torch.float32))  # copy_ rounds once more


answers(
    "round_randomly_",
    right=[round_randomly_],
    wrong={
        "to the nearest": (lambda target, exact, generator: target.copy_(exact), "the chance is the distance"),
        "a coin": (lambda t, x, g: round_randomly_(t, x, g, share=0.5), "the chance is the distance"),
        "one draw for all": (lambda t, x, g: round_randomly_(t, x, g, shape=(1,)), "the chance is the distance"),
        "rounds once more": (noise_over_the_nearest, "nothing random about them"),
        "another generator": (
            lambda t, x, g: round_randomly_(t, x, torch.Generator().manual_seed(0)), "once for each weight",
        ),
        "no generator": (lambda t, x, g: round_randomly_(t, x, None), "draw from `generator`"),
    },
)

# ------------------------------------------------------------------------------------------------------ 09, C


def frozen_clock(β1, β2, t):
    m = v = 0.0
    for _ in range(t):
        m, v = β1 * m + (1 - β1), β2 * v + (1 - β2)
    return m / (1 - β1) / math.sqrt(v / (1 - β2))


answers(
    "epsilon_hat",
    right=[
        lambda ε, β2, t: (ε * (1 - torch.tensor(β2) ** t).sqrt()).item(),  # in float32
        lambda ε, β2, t: ε * math.sqrt(-math.expm1(t * math.log(β2))),
    ],
    wrong={
        "without the root": (lambda ε, β2, t: (1 - β2**t) * ε, "it is √v, not v"),
        "of the first step": (lambda ε, β2, t: ε * math.sqrt(1 - β2), "ε̂ changes with t"),
        "the default beta": (lambda ε, β2, t: ε * math.sqrt(1 - 0.999**t), "which multiple depends on β2"),
    },
)
answers(
    "frozen_clock",
    right=[frozen_clock],
    wrong={
        "a clock that runs": (lambda β1, β2, t: 1.0, "m_t = 1 − β1ᵗ"),
        "no correction": (lambda β1, β2, t: (1 - β1**t) / math.sqrt(1 - β2**t), "at step 1 the clock is still right"),
        "the defaults": (lambda β1, β2, t: frozen_clock(0.9, 0.999, t), "nothing may stay at the defaults"),
    },
)
answers(
    "counter_limit",
    right=[lambda dtype: 2 / torch.finfo(dtype).eps],
    wrong={
        "the largest number": (lambda dtype: torch.finfo(dtype).max, "2049 rounds to even"),
        "one bit less": (lambda dtype: round(1 / torch.finfo(dtype).eps), "2049 rounds to even"),
        "float16's": (lambda dtype: 2048, "fewer bits of significand"),
    },
)


@pytest.mark.parametrize(
    "dtype, stop", [(torch.float16, 2048), (torch.bfloat16, 256), (torch.float32, 2**24), (torch.float64, 2**53)]
)
def test_the_limits_that_the_check_of_counters_expects(dtype, stop):
    n = torch.tensor(float(stop), dtype=dtype)
    assert torch.equal(n + 1, n) and not torch.equal(n - 1 + 1, n - 1)


def test_counting_one_by_one_is_ended_and_told_why(monkeypatch):
    limit = ch09._at_most
    monkeypatch.setattr(ch09, "_at_most", lambda _, *rest: limit(0.2, *rest))

    def one_by_one(dtype):
        n = torch.tensor(2 / torch.finfo(dtype).eps if dtype is not torch.float64 else 0.0, dtype=dtype)
        while not torch.equal(n + 1, n):
            n += 1
        return int(n)

    report = CHECKS["counter_limit"](one_by_one)
    assert not report and "too far to try one by one" in str(report)


GOOD = [3.0, -0.5, 0.2, 0.21, 0.0, 0.02, 0.3, -1.0]


def compare(gradients=GOOD, eps=0.1, rtol=1e-4, atol=0.0, betas=(0.7, 0.95)):
    """A reader's test: compare with Algorithm 1 on these gradients."""
    want = algorithm1(0.0, np.array(gradients, dtype=float), 0.01, betas, eps).delta
    return lambda steps: bool(np.allclose(steps(gradients, lr=0.01, betas=betas, eps=eps), want, rtol=rtol, atol=atol))


answers(
    "is_adam",
    right=[compare(np.random.default_rng(0).normal(0.5, 1, 40), eps=0.5, betas=(0.8, 0.9)), compare(GOOD * 3, eps=0.3)],
    wrong={
        "one step, gradient 1": (compare([1.0]), "a gradient of 1 hides it"),
        "a small ε": (compare(eps=1e-8), "the test may choose its own ε"),
        "the first step only": (compare([0.3]), "the steps after the first"),
        "equal gradients": (compare([0.3] * 20), "accepted"),
        "wants equality": (compare(rtol=0.0), "it rounds in its last digits"),
        "too strict": (compare(rtol=1e-9), "an honest float32 is right to about six digits"),
        "too lenient": (compare(rtol=0.0, atol=0.05), "accepted"),
        "returns the difference": (lambda steps: float(np.abs(steps(GOOD)).max()), "not True or False"),
    },
)


def test_no_two_of_the_wrong_adams_are_one_and_the_same():
    seen = [tuple(np.round(ch09._from_rule(rule)(GOOD, 0.01, (0.7, 0.95), 0.1), 9)) for _, rule, _ in ch09._WRONG]
    assert len(set(seen)) == len(seen)


def test_the_right_epsilon_hat_gives_the_steps_of_algorithm_1():
    g, β1, β2, ε = np.random.default_rng(0).normal(0, 1e-3, 50), 0.8, 0.97, 1e-3
    want = algorithm1(0.0, g, 1.0, (β1, β2), ε).delta
    m = v = 0.0
    for t in range(1, 51):
        m, v = β1 * m + (1 - β1) * g[t - 1], β2 * v + (1 - β2) * g[t - 1] ** 2
        root = math.sqrt(1 - β2**t)
        assert root / (1 - β1**t) * m / (math.sqrt(v) + ε * root) == pytest.approx(want[t - 1], rel=1e-12)


KINDS = ("adam", "torch", "corrected max", "paper")


def nearest(gradients):
    def which(run, beta1, beta2):
        seen = run(gradients)
        wanted = {kind: list(libraries._steps(kind, gradients, beta1, beta2)) for kind in KINDS}
        return min(KINDS, key=lambda kind: sum((a - b) ** 2 for a, b in zip(seen, wanted[kind])))

    return which


def by_defaults(run, beta1, beta2):
    steps = [round(step, 3) for step in run([10.0] + [0.1] * 50)]
    return {1.0: {0.677: "torch", 0.479: "corrected max"}.get(steps[1], "adam")}.get(steps[0], "paper")


answers(
    "which_amsgrad",
    right=[nearest([-30.0, 1.0, 0.5] + [-0.1] * 60), nearest([10.0] + [0.1] * 30)],
    wrong={
        "does not look": (lambda run, b1, b2: "torch", "it is the only way to learn what is inside"),
        "looks at the first step": (
            lambda run, b1, b2: "torch" if abs(run([1.0])[0] - 1) < 1e-3 else "paper", "does not come down",
        ),
        "numbers of the default betas": (by_defaults, "Adam forgets it"),
        "one spike, then zeros": (nearest([10.0] + [0.0] * 50), "zeros teach nothing"),
    },
)


@pytest.mark.parametrize("beta1", (0.0, 0.5))
def test_without_beta2_two_of_the_four_are_one(beta1):
    """Why the exercise asks for a positive β₂."""
    gradients = [10.0] + [0.1] * 30
    torchs, corrected, paper = (list(libraries._steps(kind, gradients, beta1, 0.0)) for kind in KINDS[1:])
    assert torchs == corrected
    assert (torchs == paper) == (beta1 == 0)


@pytest.mark.parametrize("kind", ("adam", "torch"))
@pytest.mark.parametrize("betas", libraries._BETAS)
def test_black_boxes_are_what_they_say(kind, betas):
    """The oracle of which_amsgrad against torch itself."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=betas, amsgrad=kind == "torch", foreach=False)
    gradients = [10.0] + [0.1] * 30
    for g, step in zip(gradients, libraries._steps(kind, gradients, *betas)):
        before = weight.item()
        weight.grad = torch.full_like(weight, g)
        optimizer.step()
        assert before - weight.item() == pytest.approx(step, rel=1e-9)


def shares(lrs, weight_decay):
    """Every source starts at 0, its own step sets its share, each later one shrinks all."""
    all_of_them = torch.zeros(len(lrs) + 1, dtype=torch.float64)
    all_of_them[0] = 1
    for t, lr in enumerate(lrs, 1):
        all_of_them *= 1 - lr * weight_decay
        all_of_them[t] += lr * weight_decay
    return all_of_them


def forgets_with_its_own_rate(lrs, weight_decay):
    own = [lr * weight_decay * (1 - lr * weight_decay) ** (len(lrs) - 1 - t) for t, lr in enumerate(lrs)]
    return [1 - sum(own), *own]


answers(
    "shares_in_the_end",
    right=[shares],
    wrong={
        "forgets with its own rate": (forgets_with_its_own_rate, "times what all LATER steps left"),
        "without the start": (lambda lrs, w: shares(lrs, w)[1:], "θ₀ has a share, too"),
        "newest first": (lambda lrs, w: shares(lrs, w).flip(0), "equal rates"),
    },
)


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
    assert weight.item() == pytest.approx(sum(s * x for s, x in zip(shares(lrs, decay), parts)).item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("check, answer", [(check, one) for check, (right, _) in ANSWERS.items() for one in right])
def test_a_right_answer_passes(check, answer):
    report = CHECKS[check](answer)
    assert report.passed, report


@pytest.mark.parametrize(
    "check, mistake", [(check, mistake) for check, (_, wrong) in ANSWERS.items() for mistake in wrong]
)
def test_a_wrong_answer_is_told_what_is_wrong(check, mistake):
    answer, words = ANSWERS[check][1][mistake]
    report = CHECKS[check](answer)
    caught(report)
    assert words in " ".join(repr(report).split()), report


def test_every_check_is_tried():
    assert set(CHECKS) - set(ANSWERS) == {"momentum"}  # a kernel: test_exercise_kernel.py
    count = {
        name[2:4]: sum(one.__module__ == module.__name__ for one in CHECKS.values()) for name, module in MODULES.items()
    }
    count.pop("li")  # appendix C
    assert list(count) == [f"{n:02}" for n in range(10)] and count.pop("00") == 1
    assert all(number >= 3 for number in count.values()), count


NO_FUNCTION = {"adamw", "momentum"}  # a class, a kernel: their stubs look otherwise
RETURNS_NOTHING = {
    "corrected_max_step",
    "resume_with",
    "as_keras",
    "round_randomly_",
}  # and must do something all the same


@pytest.mark.parametrize("name", CHECKS)
def test_a_stub_is_told_where_to_start(name):
    for reader in (None, ..., stub):
        if not (name in NO_FUNCTION and reader is stub):
            unfinished(CHECKS[name](reader))
    report = CHECKS[name](lambda *_, **__: None)
    (caught if name in NO_FUNCTION | RETURNS_NOTHING else unfinished)(report)
    report = CHECKS[name](lambda *_, **__: ...)
    assert not report.passed
    if (
        CHECKS[name].__module__.rpartition(".")[2].startswith(("ch00", "ch01", "ch02", "ch09"))
    ):  # their stubs are written so
        unfinished(report)


@pytest.mark.parametrize("name", CHECKS)
def test_nonsense_becomes_a_report(name):
    for reader in (lambda *_, **__: 1 / 0, 3, "text"):
        caught(CHECKS[name](reader))
    assert not CHECKS[name](lambda *_, **__: "text").passed


def test_an_exception_is_shown_with_its_cure_and_the_readers_own_line():
    report = repr(CHECKS["schedule_"](schedule_by_if))
    assert "Decide on the device (torch.where)" in " ".join(report.split()) and "at        if t < warmup:" in report
    assert max(map(len, report.splitlines())) <= 120

    def long_message(*_):
        raise ValueError("first words " + "and so on " * 200 + "last words")

    report = " ".join(repr(CHECKS["first_step"](long_message)).split())
    assert "first words" in report and "last words" in report and len(report) < 1000
    assert 'at raise ValueError("first words' in report
