"""Executing notebooks, and comparing what they print and draw with what is stored."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from cells import code, printed, written
from nbformat.v4 import new_code_cell

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURE = """import matplotlib.pyplot as plt
from course import figures
fig, ax = plt.subplots()
ax.plot([0, 1, 3])
figures.show(fig, alt="a line", see="it rises")"""
PRINTS = """import numpy as np, os
print("after 12 steps:", 0.82 + 0, "of", 1797, os.environ.get("MKL_CBWR"))"""


@pytest.fixture
def repository(tmp_path):
    """A copy of what runs notebooks, with an empty notebooks folder."""
    (tmp_path / "notebooks").mkdir()
    for name in ("environment.yml", "notebooks/conftest.py", "notebooks/tools", "notebooks/course", "adamlib"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path / name], check=True)
    return tmp_path


def run(folder, *command, **environment):
    environment = {**os.environ, "ADAM_FIGURES": "", **environment}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    return done.returncode, done.stdout + done.stderr


def nbval(folder, **environment):
    options = ["-q", "--nbval", "--nbval-current-env", "--rootdir=."]
    return run(folder, "-m", "pytest", *options, "notebooks", **environment)


def execute(folder, name):
    return run(folder, "notebooks/tools/execute.py", f"notebooks/{name}")


def pin(folder, package, version):
    """Let environment.yml ask for another version."""
    listed = folder / "environment.yml"
    text = listed.read_text(encoding="utf-8")
    listed.write_text(re.sub(f"{package}==[0-9.]+", f"{package}=={version}", text), encoding="utf-8")


def test_execute_stores_the_same_bytes_twice_and_nbval_compares_figures(repository):
    cells = [new_code_cell(FIGURE), new_code_cell("print(6 * 7)"), new_code_cell("object")]
    path = written(repository, "00_figure.ipynb", cells)
    status, said = execute(repository, path.name)
    assert status == 0, said
    first = path.read_bytes()
    execute(repository, path.name)
    assert path.read_bytes() == first

    status, said = nbval(repository)
    assert status == 0 and "3 of 3 code cells compared (100.0%)" in said, said

    path.write_bytes(first.replace(b"[0, 1, 3]", b"[0, 1, 3.05]"))  # another curve than the stored figure's
    status, said = nbval(repository, ADAM_FIGURES="pictures")
    assert status == 1 and "1 failed, 2 passed" in said and "figures compared as pictures" in said, said
    status, said = nbval(repository, ADAM_FIGURES="text")
    assert status == 0 and "figures compared by their description: ADAM_FIGURES=text was asked for" in said, said


def test_a_kernel_sees_no_variable_that_chooses_a_code_path_but_the_one_asked_for(repository, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    path = written(repository, "00_prints.ipynb", [new_code_cell(PRINTS)])
    execute(repository, path.name)
    assert "of 1797 None" in path.read_text(encoding="utf-8")
    assert nbval(repository)[0] == 0
    status, said = nbval(repository, ADAM_PATH="mkl-compatible")
    assert status == 1 and "of 1797 COMPATIBLE" in said and "code path: mkl-compatible" in said, said


def test_numbers_may_be_off_by_one_and_each_wrong_output_is_named(repository):
    """Cells that print +0, +0.01 and +0.02 beside a stored +0, one with a broken picture, one with a missing output."""
    cells = [new_code_cell(PRINTS) for _ in range(3)] + [new_code_cell(FIGURE), new_code_cell("print(1)")]
    path = written(repository, "00_outputs.ipynb", cells)
    assert execute(repository, path.name)[0] == 0
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, nudge in zip(notebook["cells"], ("0", "0.01", "0.02")):
        cell["source"] = [line.replace("+ 0", f"+ {nudge}") for line in cell["source"]]
    for output in notebook["cells"][3]["outputs"]:
        if "data" in output:
            output["data"]["image/png"] = "bm8gcGljdHVyZQ=="
    notebook["cells"][4]["outputs"] = []
    path.write_text(json.dumps(notebook), encoding="utf-8")
    status, said = nbval(repository)
    failed = re.findall(r"^FAILED \S+::Cell (\d)", said, re.MULTILINE)
    assert status == 1 and failed == ["2", "3", "4"], said
    assert "00_outputs.ipynb::Cell 3: the figure cannot be decoded; run notebooks/tools/execute.py" in said
    assert "Unexpected output fields from running code" in said


def test_other_versions_compare_less_and_say_so(repository):
    """Two cells whose stored output is wrong; the one with the tag fails with the pinned torch alone."""
    cells = [code("print(2)", outputs=[printed("1\n")], metadata={"tags": tags}) for tags in (["this-torch"], [])]
    written(repository, "00_short.ipynb", cells)
    _, said = nbval(repository)
    assert "2 failed" in said and "not compared" not in said, said
    pin(repository, "torch", "1.0.0")
    pin(repository, "matplotlib", "1.5.0")
    _, said = nbval(repository)
    assert "1 failed, 1 passed" in said, said
    assert "outputs of this torch not compared: 1 (tag this-torch; torch is" in said, said
    assert "figures compared by their description: matplotlib is" in said, said


def test_unexecuted_notebooks_and_unknown_code_paths_are_refused_by_name(repository):
    written(repository, "00_stripped.ipynb", [code("1 / 0", count=None)])
    status, said = nbval(repository)
    assert status != 0 and "never executed" in said and "00_stripped.ipynb::Cell 0" in said, said
    status, said = nbval(repository, ADAM_PATH="mkl-sse")
    assert status != 0 and "ADAM_PATH=mkl-sse is no code path: say one of as-it-is, mkl-compatible" in said


def test_execute_leaves_a_notebook_that_raises_as_it_was(repository):
    path = written(repository, "00_raises.ipynb", [new_code_cell("1 + 1"), new_code_cell("1 / 0")])
    before = path.read_bytes()
    status, said = execute(repository, path.name)
    assert status != 0 and "ZeroDivisionError" in said
    assert path.read_bytes() == before and not list(path.parent.glob("*.tmp"))


@pytest.mark.parametrize("name", ["missing.ipynb", "conftest.py"])
def test_execute_says_what_is_wrong_with_its_arguments(repository, name):
    status, said = execute(repository, name)
    assert status != 0 and f"{name} is not a notebook: give the path of one" in said
