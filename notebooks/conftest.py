"""How the notebooks are tested: every cell is run again, and what it prints and draws is compared with what is stored.

* Kernels run in a reader's environment (tools/execute.py). ADAM_PATH=NAME runs them under one of its PATHS, as
  tools/paths.py does.
* Numbers are compared as numbers, figures as pictures (tools/comparison.py).
* A cell that was never executed has nothing to compare: a notebook with one is refused before anything runs.
* Where matplotlib or Pillow is another version than the pinned one (environment.yml), or the platform is not the stored
  outputs', Linux on x86_64, figures are compared by their description. ADAM_FIGURES=text (or =pictures) in the
  environment overrules this. The run says which it was.
* A cell with the tag "this-torch" prints what differs between versions of torch. It is run with any, and compared where
  torch is the pinned version.
* Every run ends with the share of code cells compared.
"""

import collections
import os
import pathlib
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from unittest import mock

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "tools"))
from comparison import ACCEPTED, TOLERANCE, as_stored  # noqa: E402
from execute import PATHS, environment  # noqa: E402
from series import ROOT  # noqa: E402

DRAW_FIGURES = ("matplotlib", "pillow")
IMAGES = ("image/png", "image/jpeg", "text/html")  # an animation's GIF is embedded in HTML


def other_version(package):
    """Which version of the package is here and which is pinned, in words; None if they are the same."""
    pins = (ROOT / "environment.yml").read_text(encoding="utf-8")
    pinned = re.search(rf"^ *- {package}==([\w.]+)", pins, re.MULTILINE).group(1)
    try:
        installed = version(package).partition("+")[0]
    except PackageNotFoundError:
        installed = "not installed"
    return None if installed == pinned else f"{package} is {installed}, the stored ones were made with {pinned}"


def why_figures_as_text():
    """The first reason why figures cannot be expected to look like the stored ones here, or None."""
    forced = os.environ.get("ADAM_FIGURES", "")
    if forced not in ("", "text", "pictures"):
        raise pytest.UsageError(f"ADAM_FIGURES={forced}: say text or pictures, or leave it out")
    if forced:
        return "ADAM_FIGURES=text was asked for" if forced == "text" else None
    here = f"{platform.system()} {platform.machine()}"
    if here != "Linux x86_64":
        return f"the stored ones were made on Linux x86_64, this is {here}"
    return next(filter(None, map(other_version, DRAW_FIGURES)), None)


def code_path():
    """The name of the code path that was asked for."""
    path = os.environ.get("ADAM_PATH", "as-it-is")
    if path not in PATHS:
        raise pytest.UsageError(f"ADAM_PATH={path} is no code path: say one of {', '.join(PATHS)}, or leave it out")
    return path


AS_TEXT = why_figures_as_text()
OTHER_TORCH = other_version("torch")
PATH = code_path()
CELLS = {}  # node id -> the collected cell
RUN = set()  # node ids of the cells that were run
LEFT_OUT = set()  # node ids of the cells that another torch prints differently


def is_cell(item):
    return type(item).__name__ == "IPyNbCell" and bool(item.cell.source.strip())


def compares_by_meaning(item):
    """Let nbval compare outputs in which what agrees with the stored output is already exchanged for it."""
    exactly = item.compare_outputs

    def compare(test, ref, skip_compare=None):
        try:
            return exactly(as_stored(test, ref), ref, skip_compare)
        except ValueError as error:
            item.comparison_traceback = [f"{item.nodeid}: {error}; run notebooks/tools/execute.py on its notebook"]
            return False

    item.compare_outputs = compare


def pytest_collectstart(collector):
    if type(collector).__name__ == "IPyNbFile":
        others = tuple(key for key in collector.skip_compare if key not in IMAGES)
        collector.skip_compare = others + IMAGES if AS_TEXT else others


def pytest_collection_modifyitems(items):
    CELLS.update((item.nodeid, item) for item in items if is_cell(item))
    never = [name for name, item in CELLS.items() if item.cell.execution_count is None]
    if never:
        raise pytest.UsageError(
            "these cells were never executed, so there is nothing to compare; "
            "run notebooks/tools/execute.py on their notebooks: " + ", ".join(never)
        )
    for name, item in CELLS.items():
        compares_by_meaning(item)
        if OTHER_TORCH and "this-torch" in item.cell.metadata.get("tags", []):
            item.options["check"] = False
            LEFT_OUT.add(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    if not is_cell(item):
        return (yield)
    with mock.patch.dict(os.environ, environment(PATH), clear=True):  # the first cell of a notebook starts its kernel
        return (yield)


def pytest_runtest_logreport(report):
    if report.when == "call" and report.nodeid in CELLS and not report.skipped:
        RUN.add(report.nodeid)


def pytest_terminal_summary(terminalreporter):
    if not CELLS:
        return
    total, compared = collections.Counter(), collections.Counter()
    for name, item in CELLS.items():
        total[item.fspath.basename] += 1
        compared[item.fspath.basename] += name in RUN and item.options["check"] and not item.options["skip"]
    say = terminalreporter.line
    terminalreporter.section("notebooks")
    for name in total:
        say(f"{compared[name]:4} of {total[name]:3} ({compared[name] / total[name]:4.0%})  {name}")
    n, m = compared.total(), total.total()
    say(f"{n} of {m} code cells compared ({n / m:.1%})")
    if LEFT_OUT:
        say(f"outputs of this torch not compared: {len(LEFT_OUT)} (tag this-torch; {OTHER_TORCH})")
    if AS_TEXT:
        say(f"figures compared by their description: {AS_TEXT}")
    else:
        say(f"figures compared as pictures: {len(ACCEPTED)} with other bytes, the farthest {max(ACCEPTED, default=0):.2g} "
            f"from the stored one (root mean square of 255; {TOLERANCE} is allowed)")
    if PATH != "as-it-is":
        say(f"code path: {PATH}")
