"""How a step is grouped and cut: every element is in exactly one part, whatever the sizes."""

import pytest
import torch

from adamlib import functional
from adamlib.functional import by_kind, in_parts

SHAPES = [[(3,)], [(2, 3), (25,), (), (0,), (4, 10), (1,)], [(5,)] * 7, [(10,), (11,), (1,), (9, 1)], [(0,), (0,)]]


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    monkeypatch.setattr(functional, "CPU_PART", 10)
    monkeypatch.setattr(functional, "DEVICE_PART", 220)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_parts_cover_every_element_once_and_know_their_count(shapes):
    tensors = [torch.zeros(shape) for shape in shapes]
    for pieces, same, names in in_parts(tensors, tensors, list(range(len(tensors)))):
        assert sum(piece.numel() for piece in pieces) <= 10 and len(names) == len(pieces) == len(same)
        for name, piece in zip(names, pieces):
            begin = tensors[name].data_ptr()
            assert not piece.numel() or begin <= piece.data_ptr() < begin + 4 * tensors[name].numel()
            piece.add_(1)
    assert all(bool((tensor == 1).all()) for tensor in tensors)


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_strided_or_followed_by_autograd_is_not_cut(grad):
    tensor = torch.zeros(60) if grad else torch.zeros(6, 20)[:, ::2]
    with torch.set_grad_enabled(grad):
        assert [piece.shape for (piece,), _ in in_parts([tensor], [0])] == [tensor.shape]


def test_other_devices_take_whole_tensors_until_their_room_is_full():
    meta = [torch.empty(n, device="meta") for n in (100, 100, 100, 250, 40, 0)]
    assert [names for _, names in in_parts(meta, [*range(6)])] == [[0, 1], [2], [3], [4, 5]]


def test_kinds_are_kept_apart():
    on_cpu, double, on_meta = torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(5, device="meta")
    params = [on_cpu, double, on_cpu, on_meta]
    assert [names for _, names, _, _ in by_kind((params, [0, 1, 2, 3], params, []))] == [[0, 2], [1], [3]]
    short = torch.zeros(2, dtype=torch.bfloat16)  # torch's CUDA kernel takes such moments, in a call of its own
    params, moments = [on_cpu, on_meta, on_cpu], [on_cpu, on_meta, short]
    assert [names for _, names, _ in by_kind((params, [0, 1, 2], moments))] == [[0], [1], [2]]
    assert by_kind(([], [], [])) == []
