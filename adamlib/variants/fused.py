"""Vertical fusion: the whole step in one kernel that reads and writes every element once (28 bytes in fp32)."""
from __future__ import annotations

import torch
from torch import Tensor

from .layout import refuse_misfits
from .partition import by_device_and_dtype
from .steps import advance


@torch.compiler.disable(reason="the kernel is one call already, and no guard of a graph asks how its tensors lie")
def fused(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """One Adam step through torch._fused_adam_ or torch._fused_adamw_. Lists as in `adamlib.variants`.

    Floating-point tensors on devices for which torch has the kernel (cpu, cuda, mps, xpu, ...); state_steps
    are float32 on the parameter's device. With `grad_scale` the gradients are divided by it, in place; where
    `found_inf` is 1, nothing changes and the count stays. lr may be a 1-element tensor on any device.

    The kernels walk raw memory. A gradient or moment whose device, shape, dtype or strides do not fit its
    parameter, or a parameter with gaps, is refused with a RuntimeError (torch's CPU kernel writes wrong memory
    there).
    Bitwise equal to torch.optim.Adam(fused=True); not to `single_tensor`: on a CPU the kernel's root is
    exact, which torch.sqrt's is not, and a tensor's last elements, too few to fill a vector register, may
    round otherwise in more places; on a GPU it may round a·b + c once.
    Source of the conventions: torch/optim/adam.py, `_fused_adam` (torch 2.13).
    """
    if not params:
        return
    refuse_misfits(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    advance(state_steps)
    kernel = torch._fused_adamw_ if decoupled_weight_decay else torch._fused_adam_
    for ps, gs, ms, vs, tops, steps in by_device_and_dtype(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps
    ):
        device = ps[0].device
        scale = grad_scale if grad_scale is None else grad_scale.to(device, non_blocking=True)
        skip = found_inf if found_inf is None else found_inf.to(device, non_blocking=True)
        kernel(
            ps, gs, ms, vs, tops, steps, amsgrad=amsgrad, lr=_beside(lr, device), beta1=beta1, beta2=beta2,
            weight_decay=weight_decay, eps=eps, maximize=maximize, grad_scale=scale, found_inf=skip,
        )
        if skip is not None:
            torch._foreach_sub_(steps, [skip] * len(steps))  # a step not taken is not counted


def _beside(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor lr on the device of its tensors; one on the CPU is read there by the kernel's launch."""
    return lr.to(device, non_blocking=True) if isinstance(lr, Tensor) and not lr.is_cpu else lr
