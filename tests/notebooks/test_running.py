"""Executing notebooks, and comparing what they print and draw with what is stored."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import execute
import pytest
from cells import code, printed, written
from mutants import copy_of
from nbformat.v4 import new_code_cell
from series import ROOT

FIGURE = """import matplotlib.pyplot as plt
from course import figures
fig, ax = plt.subplots()
ax.plot([0, 1, 3])
figures.show(fig, alt="a line", see="it rises")"""
PRINT = """print("after 12 steps:", 0.82 + 0, "of", 1797)"""
PATH = """import os
print(os.environ.get("MKL_CBWR"))"""
# The cells of a notebook, each with what stands in it when it is run again, and with the runs that notice: the first
# with the versions of the stored outputs, the second with others, and on another code path.
CELLS = {
    "the same figure": (FIGURE, FIGURE, ""),
    "another curve": (FIGURE, FIGURE.replace("3]", "3.05]"), "first"),
    "a broken picture": (FIGURE, FIGURE, "first second"),
    "the same result": ("object", "object", ""),
    "one unit of the last digit": (PRINT, PRINT.replace("+ 0", "+ 0.01"), ""),
    "two units of the last digit": (PRINT, PRINT.replace("+ 0", "+ 0.02"), "first second"),
    "what another torch may print": (PRINT, PRINT.replace("+ 0", "+ 0.02"), "first"),
    "a missing output": ("print(1)", "print(1)", "first second"),
    "the code path": (PATH, PATH, "second"),
}
BROKEN, TORCH, MISSING = map(list(CELLS).index, ("a broken picture", "what another torch may print", "a missing output"))


def run(folder, *command, **environment):
    """Where a variable chooses a code path, which no kernel is to see."""
    environment = {**os.environ, "ADAM_FIGURES": "", "MKL_CBWR": "AVX2", **environment}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    return done.returncode, done.stdout + done.stderr


def nbval(path, **environment):
    """The exit status, the cells that failed, and all that was said."""
    command = ["-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--rootdir=.", f"notebooks/{path.name}"]
    status, said = run(path.parents[1], *command, **environment)
    return status, [int(number) for number in re.findall(r"^FAILED \S+::Cell (\d)", said, re.MULTILINE)], said


def to_fail(run):
    return [number for number, (*_, runs) in enumerate(CELLS.values()) if run in runs]


def pin(folder, package, to):
    """Let environment.yml ask for this version."""
    listed = folder / "environment.yml"
    text = listed.read_text(encoding="utf-8")
    listed.write_text(re.sub(f"{package}==[0-9.]+", f"{package}=={to}", text), encoding="utf-8")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what runs notebooks, without the notebooks, and with the versions of this environment."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "notebooks").mkdir()
    copy_of(("environment.yml", "notebooks/conftest.py", "notebooks/tools", "notebooks/course", "adamlib"), folder)
    for package in ("torch", "matplotlib", "pillow"):
        pin(folder, package, version(package).partition("+")[0])
    return folder


@pytest.fixture(scope="module")
def executed(repository):
    """What executing says, and three notebooks: CELLS without outputs, CELLS with old ones, and one that raises."""
    new = [new_code_cell(source) for source, *_ in CELLS.values()]
    new[TORCH].metadata["tags"] = ["this-torch"]
    old = [code(cell.source, dict(cell.metadata), count=7, outputs=[printed("old")]) for cell in new]
    notebooks = {"new": new, "old": old, "raises": [code("1 + 1", count=3), code("1 / 0")]}
    paths = [written(repository, f"00_{name}.ipynb", cells) for name, cells in notebooks.items()]
    before = paths[2].read_bytes()
    return *run(repository, "notebooks/tools/execute.py", *paths), *paths, before


def test_execute_stores_the_same_bytes_and_leaves_a_notebook_that_raises_as_it_was(executed):
    status, said, new, old, raises, before = executed
    assert new.read_bytes() == old.read_bytes()
    assert '"None\\n"' in new.read_text(encoding="utf-8"), "the kernel got a variable that chooses its code path"
    assert status != 0 and "ZeroDivisionError" in said and f"not executed: {raises}" in said
    assert raises.read_bytes() == before and not list(raises.parent.glob("*.tmp"))


@pytest.fixture(scope="module")
def tested(executed):
    """The notebook of CELLS as it is run again."""
    notebook = json.loads(executed[2].read_text(encoding="utf-8"))
    for cell, (_, source, _) in zip(notebook["cells"], CELLS.values()):
        cell["source"] = source
    for output in notebook["cells"][BROKEN]["outputs"]:
        if "data" in output:
            output["data"]["image/png"] = "bm8gcGljdHVyZQ=="
    notebook["cells"][MISSING]["outputs"] = []
    path = executed[2].with_name("00_tested.ipynb")
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def test_what_differs_is_noticed_and_what_agrees_is_not(tested):
    status, failed, said = nbval(tested, ADAM_FIGURES="pictures")
    assert status == 1 and failed == to_fail("first"), said
    assert "9 of 9 code cells compared (100.0%)" in said and "figures compared as pictures: 0 with other bytes" in said, said
    assert f"Cell {BROKEN}: the figure cannot be decoded; run notebooks/tools/execute.py" in said, said
    assert "Unexpected output fields from running code" in said, said


def test_other_versions_compare_less_and_say_so_and_a_code_path_is_what_was_asked_for(tested):
    for package in ("torch", "matplotlib"):
        pin(tested.parents[1], package, "1.0.0")
    status, failed, said = nbval(tested, ADAM_PATH="mkl-compatible")
    assert status == 1 and failed == to_fail("second"), said
    assert "outputs of this torch not compared: 1 (tag this-torch; torch is" in said, said
    assert "figures compared by their description: matplotlib is" in said, said
    assert "COMPATIBLE" in said and "code path: mkl-compatible" in said, said


def test_unexecuted_notebooks_are_refused_by_name(repository):
    status, _, said = nbval(written(repository, "00_stripped.ipynb", [code("1 / 0", count=None)]))
    assert status != 0 and "never executed" in said and "00_stripped.ipynb::Cell 0" in said, said


def test_what_is_asked_for_in_the_environment_is_heeded_or_refused(monkeypatch):
    spec = importlib.util.spec_from_file_location("conftest_of_the_notebooks", ROOT / "notebooks" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    for asked, why in (("text", "ADAM_FIGURES=text was asked for"), ("pictures", None)):
        monkeypatch.setenv("ADAM_FIGURES", asked)
        assert conftest.why_figures_as_text() == why
    monkeypatch.setenv("ADAM_FIGURES", "words")
    with pytest.raises(pytest.UsageError, match="ADAM_FIGURES=words: say text or pictures"):
        conftest.why_figures_as_text()
    monkeypatch.setenv("ADAM_PATH", "mkl-sse")
    with pytest.raises(pytest.UsageError, match="ADAM_PATH=mkl-sse is no code path: say one of as-it-is, mkl-compatible"):
        conftest.code_path()


@pytest.mark.parametrize("name", ["missing.ipynb", "conftest.py"])
def test_execute_says_what_is_wrong_with_its_arguments(name, capsys):
    with pytest.raises(SystemExit):
        execute.main([f"notebooks/{name}"])
    assert f"{name} is not a notebook: give the path of one" in capsys.readouterr().err
