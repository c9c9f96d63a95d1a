"""The for-loop: one parameter tensor after the other, one line of code per line of algebra."""
from __future__ import annotations

import torch
from torch import Tensor

from .operands import operand_for
from .partition import as_real, by_device_and_dtype, in_cache
from .steps import advance, on_host, refuse_grad_scaler


def single_tensor(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """One Adam step, tensor by tensor (Kingma & Ba 2015, Algorithm 1). Lists as in `adamlib.variants`.

    Takes every dtype and layout, complex too. The counts are read on the host, so it cannot be captured.
    Bitwise equal to torch.optim.Adam(foreach=False) on a CPU, in every dtype. There also to `foreach`, in float32 and
    float64; for 16-bit tensors, and complex ones with L2 decay, torch's own two forms round differently.
    Source of the conventions: torch/optim/adam.py, `_single_tensor_adam` (torch 2.13).
    """
    refuse_grad_scaler(grad_scale, found_inf, "the single-tensor variant")
    advance(state_steps)
    steps = on_host(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs  # the v that is divided by; without AMSGrad v itself

    for ps, gs, ms, vs, ts, ns in by_device_and_dtype(params, grads, exp_avgs, exp_avg_sqs, tops, steps):
        number = operand_for(ps[0])
        # lerp_ wants a tensor β₁ in the parameter's dtype, on its device
        keep = 1 - (beta1.to(ps[0].real) if isinstance(beta1, Tensor) else beta1)
        decay, epsilon = number(beta2), number(eps)
        scales = {t: (-lr / (1 - beta1**t), number((1 - beta2**t) ** 0.5)) for t in set(ns)}  # −α/c₁, √c₂

        for t, *tensors in zip(ns, ps, gs, ms, vs, ts):
            step_size, root_c2 = scales[t]
            for p, g, m, v, top in in_cache(*tensors):
                if maximize:
                    g = -g
                if weight_decay != 0 and decoupled_weight_decay:
                    p.mul_(1 - lr * weight_decay)                 # θ ← (1 − αλ) θ
                elif weight_decay != 0:
                    g = g.add(p, alpha=weight_decay)              # g ← g + λθ
                if p.is_complex():  # only now: a complex sum rounds otherwise than two real ones
                    p, g, m, v, top = as_real([p, g, m, v, top])
                m.lerp_(g, keep)                                  # m ← m + (1−β₁)(g − m) = β₁m + (1−β₁)g
                v.mul_(decay).addcmul_(g, g, value=1 - beta2)     # v ← β₂v + (1−β₂)g²
                if amsgrad:
                    torch.maximum(top, v, out=top)                # v_max ← max(v_max, v)
                denom = top.sqrt().div_(root_c2).add_(epsilon)    # √v̂ + ε
                p.addcdiv_(m, denom, value=step_size)             # θ ← θ − α m̂ / (√v̂ + ε)
