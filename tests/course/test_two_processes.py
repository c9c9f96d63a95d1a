"""Training on two processes: the bits of one process, an honest failure, and no process left behind."""

import time

import pytest
import torch
from torch.nn.functional import cross_entropy

import adamlib
from course import two_processes
from course.data import digits


def one_process(steps):
    """The same training, the two halves of a batch one after the other."""
    x, y, _, _ = digits()
    net = two_processes.network()
    optimizer = adamlib.Adam(net.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        for half in torch.randint(len(x), (two_processes.BATCH,), generator=order).split(two_processes.BATCH // 2):
            (cross_entropy(net(x[half]), y[half]) / 2).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()], two_processes.state_bytes(optimizer)


def test_every_way_of_dividing_gives_the_bits_of_one_process_and_the_state_is_divided():
    weights, whole = one_process(6)
    ranks = two_processes.launch("fsdp2", "zero", "ddp", steps=6)
    for how in ("fsdp2", "zero", "ddp"):
        for rank in ranks:
            assert all(map(torch.equal, rank[how]["weights"], weights)), how
            assert len(rank[how]["losses"]) == 6
    steps = 4 * len(weights)  # FSDP2 keeps every count on every rank
    assert sum(rank["fsdp2"]["state_bytes"] for rank in ranks) == whole + steps
    assert sum(rank["zero"]["state_bytes"] for rank in ranks) == whole
    assert [rank["ddp"]["state_bytes"] for rank in ranks] == [whole, whole]


def test_FSDP2_gathers_one_layer_at_a_time_and_not_the_whole_network(monkeypatch):
    wrapped = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: wrapped.append(module))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.init_device_mesh", lambda *_: None)
    net, _ = two_processes.shard(two_processes.network(), "fsdp2")
    assert wrapped == [net[0], net[2], net], "every layer with weights, then the whole"


def test_a_failed_rank_ends_the_run_with_its_own_traceback_and_leaves_no_process():
    with pytest.raises(two_processes.RankFailed) as failure:
        two_processes.launch("fsdp2", poison="1:2")
    text = str(failure.value)
    assert text.startswith("rank 1 failed:") and text.endswith("FloatingPointError: step 2: the loss is nan")
    assert "/" not in text, "no folder of this machine"
    assert len(failure.value.processes) == 3
    assert not any(map(two_processes.running, failure.value.processes))


@pytest.mark.parametrize("seconds", [0.2, 4])  # while the launcher starts, while the workers start
def test_a_launch_that_takes_too_long_is_ended(seconds):
    start = time.monotonic()
    with pytest.raises(two_processes.RankFailed, match="had not finished") as failure:
        two_processes.launch("ddp", steps=100_000, seconds=seconds)
    assert time.monotonic() - start < seconds + 25
    assert not any(map(two_processes.running, failure.value.processes))
