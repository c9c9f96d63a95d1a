"""Cutting the lists of a step into pieces that one pass of arithmetic can take.

A step is six lists with one entry per parameter tensor. Two cuts are made here, so that the variants hold
nothing but arithmetic: by device and dtype, because one foreach or fused call takes tensors of one kind; and
by size. On a CPU the pieces stay in cache, because Adam's eight passes over a large tensor otherwise fetch
every element from memory eight times. On other devices foreach takes so many tensors at once that its kernels
are long, but not all of a large model, because its temporaries are as large as what it takes at once.
Views only: nothing is copied, and every element is in exactly one piece.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**18  # per piece on a CPU: p, g, m, v and the denominator in float32 are 5 MiB
WORTH_CUTTING = 2**16  # in all, for foreach: below, a temporary is 256 KiB and seven more calls cost more
DEVICE_ELEMENTS = 2**24  # per bucket of whole tensors elsewhere: a temporary of 64 MiB in float32


def by_device_and_dtype(params: list[Tensor], *lists: list) -> Iterator[tuple[list, ...]]:
    """The same lists, cut so that the parameters of each part share device and dtype; empty lists stay empty."""
    kinds: dict = {}
    if not getattr(params, "uniform", False):  # as layout.Kept knows from an earlier step
        for i, param in enumerate(params):
            kinds.setdefault((param.device, param.dtype), []).append(i)
    if len(kinds) <= 1:
        if params:
            yield (params, *lists)
        return
    for indices in kinds.values():
        yield tuple([column[i] for i in indices] if column else column for column in (params, *lists))


def as_real(tensors: list[Tensor]) -> list[Tensor]:
    """Complex tensors as pairs of reals, [...] → [..., 2]: Adam treats the two parts as two coordinates.

    Tensors of one dtype, at least one; real ones are given back as they are.
    """
    return [torch.view_as_real(t) for t in tensors] if tensors[0].is_complex() else tensors


def in_cache(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors of one parameter (all of one shape), in pieces that stay in a CPU's cache together."""
    if tensors[0].numel() <= CACHE_ELEMENTS or not _can_be_cut(tensors):
        return (tensors,)
    return zip(*(t.view(-1).split(CACHE_ELEMENTS) for t in tensors))


def buckets(scales: list, *lists: list[Tensor]) -> Iterator[tuple]:
    """Foreach lists with room for CACHE_ELEMENTS on a CPU, large tensors cut, small ones together.

    What is worth cutting makes two buckets at least, so that temporaries are half of all tensors at most.
    On other devices whole tensors with room for DEVICE_ELEMENTS; one that is larger has a bucket to itself.
    `scales` has one entry per tensor, whatever it is; it goes with each piece of its tensor.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the passes: there are no temporaries
        yield (scales, *lists)
        return
    columns, sizes = (scales, *lists), [*map(Tensor.numel, lists[0])]
    room = DEVICE_ELEMENTS
    if lists[0][0].is_cpu:
        if max(sizes) > CACHE_ELEMENTS:
            rows = ((scale, *piece) for scale, *tensors in zip(*columns) for piece in in_cache(*tensors))
            columns = [*map(list, zip(*rows))]
            sizes = [*map(Tensor.numel, columns[1])]
        room = min(CACHE_ELEMENTS, max(WORTH_CUTTING, sum(sizes)) // 2)
    start = elements = 0
    for i, size in enumerate(sizes):
        if elements + size > room and i > start:
            yield tuple(column[start:i] for column in columns)
            start, elements = i, 0
        elements += size
    yield tuple(column[start:] for column in columns)


def _can_be_cut(tensors: tuple[Tensor, ...]) -> bool:
    """Plain contiguous tensors on a CPU; subclasses (DTensor) and strided views are taken whole."""
    return not torch.compiler.is_compiling() and all(
        t.is_cpu and type(t) in (Tensor, torch.nn.Parameter) and t.is_contiguous() for t in tensors
    )
