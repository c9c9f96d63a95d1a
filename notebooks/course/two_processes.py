"""One training on one process or on several: what each process runs, and `launch`, which starts and ends them.

    torchrun --nproc-per-node=2 -m course.two_processes FOLDER fsdp2 zero

Every process trains on its share of each batch of digits, on the CPU, and writes what it saw to FOLDER.
"""
from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import adamlib
from course.data import digits

BATCH = 128
SECONDS = 120  # after which a launch is ended, whatever it does


class RankFailed(RuntimeError):
    """What the rank that failed first said. `processes` are the ids of all processes that had been started."""

    def __init__(self, message: str, processes: list[int]):
        super().__init__(message)
        self.processes = processes


def network() -> nn.Sequential:
    """A 64-33-10 perceptron with the same weights in every process; 33 rows do not halve evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 10))


def shard(net: nn.Sequential, how: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer, divided among the processes: "ddp" (not at all), "zero" or "fsdp2"."""
    if how == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in net:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)  # gathered when it is computed, and no longer
        fully_shard(net, mesh=mesh)  # on its own, it would gather all layers at once
        return net, adamlib.Adam(net.parameters(), lr=0.01)
    net = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)  # one copy of the gradients, not two
    if how == "zero":
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return net, ZeroRedundancyOptimizer(net.parameters(), optimizer_class=adamlib.Adam, lr=0.01)
    return net, adamlib.Adam(net.parameters(), lr=0.01)


def train(net, optimizer, steps: int, share: slice = slice(None), poison_at: int | None = None) -> list[float]:
    """Train on one share of every batch of 128 digits; return the loss of each step on that share.

    poison_at: the step at which the images turn to NaN. Raises FloatingPointError when the loss is not finite.
    """
    x, y, _, _ = digits()
    order, losses = torch.Generator().manual_seed(1), []
    for step in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=order)[share]
        images = x[batch] * (float("nan") if step == poison_at else 1.0)
        loss = cross_entropy(net(images), y[batch])
        if not loss.isfinite():
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: the shard of a DTensor, all of an ordinary tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state in this process."""
    optimizer = getattr(optimizer, "optim", optimizer)  # ZeRO keeps one for this process's tensors inside
    tensors = [local(t) for entry in optimizer.state.values() for t in entry.values()]
    return sum(t.numel() * t.element_size() for t in tensors)


def work(folder: pathlib.Path, hows: list[str], steps: int, poison: str | None) -> None:
    """What one process does: join the others, train in each way, write `<rank>.pt` to the folder."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (folder / f"{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    if os.name != "nt":  # the loopback interface, which needs no network; under Windows it has no such name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=SECONDS))
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    poison_rank, poison_at = map(int, poison.split(":")) if poison else (None, None)
    reports = {}
    for how in hows:
        net, optimizer = shard(network(), how)
        losses = train(net, optimizer, steps, share, poison_at if rank == poison_rank else None)
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
        reports[how] = dict(
            losses=losses, weights=[w.detach() for w in weights], state_bytes=state_bytes(optimizer)
        )
    torch.save(reports, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def launch(
    *hows: str, processes: int = 2, steps: int = 40, poison: str | None = None, seconds: float = SECONDS
) -> list[dict[str, dict]]:
    """Train on several processes, started by torch's own launcher; return what each rank reports.

    A rank reports, for each of `hows` ("ddp", "zero", "fsdp2"): losses (list of float), weights (list of whole
    tensors) and state_bytes (int).  poison: "rank:step" at which that rank's images turn to NaN.
    Raises RankFailed with the traceback of the rank that failed first, or when `seconds` are over. Whether it
    raises or returns, every process has ended by then.
    """
    homes = [str(pathlib.Path(file).parents[1]) for file in (adamlib.__file__, __file__)]
    path = os.pathsep.join(filter(None, [*homes, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
            f"--nproc-per-node={processes}", "-m", "course.two_processes", name, *hows, f"--steps={steps}",
        ] + ([f"--poison={poison}"] if poison else [])
        launcher = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
            start_new_session=True,
        )
        try:
            said = launcher.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            said = None
        finally:
            started = _end(launcher, folder)
        if said is None:
            why = "a busy machine, or one without a loopback network?"
            raise RankFailed(f"{processes} processes had not finished after {seconds} s and were ended: {why}", started)
        if launcher.returncode:
            raise RankFailed(_first_error(folder) or said[-2000:], started)
        return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def running(pid: int) -> bool:
    """Whether a process is still there (one that has ended and waits to be counted does not count)."""
    if os.name == "nt":  # there a signal 0 is a Ctrl-C to the console; the launcher has ended its workers
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not (stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")
    except OSError:
        return False


def _end(launcher: subprocess.Popen, folder: pathlib.Path) -> list[int]:
    """See to it that launcher and workers are gone; return their ids."""
    if launcher.poll() is None:
        launcher.terminate()  # it ends its workers
        try:
            launcher.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.communicate()
    workers = [int(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.pid"))]
    for pid in workers:
        deadline = time.monotonic() + 5
        while running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        if running(pid):
            os.kill(pid, signal.SIGTERM)
    return [launcher.pid, *workers]


def _first_error(folder: pathlib.Path) -> str | None:
    """The traceback of the rank that failed first: the others fail because it is gone."""
    errors = sorted(folder.glob("*.error"), key=lambda file: int(file.read_text(encoding="utf-8").partition("\n")[0]))
    return errors[0].read_text(encoding="utf-8").partition("\n")[2] if errors else None


def _shortened(error: BaseException, rank: str) -> str:
    """A traceback with the names of the files and without the folders they lie in."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"  {pathlib.Path(f.filename).name}, in {f.name}: {f.line}" for f in frames]
    return "\n".join([f"rank {rank} failed:", *lines, f"{type(error).__name__}: {error}"])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 1 if this rank failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("hows", nargs="+", choices=["ddp", "zero", "fsdp2"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--poison", metavar="RANK:STEP")
    options = parser.parse_args(arguments)
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # even a process that nobody watches comes to an end
    torch.set_num_threads(1)
    try:
        work(options.folder, options.hows, options.steps, options.poison)
    except Exception as error:
        text = f"{time.time_ns()}\n{_shortened(error, os.environ['RANK'])}"
        (options.folder / f"{os.environ['RANK']}.error").write_text(text, encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
