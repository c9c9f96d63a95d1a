"""Times one step of every variant against ``torch.optim.Adam``'s same variant and against the memory's speed.

    python -m course.benchmark --quick                             about a minute
    python -m course.benchmark --output run.json --picture run.png  all of it
    python -m course.benchmark --read run.json                     the table of an earlier run

Each pair (adamlib, torch) on each parameter set runs in a process of its own: torch's for-loop and foreach
take their temporaries from ``malloc``, whose speed depends on what the process has allocated before. Inside
the pair :mod:`~course.stopwatch` interleaves the two. A third contender in the same rounds is
the limit: a step reads p, g, m, v and writes p, m, v, 28 bytes per float32 parameter, and cannot be faster
than memory moves them. Memory's speed is that of ``a += b`` on the CPU, over as many bytes as the step
touches, and of ``copy_`` on CUDA. The rows called *noise* race torch against itself: a smaller difference
than theirs is none.

On CUDA a step is timed end to end as a training loop calls it (``eager``), and, where it can be captured,
as a replayed graph, which leaves the host out: over one set of tensors again and again, which may stay in
the L2 cache (``graph``), and over enough sets in rotation, 1 GiB of them, that it cannot (``cold graph``). The
rotation is of at most 20,000 tensors; a set whose tensors are so small that these do not fill 256 MiB has no
such row. No GPU was at hand when this part was written: it has not run yet.

torch refuses ``capturable=True`` on the CPU. Here its list of devices is extended by "cpu" for the
comparison; the arithmetic behind that check is torch's own.
"""

import argparse
import contextlib
import datetime
import functools
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
import sys
import time
import unittest.mock
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch

import adamlib
from course.benchmark_report import hardware, picture, software, table
from course.parameter_sets import SETS, Shapes, count_parameters, resnet18, resnet18_loss, tiny_200x64
from course.stopwatch import Contender, quartiles, race

VARIANTS = {
    "single": dict(foreach=False),
    "foreach": dict(foreach=True),
    "fused": dict(fused=True),
    "capturable single": dict(foreach=False, capturable=True),
    "capturable foreach": dict(foreach=True, capturable=True),
    "differentiable": dict(foreach=False, differentiable=True),
    "compiled": dict(foreach=False, compiled=True),  # torch.compile of the for-loop's step, lr a tensor
    "triton": dict(fused="triton"),
}
NOISE = {"noise, single": "single", "noise, fused": "fused"}  # torch against torch
DEFAULT_VARIANTS = [name for name in [*VARIANTS, *NOISE] if name != "compiled"]  # that one compiles for minutes
# Sets that are stepped in a way of their own: one gradient in two is absent in every other step, each tensor is a param
# group of its own, a network is trained between the steps. In a CUDA graph none of it would mean anything.
UNUSUAL = {"coming_and_going": tiny_200x64, "groups_300x64": lambda: [(64,)] * 300, "resnet18_training": resnet18}
DEFAULT_SETS = ["tiny_200x64", "coming_and_going", "groups_300x64", "small_200x1k", "resnet18", "resnet18_training",
                "gpt2_small", "large_8x8m"]  # fmt: skip
TRAINS = ("single", "foreach", "fused", *NOISE)  # the variants that a training loop on this device would choose among
USUAL = dict(sets=DEFAULT_SETS, rounds=21, min_seconds=0.1)
QUICK = dict(sets=["tiny_200x64"], rounds=5, min_seconds=0.01)
BYTES = 28  # the least a step of Adam moves per float32 parameter
COLD = dict(bytes=2**30, tensors=20_000)  # of a rotation, at most; with less than a quarter of the bytes it may fit L2


class Settings(NamedTuple):
    device: str
    threads: int
    rounds: int
    min_seconds: float
    seed: int


def run(sets: list[str], variants: list[str], settings: Settings, progress) -> dict:
    """Race every variant on every parameter set and return the report, made of JSON's own types.

    Args:
        sets: names from ``parameter_sets.SETS`` and ``UNUSUAL``.
        variants: names from ``VARIANTS`` and ``NOISE``. "triton" is raced on CUDA only, "compiled" on a CPU only
            where there is a C++ compiler.
        progress: called after each pair with one line of text and the report so far.
    """
    modes = ["eager", "graph", "cold graph"]
    pairs = [pair for pair in itertools.product(sets, variants, modes) if _makes_sense(*pair[1:], settings)
             and (pair[0] in SETS or pair[1] != "compiled" and pair[2] == "eager")
             and (pair[0] != "resnet18_training" or pair[1] in TRAINS)
             and (pair[2] != "cold graph" or sets_in_rotation(SETS[pair[0]]()))]
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # torch's profiler tells of its start and stop otherwise
    report = {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(settings.device),
        "software": software(),
        "settings": settings._asdict(),
        "rows": [],
        "failed": [],
    }
    for number, pair in enumerate(pairs, 1):
        started, name = time.perf_counter(), " · ".join(pair)
        try:
            # a new pool is a new process, started from nothing: no heap or warm cache is inherited
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure_pair, *pair, settings).result()
        except Exception as error:  # one pair out of memory must not cost the others
            where = dict(zip(("set", "variant", "mode"), pair))
            report["failed"].append(where | {"error": repr(error)})
            outcome = f"failed: {error}"
        else:
            report["rows"].append(row)
            outcome = "torch / ours = {1:.2f} [{0:.2f}, {2:.2f}]".format(*row["ratio"])
        took = time.perf_counter() - started
        progress(f"[{number:2}/{len(pairs)}] {name}: {outcome}  ({took:.0f} s)", report)
    return report


def _makes_sense(variant: str, mode: str, settings: Settings) -> bool:
    if settings.device != "cuda":
        compiler = shutil.which(os.environ.get("CXX", "g++"))  # that torch.compile would call
        return mode == "eager" and variant != "triton" and (variant != "compiled" or compiler is not None)
    captures = VARIANTS[NOISE.get(variant, variant)].keys() & {"capturable", "fused"}
    return mode == "eager" or bool(captures)


def measure_pair(set_name: str, variant: str, mode: str, settings: Settings) -> dict:
    """Race torch, adamlib and the bandwidth limit in this process; return one row of the report.

    The row's times are in seconds per step and its three numbers are first quartile, median, third quartile.
    ``ratio`` is torch's time over adamlib's, formed round by round.
    """
    torch.set_num_threads(settings.threads)
    shapes, cuda = (SETS | UNUSUAL)[set_name](), settings.device == "cuda"
    theirs = options_of(variant, mode, "torch")
    ours = theirs if variant in NOISE else options_of(variant, mode, "ours")
    copies = sets_in_rotation(shapes) if mode == "cold graph" else 1
    with torch_takes_capturable_anywhere() if ours.get("capturable") and not cuda else contextlib.nullcontext():
        torchs = [optimizer(torch.optim.Adam, shapes, theirs, settings, set_name) for _ in range(copies)]
        library = torch.optim.Adam if variant in NOISE else adamlib.Adam
        own = [optimizer(library, shapes, ours, settings, set_name) for _ in range(copies)]
        contenders = {"torch": contender(torchs, mode), "ours": contender(own, mode)}
        temporary = {name: peak_temporary_bytes(c, cuda) for name, c in contenders.items()}
        bits = same_bits(torchs[0], own[0])
        contenders["limit"], limit_bytes = stream(count_parameters(shapes), settings.device)
        result = race(contenders, settings.rounds, settings.min_seconds, settings.seed)
    seconds = result.seconds
    bandwidth = limit_bytes / quartiles(seconds["limit"])[1]
    return {
        "set": set_name,
        "tensors": len(shapes),
        "parameters": count_parameters(shapes),
        "variant": variant,
        "mode": mode,
        "torch_seconds": quartiles(seconds["torch"]),
        "our_seconds": quartiles(seconds["ours"]),
        "ratio": quartiles([a / b for a, b in zip(seconds["torch"], seconds["ours"])]),
        "limit_seconds": BYTES * count_parameters(shapes) / bandwidth,
        "limit_bytes_per_second": bandwidth,
        "torch_temporary_bytes": temporary["torch"],
        "our_temporary_bytes": temporary["ours"],
        "same_bits": bits,
        "rounds": settings.rounds,
        "rounds_thrown_away": result.thrown_away,
        "disturbed": result.disturbed,
    }


def options_of(variant: str, mode: str, library: str) -> dict:
    """What the optimizer of a library ("torch" or "ours") is made with: beside our own kernel torch's fused is timed."""
    options = dict(VARIANTS[NOISE.get(variant, variant)])
    if "graph" in mode and "fused" in options:
        options["capturable"] = True
    return options | ({"fused": True} if library == "torch" and "fused" in options else {})


def torch_takes_capturable_anywhere():
    """A context in which torch does not refuse ``capturable=True`` on the CPU and the meta device."""
    torch_adam = importlib.import_module("torch.optim.adam")  # the name torch.optim.adam is taken away
    return unittest.mock.patch.object(
        torch_adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu", "cuda", "meta"]
    )


def sets_in_rotation(shapes: Shapes) -> int:
    """How many sets of these shapes (p, g, m, v) one after the other leave nothing in a cache; 0 if too many would."""
    size = 16 * count_parameters(shapes)
    copies = min(-(-COLD["bytes"] // size), COLD["tensors"] // len(shapes))
    return copies if 4 * copies * size >= COLD["bytes"] else 0


def optimizer(library, shapes: Shapes, options: dict, settings: Settings, set_name="") -> torch.optim.Optimizer:
    """An optimizer over tensors of these shapes, with gradients, the same numbers every time.

    Its ``rewind`` is what has to be done, untimed, between two steps: nothing, training, or forgetting the graph.
    """
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(settings.seed)).to(settings.device)

    def draw(shape):
        tensor = torch.empty(shape, device=settings.device)
        for piece in tensor.view(-1).split(len(noise)):  # no large temporary: it would tune malloc
            piece.copy_(noise[: len(piece)])
        return tensor

    options = dict(options)
    compiled, differentiable = options.pop("compiled", False), options.get("differentiable", False)
    params = [draw(shape).requires_grad_(not differentiable) for shape in shapes]
    for p in params:
        p.grad = draw(p.shape).requires_grad_(differentiable)
    if not compiled:
        result = library([dict(params=[p]) for p in params] if set_name == "groups_300x64" else params, **options)
        if set_name == "coming_and_going":
            result.step = coming_and_going(result)
        result.rewind = (functools.partial(train, params) if set_name == "resnet18_training"
                         else functools.partial(forget_graph, result) if differentiable else None)  # fmt: skip
        return result
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it reports a profiler's range otherwise
    result = library(params, lr=torch.tensor(1e-3, device=settings.device), **options)
    result.step, result.rewind = torch.compile(result.step), None
    return result


def train(tensors: list[torch.Tensor]) -> None:
    """What a training loop does between two steps of ResNet-18: the old gradients are freed, new ones are made."""
    for p in tensors:
        p.grad = None
    resnet18_loss(tensors).backward()


def forget_graph(optimizer: torch.optim.Optimizer) -> None:
    """Detach parameters and state, so that every differentiable step starts from leaves."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for tensor in (p, *optimizer.state[p].values()):
                if tensor.grad_fn is not None:
                    tensor.detach_()


def coming_and_going(optimizer: torch.optim.Optimizer):
    """The optimizer's step, before which one gradient in two goes or comes back."""
    params, step = optimizer.param_groups[0]["params"][::2], optimizer.step
    grads = [p.grad for p in params]

    def changed():
        for p, grad in zip(params, grads):
            p.grad = grad if p.grad is None else None
        step()

    return changed


def contender(optimizers: list[torch.optim.Optimizer], mode: str) -> Contender:
    """One step with each of the optimizers, called three times so that state, caches and graph are there."""

    def step():
        for optimizer in optimizers:
            optimizer.step()

    def rewind():
        for optimizer in optimizers:
            optimizer.rewind()

    result = Contender(step, len(optimizers), rewind if optimizers[0].rewind else None)
    if mode == "eager":
        for _ in range(3):
            step()
            if result.rewind is not None:
                rewind()
        return result
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph, repeats = torch.cuda.CUDAGraph(), -(-10 // len(optimizers))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            step()
    return Contender(graph.replay, len(optimizers) * repeats)


def stream(parameters: int, device: str) -> tuple[Contender, int]:
    """The bandwidth limit as a contender, and the bytes one call of it moves."""
    if device == "cuda":
        source, target = torch.randn(2**28, device=device), torch.randn(2**28, device=device)
        return Contender(lambda: target.copy_(source)), 8 * source.numel()
    n = min(2 * parameters, 2**26)  # p, g, m, v fill as much as these two; beyond 512 MiB no cache matters
    a, b = torch.randn(n), torch.randn(n) * 1e-6
    return Contender(lambda: a.add_(b)), 12 * n


def peak_temporary_bytes(contender: Contender, cuda: bool) -> int:
    """The most memory that one call holds beyond what it found, as the allocator reports it."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            contender.call()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
    if contender.rewind is not None:
        contender.rewind()
    return peak


def same_bits(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    """Whether parameters and moments of the two agree bit for bit."""
    params = zip(one.param_groups[0]["params"], other.param_groups[0]["params"])
    return all(
        torch.equal(p, q)
        and torch.equal(one.state[p]["exp_avg"], other.state[q]["exp_avg"])
        and torch.equal(one.state[p]["exp_avg_sq"], other.state[q]["exp_avg_sq"])
        for p, q in params
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, or 1 if a pair failed."""
    parser = argparse.ArgumentParser(
        prog="python -m course.benchmark", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )  # fmt: skip
    add = parser.add_argument
    add("--quick", action="store_true",
        help="a small set and few short rounds, where you name none yourself: does it run, not how fast")  # fmt: skip
    add("--sets", nargs="+", choices=SETS | UNUSUAL, metavar="SET",
        help=f"of {', '.join(SETS | UNUSUAL)} (default: {' '.join(DEFAULT_SETS)})")  # fmt: skip
    add("--variants", nargs="+", choices=[*VARIANTS, *NOISE], metavar="VARIANT",
        help="of " + ", ".join(f'"{name}"' for name in [*VARIANTS, *NOISE]) + ' (default: all but "compiled")')  # fmt: skip
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (default: %(default)s)")
    add("--rounds", type=int,
        help=f"quiet rounds to keep of each pair (default: {USUAL['rounds']}, quick {QUICK['rounds']})")
    add("--min-seconds", type=float, help="time each contender this long a round "
        f"(default: {USUAL['min_seconds']}, quick {QUICK['min_seconds']})")  # fmt: skip
    add("--seed", type=int, default=0, help="of the tensors and of the order in a round (default: 0)")
    add("--output", type=pathlib.Path, help="write the report as JSON, for example to notebooks/recorded/")
    add("--picture", type=pathlib.Path, help="draw the report as PNG")
    add("--read", type=pathlib.Path, help="measure nothing, show this report")
    options = parser.parse_args(arguments)
    for file in (options.output, options.picture):
        if file is not None and not file.parent.is_dir():  # now, and not after half an hour of measuring
            parser.error(f"there is no folder {file.parent}: create it or name another file")
        if file is not None and file.is_dir():
            parser.error(f"{file} is a folder: name a file in it")
    if options.picture is not None and options.picture.suffix != ".png":
        parser.error(f"{options.picture} does not end in .png, which is what --picture draws")
    if options.read is not None:
        if options.output is not None:
            parser.error("--read measures nothing that --output could write: leave one of them out")
        return show(_report_in(options.read, parser), options.picture)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu")
    for name, value in (QUICK if options.quick else USUAL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rounds < 1 or not 1 <= options.threads <= (os.cpu_count() or 1) or options.min_seconds < 0:
        parser.error(f"--rounds needs at least 1, --threads 1 to {os.cpu_count()} here, --min-seconds at least 0")
    settings = Settings(*(getattr(options, field) for field in Settings._fields))
    for variant in options.variants or ():
        if not _makes_sense(variant, "eager", settings):
            parser.error(f'"{variant}" cannot be timed here: "triton" needs --device cuda, "compiled" a C++ compiler')

    def save(line: str, report: dict) -> None:  # after each pair: a run that is cut short keeps what it has
        print(line, file=sys.stderr, flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return show(run(options.sets, options.variants or DEFAULT_VARIANTS, settings, save), options.picture)


def show(report: dict, png: pathlib.Path | None) -> int:
    """Print the report, draw it if a file is named; returns 1 if a pair of it failed, else 0."""
    print(table(report))
    if png is not None:
        picture(report).savefig(png)
    return 1 if report["failed"] else 0


def _report_in(file: pathlib.Path, parser: argparse.ArgumentParser) -> dict:
    if not file.is_file():
        parser.error(f"there is no report {file}: run without --read and with --output to make one")
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        report = None
    if not isinstance(report, dict) or report.get("schema") != 1:
        parser.error(f"{file} is no report of this benchmark: run without --read and with --output to make one")
    return report


if __name__ == "__main__":
    sys.exit(main())
