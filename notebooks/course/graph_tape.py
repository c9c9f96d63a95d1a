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
  * A device value that the host needs (``.item()``, ``if``, a mask's size) is refused, and the capture lost.
  * The tape does not keep its inputs alive. Where a CUDA graph would read freed memory, replay refuses.
  * State that is created inside the block is created again by every replay: take one step before the capture.

All tensors are on the CPU here, so which of them are "on the device" is a matter of saying so: those given to
``GraphTape``, all that is computed from them, and what a factory makes with ``device=p.device``. Every other
tensor is on the host, one made with the string ``device="cpu"`` too.

Differences from a CUDA graph (those that are known; no list of them is complete)
  1. Real capture needs a side stream and a warm-up on one (library handles, autograd, optimizer state).
  2. The tape computes while it records and then puts every content back; CUDA only records.
  3. A CUDA graph reuses the memory of its temporaries inside the graph (a private pool); the tape keeps all.
  4. Random numbers: CUDA gives each replay its own offset of a registered generator; here the CPU's generator
     runs on.
  5. ``torch.optim`` and adamlib refuse to be captured on CUDA with ``capturable=False``. The tape lets them:
     it is there to show why they refuse.
  6. One ATen call is not one kernel: on CUDA a foreach call is one launch or a few, and one launch per tensor where
     its lists differ in shape, as where each tensor is paired with a 0-dim one.
  7. No speed is gained on a CPU: a graph saves launches, and here there are none.
  8. ``x.cpu()``, ``.tolist()``, ``.numpy()`` and ``print(x)`` are refused when the block itself calls them,
     and missed inside a torch function written in Python. Missed everywhere: ``x.to("cpu")``, ``h.to(x.device)`` of a
     host tensor h, ``torch.save``, DLPack, and what torch's CUDA kernels of eigh and svd ask the host.
  9. Some CPU kernels check on the host what CUDA's do not (``one_hot``): refused here, permitted there.
 10. No streams, events, NCCL, pinned-memory copies, conditional nodes or graph updates, and no other thread
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

from .op_meter import new_tensors, tensor_arguments, tensors_in

ALLOCATES = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
NOT_PERMITTED = "operation not permitted when stream is capturing"  # CUDA's words

MAKE_BEFORE = "Make the tensor before the capture, or with torch.full, which hands its number to a kernel"


class CaptureError(RuntimeError):
    """The tape was used as no CUDA graph can be used; the message says what to do instead."""


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
                storage.copy_(content)
        inputs = len(contents)
        for storage in recorder.storages[inputs:]:
            storage.fill_(255)  # nothing has been computed: all bits set is NaN in every floating dtype
        self._storages = [*map(weakref.ref, recorder.storages[:inputs]), *recorder.storages[inputs:]]
        self._sizes = [storage.nbytes() for storage in recorder.storages]
        self._names = recorder.names
        self.calls, self.host_calls = recorder.calls, recorder.host_calls
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


def verdict(block, **tensors):
    """May the block be captured? ``"permitted"``, ``"refused: host sync"`` or ``"refused: host memory"``."""
    try:
        with GraphTape(**tensors).capture():
            block()
    except CaptureError as error:
        return "refused: host sync" if NOT_PERMITTED in str(error) else "refused: host memory"
    return "permitted"


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
        self.factory_device: Any = None  # the device= of the torch function that is running
        self._position: dict[int, int] = {}  # id of a storage -> its place in the list
        self._named: dict[Address, str] = {}
        self._temporaries = itertools.count(1)
        self._failed: CaptureError | None = None
        for name, tensor in inputs.items():
            self._add(tensor, name)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        made_on_device = isinstance(self.factory_device, torch.device)
        if made_on_device and op is torch.ops.aten.lift_fresh.default:
            self.refuse(
                f"{NOT_PERMITTED}: torch.tensor(..., device=...) copies from the host. {MAKE_BEFORE}"
            )
        if not (made_on_device and not tensors) and not any(map(self.on_device, tensors)):
            if tensors and op.namespace == "aten" and not op.is_view:
                self.host_calls.append(str(op.overloadpacket).removeprefix("aten."))
            return op(*args, **kwargs)
        if self._failed:
            raise self._failed
        self._check(op, args, kwargs)
        with _random_numbers_put_back(op, (args, kwargs)):
            result = op(*args, **kwargs)
        self._record(op, args, kwargs, result)
        return result

    def on_device(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and id(tensor.untyped_storage()) in self._position

    def refuse(self, message: str) -> None:
        """Raise, and remember: one illegal call loses the capture, even if the block catches the error."""
        self._failed = CaptureError(message)
        raise self._failed

    def check_complete(self) -> None:
        if self._failed:
            raise CaptureError(f"operation failed due to a previous error during capture: {self._failed}")
        if not self.calls:
            raise CaptureError(
                "nothing was recorded: the block never touched a device tensor. Name them: "
                "GraphTape(device_tensors(optimizer), x=x)"
            )

    def _check(self, op, args, kwargs) -> None:
        if _needs_value_on_host(op, args, self.on_device):
            self.refuse(
                f"{NOT_PERMITTED}: {op} needs the value of {self._text(tensors_in((args, kwargs))[0])} on "
                "the host, and during capture there is none. Decide on the device (torch.where), or read"
                " it outside the block"
            )
        copies = op.overloadpacket.__name__ in ("copy_", "_foreach_copy_")  # from pageable memory, which has to wait
        for tensor, _, written in tensor_arguments(op, args, kwargs):
            if not self.on_device(tensor) and (written or copies or tensor.dim() > 0):
                self.refuse(
                    f"{op}: expected all tensors to be on the device, but one of shape {tuple(tensor.shape)} "
                    f"is on the host{' and would be written' if written else ''}. Name it when making the "
                    "tape, GraphTape(..., x=x). Of host tensors only a 0-dim one can be read, and frozen, by arithmetic"
                )

    def _record(self, op, args, kwargs, result) -> None:
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
        if op.overloadpacket.__name__ in ALLOCATES:
            return  # memory and no kernel: a replay finds in it what was written last
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

    READS = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__repr__, Tensor.__format__)

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.new_tensor and self.recorder.on_device(args[0]):
            self.recorder.refuse(f"{NOT_PERMITTED}: new_tensor copies from the host. {MAKE_BEFORE}")
        if func in self.READS and self.recorder.on_device(args[0]):
            self.recorder.refuse(
                f"{NOT_PERMITTED}: {func.__name__} copies a device tensor to the host, and during capture "
                "there is nothing in it yet. Read it after a replay"
            )
        outer, self.recorder.factory_device = self.recorder.factory_device, kwargs.get("device")
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.factory_device = outer


def _needs_value_on_host(op, args, on_device) -> bool:
    """Does this op return a value, or a size, that is only known once the device has computed?

    torch tags such ops. Indexing has the tag for the sake of masks: an index of integers has a known size, and one
    value of the host's can be written where a mask is set without knowing how often. Two ops have no tag and ask on
    CUDA: masked_fill for a value that lies on the device (aten/src/ATen/native/cuda/Indexing.cu), and the check of
    linalg's errors.
    """
    name = op.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masked = any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(args[1]))
        return masked and (name == "index" or args[2].numel() != 1 or on_device(args[2]))
    if name in ("masked_fill", "masked_fill_"):
        return any(map(on_device, tensors_in(args[2])))
    tagged = torch.Tag.data_dependent_output in op.tags or torch.Tag.dynamic_output_shape in op.tags
    return tagged or name == "_linalg_check_errors"


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
