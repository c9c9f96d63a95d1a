"""The checks of chapter 04 accept the right answers and catch the plausible wrong ones."""

import pytest
import torch
from exercise_reports import caught

from course.exercises import ch04_foreach as check


# ---------------------------------------------------------------------------------------- bytes_per_weight


def passes(decay, decoupled, amsgrad, maximize, *, plain=19, l2=3, shrink=2, top=3, up=2, flag_alone=False):
    total = plain + top * amsgrad + up * maximize
    if decoupled:
        total += shrink if decay or flag_alone else 0
    elif decay:
        total += l2
    return total


WRONG_BYTES = {
    "only what is needed": lambda size, *o: size * passes(*o, plain=7),
    "always float32": lambda size, *o: 4 * passes(*o),
    "counts passes, not bytes": lambda size, *o: passes(*o),
    "L2 in place": lambda size, *o: size * passes(*o, l2=2),
    "L2 for both decays": lambda size, *o: size * passes(*o, shrink=3),
    "a decay of 0 costs": lambda size, *o: size * passes(*o, flag_alone=True),
    "maximum_ reads one list": lambda size, *o: size * passes(*o, top=2),
    "no option costs": lambda size, *o: size * 19,
    "the sign is free": lambda size, *o: size * passes(*o, up=0),
    "maximize spoils L2's add": lambda size, d, c, a, u: size * passes(d, c, a, u, l2=2 if u else 3),
    "text": lambda size, *o: "76",
    "float": lambda size, *o: size * passes(*o) + 0.5,
}


def test_bytes_right():
    assert check.bytes_per_weight(lambda size, *options: size * passes(*options))


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_bytes_wrong(name):
    caught(check.bytes_per_weight(WRONG_BYTES[name]))


# ------------------------------------------------------------------------------------------- clip_in_lists


def clip(grads, max_norm, *, eps=1e-6, clamp=True, in_place=True, total=None, returned=None):
    norms = torch._foreach_norm(grads)
    norm = torch.stack(norms).norm() if total is None else total(norms)
    scale = max_norm / (norm + eps)
    scale = scale.clamp(max=1.0) if clamp else scale
    if in_place:
        torch._foreach_mul_(grads, scale)
    else:
        grads = torch._foreach_mul(grads, scale)
    return norm if returned is None else returned(norm, scale)


def clip_each(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    for grad in grads:
        grad.mul_((max_norm / (grad.norm() + 1e-6)).clamp(max=1.0))
    return norm


def clip_with_if(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    if norm > max_norm:
        torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
    return norm


def clip_with_item(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, min(1.0, max_norm / (norm.item() + 1e-6)))
    return norm


def clip_with_tolist(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, min(1.0, max_norm / (norm.tolist() + 1e-6)))
    return norm


def clip_with_numpy(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    if norm.numpy() > max_norm:
        torch._foreach_mul_(grads, max_norm / (norm + 1e-6))
    return norm


def clip_in_a_loop(grads, max_norm):
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale)
    return norm


def clip_values(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_clamp_min_(grads, -max_norm)
    torch._foreach_clamp_max_(grads, max_norm)
    return norm


def clip_new_list(grads, max_norm):
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    grads[:] = torch._foreach_mul(grads, scale)  # the list changes, the tensors do not
    return norm


WRONG_CLIP = {
    "each tensor by itself": clip_each,
    "asks the norm with if": clip_with_if,
    "asks the norm with item": clip_with_item,
    "asks the norm with tolist": clip_with_tolist,
    "asks the norm with numpy": clip_with_numpy,
    "a loop over the tensors": clip_in_a_loop,
    "clips values": clip_values,
    "new tensors in the old list": clip_new_list,
    "never clamps": lambda g, n: clip(g, n, clamp=False),
    "out of place": lambda g, n: clip(g, n, in_place=False),
    "sum of the norms": lambda g, n: clip(g, n, total=lambda norms: torch.stack(norms).sum()),
    "largest norm": lambda g, n: clip(g, n, total=lambda norms: torch.stack(norms).max()),
    "no root": lambda g, n: clip(g, n, total=lambda norms: torch.stack(norms).square().sum()),
    "unbounded where there is no gradient": lambda g, n: clip(g, n, eps=0.0, clamp=False),
    "returns the clipped norm": lambda g, n: clip(g, n, returned=lambda norm, scale: norm * scale),
    "returns the scale": lambda g, n: clip(g, n, returned=lambda norm, scale: scale),
    "returns nothing": lambda g, n: (clip(g, n), None)[1],
    "returns a float": lambda g, n: clip(g, n).item(),
    "only the norm": lambda g, n: torch.stack(torch._foreach_norm(g)).norm(),
}


def test_clip_right():
    assert check.clip_in_lists(clip)
    assert check.clip_in_lists(lambda g, n: clip(g, n, eps=0.0))  # n/0 is infinite, and clamped to 1
    assert check.clip_in_lists(
        lambda g, n: clip(g, n, total=lambda norms: torch.stack(norms).square().sum().sqrt())
    )


@pytest.mark.parametrize("right", [
    lambda norm, n: torch.minimum(torch.tensor(1.0), n / (norm + 1e-6)),
    lambda norm, n: torch.where(norm > n, n / norm, 1.0),
])  # fmt: skip
def test_clip_right_without_clamp(right):
    def reader(grads, max_norm):
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, right(norm, max_norm))
        return norm

    assert check.clip_in_lists(reader)


@pytest.mark.parametrize("reader", [clip_with_tolist, clip_with_numpy])
def test_clip_that_reads_a_value_is_told_so(reader):
    report = repr(check.clip_in_lists(reader))
    assert "meta" in report and ".tolist()" in report and "not yet" in report


@pytest.mark.parametrize("name", WRONG_CLIP)
def test_clip_wrong(name):
    caught(check.clip_in_lists(WRONG_CLIP[name]))


# ----------------------------------------------------------------------------------------------------- cut


def pack(pieces, room, *, late=False, drop_last=False, empty_first=False):
    buckets, elements = [[]], 0
    for piece in pieces:
        full = elements >= room if late else elements + piece.numel() > room
        if full and (buckets[-1] or empty_first):
            buckets.append([])
            elements = 0
        buckets[-1].append(piece)
        elements += piece.numel()
    buckets = [bucket for bucket in buckets if bucket] if not empty_first else buckets
    return buckets[:-1] if drop_last else buckets


def pieces_of(tensors, room, *, flat=lambda t: t.view(-1), strided=False, split=None):
    for tensor in tensors:
        if tensor.numel() <= room or not (tensor.is_contiguous() or strided):
            yield tensor
        else:
            yield from (split or torch.Tensor.split)(flat(tensor), room)


def good(tensors, room):
    return pack(pieces_of(tensors, room), room)


def exactly_full(tensors, room):
    """Fills every bucket to the brim: another right answer."""
    buckets, left = [], 0
    for tensor in tensors:
        if not tensor.is_contiguous():
            buckets.append([tensor])
            left = 0
            continue
        flat = tensor.view(-1)
        while flat.numel():
            if left == 0:
                buckets.append([])
                left = room
            buckets[-1].append(flat[:left])
            taken = min(left, flat.numel())
            flat, left = flat[taken:], left - taken
    return buckets


def every_other(tensors, room):
    pieces = []
    for tensor in tensors:
        flat = tensor.view(-1) if tensor.is_contiguous() else None
        pieces += [tensor] if flat is None or len(flat) <= room else [flat[::2], flat[1::2]]
    return pack(pieces, room) if tensors else []


WRONG_CUT = {
    "one bucket": lambda ts, room: [list(ts)] if ts else [],
    "whole tensors only": lambda ts, room: pack(ts, room),
    "one piece in each bucket": lambda ts, room: [[piece] for piece in pieces_of(ts, room)],
    "copies": lambda ts, room: pack(pieces_of(ts, room, flat=lambda t: t.clone().view(-1)), room),
    "copies all": lambda ts, room: [[piece.clone() for piece in bucket] for bucket in good(ts, room)],
    "reshapes what is not contiguous": lambda ts, room: pack(
        pieces_of(ts, room, strided=True, flat=lambda t: t.reshape(-1)), room
    ),
    "view of what is not contiguous": lambda ts, room: pack(pieces_of(ts, room, strided=True), room),
    "one element too many": lambda ts, room: pack(pieces_of(ts, room), room, late=True),
    "loses the last bucket": lambda ts, room: pack(pieces_of(ts, room), room, drop_last=True),
    "begins with an empty bucket": lambda ts, room: [[]] + good(ts, room),
    "loses the remainder": lambda ts, room: pack(
        pieces_of(ts, room, split=lambda flat, n: [flat[i * n:(i + 1) * n] for i in range(len(flat) // n)]), room
    ),
    "overlapping pieces": lambda ts, room: pack(
        pieces_of(ts, room, split=lambda flat, n: [flat[max(0, i - 1):i + n - 1] for i in range(0, len(flat), n)]),
        room,
    ),
    "pieces of one tensor backwards": lambda ts, room: pack(
        pieces_of(ts, room, split=lambda flat, n: flat.split(n)[::-1]), room
    ),
    "every other element": every_other,
    "views, and a tensor of its own": lambda ts, room: [[torch.zeros(0)] + bucket for bucket in good(ts, room)],
    "splits the first dimension": lambda ts, room: pack(pieces_of(ts, room, flat=lambda t: t), room),
    "sorted by size": lambda ts, room: pack(sorted(pieces_of(ts, room), key=torch.Tensor.numel), room),
    "no buckets": lambda ts, room: [],
    "tensors, not lists of them": lambda ts, room: list(pieces_of(ts, room)),
    "chunk(room) for split(room)": lambda ts, room: pack(
        pieces_of(ts, room, split=lambda flat, n: flat.chunk(n)), room
    ),
}


@pytest.mark.parametrize("right", [good, exactly_full])
def test_cut_right(right):
    assert check.cut(right), check.cut(right)


@pytest.mark.parametrize("name", WRONG_CUT)
def test_cut_wrong(name):
    caught(check.cut(WRONG_CUT[name]))
