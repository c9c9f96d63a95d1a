"""Two parts in which the device runs what is written elsewhere: the tests marked ``cuda``, and chapters 05 and 06."""

import contextlib
import importlib.util
import io
import json
import linecache
import os
import sys
import time
import types

from course.gpu.run import ROOT, one_line, without_paths

CHAPTERS = ("06_capturable", "05_fused_cuda")


def files_of_tests() -> list[str]:
    """The files that hold a test marked ``cuda``; the others may need what is not installed there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "pytest.mark.cuda" in file.read_text(encoding="utf-8")]


class Reporter:
    """A pytest plugin that leaves out what is done, and tells of each test as it ends."""

    def __init__(self, done: set[str], tell):
        self.done, self.tell, self.outcome = done, tell, {}

    def pytest_collection_modifyitems(self, config, items):
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.done])
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logstart(self, nodeid):
        self.tell(nodeid)
        self.outcome = {"outcome": "passed", "seconds": 0.0}

    def pytest_runtest_logreport(self, report):
        self.outcome["seconds"] += report.duration
        if report.failed or report.skipped:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash else report.longrepr[2] if report.skipped else str(report.longrepr)
            self.outcome |= {"outcome": report.outcome, "why": without_paths(why)[:600]}

    def pytest_runtest_logfinish(self, nodeid):
        self.tell(nodeid, self.outcome | {"seconds": round(self.outcome["seconds"], 2)})

    def pytest_collectreport(self, report):
        if report.failed:  # a file that cannot be imported here
            self.tell(report.nodeid)
            self.tell(report.nodeid, {"outcome": "not collected", "why": without_paths(str(report.longrepr))[-600:]})


def run_tests(done: set[str], device: str, tell) -> bool:
    import pytest

    options = ["-m", "cuda", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", str(ROOT)]
    os.chdir(ROOT)
    pytest.main([*options, *files_of_tests()], plugins=[Reporter(done, tell)])
    return True


def run_chapters(done: set[str], device: str, tell) -> bool:
    """One chapter in each process: 05 settles how Triton runs before anybody imports it."""
    left = [name for name in CHAPTERS if name not in done]
    if left:
        tell(left[0])
        tell(left[0], run_cells(left[0], last=None if device == "cuda" else 2))
    return len(left) <= 1


def run_cells(chapter: str, last: int | None = None) -> dict:
    """Run a chapter's code cells in a plain namespace, down to the last one that speaks of CUDA (or so many)."""
    notebook = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    sources = {i: "".join(cell["source"]) for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"}
    about_cuda = [i for i, source in sources.items() if "cuda" in source]
    until = max(about_cuda) if last is None else [*sources][last - 1]
    _without_a_notebook()
    os.chdir(ROOT / "notebooks")
    names, printed, errors, start = {"__name__": "__main__"}, {}, {}, time.perf_counter()
    for i, source in sources.items():
        file = f"<{chapter}, cell {i}>"
        code = compile(source, file, "exec")  # every cell, whether it is run or not
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # Triton reads its kernels
        if i > until:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as text:
            try:
                exec(code, names)
            except (Exception, SystemExit) as error:
                errors[str(i)] = one_line(error)
        if i in about_cuda:
            printed[str(i)] = without_paths(text.getvalue())[:2000]
    return {"cells": sum(i <= until for i in sources), "seconds": round(time.perf_counter() - start, 1),
            "errors": errors, "printed_by_cells_on_cuda": printed}  # fmt: skip


def _without_a_notebook() -> None:
    """Figures go nowhere, and IPython need not be there."""
    import matplotlib

    matplotlib.use("Agg")
    if importlib.util.find_spec("IPython") is None:
        stand_in = types.ModuleType("IPython.display")
        stand_in.display = lambda *_, **__: None
        sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": stand_in}

