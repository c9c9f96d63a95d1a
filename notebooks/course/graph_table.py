"""What a CUDA graph capture permits: one table, each row a small block with its verdict and the source of it.

>>> for row in TABLE:
...     print(row.name, row.verdict, row.source)

A row's block takes ``x``, four floats on the device, and ``h``, four ones on the host. ``graph_tape`` asks the table
about each call that it records; a test runs each block on the tape; a GPU runs each under ``torch.cuda.graph``.

The verdicts
  permitted              recorded; a replay does what the block does, except where the row's ``replays`` says otherwise.
  refused: host sync     the host needs a value of the device. CUDA reports an error, and the whole capture is lost.
  refused: host memory   a kernel cannot use memory of the host, and a copy needs pinned memory. torch checks that
                         itself, before it calls CUDA: if the error is caught, the capture goes on.
  refused: by torch      another check of torch's, in front of CUDA; the capture goes on, too.
  not known              no source was read that says it. The tape records the call, lets it replay, and lists it in
                         ``GraphTape.not_known``.

Where the tape, which has a CPU only, cannot give CUDA's verdict, the row has the tape's in ``tape``: ``differences()``
lists those rows. Nobody knows all of what CUDA refuses; the table is complete for its rows alone.

Sources are files of PyTorch 2.13 (``native`` is aten/src/ATen/native) and its documentation. A refusal's file holds the
reason after the colon. A kernel's file is where it is launched; that nothing there waits for the host is for a GPU to
confirm, as none has run these rows yet. Copies between host and device are checked since January 2026 (pull request
172156); before, CUDA refused them as host syncs, or they passed and a replay read what lay in the host's memory then.
"""

import fnmatch
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import adamlib
from adamlib.functional import adam

from .op_meter import tensors_in

PERMITTED = "permitted"
HOST_SYNC = "refused: host sync"
HOST_MEMORY = "refused: host memory"
BY_TORCH = "refused: by torch"
NOT_KNOWN = "not known"


class Given(NamedTuple):
    """A call as a row's ``when`` sees it; on_device(tensor) tells where a tensor is."""

    args: tuple
    kwargs: dict[str, Any]
    on_device: Callable[[Tensor], bool]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    ops: names of ATen ops that the row decides, separated by blanks, wildcards allowed; ``add`` stands for ``add_``,
    too.  tag: it decides all ops with this tag that no row names.  functions: torch functions that it decides when
    the block itself calls them, where an ATen call comes too late.  when: only for calls of which this holds. The
    first row that fits decides. A row with neither ops, tag nor functions is an example: another row decides, or the
    place where its tensors lie.
    replays: what a replay does differently from the block; empty: nothing.
    tape: what the tape says, where it cannot say what CUDA says.
    """

    name: str
    verdict: str
    source: str
    block: Callable[[Tensor, Tensor], Any]
    ops: str = ""
    tag: torch.Tag | None = None
    functions: tuple = ()
    when: Callable[[Given], bool] | None = None
    replays: str = ""
    tape: str | None = None

    def names(self, op) -> bool:
        """Whether ``ops`` has this ATen op."""
        return any(fnmatch.fnmatchcase(_functional(op), pattern) for pattern in self.ops.split())


def decide(op, given: Given) -> Row | None:
    """The row that decides an ATen call, or None: not known."""
    by_name = (row for row in TABLE if row.names(op) and (row.when is None or row.when(given)))
    return next(by_name, None) or next((row for row in TABLE if row.tag in _tags(op)), None)


def decide_function(function, given: Given) -> Row | None:
    """The row that decides a torch function before it becomes ATen calls; None for most of them."""
    return next((row for row in TABLE if function in row.functions and row.when and row.when(given)), None)


def reads_host_scalar(op) -> bool:
    """Whether the op reads a host tensor without dimensions when it is launched, as a number, on CUDA, too."""
    return _functional(op) in READS_HOST_SCALARS


def differences() -> list[Row]:
    """The rows in which the tape says something else than CUDA."""
    return [row for row in TABLE if row.tape is not None]


def _functional(op) -> str:
    return op.overloadpacket.__name__.rstrip("_")


def _tags(op) -> set[torch.Tag]:
    """The op's tags and, as some in-place ops have none, those of its functional twin."""
    twin = getattr(getattr(torch.ops.aten, _functional(op), None), op._overloadname, op)
    return {*op.tags, *twin.tags}


# ------------------------------------------------------------------------------------------ conditions
def _masked(given):
    return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_in(given.args[1]))


def _masked_by_values(given):
    """Written where a mask is set: fine for one value of the host's, which needs no count of the places."""
    value = given.args[2]
    return _masked(given) and (value.numel() != 1 or given.on_device(value))


def _value_on_device(given):
    return any(map(given.on_device, tensors_in(given.args[2])))


def _first_on_device(given):
    return given.on_device(given.args[0])


def _host_and_device(given):
    return len({given.on_device(tensor) for tensor in tensors_in((given.args, given.kwargs))}) == 2


def _moves_between_host_and_device(given):
    """``x.to("cpu")`` of a device tensor, or ``h.to(x.device)`` of a host tensor: a string means the host."""
    targets = [a for a in (*given.args[1:], *given.kwargs.values()) if isinstance(a, (str, torch.device))]
    return any(isinstance(target, str) == given.on_device(given.args[0]) for target in targets)


# ------------------------------------------------------------------------------------------ blocks of several lines
def _leaf(x):
    weight = x.detach().clone().requires_grad_()
    weight.grad = torch.ones_like(weight)
    return weight


def _square(x):
    return x[:, None] * x + torch.eye(4, device=x.device)


def _clip(x, **options):
    weight = _leaf(x)
    return torch.nn.utils.clip_grad_norm_([weight], 1.0, **options), weight.grad


def _step(x, make, **options):
    weight = _leaf(x)
    make([weight], lr=0.1, **options).step()
    return weight.detach()


def _scaled_step(x, h):
    weight = _leaf(x)
    scaler = torch.amp.GradScaler(x.device.type)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)


def _unscale(x, h):
    grads, found = [x.clone(), x * 2], torch.zeros((), device=x.device)
    scale, streak = torch.full((), 0.5, device=x.device), torch.zeros((), dtype=torch.int32, device=x.device)
    ATEN._amp_foreach_non_finite_check_and_unscale_(grads, found, scale)
    ATEN._amp_update_scale_(scale, streak, found, 2.0, 0.5, 2000)
    return grads, found, scale


def _fused(x, h):
    rows = [[x.clone()], [x * 2], [x * 3], [x.square()], [], [torch.ones((), device=x.device)]]
    for kernel in (torch._fused_adam_, torch._fused_adamw_):
        kernel(*rows, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False)
    return rows


def _foreach(x, h):
    lists = [x.clone(), x[:2] * 2]
    torch._foreach_mul_(lists, 3.0)
    scales = torch.ones(2, device=x.device).unbind()
    torch._foreach_add_(lists, list(scales))  # shapes differ: on CUDA one launch per tensor, not one for all
    return lists, torch._foreach_norm(lists)


def _backward(function):
    """A block that runs function(weight) forward and backward."""

    def block(x, h):
        weight = x.detach().clone().requires_grad_()
        result = function(weight)
        result.sum().backward()
        return result.detach(), weight.grad

    return block


def _image(x):
    return (x[:, None] * x).reshape(1, 1, 4, 4)


def _indices(x):
    return (x > 0).long()


def _capturable_step(x, h):
    weight, (m, v), t = x.clone(), (torch.zeros_like(x), torch.zeros_like(x)), torch.zeros((), device=x.device)
    adam([weight], [x * 2], [m], [v], [], [t], capturable=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=0.1,
         weight_decay=0.0, eps=1e-8, maximize=False)
    return weight, m, v, t


def _empty(x, device):
    return (torch.empty_like(x), torch.empty(4, device=device), torch.empty_strided((4,), (1,), device=device),
            torch.empty_permuted((4,), (0,), device=device), x.new_empty(4), x.new_empty_strided((4,), (1,)))


def _filled(x, device):
    made = [torch.full((4,), 2.0, device=device), torch.zeros(4, device=device), torch.ones(4, device=device),
            torch.arange(4, device=device), torch.linspace(0, 1, 4, device=device),
            torch.scalar_tensor(2, device=device), torch.eye(4, device=device), torch.full_like(x, 3),
            torch.zeros_like(x), torch.ones_like(x), x.new_full((4,), 3), x.new_zeros(4), x.new_ones(4),
            (x * 2).zero_()]
    torch._foreach_zero_(made[:2])
    return [x + tensor for tensor in made]


def _products(matrix, x):
    return (matrix @ matrix, matrix @ x, F.linear(matrix, matrix, x), torch.addmv(x, matrix, x), x @ x,
            matrix[None] @ matrix[None], torch.baddbmm(matrix[None], matrix[None], matrix[None]))


def _convolution(image):
    normed = F.batch_norm(F.conv2d(image, image[..., :2, :2]), None, None, training=True)
    return F.max_pool2d(normed, 2) + F.adaptive_avg_pool2d(normed, 2)


def _read_by_numpy(x, h):
    x.add_(1)
    np.from_dlpack(x)


def _saved(x, h):
    torch.save(x.add_(1), io.BytesIO())


REDUCTIONS = "sum mean prod max min amax amin aminmax argmax argmin any all std var nansum count_nonzero"
ATEN = torch.ops.aten
NATIVE = "native/"
CUDA = "native/cuda/"
NOTES = "docs: notes/cuda.html#cuda-graphs"
FROZEN = "the value read at capture"

TABLE: tuple[Row, ...] = (
    # -------------------------------------------------------------------- the host needs a value
    Row("x.sum().item()", HOST_SYNC, CUDA + "CUDAScalar.cu: a copy to the host, and a wait for it",
        lambda x, h: x.sum().item(), ops="_local_scalar_dense"),
    Row("if x.sum() > 0", HOST_SYNC, NOTES + ": no control flow on values; bool() is .item()",
        lambda x, h: 1 if x.sum() > 0 else 2),
    Row("float(x[0])", HOST_SYNC, CUDA + "CUDAScalar.cu", lambda x, h: float(x[0])),
    Row("an index from the device: h[x.argmax()]", HOST_SYNC,
        "torch/csrc/autograd/python_variable_indexing.cpp: .item()",
        lambda x, h: h[x.argmax()]),
    Row("torch.equal(x, x)", HOST_SYNC, CUDA + "Equal.cpp: .item()", lambda x, h: torch.equal(x, x), ops="equal"),
    Row("torch.allclose(x, x)", HOST_SYNC, NATIVE + "TensorCompare.cpp: .item()", lambda x, h: torch.allclose(x, x)),
    Row("print(x)", HOST_SYNC, "torch/_tensor_str.py: masked_select, .item()", lambda x, h: str(x),
        functions=(Tensor.__repr__, Tensor.__format__), when=_first_on_device),
    Row("x[x > 0]", HOST_SYNC, NATIVE + "IndexingUtils.h: a mask becomes nonzero()", lambda x, h: x[x > 0],
        ops="index", when=_masked),
    Row("x[x > 0] = a tensor of the device", HOST_SYNC,
        NATIVE + "TensorAdvancedIndexingUtils.h: the shortcut wants a CPU value",
        lambda x, h: x.index_put_((x > 0,), x.mean()),
        ops="index_put", when=_masked_by_values),
    Row("x.masked_fill(x > 0, x.mean())", HOST_SYNC, CUDA + "Indexing.cu: value.item()",
        lambda x, h: x.masked_fill(x > 0, x.mean()), ops="masked_fill", when=_value_on_device),
    Row("x.nonzero()", HOST_SYNC, CUDA + "Nonzero.cu: the count goes to the host", lambda x, h: x.nonzero(),
        ops="nonzero"),
    Row("x.masked_select(x > 0)", HOST_SYNC, CUDA + "IndexKernel.cpp: by nonzero()",
        lambda x, h: x.masked_select(x > 0), ops="masked_select"),
    Row("torch.where(x > 0)", HOST_SYNC, NATIVE + "TensorCompare.cpp: nonzero()", lambda x, h: torch.where(x > 0)),
    Row("x.unique()", HOST_SYNC, CUDA + "UniqueCub.cu: the count goes to the host", lambda x, h: x.unique(),
        ops="_unique2"),
    Row("torch.bincount(i)", HOST_SYNC, CUDA + "SummaryOps.cu: the largest value decides the size",
        lambda x, h: torch.bincount(_indices(x)), ops="bincount"),
    Row("torch.linalg.inv", HOST_SYNC,
        "docs: torch.linalg.inv, synchronizes; " + NATIVE + "BatchLinearAlgebra.cpp: .item()",
        lambda x, h: torch.linalg.inv(_square(x)), ops="_linalg_check_errors"),
    *(Row(f"torch.linalg.{name}", HOST_SYNC, f"docs: torch.linalg.{name}, synchronizes",
          lambda x, h, name=name: getattr(torch.linalg, name)(_square(x)), ops=op)
      for name, op in (("eigh", "_linalg_eigh"), ("svd", "_linalg_svd"), ("eig", "linalg_eig"))),
    Row("torch.linalg.lstsq", HOST_SYNC, "docs: torch.linalg.lstsq, synchronizes",
        lambda x, h: torch.linalg.lstsq(_square(x), _square(x)), ops="linalg_lstsq"),
    Row("torch.normal(x, std of the device)", HOST_SYNC, NATIVE + "DistributionTemplates.h: std.min() >= 0 is asked",
        lambda x, h: torch.normal(x, x.abs()), ops="normal",
        when=lambda g: any(map(g.on_device, tensors_in(g.args[1:])))),
    Row("clip_grad_norm_, error_if_nonfinite", HOST_SYNC, "torch/nn/utils/clip_grad.py: if",
        lambda x, h: _clip(x, error_if_nonfinite=True)),
    Row("GradScaler.step of a plain optimizer", HOST_SYNC, "torch/amp/grad_scaler.py: found_inf.item()", _scaled_step),
    Row("repeat_interleave, output_size given", PERMITTED, "docs: torch.repeat_interleave, output_size avoids the sync",
        lambda x, h: x.repeat_interleave(_indices(x), output_size=3), ops="repeat_interleave",
        when=lambda g: g.kwargs.get("output_size") is not None),
    Row("repeat_interleave", HOST_SYNC, NATIVE + "Repeat.cpp: the sum of the repeats decides the size",
        lambda x, h: x.repeat_interleave(_indices(x)), ops="repeat_interleave"),
    Row("one_hot without a number of classes", HOST_SYNC, NATIVE + "Onehot.cpp: max().item()",
        lambda x, h: F.one_hot(_indices(x))),
    Row("one_hot(i, 2)", PERMITTED, NATIVE + "Onehot.cpp: asks the values on a CPU, not on CUDA",
        lambda x, h: F.one_hot(_indices(x), 2), tape=HOST_SYNC),
    Row("other ops whose output's value is for the host", HOST_SYNC, "native/tags.yaml: data_dependent_output",
        lambda x, h: torch.is_nonzero(x[0]), tag=torch.Tag.data_dependent_output),
    Row("other ops whose output's size depends on values", HOST_SYNC, "native/tags.yaml: dynamic_output_shape",
        lambda x, h: torch.argwhere(x > 0), tag=torch.Tag.dynamic_output_shape),

    # -------------------------------------------------------------------- memory of the host
    Row("x + h", HOST_MEMORY, "aten/src/ATen/TensorIterator.cpp: all tensors on one device", lambda x, h: x + h),
    Row("torch.add(x, x, out=h)", HOST_MEMORY, "aten/src/ATen/TensorIterator.cpp", lambda x, h: torch.add(x, x, out=h)),
    Row("_foreach_add_([x], [h])", HOST_MEMORY, NATIVE + "ForeachUtils.h: the slow path, one add_ each",
        lambda x, h: torch._foreach_add_([x, x.clone()], [x, h])),
    Row("x[host index]", HOST_MEMORY, NATIVE + "IndexingUtils.h: the index is copied to the device",
        lambda x, h: x[torch.tensor([0, 1])]),
    Row("x.copy_(h)", HOST_MEMORY, CUDA + "Copy.cu: the host's tensor must be pinned", lambda x, h: x.copy_(h),
        ops="copy", when=_host_and_device),
    Row("_foreach_copy_([x], [h])", HOST_MEMORY, CUDA + "Copy.cu", lambda x, h: torch._foreach_copy_([x], [h])),
    Row("x.copy_(a host scalar)", HOST_MEMORY, CUDA + "Copy.cu", lambda x, h: x.copy_(h.sum())),
    Row("h.copy_(x)", HOST_MEMORY, CUDA + "Copy.cu", lambda x, h: h.copy_(x)),
    Row("h.to(x.device)", HOST_MEMORY, CUDA + "Copy.cu", lambda x, h: x + h.to(x.device),
        functions=(Tensor.to,), when=_moves_between_host_and_device),
    Row('x.to("cpu")', HOST_MEMORY, CUDA + "Copy.cu", lambda x, h: x.to("cpu") + h),
    Row("x.cpu(), x.tolist()", HOST_MEMORY, CUDA + "Copy.cu; torch/csrc/utils/tensor_list.cpp", lambda x, h: x.tolist(),
        functions=(Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__), when=_first_on_device),
    Row("torch.tensor(2.0, device=x.device)", HOST_MEMORY,
        "torch/csrc/utils/tensor_new.cpp: made on the host, then copied",
        lambda x, h: x * torch.tensor(2.0, device=x.device)),
    Row("x.new_tensor(2.0)", HOST_MEMORY, "torch/csrc/utils/tensor_new.cpp", lambda x, h: x * x.new_tensor(2.0),
        functions=(Tensor.new_tensor,), when=_first_on_device),
    Row("torch.where(x > 0, x, a host scalar)", HOST_MEMORY, NATIVE + "TensorCompare.cpp: .to(device)",
        lambda x, h: torch.where(x > 0, x, h.sum()), functions=(torch.where, Tensor.where), when=_host_and_device),
    Row("torch.stack([x[0], a host scalar])", HOST_MEMORY, CUDA + "Shape.cu: all on one device",
        lambda x, h: torch.stack([x[0], h.sum()]), ops="stack", when=_host_and_device),
    Row("torch.save(x)", HOST_MEMORY, "torch/serialization.py: storage.cpu()", _saved, tape=PERMITTED),
    Row("numpy.from_dlpack(x)", HOST_MEMORY, "numpy/_core/src/multiarray/dlpack.c: memory of the host only",
        _read_by_numpy, tape=PERMITTED),

    # -------------------------------------------------------------------- torch's own checks
    Row("torch.optim.Adam(capturable=False)", BY_TORCH, "torch/optim/optimizer.py: _cuda_graph_capture_health_check",
        lambda x, h: _step(x, torch.optim.Adam, foreach=False), tape=PERMITTED),
    Row("torch.optim.Adam(fused=True), not capturable", BY_TORCH,
        "torch/optim/optimizer.py: _cuda_graph_capture_health_check",
        lambda x, h: _step(x, torch.optim.Adam, fused=True), tape=PERMITTED),
    Row("adamlib.Adam(capturable=False)", BY_TORCH, "adamlib/optimizer.py, as torch's",
        lambda x, h: _step(x, adamlib.Adam, foreach=False), tape=PERMITTED),
    Row("a generator that is not registered", BY_TORCH,
        "aten/src/ATen/cuda/CUDAGeneratorImpl.cpp; docs: torch.cuda.CUDAGraph",
        lambda x, h: x.normal_(generator=torch.Generator(x.device)), tape=PERMITTED),

    # -------------------------------------------------------------------- what the host's values become
    Row("x * a host scalar", PERMITTED, CUDA + "Loops.cuh: is_cpu_scalar, read when the kernel is launched",
        lambda x, h: x * h.sum(), replays=FROZEN),
    Row("x * torch.tensor(2.0)", PERMITTED, CUDA + "Loops.cuh: is_cpu_scalar", lambda x, h: x * torch.tensor(2.0)),
    Row("x.masked_fill(x > 0, a host scalar)", PERMITTED, CUDA + "Indexing.cu",
        lambda x, h: x.masked_fill(x > 0, h.sum()), ops="masked_fill", replays=FROZEN),
    Row("x[x > 0] = 0.0", PERMITTED, NATIVE + "TensorAdvancedIndexingUtils.h: becomes masked_fill",
        lambda x, h: x.index_put_((x > 0,), torch.tensor(0.0)), ops="index_put"),
    Row("x.fill_(a host scalar)", PERMITTED, NATIVE + "Fill.cpp: .item() of a host tensor",
        lambda x, h: x.fill_(h.sum()), ops="fill", replays=FROZEN),
    Row("_foreach_mul_([x], a host scalar)", PERMITTED,
        CUDA + "ForeachBinaryOpScalarTensor.cu: .item() of a host tensor",
        lambda x, h: torch._foreach_mul_([x], h.sum()), replays=FROZEN),
    Row("x * h.sum().item()", PERMITTED, "Python: a number is an argument of the launch",
        lambda x, h: x * h.sum().item(), replays=FROZEN),

    # -------------------------------------------------------------------- memory without a launch
    Row("torch.empty_like(x).add_(x)", PERMITTED, NOTES + ": a private pool keeps the memory; empty launches nothing",
        lambda x, h: [made.add_(x) for made in _empty(x, x.device)], replays="adds to what was written last",
        ops="empty empty_like empty_strided empty_permuted new_empty new_empty_strided"),

    # -------------------------------------------------------------------- kernels
    Row("element by element", PERMITTED, "native/tags.yaml: pointwise; " + CUDA + "Loops.cuh",
        lambda x, h: (x.exp().mul_(2).clamp(max=x.mean()), torch.where(x > 0, x, 0.0), x.lerp(x * 2, 0.1)),
        tag=torch.Tag.pointwise),
    Row("reductions", PERMITTED, CUDA + "Reduce.cuh",
        lambda x, h: [getattr(x, name)() for name in REDUCTIONS.split()]
        + [x.logsumexp(0), torch.var_mean(x), x.norm()],
        ops=f"{REDUCTIONS} logsumexp var_mean linalg_vector_norm"),
    Row("filled tensors, made with device=x.device", PERMITTED, CUDA + "FillKernel.cu, RangeFactories.cu",
        lambda x, h: _filled(x, x.device),
        ops="full full_like zeros zeros_like ones ones_like new_full new_zeros new_ones zero arange eye linspace "
            "scalar_tensor _foreach_zero"),
    Row("copies on the device", PERMITTED, CUDA + "Copy.cu: one device",
        lambda x, h: (x.clone(), x.double(), torch.zeros_like(x).copy_(x), torch._foreach_copy_([x * 2], [x])),
        ops="copy _foreach_copy clone _to_copy"),
    Row("matrix products", PERMITTED, CUDA + "Blas.cpp; " + NOTES + ": its examples are linear layers",
        lambda x, h: _products(_image(x)[0, 0], x), ops="mm mv addmm addmv bmm baddbmm dot"),
    Row("linear, softmax, cross entropy, backward", PERMITTED, NOTES + ": whole-network capture",
        _backward(lambda w: F.cross_entropy((w[:, None] * w).softmax(1), _indices(w))),
        ops="_softmax _log_softmax _softmax_backward_data _log_softmax_backward_data nll_loss_forward "
            "nll_loss_backward"),
    Row("convolution, batch norm, pooling", PERMITTED,
        CUDA + "Normalization.cu, DilatedMaxPool2d.cu; native/Convolution.cpp",
        _backward(lambda w: _convolution(_image(w))),
        ops="convolution convolution_backward native_batch_norm native_batch_norm_backward max_pool2d_with_indices "
            "max_pool2d_with_indices_backward _adaptive_avg_pool2d _adaptive_avg_pool2d_backward"),
    Row("layer norm, group norm", PERMITTED, CUDA + "layer_norm_kernel.cu, group_norm_kernel.cu",
        _backward(lambda w: F.group_norm(F.layer_norm(_image(w), (4,)), 1)),
        ops="native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward"),
    Row("losses", PERMITTED, CUDA + "BinaryMiscOpsKernels.cu; native/Loss.cpp",
        _backward(lambda w: F.mse_loss(w, w * 2) + F.binary_cross_entropy_with_logits(w, torch.ones_like(w))),
        ops="mse_loss mse_loss_backward binary_cross_entropy_with_logits"),
    Row("attention", PERMITTED, "native/transformers/cuda/attention.cu: its random state is a PhiloxCudaState",
        _backward(lambda w: F.scaled_dot_product_attention(*[_image(w)] * 3)), ops="_scaled_dot_product_*"),
    Row("embedding, backward", PERMITTED,
        CUDA + "EmbeddingBackwardKernel.cu: the number of segments stays on the device",
        _backward(lambda w: F.embedding(_indices(w), w[:, None])), ops="embedding embedding_dense_backward"),
    Row("x[device index]", PERMITTED, CUDA + "IndexKernel.cu, Indexing.cu",
        lambda x, h: (x[_indices(x)], x.index_select(0, _indices(x)), x.index_add(0, _indices(x), x)),
        ops="index index_select index_add"),
    Row("gather, scatter", PERMITTED, CUDA + "ScatterGatherKernel.cu, IndexKernel.cu",
        lambda x, h: (x.gather(0, _indices(x)), x.scatter(0, torch.arange(4, device=x.device), x * 2),
                      x.scatter_add(0, _indices(x), x), x.masked_scatter(x > 0, x * 2)),
        ops="gather scatter scatter_add masked_scatter"),
    Row("shapes", PERMITTED, CUDA + "Shape.cu, TensorTransformations.cu, TriangularOps.cu",
        lambda x, h: (torch.cat([x, x]), torch.stack([x, x]), F.pad(x, (1, 1)), x.flip(0), x.roll(1), x.repeat(2),
                      _image(x)[0, 0].tril().triu()),
        ops="cat stack constant_pad_nd flip roll repeat tril triu"),
    Row("backward of views", PERMITTED, "native/TensorShape.cpp: zeros and a copy", _backward(lambda w: w[0] * w[1:]),
        ops="select_backward slice_backward"),
    Row("sort, topk", PERMITTED, CUDA + "Sort.cpp, TensorTopK.cpp", lambda x, h: (x.sort(), x.topk(2)),
        ops="sort topk"),
    Row("cumsum, cumprod", PERMITTED, CUDA + "ScanKernels.cpp", lambda x, h: (x.cumsum(0), x.cumprod(0)),
        ops="cumsum cumprod"),
    Row("lists: torch._foreach_*", PERMITTED,
        NATIVE + "ForeachUtils.h: all in one launch, or one each where shapes differ",
        _foreach, ops="_foreach_*"),
    Row("torch._fused_adam_", PERMITTED, CUDA + "fused_adam_utils.cuh: the count is a tensor", _fused,
        ops="_fused_adam _fused_adamw"),
    Row("a capturable step of adamlib", PERMITTED, "adamlib/variants/capturable.py", _capturable_step),
    Row("clip_grad_norm_", PERMITTED, "torch/nn/utils/clip_grad.py: clamp on the device", lambda x, h: _clip(x)),
    Row("unscaling, found_inf on the device", PERMITTED, CUDA + "AmpKernels.cu", _unscale,
        ops="_amp_foreach_non_finite_check_and_unscale _amp_update_scale"),
    Row("torch._assert_async(x)", PERMITTED, CUDA + "TensorCompare.cu: a kernel asserts",
        lambda x, h: ATEN._assert_async(x.isfinite().all()), ops="_assert_async"),

    # -------------------------------------------------------------------- random numbers
    Row("random numbers", PERMITTED, "aten/src/ATen/cuda/CUDAGeneratorImpl.h: each replay has its own offset",
        lambda x, h: (torch.rand_like(x), torch.randn_like(x), torch.rand(2, device=x.device), x.clone().exponential_(),
                      F.dropout(x, 0.5), torch.normal(x, 1.0), x.clone().uniform_().normal_()),
        ops="rand rand_like randn_like uniform normal exponential bernoulli"),
    Row("multinomial, one sample", PERMITTED, NATIVE + "Distributions.cpp: _assert_async; one sample is an argmax",
        lambda x, h: torch.multinomial(x.abs(), 1), ops="multinomial",
        when=lambda g: g.args[1] == 1 or not (g.args[2:] or (False,))[0]),

    # -------------------------------------------------------------------- not known
    Row("torch.histc", NOT_KNOWN, "no source read", lambda x, h: torch.histc(x, 4, -3, 3)),
    Row("torch.linalg.cholesky_ex", NOT_KNOWN, "no source read",
        lambda x, h: torch.linalg.cholesky_ex(_square(x))[0]),
)

# Arithmetic that reads a host tensor without dimensions when it is launched, as a number. Other ops: not known.
READS_HOST_SCALARS = set(
    "add sub rsub mul div floor_divide remainder fmod pow atan2 maximum minimum fmax fmin "
    "eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor fill masked_fill "
    "index_put where _foreach_add _foreach_mul _foreach_div".split()  # where: its Python numbers only, see its row
)
