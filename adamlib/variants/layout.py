"""How tensors lie in memory: the fused kernels walk it raw, so what does not fit is refused before a step."""
from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor


class Kept(list):
    """Parameters or moments of a fused group, kept from step to step, and how they lay in memory at first.

    Whoever keeps them makes sure that they are still the same objects, and asks the parameters whether they
    have `changed` (`p.data = ...`, `module.half()`); moments are the optimizer's own, no one else reshapes them.
    """

    def __init__(self, tensors: list[Tensor]):
        super().__init__(tensors)
        self.layout = _layout(tensors)
        self.uniform = len({(t.device, t.dtype) for t in tensors}) == 1

    def changed(self) -> bool:
        return _layout(self) != self.layout


def refuse_unfusable(param: Tensor) -> None:
    """Raise unless torch has the kernel for tensors of this kind on this device."""
    devices = ("mps", "cuda", "xpu", "hpu", "cpu", "mtia", torch.device("privateuseone").type)
    if not param.is_floating_point() or param.device.type not in devices:
        raise RuntimeError(
            f"`fused=True` requires all the params to be floating point Tensors of supported devices: "
            f"{list(devices)} but {param.dtype} and {param.device.type}. Use foreach=True or foreach=False"
        )


def refuse_misfits(params, grads, *moments) -> None:
    """Raise unless each tensor lies in memory exactly as its parameter does."""
    columns = [column for column in (grads, *moments) if column]
    layouts = [c.layout if isinstance(c, Kept) else _layout(c) for c in (params, *columns)]
    if layouts[0] is not None and all(layout == layouts[0] for layout in layouts):
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


def _layout(tensors: list[Tensor]) -> tuple[list[int], list[torch.dtype]] | None:
    """Numbers of elements and dtypes, if all tensors are floating-point and contiguous."""
    dtypes = [*map(attrgetter("dtype"), tensors)]
    if all(map(Tensor.is_contiguous, tensors)) and all(dtype.is_floating_point for dtype in {*dtypes}):
        return [*map(Tensor.numel, tensors)], dtypes
    return None


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
