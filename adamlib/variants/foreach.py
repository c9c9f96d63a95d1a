"""Horizontal fusion: each line of the algebra is one call over the whole list of tensors."""
from __future__ import annotations

import torch
from torch import Tensor

from .operands import operand_for
from .partition import as_real, buckets, by_device_and_dtype
from .steps import advance, on_host, refuse_grad_scaler


def foreach(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """One Adam step in lists (torch._foreach_*). Lists as in `adamlib.variants`, of any devices and dtypes.

    lr and betas are floats: the counts are read on the host (`capturable_foreach` takes tensors).
    Bitwise equal to torch.optim.Adam(foreach=True), and on a CPU to `single_tensor`.
    Source of the conventions: torch/optim/adam.py, `_multi_tensor_adam` (torch 2.13).
    """
    if not params:
        return
    refuse_grad_scaler(grad_scale, found_inf, "the foreach variant")
    refuse_tensors(lr, beta1, beta2)
    advance(state_steps)
    steps = on_host(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs  # the v that is divided by; without AMSGrad v itself

    for ps, gs, ms, vs, ts, ns in by_device_and_dtype(params, grads, exp_avgs, exp_avg_sqs, tops, steps):
        number = operand_for(ps[0])
        decay = number(beta2)
        scales = {t: (-lr / (1 - beta1**t), number((1 - beta2**t) ** 0.5)) for t in set(ns)}  # −α/c₁, √c₂
        for n, p, g, m, v, top in buckets(ns, *map(as_real, (ps, gs, ms, vs, ts))):
            step_size, root_c2 = _one_or_each([scales[t] for t in n])
            if maximize:
                g = torch._foreach_neg(g)
            if weight_decay != 0 and decoupled_weight_decay:
                torch._foreach_mul_(p, 1 - lr * weight_decay)          # θ ← (1 − αλ) θ
            elif weight_decay != 0:
                g = torch._foreach_add(g, p, alpha=weight_decay)       # g ← g + λθ
            torch._foreach_lerp_(m, g, 1 - beta1)                      # m ← β₁m + (1−β₁)g
            torch._foreach_mul_(v, decay)
            torch._foreach_addcmul_(v, g, g, 1 - beta2)                # v ← β₂v + (1−β₂)g²
            del g                                                      # a list of our own with λ or maximize
            if amsgrad:
                torch._foreach_maximum_(top, v)                        # v_max ← max(v_max, v)
            denom = torch._foreach_sqrt(top)
            torch._foreach_div_(denom, root_c2)
            torch._foreach_add_(denom, eps)                            # √v̂ + ε
            torch._foreach_addcdiv_(p, m, denom, step_size)            # θ ← θ − α m̂ / (√v̂ + ε)
            del denom                                                  # before the next bucket makes its own


def refuse_tensors(*hyperparameters: float | Tensor) -> None:
    if any(isinstance(h, Tensor) for h in hyperparameters):
        raise RuntimeError("lr and betas as Tensors are not supported for capturable=False and foreach=True: "
                           "pass floats, or capturable=True, or foreach=False")


def _one_or_each(pairs: list[tuple]) -> tuple:
    """Two numbers for all tensors where all have stepped equally often, so that one call suits all; else lists."""
    return pairs[0] if all(pair is pairs[0] for pair in pairs) else tuple(map(list, zip(*pairs)))
