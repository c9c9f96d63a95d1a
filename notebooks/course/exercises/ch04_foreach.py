"""Checks for the exercises of chapter 04. Each takes what the reader wrote and returns a Report."""

import torch

from course.op_meter import OpMeter

from . import check, expect, expect_that, not_written


@check(start="the cell that adds up 76 bytes: which line does each option add, what does it read and write?")
def bytes_per_weight(reader):
    """``bytes_per_weight(itemsize, weight_decay, decoupled_weight_decay, amsgrad, maximize) -> int``."""
    cases = [
        (torch.float32, 0.0, False, False, False, "the plain step: 19 passes over float32"),
        (torch.float32, 0.1, False, False, False, "L2: add reads g and p and writes a new list"),
        (torch.float32, 0.1, True, False, False, "decoupled decay: mul_ reads p and writes p"),
        (torch.float32, 0.0, True, False, False, "weight_decay = 0: the flag alone adds no line"),
        (torch.float32, 0.0, False, True, False, "AMSGrad: maximum_ reads two lists and writes one"),
        (torch.float32, 0.0, False, False, True, "maximize: neg reads g and writes a new list"),
        (torch.float64, 0.0, False, False, False, "itemsize: a float64 has 8 bytes"),
        (torch.bfloat16, 0.1, False, True, True, "several options at once: their passes add up"),
        (torch.float64, 0.1, True, True, True, "several options at once: their passes add up"),
    ]
    for dtype, decay, decoupled, amsgrad, maximize, look in cases:
        options = dict(weight_decay=decay, decoupled_weight_decay=decoupled, amsgrad=amsgrad, maximize=maximize)
        yours = reader(dtype.itemsize, decay, decoupled, amsgrad, maximize)
        arguments = ", ".join(f"{name}={value}" for name, value in options.items() if value)
        tried = f"itemsize {dtype.itemsize}{', ' if arguments else ''}{arguments}"
        expect(yours, _measured(dtype, **options), tried=tried, look=look)
    return f"agrees with the op meter for {len(cases)} sets of options"


@check(start="torch.stack(norms): what is the norm of the vector of norms?")
def clip_in_lists(reader):
    """``clip_in_lists(grads, max_norm) -> Tensor``: scales the gradients in place, returns their norm before."""
    shapes = [(3, 4), (5,), (), (2, 1, 3)]
    cases = [
        ("four tensors, their norm above max_norm", shapes, 1.0, 1.0,
         "the norm of all gradients together, √Σᵢ‖gᵢ‖²: one scale for all tensors"),
        ("four tensors, their norm below max_norm", shapes, 0.01, 5.0,
         "clamp(max=1): gradients that are short enough stay as they are"),
        ("gradients of zeros", shapes, 0.0, 1.0, "a scale that is infinite or nan: clamp(max=1) bounds it"),
        ("one tensor", [(7,)], 3.0, 0.5, "a list of one is a list, too"),
    ]  # fmt: skip
    for what, sizes, size, max_norm, look in cases:
        grads = _gradients(sizes, size)
        wanted = _gradients(sizes, size)
        norm = torch.nn.utils.get_total_norm(wanted)
        scale = min(1.0, max_norm / (norm.item() + 1e-6))
        given = list(grads)
        yours = reader(grads, max_norm)
        unchanged = all(torch.equal(a, b) for a, b in zip(given, wanted))
        if yours is None and unchanged and scale < 1:
            not_written()
        expect_that(
            isinstance(yours, torch.Tensor), tried=f"{what}: what is returned", yours=f"{type(yours).__name__}",
            expected="the norm as a tensor, on the device where the gradients are", look="the last line: return it",
        )  # fmt: skip
        expect(yours.reshape(-1), norm.reshape(-1), rtol=1e-5, atol=1e-12, tried=f"{what}: the norm returned",
               look="the norm of all gradients together, before clipping")  # fmt: skip
        expect_that(
            scale == 1 or not unchanged, tried=what, yours="the gradients as they were",
            expected="gradients scaled in place", look="_foreach_mul_, with an underscore at its end",
        )  # fmt: skip
        for i, (mine, theirs) in enumerate(zip(given, wanted)):
            expect(mine, theirs * scale, rtol=1e-5, atol=1e-12, tried=f"{what}: gradient {i}", look=look)
    grads = _gradients([(64,)] * 200, 1.0)
    with OpMeter() as meter:
        reader(grads, 1.0)
    reads = sum(row.calls for row in meter.rows if row.op.startswith("_local_scalar_dense"))
    expect(reads, 0, tried="200 tensors: .item(), float() or `if` on a tensor",
           look="the scale: clamp it as a tensor, and multiply by that tensor")  # fmt: skip
    expect_that(
        meter.calls <= 10, tried="200 tensors: ATen calls", yours=f"{meter.calls}", expected="at most 10",
        look="the loop over the tensors: _foreach_norm, stack and _foreach_mul_ take all of them at once",
    )  # fmt: skip
    needed = _value_needed(reader)
    expect_that(
        not needed, tried="tensors on the meta device, which have a shape and no values", yours=needed,
        expected="a run: every line works on tensors and needs no value",
        look="what asks for a value: .item(), .tolist(), .numpy(), float() or `if`; on a GPU it would wait",
    )  # fmt: skip
    return f"agrees with torch's clipping, in {meter.calls} calls for 200 tensors"


@check(start="tensor.view(-1).split(room) for one tensor; then buckets() puts small pieces together")
def cut(reader):
    """``cut(tensors, room) -> list of lists of views``: at most room elements in each, every element once."""
    t = torch.empty  # filled below
    cases = [
        ("sizes 3, 4, 5", 100, lambda: [t(3), t(4), t(5)]),
        ("sizes 3, 4, 5", 7, lambda: [t(3), t(4), t(5)]),
        ("one tensor of 10 × 10", 30, lambda: [t(10, 10)]),
        ("sizes 2, 25, 1, 0-dim, 9, 10", 10, lambda: [t(2), t(5, 5), t(1), t(()), t(9), t(10)]),
        ("200 tensors of 64", 1000, lambda: [t(64) for _ in range(200)]),
        ("a transposed 10 × 6 among others", 16, lambda: [t(4), t(10, 6).t(), t(40)]),
        ("room for one element", 1, lambda: [t(3), t(())]),
        ("no tensors", 10, lambda: []),
    ]
    for what, room, make in cases:
        tensors = make()
        for i, tensor in enumerate(tensors):
            tensor.fill_(i)
        before = [tensor.clone() for tensor in tensors]
        tried = f"{what}, room {room}"
        answer = reader(list(tensors), room)
        if answer is None:
            not_written()
        parts = [list(bucket) for bucket in answer]
        sizes = [sum(piece.numel() for piece in bucket) for bucket in parts]
        expect_that(
            all(parts), tried=tried, yours="a bucket without a tensor", expected="no empty bucket",
            look="the bucket that is begun and never filled: foreach refuses empty lists",
        )  # fmt: skip
        for bucket in parts:
            for piece in bucket:
                whole = any(_place(piece) == _place(tensor) for tensor in tensors)
                expect_that(
                    whole or piece.is_contiguous(), tried=tried,
                    yours=f"a piece of shape {list(piece.shape)} with gaps, its strides {list(piece.stride())}",
                    expected="contiguous pieces; a tensor that is not contiguous stays whole",
                    look="how a tensor is cut: a piece is a run of neighbours in memory, as split makes it",
                )  # fmt: skip
        for bucket, size in zip(parts, sizes):
            tied = sum(piece.numel() for piece in bucket if not piece.is_contiguous())
            expect_that(
                size - tied <= room, tried=tried, yours=f"a bucket of {size} elements",
                expected=f"at most {room}, but for tensors that are not contiguous",
                look="the moment when the next piece does not fit any more",
            )  # fmt: skip
        for bucket in parts:
            for piece in bucket:
                piece.add_(1)
        for i, (tensor, old) in enumerate(zip(tensors, before)):
            added = tensor - old
            expect(added, torch.ones_like(old), tried=f"{tried}: add 1 to every piece; what tensor {i} got",
                   look="views, not copies (view, split), and every element in exactly one piece")  # fmt: skip
        owners = {tensor.untyped_storage().data_ptr(): i for i, tensor in enumerate(tensors)}
        pieces = [piece for bucket in parts for piece in bucket]
        order = [(owners.get(piece.untyped_storage().data_ptr(), -1), piece.storage_offset()) for piece in pieces]
        expect_that(
            all(owner >= 0 for owner, _ in order), tried=tried, yours="a piece that is part of none of the tensors",
            expected="views of the tensors and nothing else", look="views, not copies (view, split)",
        )  # fmt: skip
        expect_that(
            order == sorted(order), tried=tried, yours="pieces in another order",
            expected="the order of the tensors, and in each from its first element to its last",
            look="one pass from the first tensor to the last: grads, m and v are cut alike and must match",
        )  # fmt: skip
        most = 2 * -(-sum(tensor.numel() for tensor in tensors) // room) + 1
        expect_that(
            len(parts) <= most, tried=tried, yours=f"{len(parts)} buckets", expected=f"at most {most}",
            look="small pieces: several of them share a bucket while there is room",
        )  # fmt: skip
    return f"cuts {len(cases)} lists: views, in order, every element once, no bucket over its room"


def _measured(dtype, n=10_000, **options):
    """Bytes per weight that torch's foreach moves, by the op meter; the counts of two tensors are lost in rounding."""
    params = [torch.nn.Parameter(torch.ones(n, dtype=dtype)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam(params, foreach=True, **options)
    optimizer.step()
    with OpMeter() as meter:
        optimizer.step()
    return round((meter.bytes_read + meter.bytes_written) / (2 * n))


def _value_needed(reader):
    """What the reader's function raises where tensors have no values; an empty text where it needs none."""
    grads = [torch.empty(shape, device="meta") for shape in ((3, 4), (5,), ())]
    try:
        reader(grads, 1.0)
    except Exception as error:
        return f"raised {type(error).__name__}: {' '.join(str(error).split())[:60]}"
    return ""


def _place(tensor):
    """Where a tensor lies: two views with the same place are the same numbers."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _gradients(shapes, size):
    generator = torch.Generator().manual_seed(5)
    return [size * torch.randn(shape, generator=generator) for shape in shapes]
