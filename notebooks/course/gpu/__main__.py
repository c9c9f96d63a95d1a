"""The one command for the day a GPU is there: what only a GPU can show, in eight minutes, unattended.

    python -m course.gpu              all of it, to notebooks/recorded/gpu-<date>-<device>.json
    python -m course.gpu --dry-run    what needs no GPU, on tiny sets, to a file that is thrown away

It needs one GPU, torch (written for 2.11), triton, pytest and matplotlib. Five parts, each with its share of the time:
the tests marked ``cuda``; some 200 small blocks in a CUDA graph beside the tape of chapter 06; every variant beside
torch's; the time of a step beside its prediction; the cells of chapters 05 and 06. Each result is stored at once.
Where a run was stopped or its time was over, the same command goes on with the rest.

Exit status: 0, all is done and nothing failed; 1, something failed or is left to do; 2, there is no GPU.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import sys
import tempfile

import torch

from course import RECORDED
from course.benchmark_report import hardware, software
from course.gpu.record import SCHEMA, summary, troubles
from course.gpu.run import Part, run_parts, write

PARTS = [
    Part("tests", "course.gpu.checks.run_tests", 120, item_seconds=90),
    Part("blocks", "course.gpu.blocks.run", 100),
    Part("parity", "course.gpu.parity.run", 60),
    Part("race", "course.gpu.race.run", 110),
    Part("chapters", "course.gpu.checks.run_chapters", 75, item_seconds=120),
]


def no_gpu() -> str | None:
    """Why nothing can be run on a GPU, in one sentence; None where it can."""
    if not torch.cuda.is_available():
        return "There is no GPU here that torch can see; `python -m course.gpu --dry-run` does what needs none."
    try:
        if (torch.ones(2, device="cuda") + 1).tolist() == [2.0, 2.0]:
            return None
        return "The GPU here computes 1 + 1 wrongly, so nothing was run on it."
    except (RuntimeError, AssertionError) as error:
        return f"A GPU is listed, but an operation on it fails: {str(error).splitlines()[0]}"


def record_to_go_on_with(file: pathlib.Path | None, device: str, folder: pathlib.Path) -> tuple[dict, pathlib.Path]:
    """The record and its file: the one that is named or, of this device, one that is not complete; else a new one."""
    machine, today = hardware(device), datetime.date.today().isoformat()
    name = re.sub(r"[^a-z0-9]+", "-", (machine.get("gpu") or "cpu").lower()).strip("-")
    candidates = [file] if file else sorted(folder.glob(f"gpu-*-{name}*.json"))
    versions = software()
    for candidate in (candidate for candidate in candidates if candidate.is_file()):
        record = json.loads(candidate.read_text(encoding="utf-8"))
        if record.get("schema") != SCHEMA:
            raise ValueError(f"{candidate} is no record of this program: name another file")
        same = all(record["software"][key] == versions[key] for key in ("torch", "triton"))
        if file or same and not all(record["parts"].get(part.name, {}).get("complete") for part in PARTS):
            return record, candidate
    new = {"schema": SCHEMA, "date": today, "device": device, "hardware": machine, "software": versions, "parts": {}}
    names = (f"gpu-{today}-{name}{number}.json" for number in ("", *(f"-{i}" for i in range(2, 100))))
    return new, file or next(folder / one for one in names if not (folder / one).exists())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m course.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--dry-run", action="store_true", help="what needs no GPU, on tiny sets")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {' '.join(names)}")
    parser.add_argument("--seconds", type=float, default=465, help="for all parts together (default: %(default)s)")
    parser.add_argument("--output", type=pathlib.Path, help="another file; what it holds already is not done again")
    options = parser.parse_args(arguments)
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"there is no folder {options.output.parent}: create it or name another file")
    if not options.dry_run and (why := no_gpu()):
        print(why)
        return 2
    os.environ.pop("TRITON_INTERPRET", None)  # here kernels are compiled
    device = "cpu" if options.dry_run else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        try:
            record, file = record_to_go_on_with(options.output, device, pathlib.Path(folder) if options.dry_run else RECORDED)
        except ValueError as error:  # no JSON, or not ours
            parser.error(str(error))
        parts = [part for part in PARTS if options.only is None or part.name in options.only]
        run_parts(parts, record, device, options.seconds, lambda: write(record, file), lambda text: print(text, flush=True))
        write(record, file)
    print(summary(record))
    if not options.dry_run:
        print(f"stored in {file}")
    complete = all(record["parts"][part.name]["complete"] for part in parts)
    return 0 if complete and not troubles(record) else 1


if __name__ == "__main__":
    sys.exit(main())
