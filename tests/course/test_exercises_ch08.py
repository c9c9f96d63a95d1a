"""The checks of chapter 08 accept the right answers and catch the plausible wrong ones."""

import copy

import pytest
import torch

from course.exercises import ch08_in_practice as check

# --------------------------------------------------------------------------------------- smallest_step


def gap_towards_zero(w):
    return (w.float() - torch.nextafter(w, torch.zeros_like(w)).float()).abs()


def smallest_step(w):
    return gap_towards_zero(w) / 2


def gap_away(w):
    return (torch.nextafter(w, torch.full_like(w, torch.inf) * w.sign()).float() - w.float()).abs()


WRONG_STEPS = {
    "the whole gap": gap_towards_zero,
    "the gap on the other side": lambda w: gap_away(w) / 2,
    "eps times the weight": lambda w: w.float().abs() * torch.finfo(torch.bfloat16).eps / 2,
    "eps alone": lambda w: torch.full_like(w.float(), torch.finfo(torch.bfloat16).eps / 2),
    "the power of two below": lambda w: 2.0 ** w.float().abs().log2().floor() * torch.finfo(torch.bfloat16).eps / 2,
    "down instead of towards zero": lambda w: (
        w.float() - torch.nextafter(w, torch.full_like(w, -torch.inf)).float()
    ).abs() / 2,
    "another format": lambda w: w.float().abs() * torch.finfo(torch.float16).eps / 2,
    "signed": lambda w: (w.float() - torch.nextafter(w, torch.zeros_like(w)).float()) / 2,
    "one number": lambda w: smallest_step(w).max().item(),
    "raises": lambda w: w.numpy(),
}

# ----------------------------------------------------------------------------------------- resume_with

FLAGS = ("foreach", "fused", "capturable")


def resume_with(
    optimizer, checkpoint, deep=True, flags=FLAGS, after=False, all_groups=True, defaults=False, extra=(), off=(),
    edit=True,
):  # fmt: skip
    checkpoint = copy.deepcopy(checkpoint) if deep else checkpoint
    own = [optimizer.defaults if defaults else dict(group) for group in optimizer.param_groups]

    def change(groups):
        for group, mine in list(zip(groups, own))[: None if all_groups else 1]:
            group.update({name: mine[name] for name in (*flags, *extra)} | dict.fromkeys(off, False))

    if not after and edit:
        change(checkpoint["param_groups"])
    optimizer.load_state_dict(checkpoint)
    if after:
        change(optimizer.param_groups)


WRONG_RESUMES = {
    "plain load": dict(edit=False),
    "the caller's checkpoint": dict(deep=False),
    "flags put back afterwards": dict(after=True),
    "the first group only": dict(all_groups=False),
    "the defaults for every group": dict(defaults=True),
    "without fused": dict(flags=("foreach", "capturable")),
    "without foreach": dict(flags=("fused", "capturable")),
    "keeps its lr": dict(extra=("lr",)),
    "keeps its betas": dict(extra=("betas",)),
    "without capturable": dict(flags=("foreach", "fused")),
    "capturable always off": dict(flags=("foreach", "fused"), off=("capturable",)),
    "keeps the rest of its options": dict(
        extra=("eps", "weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    ),
    **{
        f"keeps its {option}": dict(extra=(option,))
        for option in ("eps", "weight_decay", "amsgrad", "maximize", "differentiable", "decoupled_weight_decay")
    },
}


def does_not_load(optimizer, checkpoint):
    pass


def options_only(optimizer, checkpoint):
    for group, saved in zip(optimizer.param_groups, checkpoint["param_groups"]):
        group.update(lr=saved["lr"], betas=saved["betas"])


def counts_only(optimizer, checkpoint):
    resume = copy.deepcopy(checkpoint)
    for entry in resume["state"].values():
        entry["exp_avg"].zero_()
    resume_with(optimizer, resume)


# -------------------------------------------------------------------------------------------- as_keras


def as_keras(
    optimizer, root=True, divide=True, shift=1, from_state=True, all_groups=True, compound=False, own_beta=True
):  # fmt: skip
    eps_hat, taken = [group["eps"] for group in optimizer.param_groups], [0]

    def before(optimizer, args, kwargs):
        taken[0] += 1
        counts = [entry["step"].item() for entry in optimizer.state.values()]
        t = (max(counts, default=0) if from_state else taken[0] - 1) + shift
        for group, eps in list(zip(optimizer.param_groups, eps_hat))[: None if all_groups else 1]:
            beta2 = group["betas"][1] if own_beta else 0.999
            factor = (1 - beta2**t) ** (0.5 if root else 1)
            base = group["eps"] if compound else eps
            group["eps"] = base / factor if divide else base * factor

    optimizer.register_step_pre_hook(before)


WRONG_KERAS = {
    "no root": dict(root=False),
    "times instead of divided": dict(divide=False),
    "one step late": dict(shift=2),
    "counts from here": dict(from_state=False),
    "the first group only": dict(all_groups=False),
    "compounds": dict(compound=True),
    "a fixed beta2": dict(own_beta=False),
}


def once(optimizer):
    for group in optimizer.param_groups:
        group["eps"] /= (1 - group["betas"][1]) ** 0.5


def other_lr(optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= (1 - group["betas"][1]) ** 0.5


# ------------------------------------------------------------------------------------ round_randomly_


def round_randomly_(target, exact, generator):
    noise = torch.randint(0, 2**16, exact.shape, generator=generator, dtype=torch.int32)
    target.copy_(((exact.view(torch.int32) + noise) & -65536).view(torch.float32))


def nearest(target, exact, generator):
    target.copy_(exact)


def truncated(target, exact, generator):
    target.copy_((exact.view(torch.int32) & -65536).view(torch.float32))


def noise_over_the_nearest(target, exact, generator):
    noise = torch.randint(0, 2**16, exact.shape, generator=generator, dtype=torch.int32)
    target.copy_((exact.view(torch.int32) + noise).view(torch.float32))  # copy_ rounds once more


def coin(target, exact, generator):
    low = (exact.view(torch.int32) & -65536).view(torch.float32)
    high = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    up = torch.rand(exact.shape, generator=generator) < 0.5
    target.copy_(torch.where(up & (low != exact), high, low))


def one_draw_for_all(target, exact, generator):
    noise = torch.randint(0, 2**16, (1,), generator=generator, dtype=torch.int32)
    target.copy_(((exact.view(torch.int32) + noise) & -65536).view(torch.float32))


def too_much_noise(target, exact, generator):
    noise = torch.randint(0, 2**17, exact.shape, generator=generator, dtype=torch.int32)
    target.copy_(((exact.view(torch.int32) + noise) & -65536).view(torch.float32))


def another_generator(target, exact, generator):
    round_randomly_(target, exact, torch.Generator().manual_seed(0))


def global_generator(target, exact, generator):
    round_randomly_(target, exact, None)


def gaussian(target, exact, generator):
    target.copy_(exact * (1 + torch.randn(exact.shape, generator=generator) / 256))


def not_in_place(target, exact, generator):
    target = exact.bfloat16()


def positive_only(target, exact, generator):
    low = (exact.abs().view(torch.int32) & -65536).view(torch.float32)
    share = (exact.abs() - low) / (low / 128)  # the gap is not low/128
    target.copy_(exact.sign() * (low + (torch.rand(exact.shape, generator=generator) < share) * low / 128))


RIGHT = {
    check.smallest_step: [
        smallest_step,
        lambda w: (w.float() - (w.view(torch.int16) - 1).view(torch.bfloat16).float()).abs() / 2,
    ],
    check.resume_with: [resume_with],
    check.as_keras: [as_keras],
    check.round_randomly_: [round_randomly_],
}
WRONG = [
    *((check.smallest_step, name, f) for name, f in WRONG_STEPS.items()),
    *((check.resume_with, name, lambda o, c, kw=kw: resume_with(o, c, **kw)) for name, kw in WRONG_RESUMES.items()),
    *((check.resume_with, f.__name__, f) for f in (does_not_load, options_only, counts_only)),
    *((check.as_keras, name, lambda o, kw=kw: as_keras(o, **kw)) for name, kw in WRONG_KERAS.items()),
    *((check.as_keras, f.__name__, f) for f in (once, other_lr, lambda optimizer: None)),
    *(
        (check.round_randomly_, f.__name__, f)
        for f in (
            nearest, truncated, noise_over_the_nearest, coin, one_draw_for_all, too_much_noise, another_generator,
            global_generator, gaussian, not_in_place, positive_only,
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("run, answer", [(run, f) for run, answers in RIGHT.items() for f in answers])
def test_a_right_answer_passes(run, answer):
    report = run(answer)
    assert report.passed, report


@pytest.mark.parametrize("run, name, answer", WRONG, ids=[f"{run.__name__}: {name}" for run, name, _ in WRONG])
def test_a_wrong_answer_is_caught(run, name, answer):
    report = run(answer)
    assert not report.passed, f"{run.__name__} takes '{name}' for right"
    assert "not written" not in str(report)
    assert "yours" in str(report) or "raised" in str(report), report
