"""A launch that fails or takes too long says why and leaves no process, and FSDP2 is applied layer by layer.

Appendix E shows, with outputs that are compared: every way of dividing has the bits of one process, and the bytes of
state on each rank.
"""

import time

import pytest

from course import two_processes


def test_FSDP2_gathers_one_layer_at_a_time_and_not_the_whole_network(monkeypatch):
    wrapped = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: wrapped.append(module))
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.init_device_mesh", lambda *_: None)
    net, _ = two_processes.shard(two_processes.network(), "fsdp2")
    assert wrapped == [net[0], net[2], net], "every layer with weights, then the whole"


@pytest.mark.parametrize("seconds", [0.2, 4])  # while the launcher starts, while the workers start
def test_a_launch_that_takes_too_long_is_ended(seconds):
    start = time.monotonic()
    with pytest.raises(two_processes.RankFailed, match="had not finished") as failure:
        two_processes.launch("ddp", steps=100_000, seconds=seconds)
    assert time.monotonic() - start < seconds + 25
    assert not any(map(two_processes.running, failure.value.processes))


def test_of_a_launch_that_fails_the_first_error_is_told():
    told = r"^rank 1 failed:[^$]*\nFloatingPointError: step 3: the loss is nan"
    with pytest.raises(two_processes.RankFailed, match=told) as failure:
        two_processes.launch("fsdp2", poison="1:3")
    assert len(failure.value.processes) == 3 and not any(map(two_processes.running, failure.value.processes))
