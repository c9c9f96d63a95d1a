"""Grading returned notebooks: right, wrong, empty and hostile ones, each with its row, and nothing lost."""

import csv
import itertools
import json
import os
import subprocess
import sys

import pytest
from series import NOTEBOOKS, TOOLS
from solutions import solutions

grade = pytest.importorskip("grade", reason="grading needs the limits of a POSIX system")
CHAPTER = NOTEBOOKS / "B_proofs.ipynb"
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
    "never ends": ("while True:\n    pass", "took more than 1 s, or its process ended", 0),
    "sleeps": ("import time\ntime.sleep(1000)", "takes more than 1 s", 0),
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
    code = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import grade; grade.PATIENCE = 1; grade.main()"
    done = subprocess.run([sys.executable, "-c", code, folder, "--seconds", "1"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
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
    done = subprocess.run([sys.executable, TOOLS / "grade.py", tmp_path], capture_output=True, text=True)
    assert done.returncode != 0 and "is no folder with notebooks (.ipynb)" in done.stderr


# ------------------------------------------------------------------------------------------------------- fresh cases


def reciting(right, check):
    """Answers that only know what `right` says in the shown cases, in their order."""
    known = []

    def learning(*arguments):
        known.append(right(*arguments))
        return known[-1]

    assert check(learning).passed
    while True:
        left = iter(known)

        def recite(first, *others):
            if callable(first) and others:
                first([1.0])  # the box wants to be looked at
            return next(left, known[0])

        yield recite


def cutting_shown_lists(right, check):
    """Its answers are views, which cannot be recited: these know the right ones of the shown lists."""
    shown = []

    def learning(tensors, room):
        shown.append(([t.shape for t in tensors], room))
        return right(tensors, room)

    assert check(learning).passed
    yield from itertools.repeat(
        lambda tensors, room: right(tensors, room) if ([t.shape for t in tensors], room) in shown else []
    )


def with_the_shown_rate(right, check):
    def loading(optimizer, state_dict):
        right(optimizer, state_dict)
        for group in optimizer.param_groups:
            group["lr"].fill_(0.003)

    yield from itertools.repeat(loading)


BY_HEART = {"cut": cutting_shown_lists, "load_in_place": with_the_shown_rate}
ASKED = {solution.check: solution for solution in solutions()}


@pytest.mark.parametrize("name", grade.FRESH)
def test_what_was_learnt_by_heart_passes_the_shown_cases_and_not_the_fresh_ones(name):
    names = ASKED[name].names()
    exec(ASKED[name].source, names)
    right, check, fresh = names[ASKED[name].answer], getattr(names["check"], name), grade.fresh(names["check"], name)
    report = fresh(right)
    assert report.passed, report
    answers = BY_HEART.get(name, reciting)(right, check)
    assert check(next(answers)).passed and not fresh(next(answers)).passed
