"""The tables through which one launch of the Triton kernel finds every tensor of an optimizer.

A kernel takes a fixed number of arguments, an optimizer has any number of tensors. So the kernel gets arrays:
a row of addresses per tensor, a row of numbers per param group (betas, weight decay, ...), and for each chunk
of work the tensor that it is a piece of. Making them is plain PyTorch. It has a file of its own so that
`triton_kernel.py` holds the kernel and its launch and nothing else, and so that the rules about memory layout
and the chunk map can be read, and tested, where Triton is not installed.
"""
import math
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 16  # bytes that one thread can move in one instruction


class GroupLists(NamedTuple):
    """One param group; entry i of each list belongs to parameter i. Meanings as in `adamlib.variants`."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]  # empty without amsgrad
    state_steps: list[Tensor]  # float32, one element each, on the parameter's device
    lr: float | Tensor
    beta1: float | Tensor
    beta2: float | Tensor
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    amsgrad: bool
    maximize: bool


class Addresses(NamedTuple):
    """A tensor's row in `Launch.addresses`, int64; the kernel counts on this order."""

    param: int
    grad: int
    exp_avg: int
    exp_avg_sq: int
    max_exp_avg_sq: int
    step: int
    lr: int  # 0 where lr is a number
    group: int  # its row of numbers
    numel: int
    first_chunk: int  # this tensor's chunks are numbered from here on


class Numbers(NamedTuple):
    """A group's row in the number table: computed in double precision, rounded once to float32; the kernel
    counts on this order."""

    lr: float
    beta1: float
    one_minus_beta1: float
    log_beta1: float
    beta2: float
    one_minus_beta2: float
    log_beta2: float
    eps: float
    l2: float  # weight decay that enters the gradient (Adam) ...
    decoupled: float  # ... or shrinks the parameter (AdamW); one of the two is 0
    sign: float  # -1 to maximize


class Kind(NamedTuple):
    """What the kernel is compiled for. Tensors of one kind share a launch, whatever their group."""

    param_dtype: torch.dtype
    state_dtype: torch.dtype
    amsgrad: bool
    vector: int  # elements that one instruction may move; 1 where an address is no multiple of 16 bytes


class Launch(NamedTuple):
    """The arrays of one launch, on its device."""

    kind: Kind
    addresses: Tensor  # int64 [tensors, 10], rows as in Addresses
    owner: Tensor  # int32 [chunks], the row of the tensor that a chunk is a piece of


class Plan(NamedTuple):
    """What a step does on one device."""

    device: torch.device
    counters: Tensor  # int64 [counters], the address of every step counter, each once
    launches: list[Launch]


def places(groups: list[GroupLists]) -> list:
    """Everything that the plans depend on: while it stays equal, they stay right.

    That is the address of every tensor, and the layout of the gradients, which every backward may make anew
    in the memory of the last ones. Autograd keeps dtype and shape of a parameter equal to its gradient's, so
    of the parameter only the strides are left to look at. Taken at every step: some 1.3 µs per tensor.
    """
    seen: list = []
    for group in groups:
        for tensors in group[:6]:
            seen += map(Tensor.data_ptr, tensors)
        seen += [(g.dtype, g.shape, g.stride()) for g in group.grads]
        seen += map(Tensor.stride, group.params)
        seen += [len(group.params), _lr_address(group), group.amsgrad]
    return seen


def rates(groups: list[GroupLists]) -> list[tuple[float, ...]]:
    """The numbers of each group as they are now. A tensor lr beside its parameters is not read here."""
    return [(0.0 if _lr_address(group) else float(group.lr), *map(float, group[7:])) for group in groups]


def number_table(groups: list[GroupLists]) -> Tensor:
    """float32 [groups, 11] on the CPU, rows as in Numbers."""
    table = []
    for lr, beta1, beta2, eps, decay, decoupled, _, maximize in rates(groups):
        table.append(Numbers(
            lr=lr,
            beta1=beta1, one_minus_beta1=1 - beta1, log_beta1=math.log(beta1) if beta1 else -math.inf,
            beta2=beta2, one_minus_beta2=1 - beta2, log_beta2=math.log(beta2) if beta2 else -math.inf,
            eps=eps, l2=0.0 if decoupled else decay, decoupled=decay if decoupled else 0.0,
            sign=-1.0 if maximize else 1.0,
        ))
    return torch.tensor(table, dtype=torch.float32)


def build(groups: list[GroupLists], chunk: int) -> list[Plan]:
    """Check every tensor and lay out the step, one plan per device.

    Empty tensors have a step counter and no row. A counter that parameters share is listed once.
    Raises RuntimeError, naming the tensor and the cure, for what the kernel would not update rightly.
    """
    counters: dict[torch.device, dict[int, None]] = defaultdict(dict)
    rows: dict[torch.device, dict[Kind, list]] = defaultdict(lambda: defaultdict(list))
    for index, group in enumerate(groups):
        _refuse_misfits(index, group)
        tops = group.max_exp_avg_sqs if group.amsgrad else group.exp_avg_sqs
        columns = *group[:4], tops, group.state_steps
        lr = _lr_address(group)
        for i, (param, moment, *addresses) in enumerate(zip(
            group.params, group.exp_avgs, *(map(Tensor.data_ptr, column) for column in columns), strict=True
        )):
            counters[param.device][addresses[-1]] = None
            if numel := param.numel():
                if 0 in addresses:
                    raise RuntimeError(
                        f'fused="triton" cannot step params[{i}] of group {index}: it, its gradient or its '
                        "state has no memory of its own. Step its local part (to_local())"
                    )
                aligned = not any(address % WIDEST for address in addresses[:-1])
                vector = WIDEST // max(param.itemsize, moment.itemsize) if aligned else 1
                kind = Kind(param.dtype, moment.dtype, group.amsgrad, vector)
                rows[param.device][kind].append((*addresses, lr, index, numel))
    return [
        Plan(device, upload(torch.tensor(list(known)), device),
             [_launch(kind, table, chunk, device) for kind, table in rows[device].items()])
        for device, known in counters.items()
    ]


def chunk_map(numels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """(owner int32 [chunks], first_chunk int64 [tensors]): how the work is cut.

    Chunk c is the elements of tensor t = owner[c] from (c - first_chunk[t]) * chunk on, `chunk` of them or as
    many as are left.
    """
    counts = -(numels // -chunk)  # rounded up
    owner = torch.arange(len(numels), dtype=torch.int32).repeat_interleave(counts)
    return owner, counts.cumsum(0) - counts


def upload(table: Tensor, device: torch.device) -> Tensor:
    """The table on its device, in new memory: a captured graph goes on reading the tables that it saw.

    The copy runs later, from a pinned buffer, which PyTorch's pinned allocator reuses only once it has run.
    """
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def _launch(kind: Kind, rows: list[tuple], chunk: int, device: torch.device) -> Launch:
    table = torch.tensor(rows)
    owner, first_chunk = chunk_map(table[:, -1], chunk)
    return Launch(kind, upload(torch.column_stack([table, first_chunk]), device), upload(owner, device))


def _lr_address(group: GroupLists) -> int:
    """Where the kernel reads lr; 0 where it is a number, or a tensor on the CPU for parameters elsewhere."""
    beside = isinstance(group.lr, Tensor) and group.params and group.lr.device == group.params[0].device
    return group.lr.data_ptr() if beside else 0


def _refuse_misfits(index: int, group: GroupLists) -> None:
    """Raise unless the kernel, which walks p, g, m, v (and v_max) side by side as raw memory, may do so."""

    def refuse(name: str, i: int, why: str):
        raise RuntimeError(f'fused="triton" cannot step {name}[{i}] of group {index}: {why}')

    params, moments, lr = group.params, group.exp_avgs, group.lr
    for i, (p, step) in enumerate(zip(params, group.state_steps, strict=True)):
        if p.dtype not in DTYPES:
            refuse("params", i, f"it is {p.dtype}. The kernel computes in float32 and takes float32, float16 "
                   "and bfloat16. Use fused=True or foreach=True")
        if not (p.is_contiguous() or _dense(p)):
            refuse("params", i, f"its elements (shape {tuple(p.shape)}, strides {p.stride()}) do not fill "
                   "their memory without gaps. Make it contiguous(), or use foreach=True")
        if step.dtype != torch.float32 or step.numel() != 1 or step.device != p.device:
            refuse("state_steps", i, f"it is {step.dtype} of shape {tuple(step.shape)} on {step.device}. The "
                   f"kernel counts in one float32 on {p.device}")
        if isinstance(lr, Tensor) and lr.device not in (p.device, torch.device("cpu")):
            refuse("params", i, f"it is on {p.device}, lr on {lr.device}. Make a group per device, or give a "
                   "float lr")
        if isinstance(lr, Tensor) and lr.device == p.device and lr.dtype != torch.float32:
            refuse("params", i, f"lr is a tensor of {lr.dtype}, the kernel reads float32. Give lr.float()")

    columns = [
        ("grads", group.grads, params), ("exp_avgs", moments, params),
        ("exp_avg_sqs", group.exp_avg_sqs, moments),
    ]
    if group.amsgrad:
        columns.append(("max_exp_avg_sqs", group.max_exp_avg_sqs, moments))
    for name, column, model in columns:
        if [*map(_layout, column)] == [*map(_layout, model)]:
            continue  # the usual case, told quickly; else which one, and whether it matters
        for i, (t, other) in enumerate(zip(column, model, strict=True)):
            free_dtype = name == "exp_avgs" and t.dtype in DTYPES  # as float32 for a 16-bit parameter
            for what, its, needed in (
                ("device", t.device, other.device),
                ("dtype", t.dtype, t.dtype if free_dtype else other.dtype),
                ("shape", tuple(t.shape), tuple(other.shape)),
                ("strides", _strides(t), _strides(other)),
            ):
                if its != needed:
                    refuse(name, i, f"{what} {its}, where its parameter needs {needed}. Copy it into "
                           "torch.empty_like(param), or use foreach=True")


def _layout(t: Tensor) -> tuple:
    return t.device, t.dtype, t.shape, t.stride()


def _strides(t: Tensor) -> tuple[int, ...]:
    """Strides of the dimensions that have more than one element: the others say nothing about the memory."""
    return tuple(s for s, n in zip(t.stride(), t.shape) if n > 1) if t.numel() else ()


def _dense(t: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order of dimensions."""
    size = 1
    for stride, n in sorted((s, n) for s, n in zip(t.stride(), t.shape) if n > 1):
        if stride != size:
            return t.numel() == 0
        size *= n
    return True
