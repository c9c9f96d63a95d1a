"""Capture and replay with the semantics of a CUDA graph, on the CPU.

>>> tape = GraphTape(device_tensors(optimizer), images=x, labels=y)
>>> with tape.capture():
...     loss = model(x).sub(y).square().mean()
...     loss.backward()
...     optimizer.step()
>>> print(tape.listing())                     # what was recorded, with every number that is frozen in it
>>> x.copy_(batch); tape.replay()             # the same calls on the same memory; no Python of the block runs

As with a CUDA graph
  * A recorded call holds addresses and numbers. Nothing it names is looked up again: not a Python variable,
    not an attribute, not a learning rate.
  * Python runs once, at capture. So does every call on host tensors alone (``tape.host_calls``). A host
    scalar that meets a device tensor is read then, and frozen.
  * Inputs are static: fill them in place. Outputs are overwritten by the next replay.
  * Capture computes nothing. Device tensors keep their contents; what the block creates holds no result (NaN)
    before the first replay.
  * A device value that the host needs (``.item()``, ``if``, a mask's size) is refused, and the capture lost. Memory
    of the host where the device's is wanted is refused, too; an ``except`` around that saves the capture.
  * The tape does not keep its inputs alive. Where a CUDA graph would read freed memory, replay refuses.
  * State that is created inside the block is created again by every replay: take one step before the capture.

All tensors are on the CPU here, so which of them are "on the device" is a matter of saying so: those given to
``GraphTape``, all that is computed from them, and what a factory makes with ``device=p.device``. Every other
tensor is on the host, one made with the string ``device="cpu"`` too.

What may be captured is looked up in ``graph_table``, which gives each verdict its source and lists where the tape
cannot give CUDA's (``graph_table.differences()``). A call that no row decides is recorded, and named in
``tape.not_known``. What ATen calls do not show is seen only where the block itself calls it: ``x.cpu()``,
``print(x)`` and ``h.to(x.device)`` inside a torch function written in Python are missed.

A CUDA graph differs from the tape in more than verdicts:
  1. Real capture needs a side stream and a warm-up on one (library handles, autograd, optimizer state).
  2. The tape computes while it records and then puts every content back; CUDA only records.
  3. A CUDA graph reuses the memory of its temporaries inside the graph (a private pool); the tape keeps all.
  4. Random numbers: CUDA gives each replay its own offset of a registered generator; here the CPU's generator
     runs on.
  5. One ATen call is not one kernel: on CUDA a foreach call is one launch or a few, and one launch per tensor where
     its lists differ in shape, as where each tensor is paired with a 0-dim one.
  6. No speed is gained on a CPU: a graph saves launches, and here there are none.
  7. A tensor that is resized inside the block is refused here.
  8. No streams, events, NCCL, pinned-memory copies, conditional nodes or graph updates, and no other thread
     whose work could be disturbed (``capture_error_mode``).

Sources: docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs; pytorch/pytorch pull request 77862, which
added ``capturable`` to Adam.
"""

import contextlib
import itertools
import types
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .graph_table import HOST_MEMORY, HOST_SYNC, NOT_KNOWN, PERMITTED, Given, Row
from .graph_table import decide, decide_function, reads_host_scalar
from .op_meter import new_tensors, tensor_arguments, tensors_in

NOT_PERMITTED = "operation not permitted when stream is capturing"  # CUDA's words


class CaptureError(RuntimeError):
    """The tape was used as no CUDA graph can be used; the message says what to do instead.

    verdict: one of ``graph_table``'s if it is about a call in the block, else None.
    """

    def __init__(self, message: str, verdict: str | None = None):
        super().__init__(message)
        self.verdict = verdict


def device_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer has on the device, by name, for ``GraphTape``.

    Parameters (by name if the optimizer knows their names, else ``p0``, ``p1``, ...), gradients (``p0.grad``)
    and state (``p0.exp_avg``); of each group lr and betas where they are tensors (``lr``, ``betas.0``; from
    the second group on ``group1.lr``). A ``step`` is on the device where torch has it there: in a capturable
    or fused group. Take a name out, ``del tensors["lr"]``, to have that tensor on the host.
    """
    tensors: dict[str, Any] = {}
    count = 0
    for g, group in enumerate(optimizer.param_groups):
        options = "" if g == 0 else f"group{g}."
        tensors |= {f"{options}lr": group["lr"]}
        tensors |= {f"{options}betas.{i}": beta for i, beta in enumerate(group.get("betas", ()))}
        counts_on_device = group.get("capturable") or group.get("fused")
        names = group.get("param_names") or [f"p{count + i}" for i in range(len(group["params"]))]
        count += len(names)
        for name, param in zip(names, group["params"]):
            if isinstance(tensors.get(name), Tensor):
                raise ValueError(f"two tensors of the optimizer are called {name}: rename the parameter")
            tensors |= {name: param, f"{name}.grad": param.grad}
            for key, value in optimizer.state.get(param, {}).items():
                if key != "step" or counts_on_device:
                    tensors[f"{name}.{key}"] = value
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


@dataclass(frozen=True)
class Address:
    """Where a recorded call finds a tensor: which storage of the tape, and the view into it. No data."""

    storage: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    conjugate: bool
    negative: bool


@dataclass(frozen=True)
class Call:
    """One recorded call; ``str(call)`` is its line in the listing.

    op: the ATen op.  args, kwargs: what it was given, a device tensor as its ``Address``, the rest frozen.
    outputs: for each tensor it returns, the storage to write it to; None where it lies in an argument.
    text: the call in words.
    """

    op: Any
    args: tuple
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def frozen_numbers(self) -> list[float]:
        """The floating-point numbers among the arguments: Python floats, and host scalars read at capture."""
        values = (a.item() if isinstance(a, Tensor) else a for a in tree_leaves((self.args, self.kwargs)))
        return [value for value in values if isinstance(value, float)]


class GraphTape:
    """Records the calls of one ``with tape.capture():`` block and replays them, as a CUDA graph does it.

    Args:
        tensors: name -> tensor, what is on the device before the capture; strided tensors of any dtype.
        named: more of them, as keywords: ``GraphTape(device_tensors(optimizer), images=x)``.

    Attributes, after the capture:
        calls: the recorded ``Call``s in order.
        host_calls: the ATen ops that ran on host tensors alone: once, at capture, and never in a replay.
        not_known: the ATen ops that were recorded although no row of ``graph_table`` decides about them.
    """

    _recording = False  # one capture at a time, in the whole process

    def __init__(self, tensors: Mapping[str, Tensor] = {}, /, **named: Tensor):  # noqa: B006
        for name in tensors.keys() & named.keys():
            raise TypeError(f"two tensors are called {name}: give one of them another name")
        self._inputs = {**tensors, **named}
        for name, tensor in self._inputs.items():
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                kind = getattr(tensor, "layout", type(tensor).__name__)
                raise TypeError(f"{name} must be a strided tensor, but is {kind}")
        self.calls: list[Call] = []
        self.host_calls: list[str] = []
        self.not_known: list[str] = []
        self._storages: list[weakref.ref | torch.UntypedStorage] = []  # weak for inputs, the rest is ours
        self._sizes: list[int] = []
        self._names: list[str] = []

    @contextlib.contextmanager
    def capture(self) -> Iterator["GraphTape"]:
        """Record the calls of the block. Afterwards, even after an error, device tensors are as they were.

        Raises CaptureError for what a capturing CUDA stream does not permit, for a capture inside another,
        for a second capture on the same tape, and for a block that never touches a device tensor. After an
        error the tape is empty and can capture again. What Python did in the block (a new ``.grad``, a host
        step counted) stays done, as with CUDA.
        """
        if GraphTape._recording:
            raise CaptureError("a capture is already under way: end it before the next one begins")
        if self.calls:
            raise CaptureError("this tape already holds a capture: make a new GraphTape for the next one")
        recorder = _Recorder(self._inputs)
        contents = [storage.clone() for storage in recorder.storages]
        GraphTape._recording = True
        try:
            with _CallsByName(recorder), recorder:
                yield self
            recorder.check_complete()
        finally:
            GraphTape._recording = False
            for storage, content in zip(recorder.storages, contents):
                if storage.nbytes() != content.nbytes():
                    storage.resize_(content.nbytes())
                storage.copy_(content)
        inputs = len(contents)
        for storage in recorder.storages[inputs:]:
            storage.fill_(255)  # nothing has been computed; all bits set is NaN (not in float8's fnuz dtypes)
        self._storages = [*map(weakref.ref, recorder.storages[:inputs]), *recorder.storages[inputs:]]
        self._sizes = [storage.nbytes() for storage in recorder.storages]
        self._names = recorder.names
        self.calls, self.host_calls, self.not_known = recorder.calls, recorder.host_calls, recorder.not_known
        self._inputs = {}

    def replay(self) -> None:
        """Run the recorded calls again, in order, on the same memory.

        Raises CaptureError, before anything is run, when nothing is recorded or an input's memory is gone.
        """
        if GraphTape._recording:
            raise CaptureError(f"{NOT_PERMITTED}: end the capture before you replay")
        if not self.calls:
            raise CaptureError("nothing to replay: record something first, with `with tape.capture(): ...`")
        storages = self._living_storages()
        tensors: dict[Address, Tensor] = {}

        def at(argument):
            if not isinstance(argument, Address):
                return argument
            if argument not in tensors:
                tensors[argument] = _tensor_at(argument, storages[argument.storage])
            return tensors[argument]

        with torch.no_grad():
            for call in self.calls:
                result = call.op(*tree_map(at, call.args), **tree_map(at, call.kwargs))
                for storage, tensor in zip(call.outputs, tensors_in(result)):
                    if storage is not None:
                        storages[storage].copy_(tensor.untyped_storage())

    def listing(self) -> str:
        """The recorded calls, numbered, one a line.

        ``t1 = sqrt(p0.exp_avg_sq)`` makes a temporary; ``lerp_(p0.exp_avg, p0.grad, 0.1)`` works in place. A
        number stands where it is frozen; ``host(0.01)`` was read from a host tensor. ``p0[3, 2]``: a view of
        p0's memory with that shape.
        """
        return "\n".join(f"{i:3d}  {call}" for i, call in enumerate(self.calls, 1))

    def _living_storages(self) -> list[torch.UntypedStorage]:
        storages = [s() if isinstance(s, weakref.ref) else s for s in self._storages]
        for storage, size, name in zip(storages, self._sizes, self._names):
            if storage is None or storage.nbytes() != size:
                raise CaptureError(
                    f"the memory of {name} was freed after the capture: a CUDA graph would now read whatever "
                    "lies there. Keep static tensors alive and fill them in place: x.copy_(batch) instead of "
                    "x = batch, zero_grad(set_to_none=False) instead of new gradients"
                )
        return storages


def eagerly(block, optimizer, **inputs):
    """What ``on_tape`` is to be compared with: a step to warm up; then ``replay()`` is the block, run as Python."""
    block()
    return types.SimpleNamespace(replay=block)


def on_tape(block, optimizer, on_host=(), **inputs):
    """A step to warm up, which creates the optimizer's state, and a capture of the next: returns the GraphTape.

    inputs: what the block uses on the device besides the optimizer's tensors. on_host: names of optimizer tensors
    that are left on the host.
    """
    block()
    tensors = device_tensors(optimizer)
    for name in on_host:
        del tensors[name]
    tape = GraphTape(tensors, **inputs)
    with tape.capture():
        block()
    return tape


def in_cuda_graph(block, optimizer, **inputs):
    """What ``on_tape`` stands for, on a GPU: a step to warm up on a side stream, and a real CUDA graph of the next."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph


def verdict(block, **tensors):
    """May the block be captured? One of ``graph_table``'s verdicts, as the tape sees it."""
    tape = GraphTape(**tensors)
    try:
        with tape.capture():
            block()
    except CaptureError as error:
        if error.verdict is None:
            raise
        return error.verdict
    return NOT_KNOWN if tape.not_known else PERMITTED


def cuda_works():
    """Whether a CUDA device is there and computes; if not, one sentence says why. (A listed one may run nothing.)"""
    if not torch.cuda.is_available():
        print("No CUDA device here. With one, the same runs are done with real CUDA graphs.")
        return False
    try:
        return (torch.ones(2, device="cuda") + 1).sum().item() == 4
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        print(f"A CUDA device is listed, but an operation on it fails: {str(error).splitlines()[0]}")
        return False


class _Recorder(TorchDispatchMode):
    """Sees every ATen call of the block, runs it, and records those that touch the device."""

    def __init__(self, inputs: Mapping[str, Tensor]):
        super().__init__()
        self.storages: list[torch.UntypedStorage] = []  # on the device; held here, so that an id stays theirs
        self.names: list[str] = []
        self.calls: list[Call] = []
        self.host_calls: list[str] = []
        self.not_known: list[str] = []
        self.factory_device: Any = None  # the device= of the torch function that is running
        self._position: dict[int, int] = {}  # id of a storage -> its place in the list
        self._named: dict[Address, str] = {}
        self._temporaries = itertools.count(1)
        self._failed: CaptureError | None = None
        for name, tensor in inputs.items():
            self._add(tensor, name)
        self._input_sizes = [storage.nbytes() for storage in self.storages]

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        made_on_device = isinstance(self.factory_device, torch.device)
        if made_on_device and op is torch.ops.aten.lift_fresh.default:  # torch.tensor(..., device=x.device)
            self.refuse(HOST_MEMORY, "torch.tensor(..., device=...)")
        if not (made_on_device and not tensors) and not any(map(self.on_device, tensors)):
            if tensors and op.namespace == "aten" and not op.is_view:
                self.host_calls.append(str(op.overloadpacket).removeprefix("aten."))
            return op(*args, **kwargs)
        if self._failed:
            raise self._failed
        row = decide(op, Given(args, kwargs, self.on_device))
        self._check(op, args, kwargs, row)
        with _random_numbers_put_back(op, (args, kwargs)):
            result = op(*args, **kwargs)
        for name, storage, size in zip(self.names, self.storages, self._input_sizes):
            if storage.nbytes() != size:
                raise CaptureError(f"{op} moved {name} to other memory: give it its size before the capture")
        self._record(op, args, kwargs, result, row)
        return result

    def on_device(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and id(tensor.untyped_storage()) in self._position

    def refuse(self, verdict: str, what: str) -> None:
        """Raise, and remember a host sync: it loses the capture, even if the block catches the error."""
        if verdict == HOST_SYNC:
            self._failed = CaptureError(
                f"{NOT_PERMITTED}: {what} on the host, and during capture there is none. Decide on the device "
                "(torch.where), or read it outside the block", verdict
            )  # fmt: skip
            raise self._failed
        raise CaptureError(
            f"expected all tensors to be on the device, and {what} would use memory of the host. Make the tensor "
            "before the capture and name it, GraphTape(..., x=x), or make it with torch.full, which hands its number "
            "to a kernel. Of host tensors only a 0-dim one can be read, and frozen, by arithmetic", verdict
        )  # fmt: skip

    def check_complete(self) -> None:
        if self._failed:
            raise CaptureError(f"operation failed due to a previous error during capture: {self._failed}", HOST_SYNC)
        if not self.calls:
            raise CaptureError(
                "nothing was recorded: the block never touched a device tensor. Name them: "
                "GraphTape(device_tensors(optimizer), x=x)"
            )

    def _check(self, op, args, kwargs, row: Row | None) -> None:
        if row is not None and row.verdict == HOST_SYNC:
            self.refuse(HOST_SYNC, f"{op} needs the value of {self._text(tensors_in((args, kwargs))[0])}")
        for tensor, _, written in tensor_arguments(op, args, kwargs):
            refused = written or tensor.dim() > 0 or (row is not None and row.verdict == HOST_MEMORY)
            if refused and not self.on_device(tensor):
                self.refuse(HOST_MEMORY, f"{op} with a tensor of shape {tuple(tensor.shape)}")

    def _record(self, op, args, kwargs, result, row: Row | None) -> None:
        def freeze(argument):
            if not isinstance(argument, Tensor):
                return argument
            return self._address(argument) if self.on_device(argument) else argument.detach().clone()

        new = new_tensors(tensors_in((args, kwargs)), result)
        for tensor in new:
            if not self.on_device(tensor):
                self._add(tensor, f"t{next(self._temporaries)}")
        if not new and not op._schema.is_mutable and op._schema.returns:
            return  # a view: no kernel, nothing to replay
        if op.overloadpacket.__name__.startswith(("empty", "new_empty")):
            return  # memory and no kernel: a replay finds in it what was written last
        on_host = [tensor for tensor in tensors_in((args, kwargs)) if not self.on_device(tensor)]
        if row is None or (on_host and not reads_host_scalar(op)):
            self.not_known.append(str(op.overloadpacket).removeprefix("aten."))
        outputs = tuple(
            self._position[id(tensor.untyped_storage())] if any(tensor is t for t in new) else None
            for tensor in tensors_in(result)
        )
        text = self._in_words(op, args, kwargs, result if new else None)
        self.calls.append(Call(op, tree_map(freeze, args), tree_map(freeze, kwargs), outputs, text))

    def _add(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._position:
            self._position[id(storage)] = len(self.storages)
            self.storages.append(storage)
            self.names.append(name)
        self._named.setdefault(self._address(tensor), name)

    def _address(self, tensor: Tensor) -> Address:
        return Address(
            self._position[id(tensor.untyped_storage())], tensor.dtype, tuple(tensor.shape), tensor.stride(),
            tensor.storage_offset(), tensor.is_conj(), tensor.is_neg(),
        )  # fmt: skip

    def _in_words(self, op, args, kwargs, new_result) -> str:
        arguments = [self._text(value) for value in args]
        arguments += [f"{name}={self._text(value)}" for name, value in kwargs.items()]
        target = "" if new_result is None else f"{self._text(new_result)} = "
        return f"{target}{op.overloadpacket.__name__}({', '.join(arguments)})"

    def _text(self, value: Any) -> str:
        """An argument in words: a tensor by its name, a number with six digits, a long list cut."""
        if isinstance(value, Tensor):
            if not self.on_device(value):
                return f"host({self._text(value.item())})"
            address = self._address(value)
            return self._named.get(address) or f"{self.names[address.storage]}{list(address.shape)}"
        if isinstance(value, (list, tuple)):
            shown = [*map(self._text, value)]
            if len(shown) > 4:
                shown = [*shown[:2], f"... {len(shown)} in all"]
            return f"[{', '.join(shown)}]"
        return f"{value:.6g}" if isinstance(value, float) else str(value)


class _CallsByName(TorchFunctionMode):
    """Sees torch functions before they become ATen calls: reads that are no call on a CPU; ``device=``."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        row = decide_function(func, Given(args, kwargs, self.recorder.on_device))
        if row is not None:
            needs = " needs the value of a tensor" if row.verdict == HOST_SYNC else ""
            self.recorder.refuse(row.verdict, func.__name__ + needs)
        outer, self.recorder.factory_device = self.recorder.factory_device, kwargs.get("device")
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.factory_device = outer


@contextlib.contextmanager
def _random_numbers_put_back(op, arguments) -> Iterator[None]:
    """A capture draws no random numbers: leave the generator of a random op as it was."""
    if torch.Tag.nondeterministic_seeded not in op.tags:
        yield
        return
    given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Generator)]
    generator = given[0] if given else torch.default_generator
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


def _tensor_at(address: Address, storage: torch.UntypedStorage) -> Tensor:
    tensor = torch.empty(0, dtype=address.dtype, device=storage.device)
    tensor.set_(storage, address.offset, address.shape, address.strides)
    if address.conjugate:
        tensor = tensor.conj()
    return torch._neg_view(tensor) if address.negative else tensor
