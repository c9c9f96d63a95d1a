"""Checks for the exercises of chapter 08. Each takes what the reader wrote and returns a Report."""

import copy
import math

import torch

from . import check, expect, expect_that

FLAGS = ("foreach", "fused", "capturable")


@check(start="the next bfloat16 number towards zero: how far is it, and where does rounding change its mind?")
def smallest_step(reader):
    """``smallest_step(w)``: float32, the length that a step towards zero must exceed to move each bfloat16 weight."""
    cases = [
        (1.5, "the gap between neighbours, 2⁻⁷ here; rounding changes its mind half way"),
        (1.0, "a power of two: the gap below it is half of the gap above it"),
        (0.1, "the gap belongs to the power of two below w, not to w itself"),
        (100.0, "the gap grows with the power of two below w"),
        (2.0**-20, "small weights: the gaps shrink with them, down to the subnormal numbers"),
        (-1.5, "towards zero: up, for a negative weight"),
        (-0.25, "a negative power of two"),
    ]
    for value, look in cases:
        w = torch.tensor([value], dtype=torch.bfloat16)
        half_gap = (w.float() - (w.view(torch.int16) - 1).view(torch.bfloat16).float()).abs() / 2
        yours = reader(w.clone())
        expect(yours, half_gap, rtol=1e-6, tried=f"smallest_step({value:g})", look=look)
    many = torch.linspace(-3, 3, 50).bfloat16()
    towards_zero = (many.view(torch.int16) - 1).view(torch.bfloat16)
    yours = reader(many.clone().reshape(5, 10))
    want = ((many.float() - towards_zero.float()).abs() / 2).reshape(5, 10)
    expect(yours, want, rtol=1e-6, tried="smallest_step of 50 weights of shape [5, 10]", look="one answer per weight")
    return "agrees for single weights from 2⁻²⁰ to 100 and for 50 of both signs"


@check(start="trap 3: load_state_dict takes the flags from the checkpoint. Who could change them, and when?")
def resume_with(reader):
    """``resume_with(optimizer, checkpoint)``: load it, but keep the optimizer's own foreach, fused, capturable."""
    cases = [
        (dict(foreach=False), [dict(fused=True)], "the optimizer's own `fused` is to survive"),
        (dict(fused=True), [dict(foreach=True)], "`fused` of the checkpoint must go, or it stands beside `foreach`"),
        (dict(foreach=True), [dict(fused=True), dict(foreach=False, fused=False)], "every group has its own flags"),
    ]
    for flags, groups, look in cases:
        saved_with = dict(flags, eps=1e-3, weight_decay=0.1, amsgrad=True, maximize=True)
        saved = copy.deepcopy(_trained([saved_with] * len(groups), lr=0.03, steps=4)[1].state_dict())
        for group in saved["param_groups"]:  # as another machine might save them
            group.update(capturable=True, differentiable=True, decoupled_weight_decay=True)
        before = copy.deepcopy(saved)
        params, optimizer = _trained(groups, lr=0.5, steps=2)
        own = [{flag: group[flag] for flag in FLAGS} for group in optimizer.param_groups]
        reader(optimizer, saved)
        tried = f"a checkpoint saved with {flags}, capturable and other options, an optimizer made with {groups}"
        count = optimizer.state[params[0]]["step"].item()
        expect(count, 4.0, tried=f"the count after loading; {tried}", look="optimizer.load_state_dict has to be called")
        for number, (group, mine, theirs) in enumerate(zip(optimizer.param_groups, own, before["param_groups"])):
            for option in [*FLAGS, *(key for key in theirs if key not in (*FLAGS, "params"))]:
                expect(str(group.get(option, "no such option")), str({**theirs, **mine}[option]),
                       tried=f"`{option}` of group {number}; {tried}",
                       look=look if option in FLAGS else "all but the three flags is loaded")  # fmt: skip
        teacher = _trained(groups, lr=0.03, steps=4, start_as=saved_with)
        for runner in (params, optimizer), teacher:
            for group in runner[1].param_groups:
                group.update(differentiable=False, decoupled_weight_decay=True)  # for the step
            _step(*runner, 9)
        for i, (ours, theirs) in enumerate(zip(params, teacher[0])):
            expect(ours, theirs, tried=f"tensor {i} one step after loading; {tried}", look="moments and counts, too")
        expect(_plain(saved), _plain(before), tried=f"the checkpoint afterwards; {tried}",
               look="it belongs to the caller: work on a deep copy, or the next step changes it")  # fmt: skip
    wide = copy.deepcopy(_trained([dict(foreach=False)], lr=0.03, steps=4)[1].state_dict())
    for entry in wide["state"].values():
        entry["step"] = entry["step"].double()  # as saved where float64 is the default
    params, optimizer = _trained([dict(fused=True)], lr=0.5, steps=2)
    optimizer.param_groups[0]["capturable"] = True
    reader(optimizer, wide)
    expect(str(optimizer.param_groups[0]["capturable"]), "True", tried="`capturable` of an optimizer that has it",
           look="the flag is the optimizer's, whatever it is")  # fmt: skip
    step = optimizer.state[params[0]]["step"]
    expect(str(step.dtype), "torch.float32", tried="the count's dtype, saved as float64, for a fused optimizer",
           look="load_state_dict places the count as the flags in the checkpoint want it: change them before")  # fmt: skip
    return "four checkpoints loaded: own flags kept, all else taken, the checkpoint untouched"


@check(start="group['eps'] may change between steps: what must torch's ε be for Keras's step?")
def as_keras(reader):
    """``as_keras(optimizer)``: from now on its eps acts as ε̂ does in Keras, α·√c₂/c₁ · m / (√v + ε̂)."""
    cases = [
        ([dict(eps=1e-3)], 0, "1 − β₂ᵗ under the root, t = 1 in the first step"),
        ([dict(eps=1e-3), dict(eps=1e-1, betas=(0.5, 0.9))], 0, "every group has its own ε̂ and β₂"),
        ([dict(eps=1e-3)], 7, "the count: the optimizer may have taken steps before (its state knows how many)"),
    ]
    for groups, earlier, look in cases:
        generator = torch.Generator().manual_seed(8)
        gradients = [[0.01 * torch.randn(5, generator=generator).double() for _ in groups] for _ in range(40)]
        params = [torch.ones(5, dtype=torch.float64, requires_grad=True) for _ in groups]
        optimizer = torch.optim.Adam([dict(params=[p], **g) for p, g in zip(params, groups)], lr=0.01)
        averages = [(torch.zeros(5).double(), torch.zeros(5).double()) for _ in groups]
        want = [torch.ones(5).double() for _ in groups]
        for t, grads in enumerate(gradients, 1):
            if t == earlier + 1:
                want = [p.detach().clone() for p in params]
                reader(optimizer)
            for p, g in zip(params, grads):
                p.grad = g.clone()
            optimizer.step()
            for i, (group, g) in enumerate(zip(groups, grads)):
                beta1, beta2 = group.get("betas", (0.9, 0.999))
                m, v = averages[i]
                m.mul_(beta1).add_((1 - beta1) * g)
                v.mul_(beta2).add_((1 - beta2) * g * g)
                rate = 0.01 * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                want[i] = want[i] - rate * m / (v.sqrt() + group["eps"])
                if t > earlier:
                    tried = f"weights of group {i} after step {t}, groups {groups}, as_keras after step {earlier}"
                    expect(params[i], want[i], rtol=1e-9, tried=tried, look=look)
    return "40 steps with one group, with two, and with a head start: Keras's weights to nine digits"


@check(start="a float32 number is its bfloat16 part and 16 more bits: view(torch.int32) shows them")
def round_randomly_(reader):
    """``round_randomly_(target, exact, generator)``: write float32 `exact` to bfloat16 `target`, right on average."""
    def run(values, seed=0):
        target = torch.full((len(values),), 7.0, dtype=torch.bfloat16)
        reader(target, values.clone(), torch.Generator().manual_seed(seed))
        return target.float()

    grid = torch.tensor([1.0, -1.5, 0.1015625, 384.0, 0.0]).repeat(40)
    written = run(grid)
    expect_that(not (written == 7.0).all(), tried="round_randomly_(target, exact, generator)",
                yours="target as it was", expected="new values in the same tensor",
                look="write with target.copy_(...)")  # fmt: skip
    expect(written, grid, tried="numbers that bfloat16 can hold", look="they stay: nothing random about them")
    n = 20_000
    for value in (1.001, 1.0075, -1.001, 0.9995, -0.0123, 300.3):
        x = torch.full((n,), value)
        low = (x[:1].view(torch.int32) & -65536).view(torch.float32).item()  # nearer to zero
        high = ((x[:1].view(torch.int32) & -65536) + 65536).view(torch.float32).item()
        share = (x[0].item() - low) / (high - low)
        yours = run(x)
        near = (yours == low) | (yours == high)
        odd = yours[~near][0].item() if not near.all() else 0.0
        expect_that(near.all().item(), tried=f"{value:g}, 20,000 times", yours=f"{odd:.6g} among them",
                    expected=f"{low:.6g} or {high:.6g}, the two neighbours",
                    look="noise smaller than one gap, then cut off; never further than the neighbours")  # fmt: skip
        got = (yours == high).double().mean().item()
        expect(got, share, atol=6 * math.sqrt(share * (1 - share) / n) + 1e-4,
               tried=f"share of 20,000 copies of {value:g} that end on {high:.6g}",
               look="the chance is the distance from the other neighbour in units of the gap")  # fmt: skip
    x = torch.full((n,), 1.001)
    expect_that(torch.equal(run(x, 1), run(x, 1)), tried="twice with the same seed", yours="different results",
                expected="equal results", look="draw from `generator`")  # fmt: skip
    expect_that(not torch.equal(run(x, 1), run(x, 2)), tried="two seeds", yours="equal results",
                expected="different ones", look="draw from `generator`, once for each weight")  # fmt: skip
    return "numbers on the grid stay, others go to a neighbour with the right chance, both signs"


def _trained(groups, lr, steps, start_as=None):
    """Parameters and a torch Adam with these flags per group, after some steps (taken with `start_as`, if given)."""
    params = [torch.linspace(-1, 1, 6 + i).requires_grad_() for i in range(len(groups))]
    first = [start_as] * len(groups) if start_as else groups
    lists = [dict(params=[p], **options) for p, options in zip(params, first)]
    optimizer = torch.optim.Adam(lists, lr=lr, betas=(0.8, 0.95) if lr == 0.03 else (0.9, 0.999))
    for t in range(steps):
        _step(params, optimizer, t)
    if start_as:
        for group, flags in zip(optimizer.param_groups, groups):
            group.update(dict(foreach=None, fused=None) | flags)
    return params, optimizer


def _step(params, optimizer, t):
    """One step from a fixed place with gradients of t alone: where it ends depends on the state and nothing else."""
    with torch.no_grad():
        for p in params:
            p.copy_(torch.linspace(-1, 1, p.numel()))
            p.grad = torch.cos(torch.arange(p.numel()) + 1.7 * t)
    optimizer.step()


def _plain(state_dict):
    """A checkpoint as text and exact numbers, to compare."""
    state = {i: {k: v.tolist() for k, v in entry.items()} for i, entry in state_dict["state"].items()}
    return repr((state, state_dict["param_groups"]))
