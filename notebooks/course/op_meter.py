"""What one optimizer step costs, counted instead of timed: ATen calls, bytes moved, temporary memory.

>>> with OpMeter() as meter:
...     optimizer.step()
>>> meter.calls, meter.bytes_read, meter.bytes_written, meter.peak_temporary_bytes
>>> print(meter.table(parameters=11_689_512))

A count is the same on every run and on every machine of a kind, which a time never is. The meter is a
``TorchDispatchMode``: torch hands it every ATen call that is about to run, with its arguments.

The rules of counting
  * Every ATen call counts, except views: a view moves nothing.
  * ``torch.tensor(1.0)`` is one call, ``lift_fresh``, that writes it: the dispatcher sees no more of it.
  * A tensor argument is read, each time it is named: ``addcmul_(v, g, g)`` reads ``g`` twice.
  * In place (``add_``) is a read and a write; ``copy_``, ``fill_``, ``zero_`` and random fills only write.
  * ``out=`` is a write; so is an output in new memory, except that ``empty`` writes nothing.
  * ``zeros_like(p)`` and ``p.new_zeros`` look at ``p``'s shape and do not read it.
  * ``.item()`` is one call that reads one element.
  * The fused kernels write the gradients back only when they unscale them, that is with ``grad_scale``,
    although their schema says that they always may (torch/aten/src/ATen/native/native_functions.yaml).

What it does not see: kernels that are not ATen's (Triton, compiled code); what one call does inside (on a CPU
a foreach call is a loop of ordinary ones); ``.tolist()`` and ``.numpy()`` on a CPU, which read memory without
a call; and caches: a byte that is read twice counts twice, wherever it came from.
"""

import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# in place, but without reading the old value
WRITE_ONLY = {"copy_", "_foreach_copy_", "fill_", "zero_", "_foreach_zero_",
              "normal_", "uniform_", "bernoulli_"}


class OpRow(NamedTuple):
    """All calls of one ATen op: its name, how often it was called, and the bytes that these calls moved."""

    op: str
    calls: int
    bytes_read: int
    bytes_written: int


class OpMeter(TorchDispatchMode):
    """Counts the ATen calls of a ``with`` block and the bytes they move, by the rules above.

    Strided tensors only; other layouts raise torch's NotImplementedError.

    Attributes, complete after the block:
        rows: one ``OpRow`` per op, in the order of their first calls.
        calls, bytes_read, bytes_written: the sums over the rows.
        peak_temporary_bytes: the most memory held at once by tensors made in the block and gone by its end.
        kept_bytes: memory of tensors made in the block that outlive it (in a first step, the state).

    One meter measures one block; entering it again raises RuntimeError.
    """

    def __init__(self):
        super().__init__()
        self.peak_temporary_bytes = self.kept_bytes = 0
        self._rows: dict[str, OpRow] = {}
        self._memory_log: list[tuple[int, int]] = []  # (which storage, its bytes; negative when it is freed)
        self._alive: dict[int, weakref.ref] = {}  # the storages that the block created
        self._used = False

    @property
    def rows(self) -> list[OpRow]:
        return list(self._rows.values())

    @property
    def calls(self) -> int:
        return sum(row.calls for row in self.rows)

    @property
    def bytes_read(self) -> int:
        return sum(row.bytes_read for row in self.rows)

    @property
    def bytes_written(self) -> int:
        return sum(row.bytes_written for row in self.rows)

    def table(self, parameters: int | None = None) -> str:
        """The rows and their sum as text. With a number of parameters, bytes are per parameter."""
        unit = "bytes" if parameters is None else "bytes/parameter"
        cells = [("op", "calls", f"{unit} read", "written", "sum")]
        total = OpRow("total", self.calls, self.bytes_read, self.bytes_written)
        for op, calls, read, written in [*self.rows, total]:
            moved = (read, written, read + written)
            texts = [f"{n:,}" if parameters is None else f"{n / parameters:.2f}" for n in moved]
            cells.append((op, f"{calls:,}", *texts))
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            "  ".join([op.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:]))])
            for op, *numbers in cells
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def __enter__(self):
        if self._used:
            raise RuntimeError("this OpMeter has measured a block already; make a new OpMeter() for the next")
        self._used = True
        return super().__enter__()

    def __exit__(self, *exception):
        result = super().__exit__(*exception)
        held = {number: size for number, size in self._memory_log if number in self._alive}
        self.kept_bytes, now = sum(held.values()), 0
        for number, change in self._memory_log:
            if number not in held:
                now += change
                self.peak_temporary_bytes = max(self.peak_temporary_bytes, now)
        self._alive.clear()  # what is freed from here on is not ours to count
        return result

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        arguments = list(tensor_arguments(op, args, kwargs))
        if op is torch.ops.aten.lift_fresh.default:
            arguments.clear()  # its argument was made on the way here, unseen
        new = new_tensors([argument.tensor for argument in arguments], result)
        if not new and tensors_in(result) and not op._schema.is_mutable:
            return result  # a view
        name = short_name(op)
        row = self._rows.get(name, OpRow(name, 0, 0, 0))
        self._rows[name] = OpRow(
            name,
            row.calls + 1,
            row.bytes_read + sum(bytes_touched(a.tensor) for a in arguments if a.read),
            row.bytes_written + sum(bytes_touched(a.tensor) for a in arguments if a.written)
            + sum(bytes_touched(tensor) for tensor in new if "empty" not in name),
        )  # fmt: skip
        for storage in {id(s): s for s in (tensor.untyped_storage() for tensor in new)}.values():
            self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        """Log that this storage was created, and later that it was freed."""
        alive, log, number, size = self._alive, self._memory_log, len(self._memory_log), storage.nbytes()

        def freed(_):
            del alive[number]
            log.append((number, -size))

        log.append((number, size))
        alive[number] = weakref.ref(storage, freed)


class Visits(TorchDispatchMode):
    """Which call of a ``with`` block visits which tensor of a model: the order in which a step goes through it.

    rows: for each tensor of the model what belongs to it, such as ``(p, g, m, v)``. Temporaries made from a row
    belong to it, too; a call that touches no row, such as counting, is not noted.

    ``table`` after the block: for each row the numbers of the calls that visited it, from 1.
    """

    def __init__(self, rows):
        super().__init__()
        self.table = [[] for _ in rows]
        self._owner = {t.data_ptr(): i for i, row in enumerate(rows) for t in row}
        self._calls = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        given, made = ([t.data_ptr() for t in tensors_in(part)] for part in (args, result))
        touched = [self._owner[address] for address in given if address in self._owner]
        if touched and (op._schema.is_mutable or new_tensors(tensors_in(args), result)):  # no view
            self._calls += 1
            self._owner.update(zip(made, touched))
            for i in set(touched):
                self.table[i].append(self._calls)
        return result


class TensorArgument(NamedTuple):
    """A tensor that an ATen call was given, and what the call does with it."""

    tensor: Tensor
    read: bool
    written: bool


def tensor_arguments(op, args: tuple, kwargs: dict[str, Any]) -> Iterator[TensorArgument]:
    """The tensors among the arguments of an ATen call (lists opened), as the op's schema describes them.

    op: a ``torch._ops.OpOverload``.
    """
    name = op.overloadpacket.__name__
    factory = name.endswith("_like") or name.startswith("new_")
    positional = [argument for argument in op._schema.arguments if not argument.kwarg_only]
    given = [*zip(positional, args), *((a, kwargs[a.name]) for a in op._schema.arguments if a.name in kwargs)]
    for argument, value in given:
        written = argument.alias_info is not None and argument.alias_info.is_write
        if name.startswith("_fused_") and argument.name == "grads":
            written = kwargs.get("grad_scale") is not None
        read = not (factory or argument.is_out or (written and name in WRITE_ONLY))
        for tensor in tensors_in(value):
            yield TensorArgument(tensor, read, written)


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def new_tensors(arguments: list[Tensor], result: Any) -> list[Tensor]:
    """The tensors in a result that share no storage with an argument: no views, no arguments."""
    old = {id(tensor.untyped_storage()) for tensor in arguments}
    return [tensor for tensor in tensors_in(result) if id(tensor.untyped_storage()) not in old]


def short_name(op) -> str:
    """``aten.lerp_.Scalar`` -> ``lerp_.Scalar``, ``aten.sqrt.default`` -> ``sqrt``."""
    return str(op).removeprefix("aten.").removesuffix(".default")


def bytes_touched(tensor: Tensor) -> int:
    """Bytes of the elements of a strided tensor; an expanded dimension (stride 0) holds one element only."""
    if tensor.numel() == 0:
        return 0
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride) * tensor.element_size()


def draw(meters: dict[str, OpMeter], parameters: int, *, highlight: str | None = None):
    """Calls and bytes of several meters side by side, in the style of the series, as a matplotlib Figure.

    meters: name of the variant -> its meter, from top to bottom.  parameters: what the bytes are divided by.
    highlight: the name to draw in the strongest colour; the others are grey. A bar of bytes is cut by op, in
    the order of first calls.
    The caller gives the figure its title, a sentence, with ``fig.suptitle``.
    """
    import matplotlib.pyplot as plt

    from course.figures import COLORS

    size = (9, 1.2 + 1.3 * len(meters))
    fig, (calls, moved) = plt.subplots(1, 2, sharey=True, width_ratios=(2, 4), figsize=size)
    beside = dict(xytext=(4, 0), textcoords="offset points", va="center", weight="bold")
    for y, (name, meter) in enumerate(meters.items()):
        color = COLORS["blue"] if name == highlight else COLORS["grey"]
        calls.barh(y, meter.calls, 0.9, color=color)
        calls.annotate(f"{meter.calls}", (meter.calls, y), **beside)
        left = 0.0
        for row in meter.rows:
            width = (row.bytes_read + row.bytes_written) / parameters
            if width < 0.5:
                continue  # step counts and the like: less than a pixel
            moved.barh(y, width, 0.9, left, color=color, edgecolor="white", linewidth=2)
            name = row.op.split(".")[0].removeprefix("_foreach_")
            moved.text(left + width / 2, y, name, color="white", size=14, ha="center", va="center",
                       rotation=0 if width > 20 else 90)  # fmt: skip
            left += width
        total = (meter.bytes_read + meter.bytes_written) / parameters
        moved.annotate(f"{total:.0f}", (left, y), **beside)
    calls.set(xlabel="ATen calls", yticks=range(len(meters)), yticklabels=list(meters))
    calls.invert_yaxis()
    moved.set(xlabel="bytes moved per parameter, cut by op")
    for axes in (calls, moved):
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
    return fig
