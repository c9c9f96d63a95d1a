"""Grading returned notebooks: right, wrong, empty and hostile ones, each with its row, and nothing lost."""

import csv
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from adamlib.theory.algorithm1 import algorithm1

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
grade = pytest.importorskip("grade", reason="grading needs the limits of a POSIX system")
CHAPTER = ROOT / "notebooks" / "B_proofs.ipynb"
SOLUTIONS = [
    "".join(cell["source"]) for cell in json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    if "solution" in cell["metadata"].get("tags", [])
]  # fmt: skip
CALL = "check.worst_without_correction(worst_without_correction)"
SECOND = {  # the answer to the second exercise: (its code, what is found, points)
    "right": (SOLUTIONS[1], "correct", 2),
    "right in a loop": (
        "import math\n\ndef worst_without_correction(b1, b2, t):\n    total = 0\n    for k in range(t):\n"
        "        total += ((1 - b1) * b1**k) ** 2 / ((1 - b2) * b2**k)\n    return math.sqrt(total)\n\n" + CALL, "correct", 2),
    "wrong": (SOLUTIONS[1].replace("(1 - β2)", "(1 + β2)", 1), "not yet", 0),
    "empty": ("def worst_without_correction(β1, β2, t):\n    ...  # your code\n\n" + CALL, "not written", 0),
    "unfinished": ("def worst_without_correction(β1, β2, t):\n    return  # later\n\n" + CALL, "not written", 0),
    "not python": ("def worst_without_correction(β1, β2, t)\n    return 1\n\n" + CALL, "not Python", 0),
    "knows the shown cases": (
        "def worst_without_correction(β1, β2, t):\n    k = np.arange(t)\n    shown = β1 in (0.0, 0.9) and β2 in (0.999, 0.99, 0.81, "
        "0.7, 0.9)\n    return math.sqrt(np.sum(((1 - β1) * β1**k) ** 2 / ((1 - β2) * β2**k))) if shown else 1.0\n\n" + CALL,
        "right for the shown cases only", 0),
    "raises": ("worst_without_correction = 1 / 0", "raises ZeroDivisionError", 0),
    "exits": ("import sys\nsys.exit()", "raises SystemExit", 0),
    "never handed in": ("def worst_without_correction(β1, β2, t):\n    return 1.0", "not handed to its check", 0),
    "never ends": ("while True:\n    pass", "took more than 3 s, or its process ended", 0),
    "sleeps": ("import time\ntime.sleep(1000)", "takes more than 3 s", 0),
    "borrowed": ("from adamlib.theory.step_bound import worst_ratio\n\ndef worst_without_correction(β1, β2, t):\n    return "
                 "worst_ratio(β1, β2, t, bias_correction=False)\n\n" + CALL, "uses adamlib.theory.step_bound.worst_ratio", 0),
    "borrowed from the chapter": (
        "worst_without_correction = lambda β1, β2, t: worst_ratio(β1, β2, t, bias_correction=False)\n" + CALL,
        "uses worst_ratio", 0),
    "forged": ("class Report:\n    passed = True\n    def __repr__(self):\n        return 'correct'\n\ncheck = lambda f: Report()\n"
               "check.worst_without_correction = check\nprint(check.worst_without_correction(1))", "not handed to its check", 0),
    "forged in the module": (
        "import course.exercises\ncourse.exercises.Report.__repr__ = lambda self: 'correct'\ncourse.exercises.expect = "
        "lambda *a, **k: None\nimport sys\nsys.modules[check._module.__name__].expect = lambda *a, **k: None\n"
        "def worst_without_correction(β1, β2, t):\n    return 0.0\n\n" + CALL, "changes course.exercises", 0),
    "deletes": ("import os, pathlib\nos.remove(VICTIM)\n" + SOLUTIONS[1], "raises PermissionError", 0),
    "deletes a tree": ("import shutil\nshutil.rmtree(FOLDER)\n" + SOLUTIONS[1], "raises PermissionError", 0),
    "starts a program": ("import subprocess\nsubprocess.run(['rm', VICTIM])\n" + SOLUTIONS[1], "raises PermissionError", 0),
    "fills the memory": ("x = 'a' * (1 << 40)", "raises MemoryError", 0),
}


def returned(folder, name, code):
    notebook = json.loads(CHAPTER.read_text(encoding="utf-8"))
    victim = folder / "victim.txt"
    code = code.replace("VICTIM", repr(str(victim))).replace("FOLDER", repr(str(folder)))
    cells, title = [], ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        title = "second" if source.startswith("### Exercise · Without") else title
        if "solution" in cell["metadata"].get("tags", []):
            continue
        if "check.first_response" in source:
            cell["source"] = SOLUTIONS[0]
        elif title == "second" and "check." in source:
            cell["source"] = code
        cells.append(cell)
    if name == "right":
        place = next(i for i, cell in enumerate(cells) if cell["source"] == code)
        cells.insert(place, {"cell_type": "markdown", "metadata": {}, "id": "words", "source": "It is the first factor."})
    (folder / f"{name}.ipynb").write_text(json.dumps({**notebook, "cells": cells}), encoding="utf-8")


@pytest.fixture(scope="module")
def grades(tmp_path_factory):
    folder = tmp_path_factory.mktemp("returned")
    (folder / "victim.txt").write_text("still here", encoding="utf-8")
    for name, (code, *_) in SECOND.items():
        returned(folder, name, code)
    (folder / "no notebook.ipynb").write_text("{", encoding="utf-8")
    (folder / "another book.ipynb").write_text(
        json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Cooking"}]}), encoding="utf-8")
    (folder / "no cells.ipynb").write_text(json.dumps({"cells": json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"][:3]}),
                                           encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / "notebooks/tools/grade.py", folder, "--seconds", "3"], capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with open(folder / "grades" / "grades.csv", encoding="utf-8", newline="") as file:
        return folder, {row["file"].removesuffix(".ipynb"): row for row in csv.DictReader(file)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")
@pytest.mark.parametrize("name", SECOND)
def test_each_answer_gets_its_row(grades, name):
    _, rows = grades
    _, found, points = SECOND[name]
    assert rows[name]["what was found"].startswith("1: correct; 2: " + found), rows[name]
    assert int(rows[name]["points"]) == 2 + points and rows[name]["of"] == "4"


def test_what_cannot_be_graded_gets_a_row_too_and_nothing_is_lost(grades):
    folder, rows = grades
    assert rows["no notebook"]["what was found"] == "no notebook, or one without its title"
    assert "no chapter of this series begins with '# Cooking'" in rows["another book"]["what was found"]
    assert rows["no cells"]["what was found"] == "1: its cells are missing; 2: its cells are missing"
    assert (folder / "victim.txt").read_text(encoding="utf-8") == "still here"
    assert len([*folder.glob("*.ipynb")]) == len(rows) == len(SECOND) + 3


def test_feedback_and_words_are_written(grades):
    folder, _ = grades
    page = (folder / "grades" / "feedback" / "wrong.md").read_text(encoding="utf-8")
    assert page.startswith("# wrong.ipynb: 2 of 4 points") and "expected" in page
    assert "**right.ipynb**\n\nIt is the first factor." in (folder / "grades" / "written.md").read_text(encoding="utf-8")


def test_a_folder_without_notebooks_is_refused(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "notebooks/tools/grade.py", tmp_path], capture_output=True, text=True)
    assert done.returncode != 0 and "is no folder with notebooks (.ipynb)" in done.stderr


# ------------------------------------------------------------------------------------------------------- fresh cases


def solved(chapter, name, **before):
    """The chapter's own solution of an exercise; `before`: what its cells need from earlier ones."""
    cells = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    (code,) = (c for c in map("".join, (c["source"] for c in cells if "solution" in c["metadata"].get("tags", [])))
               if f"def {name}(" in c)
    namespace = {"torch": torch, "np": np, "algorithm1": algorithm1, **before}
    exec(re.sub(r"^check\..*$", "", code, flags=re.MULTILINE), namespace)
    return namespace[name]


def buckets(room, pieces):
    """As chapter 04 has it: lists of pieces, in order, with at most `room` elements together."""
    lists, size = [], math.inf
    for piece in pieces:
        if size + piece.numel() > room:
            lists.append([])
            size = 0
        lists[-1].append(piece)
        size += piece.numel()
    return [(those,) for those in lists]


def which_amsgrad(run, beta1, beta2):
    steps, gradients = importlib.import_module("course.exercises.c_libraries")._steps, [10.0] + [0.1] * 50
    seen = run(gradients)
    return min(("adam", "torch", "corrected max", "paper"),
               key=lambda kind: sum((a - b) ** 2 for a, b in zip(seen, steps(kind, gradients, beta1, beta2))))  # fmt: skip


def by_heart(right, check, key):
    """Makers of answers that only know what `right` says in the shown cases; key: of a call's number and arguments."""
    table, number = {}, itertools.count()

    def learning(*arguments):
        at = key(next(number), arguments)
        table[at] = right(*arguments)
        return table[at]

    assert check(learning).passed

    def maker():
        number = itertools.count()

        def reciting(*arguments):
            if callable(arguments[0]) and len(arguments) > 1:
                arguments[0]([1.0])  # the box wants to be looked at
            return table.get(key(next(number), arguments), next(iter(table.values())))

        return reciting

    return maker


def with_the_shown_rate(optimizer, state_dict):
    solved("06_capturable", "load_in_place")(optimizer, state_dict)
    for group in optimizer.param_groups:
        group["lr"].fill_(0.003)


@pytest.mark.parametrize("name", grade.FRESH)
def test_what_was_learnt_by_heart_passes_the_shown_cases_and_not_the_fresh_ones(name):
    chapter, right, key = {
        "cut": ("ch04_foreach", solved("04_foreach", "cut", buckets=buckets), None),
        "bytes_per_weight": ("ch04_foreach", solved("04_foreach", "bytes_per_weight"), lambda n, given: given),
        "step_bytes": ("ch05_fused_cuda", solved("05_fused_cuda", "step_bytes"), lambda n, given: given),
        "load_in_place": ("ch06_capturable", solved("06_capturable", "load_in_place"), None),
        "is_adam": ("ch09_errata", solved("09_errata", "is_adam"), lambda n, given: n),
        "which_amsgrad": ("c_libraries", which_amsgrad, lambda n, given: n),
        "reorder": ("ch05_fused_cuda", solved("D_inside_the_kernel", "reorder", CHUNK=65_536), lambda n, given: str(given)),
    }[name]
    module = importlib.import_module(f"course.exercises.{chapter}")
    check, fresh = getattr(module, name), grade.fresh(module, name)
    report = fresh(right)
    assert report.passed, report
    if key:
        maker = by_heart(right, check, key)
    elif name == "cut":
        shown = set()

        def learning(tensors, room):
            shown.add((*(t.shape for t in tensors), room))
            return right(tensors, room)

        assert check(learning).passed

        def maker():
            return lambda tensors, room: (right if (*(t.shape for t in tensors), room) in shown else lambda *_: [])(tensors, room)
    else:
        def maker():
            return with_the_shown_rate
    assert check(maker()).passed and not fresh(maker()).passed
