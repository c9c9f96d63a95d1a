"""Vertical fusion: the whole step in one kernel that reads and writes every element once (28 bytes in fp32)."""
from __future__ import annotations

import torch
from torch import Tensor

from .partition import by_device_and_dtype
from .steps import advance


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

    The kernels walk raw memory. A gradient or moment whose shape, dtype or strides do not fit its parameter,
    or a parameter with gaps, is refused with a RuntimeError (torch's CPU kernel writes wrong memory there).
    Bitwise equal to torch.optim.Adam(fused=True); not to `single_tensor`: the kernel rounds less often.
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


def refuse_unfusable(param: Tensor) -> None:
    """Raise unless torch has the kernel for tensors of this kind on this device."""
    devices = ("mps", "cuda", "xpu", "hpu", "cpu", "mtia", torch.device("privateuseone").type)
    if not param.is_floating_point() or param.device.type not in devices:
        raise RuntimeError(
            f"`fused=True` requires all the params to be floating point Tensors of supported devices: "
            f"{list(devices)} but {param.dtype} and {param.device.type}. Use foreach=True or foreach=False"
        )


def _beside(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """A tensor lr on the device of its tensors; one on the CPU is read there by the kernel's launch."""
    return lr.to(device, non_blocking=True) if isinstance(lr, Tensor) and not lr.is_cpu else lr


def refuse_misfits(params, grads, *moments) -> None:
    """Raise unless each tensor lies in memory exactly as its parameter does."""
    columns = [column for column in (grads, *moments) if column]
    dtypes, sizes = [p.dtype for p in params], list(map(Tensor.numel, params))
    if all(map(Tensor.is_floating_point, params)) and all(map(Tensor.is_contiguous, params)) and all(
        list(map(Tensor.numel, column)) == sizes
        and all(map(Tensor.is_contiguous, column))
        and [t.dtype for t in column] == dtypes
        for column in columns
    ):
        return  # the usual case, told apart quickly
    names = ("the gradient", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    for i, param in enumerate(params):
        refuse_unfusable(param)
        if not _dense(param):
            raise RuntimeError(
                f"fused=True cannot step parameter {i} (shape {tuple(param.shape)}, strides {param.stride()}): "
                "its elements do not fill their memory without gaps. Use foreach=True or foreach=False for it, "
                "or make the parameter contiguous()"
            )
        for name, column in zip(names, columns):
            tensor = column[i]
            moment_may_differ = column is not grads and tensor.is_cuda and tensor.is_floating_point()
            for what, theirs, its in (
                ("shape", tuple(tensor.shape), tuple(param.shape)),
                ("dtype", tensor.dtype, tensor.dtype if moment_may_differ else param.dtype),
                ("strides", _strides(tensor), _strides(param)),
            ):
                if theirs != its:
                    raise RuntimeError(
                        f"fused=True cannot step parameter {i}: {name} has {what} {theirs}, the parameter {its}. "
                        f"Give {name} the parameter's {what}, or use foreach=True or foreach=False"
                    )


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element: the others say nothing about the memory."""
    return tuple(s for s, n in zip(tensor.stride(), tensor.shape) if n > 1) if tensor.numel() else ()


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return tensor.numel() < 2 or expected == tensor.numel()
