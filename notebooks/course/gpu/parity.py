"""Every variant on the device beside torch's same variant: are the bits the same, and if not, how far apart?

The same bits are promised on a CPU for the for-loop, foreach and fused. Whether the device gives them too is what
this part finds out. The capturable and differentiable forms and the Triton kernel compute in another order than
torch's and are near, not equal.
"""

import contextlib
import functools
import importlib.util
import itertools

import torch

import adamlib
from course.benchmark import VARIANTS, options_of, torch_takes_capturable_anywhere
from course.gpu.run import attempt, each
from course.referee import same_bits

PROMISED = ("single", "foreach", "fused")  # to have torch's bits, on a CPU
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
CASES = [
    dict(decay, amsgrad=amsgrad, maximize=maximize)
    for decay in ({}, dict(weight_decay=0.1), dict(weight_decay=0.1, decoupled_weight_decay=True))
    for amsgrad, maximize in itertools.product([False, True], repeat=2)
]
SHAPES = {"cuda": [(1,), (7,), (33, 65), (70_001,), ()], "cpu": [(1,), (7,), ()]}
STEPS, LR = 10, 0.01


def steps_of(cls, dtype: torch.dtype, device: str, options: dict, moments=None) -> tuple[list, torch.optim.Optimizer]:
    """Ten steps with given gradients, of sizes from 1e-6 to 10; ``moments``: their dtype, if not the parameter's."""
    random = torch.Generator().manual_seed(1)
    differentiable = options.get("differentiable", False)
    params = [torch.randn(shape, generator=random).to(device, dtype) for shape in SHAPES[device]]
    params = [p if differentiable else p.requires_grad_() for p in params]
    optimizer = cls(params, lr=LR, **options)
    if moments is not None:
        for p in params:
            m, v = (torch.zeros_like(p, dtype=moments, requires_grad=False) for _ in range(2))
            optimizer.state[p].update(step=torch.zeros((), device=device), exp_avg=m, exp_avg_sq=v)
    for _ in range(STEPS):
        for p in params:
            size = 10 ** (7 * torch.rand(p.shape, generator=random) - 6)
            p.grad = (size * torch.randn(p.shape, generator=random)).to(device, dtype)
        optimizer.step()
    return params, optimizer


def compare(ours: tuple, theirs: tuple) -> tuple[bool, float]:
    """Whether all bits of weights and moments agree, and the largest distance of two weights in units of lr."""
    (params, one), (others, other) = ours, theirs
    pairs = list(zip(params, others))
    distance = max((a.detach().double() - b.detach().double()).abs().max().item() for a, b in pairs)
    for p, q in zip(params, others):
        pairs += [(one.state[p][key], other.state[q][key]) for key in one.state[p] if key != "step"]
    return all(a.dtype == b.dtype and same_bits(a, b) for a, b in pairs), distance / LR


def parity(variant: str, dtype: torch.dtype, device: str) -> dict:
    """All cases of one variant in one dtype."""
    differ, distances, failed = [], [], {}
    with torch_takes_capturable_anywhere() if device == "cpu" else contextlib.nullcontext():
        for case in CASES:
            name = ", ".join(f"{key}={value}" for key, value in case.items() if value) or "no options"
            runs = [
                functools.partial(steps_of, cls, dtype, device, options_of(variant, "eager", library) | case)
                for cls, library in ((adamlib.Adam, "ours"), (torch.optim.Adam, "torch"))
            ]
            result = attempt(lambda: dict(zip(("same", "distance"), compare(*(run() for run in runs)))))
            if "error" in result:
                failed[name] = result["error"]
                continue
            distances.append(result["distance"])
            if not result["same"]:
                differ.append(name)
    return {
        "promised_on_a_cpu": variant in PROMISED, "cases": len(CASES), "same_bits": len(distances) - len(differ),
        "differ": differ, "largest_distance_in_lr": max(distances, default=None), "failed": failed,
    }  # fmt: skip


def bfloat16_moments(device: str) -> dict:
    """torch 2.13's newest form of the fused kernel: who takes bfloat16 moments beside float32 weights?"""
    seen, runs = {}, {}
    for name, cls, fused in (("torch", torch.optim.Adam, True), ("adamlib", adamlib.Adam, True),
                             ("triton", adamlib.Adam, "triton")):  # fmt: skip
        if fused == "triton" and not (device == "cuda" and importlib.util.find_spec("triton")):
            continue
        result = attempt(lambda: runs.update({name: steps_of(cls, torch.float32, device, dict(fused=fused), torch.bfloat16)}) or {})
        seen[name] = result.get("error", "takes them")
    for name in runs.keys() - {"torch"} if "torch" in runs else ():
        same, distance = compare(runs[name], runs["torch"])
        seen[f"{name} beside torch"] = {"same_bits": same, "distance_in_lr": distance}
    return seen


def refused_step(device: str) -> dict:
    """A fused step that the kernel does not take, with moments in float16: has anything been written before it says so?"""
    seen = {}
    for name, cls in (("torch", torch.optim.Adam), ("adamlib", adamlib.Adam)):
        p = torch.ones(3, device=device, requires_grad=True)
        p.grad = torch.ones(3, device=device)
        optimizer = cls([p], fused=True)
        m, v = (torch.zeros(3, dtype=torch.float16, device=device) for _ in range(2))
        optimizer.state[p].update(step=torch.zeros((), device=device), exp_avg=m, exp_avg_sq=v)
        said = attempt(lambda: optimizer.step() or {}).get("error", "taken")
        seen[name] = {"step": said, "count": optimizer.state[p]["step"].item(), "moved": p.tolist() != [1.0] * 3}
    return seen


def run(done: set[str], device: str, tell) -> bool:
    triton = device == "cuda" and importlib.util.find_spec("triton")
    items = {
        f"{variant}, {str(dtype).removeprefix('torch.')}": functools.partial(parity, variant, dtype, device)
        for variant in VARIANTS if variant != "compiled" and (triton or variant != "triton")
        for dtype in DTYPES if (variant, dtype) != ("triton", torch.float64)
    }
    items["bfloat16 moments"] = functools.partial(bfloat16_moments, device)
    items["a refused step"] = functools.partial(refused_step, device)
    return each(items, done, tell)
