"""How the notebooks are tested: every cell is run again and what it stored is compared, figures too.

* Kernels run under the environment that made the stored outputs (tools/execute.py).
* A cell that was never executed has nothing to compare: a notebook with one is refused before anything runs.
* Figures are compared byte for byte where torch, NumPy, matplotlib and Pillow are the pinned ones (environment.yml) and
  the platform is the stored outputs', Linux on x86_64 with AVX2. Elsewhere only their description is compared.
  ADAM_FIGURES=text (or =bytes) in the environment overrules this. The run says which it was.
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
from execute import ENVIRONMENT, ROOT  # noqa: E402

DRAWS_FIGURES = ("torch", "numpy", "matplotlib", "pillow")
IMAGES = ("image/png", "image/jpeg", "text/html")  # an animation's GIF is embedded in HTML


def why_figures_as_text():
    """The first reason why figures cannot be expected to have the stored bytes here, or None."""
    forced = os.environ.get("ADAM_FIGURES", "")
    if forced not in ("", "text", "bytes"):
        raise pytest.UsageError(f"ADAM_FIGURES={forced}: say text or bytes, or leave it out")
    if forced:
        return "ADAM_FIGURES=text was asked for" if forced == "text" else None
    here = f"{platform.system()} {platform.machine()}"
    if here != "Linux x86_64":
        return f"the stored ones were made on Linux x86_64, this is {here}"
    if "avx2" not in pathlib.Path("/proc/cpuinfo").read_text():
        return "this processor has no AVX2"
    pins = (ROOT / "environment.yml").read_text()
    for package in DRAWS_FIGURES:
        pinned = re.search(rf"^ *- {package}==([\w.]+)", pins, re.MULTILINE).group(1)
        try:
            installed = version(package).partition("+")[0]
        except PackageNotFoundError:
            installed = "not installed"
        if installed != pinned:
            return f"{package} is {installed}, the stored ones were made with {pinned}"
    return None


AS_TEXT = why_figures_as_text()
CELLS = {}  # node id -> the collected cell
RUN = set()  # node ids of the cells that were run


def is_cell(item):
    return type(item).__name__ == "IPyNbCell" and bool(item.cell.source.strip())


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    if not is_cell(item):
        return (yield)
    with mock.patch.dict(os.environ, ENVIRONMENT):  # the first cell of a notebook starts its kernel
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
    say(f"figures compared as text: {AS_TEXT}" if AS_TEXT else "figures compared byte for byte")
    if not AS_TEXT and any(report.nodeid in CELLS for report in terminalreporter.stats.get("failed", [])):
        say("If only pictures differ, ADAM_FIGURES=text compares their descriptions instead.")
