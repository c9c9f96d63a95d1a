"""Works through parts in processes of their own, under a budget of time, and goes on where it was stopped.

A part is a function ``run(done, device, tell)``. It does its items one after the other, leaves out those named in
``done``, and says ``tell(name)`` before an item and ``tell(name, result)`` after it. It returns True when all are
done, or False for a new process to go on in. If its process dies, the item that was under way gets
``{"crashed": why}``, and a new process goes on after it. Every result is stored at once.
"""

import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import pathlib
import re
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[3]


class Part(NamedTuple):
    name: str
    function: str  # its dotted name, which the process imports
    seconds: float  # its share of the budget; what it leaves is there for the parts after it
    item_seconds: float = 60.0  # an item that takes longer is given up


def deadlines(parts: list[Part], total: float) -> dict[str, float]:
    """When each part must end, in seconds after the start, if all together may take ``total``."""
    whole, spent, result = sum(part.seconds for part in parts), 0.0, {}
    for part in parts:
        spent += part.seconds
        result[part.name] = total * spent / whole
    return result


def run_parts(parts: list[Part], record: dict, device: str, total: float, save: Callable[[], None], say=print) -> None:
    """Do what ``record["parts"]`` does not hold yet; ``save`` is called after each result."""
    start = time.monotonic()
    for part in parts:
        entry = record["parts"].setdefault(part.name, {"complete": False, "seconds": 0.0, "results": {}})
        if entry["complete"]:
            continue
        began = time.monotonic()
        seconds = start + deadlines(parts, total)[part.name] - began
        entry["complete"] = run_part(part, entry["results"], device, seconds, save)
        entry["seconds"] = round(entry["seconds"] + time.monotonic() - began, 1)
        save()
        say(f"{part.name}: {len(entry['results'])} results in {entry['seconds']:.0f} s"
            + ("" if entry["complete"] else "; its time is over, run the same command again for the rest"))


def run_part(part: Part, results: dict, device: str, seconds: float, save: Callable[[], None]) -> bool:
    """Fill ``results``; returns whether the part is complete, which it is not when its time is over."""
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")  # nothing is inherited, no broken device either
    while (left := end - time.monotonic()) > 0:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(part.function, {*results}, device, sender), daemon=True)
        process.start()
        sender.close()
        item, before, complete, hung = None, len(results), False, False
        with contextlib.suppress(EOFError):
            while (left := end - time.monotonic()) > 0:
                if not receiver.poll(min(left, part.item_seconds)):
                    hung = left > part.item_seconds
                    break
                item, *result = receiver.recv()
                if item is None:
                    complete = True
                elif result:
                    results[item], item = result[0], None
                    save()
        if complete:
            process.join(5)
            process.kill()
            return True
        if not hung and (left := end - time.monotonic()) > 0:
            process.join(min(5, left))
        died = process.exitcode  # None while it still runs
        process.kill()
        process.join()
        if hung or died:
            why = f"no result within {part.item_seconds:g} s" if hung else f"its process ended with exit status {died}"
            results[item or f"(before an item, after {before})"] = {"crashed": why}
            save()
            if item is None:
                return False
        elif died == 0 and len(results) == before:
            return False  # it asks for another process, and did nothing in this one
    return False


def _work(function: str, done: set[str], device: str, sender) -> None:
    """What runs in the process: the part's function, what it prints kept back."""
    module, _, name = function.rpartition(".")
    with contextlib.redirect_stdout(io.StringIO()):
        if getattr(importlib.import_module(module), name)(done, device, lambda *message: sender.send(message)):
            sender.send((None,))


def each(items: dict[str, Callable[[], dict]], done: set[str], tell) -> bool:
    """The ``run`` of a part whose items are known beforehand and do not disturb each other."""
    for name, measure in items.items():
        if name not in done:
            tell(name)
            tell(name, attempt(measure))
    return True


def attempt(measure: Callable[[], dict]) -> dict:
    """Its result, or {"error": the exception in one line, and where}."""
    try:
        return measure()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": one_line(error), "at": without_paths(f"{place.filename}:{place.lineno}")}


def one_line(error: BaseException, width: int = 300) -> str:
    """Type and message of an exception, without this machine's paths."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return without_paths(f"{type(error).__name__}: {lines[0]}")[:width]


def without_paths(text: str) -> str:
    """The text with no folder of this machine in it."""
    packages = pathlib.Path(importlib.util.find_spec("torch").origin).parents[1] if "torch" in text else ROOT
    for folder in (packages, ROOT, pathlib.Path.home()):
        if folder != pathlib.Path(folder.anchor):
            text = text.replace(f"{folder}{os.sep}", "")
    return text


def write(record: dict, file: pathlib.Path) -> None:
    """Store the record as JSON; a run that is killed meanwhile leaves the former file."""
    new = file.with_name(file.name + ".new")
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # a list of numbers or words on one line; a line break inside a text is written as two characters, so none is hit
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)
    new.write_text(text + "\n", encoding="utf-8")
    os.replace(new, file)
