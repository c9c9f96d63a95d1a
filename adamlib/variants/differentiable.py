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
    weight_decay where they are tensors. What the graph keeps of θ, m and v is a copy, as the next step writes
    over them: backward works through any number of steps, amsgrad too. Where v = 0 the root's infinite slope
    is replaced by 0; the value stays. With float hyperparameters the bits are `single_tensor`'s
    (torch's differentiable form folds lr into the denominator and differs in the last bits).
    """
    refuse_grad_scaler(grad_scale, found_inf, "the differentiable variant")
    refuse_leaves(params, state_steps)
    advance(state_steps)
    tops = max_exp_avg_sqs if amsgrad else exp_avg_sqs  # the v that is divided by; without AMSGrad v itself
    for t, *tensors in zip(on_host(state_steps), params, grads, exp_avgs, exp_avg_sqs, tops):
        p, g, m, v, top = as_real(tensors)
        if maximize:
            g = -g
        if decoupled_weight_decay:
            p.mul_(1 - lr * weight_decay)                     # θ ← (1 − αλ) θ
        elif isinstance(weight_decay, Tensor):
            g = g + weight_decay * p.clone()                  # g ← g + λθ
        elif weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        m.lerp_(g, 1 - (beta1.to(p) if isinstance(beta1, Tensor) else beta1))
        if isinstance(beta2, Tensor):
            v.mul_(beta2).add_((1 - beta2) * g * g)           # v ← β₂v + (1−β₂)g²
        else:
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if amsgrad:
            top.copy_(torch.maximum(top.clone(), v.clone()))  # v_max ← max(v_max, v)
        denom = (_root(top) / (1 - beta2**t) ** 0.5).add_(eps)  # √v̂ + ε
        step_size = -lr / (1 - beta1**t)
        if isinstance(step_size, Tensor):
            p.add_(step_size * (m.clone() / denom))           # θ ← θ − α m̂ / (√v̂ + ε)
        else:
            p.addcdiv_(m.clone(), denom, value=step_size)


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
    if v.is_cpu and v.numel() and v.detach().amin().item() > 0:  # on a device, asking would wait for it
        return v.sqrt()
    zero = v == 0
    return v.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
