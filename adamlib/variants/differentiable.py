"""The step as a function of its inputs, so that autograd can go through it."""
from __future__ import annotations

import torch
from torch import Tensor

from .partition import as_real
from .steps import advance, on_host, refuse_grad_scaler


def differentiable(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float | Tensor,
    weight_decay: float | Tensor, decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """One Adam step that autograd can differentiate. Lists as in `adamlib.variants`; params are no leaves.

    Gradients flow to the parameters, the gradients and the moments before the step, and to lr, betas, eps and
    weight_decay where they are tensors. Reads copies, computes out of place and writes back at the end: nothing
    that autograd has saved is ever overwritten, through any number of steps, amsgrad too. Where v = 0 the root's
    infinite slope is replaced by 0; the value stays. With float hyperparameters the bits are `single_tensor`'s
    (torch's differentiable form folds lr into the denominator and differs in the last bits).
    """
    refuse_grad_scaler(grad_scale, found_inf, "the differentiable variant")
    refuse_leaves(params, state_steps)
    advance(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs  # the v that is divided by; without AMSGrad v itself
    for t, *tensors in zip(on_host(state_steps), params, grads, exp_avgs, exp_avg_sqs, tops):
        param, grad, exp_avg, exp_avg_sq, top = as_real(tensors)
        p, m, v = param.clone(), exp_avg.clone(), exp_avg_sq.clone()
        g = -grad if maximize else grad
        if decoupled_weight_decay:
            p = p * (1 - lr * weight_decay)                   # θ ← (1 − αλ) θ
        elif isinstance(weight_decay, Tensor):
            g = g + weight_decay * p                          # g ← g + λθ
        elif weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        m = torch.lerp(m, g, 1 - (beta1.to(p) if isinstance(beta1, Tensor) else beta1))
        if isinstance(beta2, Tensor):
            v = beta2 * v + (1 - beta2) * g * g               # v ← β₂v + (1−β₂)g²
        else:
            v = (beta2 * v).addcmul(g, g, value=1 - beta2)
        v_max = torch.maximum(top.clone(), v) if amsgrad else v
        denom = _root(v_max) / (1 - beta2**t) ** 0.5 + eps    # √v̂ + ε
        step_size = -lr / (1 - beta1**t)
        if isinstance(step_size, Tensor):
            p = p + step_size * (m / denom)                   # θ ← θ − α m̂ / (√v̂ + ε)
        else:
            p = p.addcdiv(m, denom, value=step_size)
        param.copy_(p)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
        if amsgrad:
            top.copy_(v_max)


def refuse_leaves(params: list[Tensor], state_steps: list[Tensor]) -> None:
    """Raise where autograd could not go through the step, before anything is changed."""
    for i, (param, step) in enumerate(zip(params, state_steps)):
        if step.requires_grad:
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode: a count "
                               "has no derivative")
        if param.is_leaf and param.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"parameter {i}: a leaf Variable that requires grad is being used in an in-place operation. "
                "With differentiable=True pass the optimizer a non-leaf tensor, p = p0.clone(), and compute "
                "the loss from p.clone()"
            )


def _root(v: Tensor) -> Tensor:
    """√v with slope 0 where v = 0 (there the chain rule would multiply the slope ∞ by 0 and give nan)."""
    zero = v == 0
    return v.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
