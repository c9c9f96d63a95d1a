"""Everything that changes from step to step lives in tensors, so that a CUDA graph can replay the step.

A graph records kernels with the addresses they use and the plain numbers they were given. A count read on
the host would be such a number, frozen at capture; here t, and lr where it is a tensor, are read on the device.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from .partition import as_real, buckets, by_device_and_dtype, in_cache
from .steps import advance, refuse_grad_scaler, together


def capturable_single(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """One Adam step without reading a tensor on the host, tensor by tensor. Lists as in `adamlib.variants`.

    Runs on every device; state_steps lie on their parameter's device. lr and betas may be 1-element tensors.
    The step is taken in the paper's efficient order (Kingma & Ba 2015, end of section 2),
    θ ← θ − α√c₂/c₁ · m/(√v + ε√c₂) with cᵢ = 1−βᵢᵗ, which is Algorithm 1 and needs no division by α: a schedule
    may start at lr = 0. Differs from `single_tensor` in the last bits; bitwise equal to `capturable_foreach`
    on a CPU. torch's capturable form computes 1−βᵗ in float32 as it stands and loses digits; see `_correction`.
    """
    refuse_grad_scaler(grad_scale, found_inf, "the capturable variant")
    advance(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs  # the v that is divided by; without AMSGrad v itself
    for ps, gs, ms, vs, ts, ns in by_device_and_dtype(params, grads, exp_avgs, exp_avg_sqs, tops, state_steps):
        for scale, eps_hat, *tensors in zip(*_scales(ns, ps[0], lr, beta1, beta2, eps), ps, gs, ms, vs, ts):
            tensors = as_real(tensors)
            b1, b2 = _like(beta1, tensors[0]), _like(beta2, tensors[0])
            for p, g, m, v, top in in_cache(*tensors):
                if maximize:
                    g = -g
                if weight_decay != 0 and decoupled_weight_decay:
                    p.mul_(1 - lr * weight_decay)                 # θ ← (1 − αλ) θ
                elif weight_decay != 0:
                    g = g.add(p, alpha=weight_decay)              # g ← g + λθ
                m.lerp_(g, 1 - b1)                                # m ← β₁m + (1−β₁)g
                if isinstance(b2, Tensor):                        # value= would read it on the host
                    v.mul_(b2).addcmul_(g, g * (1 - b2))
                else:
                    v.mul_(b2).addcmul_(g, g, value=1 - b2)       # v ← β₂v + (1−β₂)g²
                if amsgrad:
                    torch.maximum(top, v, out=top)                # v_max ← max(v_max, v)
                ratio = top.sqrt().add_(eps_hat)                  # √v + ε√c₂
                torch.div(m, ratio, out=ratio)
                p.addcmul_(ratio, scale)                          # θ ← θ − α√c₂/c₁ · m / (√v + ε√c₂)


def capturable_foreach(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """`capturable_single` in lists (torch._foreach_*): the same formulas, on a CPU the same bits."""
    if not params:
        return
    refuse_grad_scaler(grad_scale, found_inf, "the capturable variant")
    advance(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs
    for ps, gs, ms, vs, ts, ns in by_device_and_dtype(params, grads, exp_avgs, exp_avg_sqs, tops, state_steps):
        scales = list(zip(*_scales(ns, ps[0], lr, beta1, beta2, eps)))
        for s, p, g, m, v, top in buckets(scales, *map(as_real, (ps, gs, ms, vs, ts))):
            scale, eps_hat = zip(*s)
            b1, b2 = _like(beta1, p[0]), _like(beta2, p[0])
            if maximize:
                g = torch._foreach_neg(g)
            if weight_decay != 0 and decoupled_weight_decay:
                torch._foreach_mul_(p, 1 - lr * weight_decay)          # θ ← (1 − αλ) θ
            elif weight_decay != 0:
                g = torch._foreach_add(g, p, alpha=weight_decay)       # g ← g + λθ
            torch._foreach_lerp_(m, g, 1 - b1) if not isinstance(b1, Tensor) else \
                torch._foreach_lerp_(m, g, [1 - b1] * len(m))          # m ← β₁m + (1−β₁)g
            torch._foreach_mul_(v, b2)                                 # v ← β₂v + (1−β₂)g²
            if isinstance(b2, Tensor):
                torch._foreach_addcmul_(v, g, torch._foreach_mul(g, 1 - b2))
            else:
                torch._foreach_addcmul_(v, g, g, 1 - b2)
            del g                                                      # a list of our own with λ or maximize
            if amsgrad:
                torch._foreach_maximum_(top, v)                        # v_max ← max(v_max, v)
            ratio = torch._foreach_sqrt(top)
            torch._foreach_add_(ratio, eps_hat)                        # √v + ε√c₂
            ratio = torch._foreach_div(m, ratio)
            torch._foreach_addcmul_(p, ratio, scale)                   # θ ← θ − α√c₂/c₁ · m / (√v + ε√c₂)
            del ratio                                                  # before the next bucket makes its own


def _scales(steps: list[Tensor], param: Tensor, lr, beta1, beta2, eps) -> tuple[tuple, tuple]:
    """−α√c₂/c₁ and ε√c₂ for each count, as 0-dim tensors beside `param`, in its precision, at least float32.

    Computed for all counts at once, so that the number of kernels does not grow with the number of tensors; and
    stacked, so that torch.compile's CPU backend computes them once a step, not again at every element.
    """
    t = together(steps).to(torch.promote_types(param.real.dtype, torch.float32))
    root_c2 = _correction(beta2, t).sqrt()
    scales, eps_hats = torch.stack([root_c2 * (-lr / _correction(beta1, t)), root_c2 * eps])
    return scales.unbind(), eps_hats.unbind()


def _correction(beta: float | Tensor, t: Tensor) -> Tensor:
    """1 − βᵗ = −expm1(t log β), to the last digit or two.

    Written as it stands, 1 − βᵗ in float32 cancels: its relative error at t = 1 is 1.3e-5 for β = 0.999 and
    1.7e-4 for β = 0.9999. A float β has its logarithm taken on the host, in double precision.
    """
    if isinstance(beta, Tensor):
        log_beta = beta.log()
    elif beta == 0:
        log_beta = -math.inf
    elif torch.compiler.is_compiling():  # a β₁ that a schedule changes: log would recompile at every step
        log_beta = math.log2(beta) * math.log(2)
    else:
        log_beta = math.log(beta)
    return -torch.expm1(t * log_beta)


def _like(beta: float | Tensor, param: Tensor) -> float | Tensor:
    """A tensor beta in the parameter's dtype, on its device."""
    return beta.to(param, non_blocking=True) if isinstance(beta, Tensor) else beta
