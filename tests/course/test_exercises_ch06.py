"""The checks of chapter 06 accept the right answers and catch the plausible wrong ones."""

import math

import pytest
import torch
from exercise_reports import caught

from course.exercises import ch06_capturable as check

# --------------------------------------------------------------------------------------------------- clip_


def clip_(
    grads, max_norm, joint=True, only_shrink=True, in_place=True, ask=False, power=2.0, eps=0.0,
    on_host=False, all_=True,
):  # fmt: skip
    if on_host:
        norm = math.sqrt(sum(grad.square().sum().item() for grad in grads))
    else:
        norm = torch.stack([grad.norm(power) for grad in grads]).norm(power)
    if ask and norm <= max_norm:
        return
    factor = max_norm / (norm + eps)
    factor = torch.as_tensor(factor).clamp(max=1.0) if only_shrink else factor
    for i, grad in enumerate(grads if all_ else grads[:1]):
        own = factor if joint else (max_norm / grad.norm(power)).clamp(max=1.0)
        if in_place:
            grad.mul_(own)
        else:
            grads[i] = grad * own


WRONG_CLIPS = {
    "each tensor for itself": dict(joint=False),
    "stretches short gradients": dict(only_shrink=False, eps=1e-6),
    "divides 0 by 0": dict(only_shrink=False),
    "out of place": dict(in_place=False),
    "asks the host": dict(ask=True),
    "computes the norm on the host": dict(on_host=True),
    "another norm": dict(power=1.0),
    "the largest entry": dict(power=math.inf),
    "a large eps": dict(eps=0.1),
    "the first tensor only": dict(all_=False),
}


def nan_at_zero(grads, max_norm):
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    for grad in grads:
        grad.copy_(torch.where(norm > max_norm, grad * max_norm / norm, grad / norm * norm))


def clip_values(grads, max_norm):
    for grad in grads:
        grad.clamp_(-max_norm, max_norm)


def loses_the_sign(grads, max_norm):
    clip_(grads, max_norm)
    for grad in grads:
        grad.abs_()


def test_clip_right():
    assert check.clip_(clip_)
    assert check.clip_(lambda grads, max_norm: clip_(grads, max_norm, eps=1e-6))  # torch's form

    def by_where(grads, max_norm):
        norm = torch.sqrt(sum(grad.square().sum() for grad in grads))
        for grad in grads:
            grad.copy_(torch.where(norm > max_norm, grad * (max_norm / norm), grad))

    assert check.clip_(by_where)


@pytest.mark.parametrize("name", WRONG_CLIPS)
def test_clip_wrong(name):
    caught(check.clip_(lambda grads, max_norm: clip_(grads, max_norm, **WRONG_CLIPS[name])))


@pytest.mark.parametrize("wrong", [nan_at_zero, clip_values, loses_the_sign])
def test_clip_wrong_in_other_ways(wrong):
    caught(check.clip_(wrong))


def test_clip_names_what_is_wrong():
    text = repr(check.clip_(lambda grads, max_norm: clip_(grads, max_norm, ask=True)))
    assert "operation not permitted when stream is capturing" in text
    assert "in the same tensors" in repr(check.clip_(lambda g, n: clip_(g, n, in_place=False)))


# -------------------------------------------------------------------------------------------- safe_capture


def drift(t, s, beta1, beta2):
    return (1 - beta1**t) / (1 - beta1**s) * ((1 - beta2**s) / (1 - beta2**t)) ** 0.5


def safe_capture(
    beta1, beta2, tolerance, horizon=20_000, late=0, limit_only=False, m_only=False, v_only=False, sign=0
):
    t = torch.arange(1, horizon + 1, dtype=torch.float64)
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    size = c1 if m_only else 1 / c2.sqrt() if v_only else c1 / c2.sqrt()
    for s in range(horizon):
        later = (size[-1:] if limit_only else size[s:]) / size[s] - 1
        worst = {0: later.abs().max(), 1: later.max(), -1: (-later).max()}[sign]
        if worst <= tolerance:
            return s + 1 + late


WRONG_SAFE = {
    "the limit only": dict(limit_only=True),
    "m alone": dict(m_only=True),
    "v alone": dict(v_only=True),
    "too long steps only": dict(sign=1),
    "too short steps only": dict(sign=-1),
    "counts from 0": dict(late=-1),
    "one late": dict(late=1),
    "a short look ahead": dict(horizon=1000),
    "a look ahead of 10 000 steps, which misses three": dict(horizon=10_000),
}


def test_safe_capture_right():
    assert check.safe_capture(safe_capture)
    assert check.safe_capture(lambda *given: safe_capture(*given, horizon=15_000))


@pytest.mark.parametrize("name", WRONG_SAFE)
def test_safe_capture_wrong(name):
    caught(check.safe_capture(lambda *given: safe_capture(*given, **WRONG_SAFE[name])))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b1, b2, tol: 12,
        lambda b1, b2, tol: math.ceil(math.log(tol) / math.log(b2)),
        lambda b1, b2, tol: math.ceil(math.log(2 * tol - tol * tol) / math.log(b2)),
        lambda b1, b2, tol: 1 / (1 - b2),
        lambda *given: safe_capture(*given) + 3 * (safe_capture(*given) > 1000),  # right to 0.2 %
        lambda b1, b2, tol: "late",
    ],
)
def test_safe_capture_wrong_formulas(wrong):
    caught(check.safe_capture(wrong))


def test_the_oracle_of_safe_capture_meets_its_definition():
    for beta1, beta2, tolerance in ((0.9, 0.999, 0.1), (0.9, 0.95, 0.01), (0.9, 0.5, 0.01)):
        s = check._safe_capture(beta1, beta2, tolerance)
        later = range(s, 20_000)
        assert max(abs(drift(t, s, beta1, beta2) - 1) for t in later) <= tolerance
        assert max(abs(drift(t, s - 1, beta1, beta2) - 1) for t in later) > tolerance


# ----------------------------------------------------------------------------------------------- schedule_


def schedule_(
    lr, t, peak, warmup, total, start=0, clamp=True, cosine_from="warmup", half=True, first=0.0, rebind=False,
    count=False, end=0.0,
):  # fmt: skip
    begin = warmup if cosine_from == "warmup" else 0
    progress = (t - begin) / (total - begin)
    progress = progress.clamp(0, 1) if clamp else progress
    falling = 0.5 + 0.5 * torch.cos((math.pi if half else 2 * math.pi) * progress)
    falling = end + (1 - end) * falling
    rate = peak * torch.where(t < warmup, first + (1 - first) * (t + start) / warmup, falling)
    if rebind:
        lr = rate
    else:
        lr.copy_(rate)
    if count:
        t.add_(1)


def by_if(lr, t, peak, warmup, total):
    if t < warmup:
        lr.copy_(peak * t / warmup)
    else:
        lr.copy_(peak * (0.5 + 0.5 * torch.cos(math.pi * ((t - warmup) / (total - warmup)).clamp(0, 1))))


def by_item(lr, t, peak, warmup, total):
    lr.fill_(peak * min(t.item() / warmup, 1.0))


def by_masked_fill(lr, t, peak, warmup, total):  # CUDA reads the value that is filled in on the host
    schedule_(lr, t, peak, warmup, total)
    lr.masked_fill_(t < warmup, peak * t / warmup)


def by_a_python_count():
    count = [0]

    def reader(lr, t, peak, warmup, total):
        schedule_(lr, torch.tensor(float(count[0])), peak, warmup, total)
        count[0] += 1

    return reader


def linear_down(lr, t, peak, warmup, total):
    lr.copy_(peak * torch.minimum(t / warmup, ((total - t) / (total - warmup)).clamp(min=0)))


WRONG_SCHEDULES = {
    "warm-up starts above 0": dict(start=1),
    "warm-up starts at a tenth": dict(first=0.1),
    "rises again after the end": dict(clamp=False),
    "the cosine starts at 0": dict(cosine_from="0"),
    "a whole cosine": dict(half=False),
    "ends at a tenth": dict(end=0.1),
    "rebinds lr": dict(rebind=True),
    "counts as well": dict(count=True),
}


def test_schedule_right():
    assert check.schedule_(schedule_)

    def by_minimum(lr, t, peak, warmup, total):
        progress = (t.clamp(warmup, total) - warmup) / (total - warmup)
        lr.copy_(peak * (t / warmup).clamp(max=1) * (0.5 + 0.5 * (math.pi * progress).cos()))

    assert check.schedule_(by_minimum)


@pytest.mark.parametrize("name", WRONG_SCHEDULES)
def test_schedule_wrong(name):
    caught(check.schedule_(lambda *given: schedule_(*given, **WRONG_SCHEDULES[name])))


@pytest.mark.parametrize("wrong", [by_if, by_item, by_masked_fill, by_a_python_count(), linear_down])
def test_schedule_wrong_in_other_ways(wrong):
    caught(check.schedule_(wrong))


def test_schedule_names_what_is_wrong():
    assert "not permitted when stream is capturing" in repr(check.schedule_(by_if))
    assert "in the same tensor" in repr(check.schedule_(lambda *given: schedule_(*given, rebind=True)))


# ------------------------------------------------------------------------------------------- load_in_place


def load_in_place(
    optimizer, state_dict, lr=True, skip=(), first_only=False, rebind=False, lr_rebind=False, swap=False,
    late=0,
):  # fmt: skip
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"]):
        if lr_rebind:
            group["lr"] = torch.tensor(float(saved["lr"]))
        elif lr:
            group["lr"].fill_(saved["lr"])
        for param, index in list(zip(group["params"], saved["params"]))[: 1 if first_only else None]:
            for name, tensor in optimizer.state[param].items():
                if name in skip:
                    continue
                value = state_dict["state"][index][name]
                if rebind:
                    optimizer.state[param][name] = value
                elif swap:
                    value.copy_(tensor)
                else:
                    tensor.copy_(value + (late if name == "step" else 0))


WRONG_LOADS = {
    "forgets the lr": dict(lr=False),
    "replaces the lr": dict(lr_rebind=True),
    "forgets the count": dict(skip=("step",)),
    "forgets m": dict(skip=("exp_avg",)),
    "forgets v": dict(skip=("exp_avg_sq",)),
    "forgets the maximum": dict(skip=("max_exp_avg_sq",)),
    "the first tensor only": dict(first_only=True),
    "puts the checkpoint's tensors in": dict(rebind=True),
    "copies in the other direction": dict(swap=True),
    "a count one too large": dict(late=1),
}


def load_and_copy_back(optimizer, state_dict, keep=True):
    """Another right way: let the optimizer load, then move what it loaded to where the graph reads."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    old = {param: dict(entry) for param, entry in optimizer.state.items()}
    optimizer.load_state_dict(state_dict)
    for group, lr in zip(optimizer.param_groups, lrs):
        lr.fill_(group["lr"])
        if keep:
            group["lr"] = lr
    for param, entry in old.items():
        for name, tensor in entry.items():
            tensor.copy_(optimizer.state[param][name])
            if keep:
                optimizer.state[param][name] = tensor


def moves_into_data(optimizer, state_dict):
    load_in_place(optimizer, state_dict)
    for entry in state_dict["state"].values():
        entry["exp_avg"].zero_()


def test_load_right():
    assert check.load_in_place(load_in_place)
    assert check.load_in_place(load_and_copy_back)


@pytest.mark.parametrize("name", WRONG_LOADS)
def test_load_wrong(name):
    caught(check.load_in_place(lambda *given: load_in_place(*given, **WRONG_LOADS[name])))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda optimizer, state_dict: optimizer.load_state_dict(state_dict),
        lambda optimizer, state_dict: load_and_copy_back(optimizer, state_dict, keep=False),
        moves_into_data,
    ],
)
def test_load_wrong_in_other_ways(wrong):
    caught(check.load_in_place(wrong))
