"""How tensors lie in memory: the fused kernels walk it raw, so what does not fit is refused before a step."""
from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor


class Kept(list):
    """The parameters of a fused group, kept from step to step, and how they and their moments lay in memory.

    Whoever keeps them makes sure that they are still the same objects, and asks whether they have `changed`
    (`p.data = ...`, `module.half()`); moments are the optimizer's own, no one else reshapes them.
    `usual`: all are floating-point and contiguous, and each moment fits its parameter. `uniform`: they are
    of one device and dtype, too.
    """

    def __init__(self, params: list[Tensor], *moments: list[Tensor]):
        super().__init__(params)
        self.sizes, self.dtypes = [*map(Tensor.numel, params)], [*map(attrgetter("dtype"), params)]
        floating = all(dtype.is_floating_point for dtype in {*self.dtypes})
        self.usual = floating and all(self.fit(column) for column in (params, *moments) if column)
        self.uniform = self.usual and len({(p.device, p.dtype) for p in params}) == 1

    def fit(self, tensors: list[Tensor]) -> bool:
        """Whether each is contiguous and as large as its parameter was, of the same dtype."""
        return (
            all(map(Tensor.is_contiguous, tensors))
            and [*map(Tensor.numel, tensors)] == self.sizes
            and [*map(attrgetter("dtype"), tensors)] == self.dtypes
        )

    def changed(self) -> bool:
        return self.usual and not self.fit(self)


def refuse_sparse(grads: list[Tensor]) -> None:
    if {*map(attrgetter("layout"), grads)} - {torch.strided}:
        raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam instead")


def refuse_unfusable(param: Tensor) -> None:
    """Raise unless torch has the kernel for tensors of this kind on this device."""
    devices = ("mps", "cuda", "xpu", "hpu", "cpu", "mtia", torch.device("privateuseone").type)
    if not param.is_floating_point() or param.device.type not in devices:
        raise RuntimeError(
            f"`fused=True` requires all the params to be floating point Tensors of supported devices: "
            f"{list(devices)} but {param.dtype} and {param.device.type}. Use foreach=True or foreach=False"
        )


def refuse_misfits(params, grads, *moments) -> None:
    """Raise unless each tensor lies in memory exactly as its parameter does; sparse gradients too."""
    kept = params if isinstance(params, Kept) else Kept(params, *moments)
    if kept.usual and kept.fit(grads):  # told apart quickly
        return
    refuse_sparse(grads)
    columns = [column for column in (grads, *moments) if column]
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
