"""How two programs are compared in time, on a machine that has other things to do as well.

* **Interleaved.** Every round runs each contender once, in random order. A slow minute then slows both sides,
  and the ratio of the two times of one round survives it.
* **Only quiet rounds.** Other processes take cores and memory bandwidth. Linux counts how long all cores were
  busy, so what was not this process was somebody else: a round with more than ``QUIET`` foreign cores is
  thrown away. Without ``/proc/stat`` every round counts.
* **Medians with quartiles.** A mean follows the one round in which the machine hiccuped; a median does not.

The clock is that of ``torch.utils.benchmark``, which waits for the GPU, where there is one, before it reads the time.
"""

import gc
import logging
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

# Where a CUDA toolkit is and no GPU, the import below says so on stderr, in each chapter that measures.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
# Only the clock: Timer.timeit calls its statement twice untimed before each measurement, which triples the time of a
# large set, cannot rewind between calls, and its Measurement knows nothing of rounds, pairs and other processes.
from torch.utils.benchmark import timer  # noqa: E402

QUIET = 0.12  # cores that other processes may use during a round


class Contender(NamedTuple):
    """Something to time. ``rewind``, where given, runs untimed after each call of ``call``."""

    call: Callable[[], object]
    steps: int = 1  # optimizer steps made by one call; a replayed graph makes several
    rewind: Callable[[], object] | None = None


class Race(NamedTuple):
    seconds: dict[str, list[float]]  # per contender: seconds per step in each round kept
    thrown_away: int  # rounds spoiled by other processes
    disturbed: bool  # True if there were not enough quiet rounds, so that louder ones were kept too


def race(contenders: dict[str, Contender], rounds: int, min_seconds: float, seed: int = 0) -> Race:
    """Time the contenders against each other. Call each a few times before, so that no first step is timed.

    Args:
        rounds: how many rounds to keep. At most three times as many are run to find quiet ones; after that
            the quietest are kept and the result says ``disturbed``.
        min_seconds: a contender is called again and again within a round for at least about this long.

    Raises:
        ValueError: if ``rounds`` is less than 1.
    """
    if rounds < 1:
        raise ValueError(f"a race needs at least one round, but rounds={rounds}")
    calls = {}
    for name, contender in contenders.items():
        seconds_per_call = _time(contender, 1) * contender.steps
        calls[name] = max(1, math.ceil(min_seconds / seconds_per_call))
    order, shuffle = list(contenders), random.Random(seed).shuffle
    results: list[tuple[float, dict[str, float]]] = []  # foreign cores, seconds per step
    collecting = gc.isenabled()
    gc.disable()
    try:
        while sum(foreign <= QUIET for foreign, _ in results) < rounds and len(results) < 3 * rounds:
            shuffle(order)
            others = _others_since()
            seconds = {name: _time(contenders[name], calls[name]) for name in order}
            results.append((others(), seconds))
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    results.sort(key=lambda result: result[0])
    kept = results[:rounds]
    return Race(
        {name: [seconds[name] for _, seconds in kept] for name in contenders},
        thrown_away=len(results) - rounds,
        disturbed=kept[-1][0] > QUIET,
    )


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median and third quartile, by linear interpolation between the sorted values."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def _time(contender: Contender, calls: int) -> float:
    """Seconds per step, over this many calls."""
    total, start = 0.0, timer()
    for _ in range(calls):
        contender.call()
        if contender.rewind is not None:
            total += timer() - start
            contender.rewind()
            start = timer()
    return (total + timer() - start) / (calls * contender.steps)


def _others_since() -> Callable[[], float]:
    """Start to watch; call the result to learn how many cores other processes have used meanwhile."""
    start, own, busy = time.perf_counter(), time.process_time(), _busy_seconds()
    if busy is None:
        return lambda: 0.0

    def others() -> float:
        elapsed = time.perf_counter() - start
        return ((_busy_seconds() - busy) - (time.process_time() - own)) / elapsed

    return others


def _busy_seconds() -> float | None:
    """Core-seconds that all cores have worked since the machine started, or None where Linux does not tell.

    First line of /proc/stat (man 5 proc): user nice system idle iowait irq softirq steal, in clock ticks.
    ``steal`` is work of other guests on the same hardware, so it counts.
    """
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except OSError:
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
