"""How tensors lie in memory: the fused kernels walk it raw, so what does not fit is refused before a step."""
from __future__ import annotations

from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # a torch that keeps them elsewhere: then Python looks in every step
    TensorGuards = None


class Kept(list):
    """The parameters of a fused group, kept from step to step, and a memory of how the tensors of a step lie.

    Whether they still lie so is asked in every step, first of the guard with which torch.compile protects its
    graphs: one call in C++ for type, dtype, device, shape and strides of all tensors. It says no for other
    reasons, too (requires_grad, a tensor that comes twice, another dispatch mode), so then Python looks, which on
    many small tensors takes longer than the kernel. `p.data = ...`, `module.half()`, a transposed gradient and a
    moment of another shape are noticed.
    """

    def __init__(self, params: list[Tensor], *columns: list[Tensor]):
        super().__init__(params)
        self.uniform = len({(p.device, p.dtype) for p in params}) == 1
        self._form = _form(params)
        self._guards = TensorGuards and TensorGuards(
            *chain(params, *columns), dynamic_dims_sizes=None, dynamic_dims_strides=None
        )

    def lie_as_before(self, *columns: list[Tensor]) -> bool:
        """Whether the parameters and the other tensors lie in memory as they did when the list was made."""
        if self._guards is not None and self._guards.check(*chain(self, *columns)):
            return True
        return self._form is not None and all(_form(column) == self._form for column in (self, *columns) if column)


class Fitting(list):
    """The gradients of a step that is taken only if they, and the moments, fit these parameters in memory."""

    def __init__(self, params: list[Tensor], grads: list[Tensor]):
        super().__init__(grads)
        self.params = params


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
    """Raise unless each tensor lies in memory as its parameter does; sparse gradients too.

    A moment on CUDA may have another floating dtype. Gradients that come as `Fitting` have been looked at.
    """
    if isinstance(grads, Fitting) and grads.params is params:
        return
    refuse_sparse(grads)
    columns = [column for column in (grads, *moments) if column]
    form = _form(params)
    if form and all(p.is_floating_point() for p in params) and all(_form(column) == form for column in columns):
        return  # told apart quickly
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
                ("device", tensor.device, param.device),
                ("shape", tuple(tensor.shape), tuple(param.shape)),
                ("dtype", tensor.dtype, tensor.dtype if moment_may_differ else param.dtype),
                ("strides", _strides(tensor), _strides(param)),
            ):
                if theirs != its:
                    raise RuntimeError(
                        f"fused=True cannot step parameter {i}: {name} has {what} {theirs}, the parameter {its}. "
                        f"Give {name} the parameter's {what}, or use foreach=True or foreach=False"
                    )


def _form(tensors: list[Tensor]) -> tuple[list, ...] | None:
    """What tells contiguous tensors apart: shapes, dtypes, devices. None where one is not contiguous, or no tensor."""
    if not all(isinstance(tensor, Tensor) and tensor.is_contiguous() for tensor in tensors):
        return None
    return tuple([*map(attrgetter(what), tensors)] for what in ("shape", "dtype", "device"))


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element: the others say nothing about the memory."""
    return tuple(s for s, n in zip(tensor.stride(), tensor.shape) if n > 1) if tensor.numel() else ()


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
