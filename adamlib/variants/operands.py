"""Numbers as torch's kernels want them.

An op on a CPU that is given a Python number makes a tensor of it, in every call anew, which takes as long as
the arithmetic on a thousand elements. Made once a step, the same tensor gives the same bits.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def operand_for(tensor: Tensor) -> Callable[[float | Tensor], float | Tensor]:
    """A function that turns a number into the cheapest operand for tensors like this one.

    For float32 and float64 on a CPU a 0-dim tensor of that dtype. Elsewhere a number stays a number: to a
    device it travels with the launch, 16-bit kernels take it in float32, and subclasses such as DTensor may
    not mix with plain tensors. What is a tensor already stays what it is.
    """
    dtype = tensor.dtype.to_real()
    plain = tensor.is_cpu and type(tensor) in (Tensor, torch.nn.Parameter)
    if not plain or dtype not in (torch.float32, torch.float64):
        return lambda number: number
    return lambda number: number if isinstance(number, Tensor) else torch.tensor(number, dtype=dtype)
