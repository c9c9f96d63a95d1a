"""How long a step takes on the device, predicted from counts first, then measured.

The prediction knows three numbers of the device, measured before: bytes a second of a copy, seconds for a small
kernel that the host launches, and seconds for one in a replayed graph. It knows two counts of the step, by the op
meter on tensors without memory: bytes and ATen calls. A step is said to take the longer of bytes / bandwidth and
calls · seconds per call. That is all, and where it is wrong something else decides: that is what it is there to show.

Each variant steps eagerly with its gradients where they were, eagerly with gradients somewhere else in each step, as
backward passes leave them, and as a replayed graph. How long it takes to hand over the other gradients, which the
host does between the steps, is measured in the same rounds.
"""

import contextlib
import functools
import importlib.util
import itertools
import time

import torch

import adamlib
from course.benchmark import (
    BYTES, Settings, contender, optimizer, options_of, stream, torch_takes_capturable_anywhere,
)  # fmt: skip
from course.gpu.run import attempt, each
from course.op_meter import OpMeter
from course.parameter_sets import SETS, count_parameters
from course.stopwatch import Contender, quartiles, race

VARIANTS = ("foreach", "fused", "capturable foreach", "triton")  # of the benchmark's
MODES = ("fixed gradients", "fresh gradients", "graph")
ON_CUDA = dict(sets=("tiny_200x64", "resnet18", "gpt2_small"), rounds=7, min_seconds=0.02)
ON_CPU = dict(sets=("digits_mlp",), rounds=2, min_seconds=0.0)  # does it run, not how fast
TRITON_CALLS = 2  # one for the counts, one for the rest; the meter does not see them


def races(device: str) -> dict[str, tuple[str, str, str]]:
    """All races by name: set, variant, mode. Graphs and the Triton kernel only where they can run."""
    cuda = device == "cuda"
    triton = cuda and importlib.util.find_spec("triton")
    trios = itertools.product((ON_CUDA if cuda else ON_CPU)["sets"], VARIANTS, MODES)
    return {
        " · ".join(trio): trio for trio in trios
        if (cuda or trio[2] != "graph") and (triton or trio[1] != "triton") and trio[1:] != ("foreach", "graph")
    }


def counts(set_name: str, variant: str, mode: str, library: str) -> dict:
    """Bytes and ATen calls of one step, on tensors without memory; fused, which needs some, on one element each."""
    shapes, options = SETS[set_name](), options_of(variant, mode, library)
    if options.get("fused") == "triton":
        return {"bytes": BYTES * count_parameters(shapes), "calls": TRITON_CALLS}
    fused = bool(options.get("fused"))
    params = [torch.empty(1 if fused else shape, device="cpu" if fused else "meta", requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = torch.zeros_like(p, requires_grad=False)
    with torch_takes_capturable_anywhere():
        one = {"torch": torch.optim.Adam, "ours": adamlib.Adam}[library](params, **options)
        one.step()
        with OpMeter() as meter:
            one.step()
    moved = BYTES * count_parameters(shapes) if fused else meter.bytes_read + meter.bytes_written
    return {"bytes": moved, "calls": meter.calls}


def constants(device: str) -> dict:
    """The three numbers of the device, each the median of 7."""
    copy, moved = stream(2**20, device)
    small = torch.zeros(64, device=device)
    pieces = {"copy": (copy.call, 1), "call": (lambda: [small.add_(1) for _ in range(200)], 200)}
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        small.add_(1)
        with torch.cuda.graph(graph):
            for _ in range(200):
                small.add_(1)
        pieces["in_graph"] = graph.replay, 200
    seconds = {}
    for name, (call, calls) in pieces.items():
        call()
        seconds[name] = quartiles([_seconds(call, device) / calls for _ in range(7)])[1]
    return {
        "bytes_per_second": moved / seconds["copy"], "seconds_per_call": seconds["call"],
        "seconds_per_call_in_a_graph": seconds.get("in_graph"),
    }  # fmt: skip


def _seconds(call, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def prediction(counted: dict, known: dict, mode: str) -> dict:
    """Seconds of the step, and what they are said to go into."""
    per_call = known["seconds_per_call_in_a_graph" if mode == "graph" else "seconds_per_call"]
    times = {"bytes": counted["bytes"] / known["bytes_per_second"], "calls": counted["calls"] * per_call}
    decides = max(times, key=times.get)
    return {"seconds": times[decides], "decides": decides, **counted}


def predictions(device: str) -> dict:
    """The device's numbers, and what they and the counts say about every race, before any of them is run."""
    known = constants(device)
    return {"device": known} | {
        name: {library: prediction(counts(*trio, library), known, trio[2]) for library in ("torch", "ours")}
        for name, trio in races(device).items()
    }


def measure(set_name: str, variant: str, mode: str, device: str) -> dict:
    """One race: quartiles of the seconds per step of torch's and ours, and of torch's time / ours, round by round."""
    usual = ON_CUDA if device == "cuda" else ON_CPU
    settings = Settings(device, torch.get_num_threads(), usual["rounds"], usual["min_seconds"], seed=0)
    with torch_takes_capturable_anywhere() if device == "cpu" else contextlib.nullcontext():
        pair = {
            name: optimizer(cls, SETS[set_name](), options_of(variant, mode, name), settings)
            for name, cls in (("torch", torch.optim.Adam), ("ours", adamlib.Adam))
        }
        contenders = {name: contender([one], "graph" if mode == "graph" else "eager") for name, one in pair.items()}
        if mode == "fresh gradients":
            hand_over = {name: _other_gradients(one) for name, one in pair.items()}
            contenders = {
                name: Contender(functools.partial(_both, hand_over[name], contenders[name].call)) for name in pair
            } | {"handing over": Contender(hand_over["ours"])}
        for one in contenders.values():
            one.call()
        result = race(contenders, rounds=usual["rounds"], min_seconds=usual["min_seconds"], seed=0)
    seconds = result.seconds
    return {
        "set": set_name, "variant": variant, "mode": mode,
        "torch_seconds": quartiles(seconds["torch"]), "our_seconds": quartiles(seconds["ours"]),
        "ratio": quartiles([a / b for a, b in zip(seconds["torch"], seconds["ours"])]),
        "handing_over_seconds": quartiles(seconds["handing over"]) if mode == "fresh gradients" else None,
        "disturbed": result.disturbed,
    }  # fmt: skip


def _both(first, then) -> None:
    first(), then()


def _other_gradients(one: torch.optim.Optimizer):
    """A function that gives every parameter the other one of two gradients, which lies elsewhere."""
    params = one.param_groups[0]["params"]
    turns = itertools.cycle([[p.grad.clone() for p in params], [p.grad for p in params]])

    def hand_over():
        for p, grad in zip(params, next(turns)):
            p.grad = grad

    return hand_over


def run(done: set[str], device: str, tell) -> bool:
    if "predictions" not in done:
        tell("predictions")
        written = attempt(lambda: predictions(device))
        tell("predictions", written)
        if "error" in written:
            return True  # measuring without a prediction would be half the experiment
    return each(
        {name: functools.partial(measure, *trio, device) for name, trio in races(device).items()}, done, tell
    )
