"""Grading returned notebooks: right, wrong, empty and hostile ones, each with its row, and nothing lost."""

import csv
import itertools
import os
import subprocess
import sys

import nbformat
import pytest
from cells import read, text
from nbformat.v4 import new_notebook
from series import NOTEBOOKS, TOOLS
from solutions import solutions

grade = pytest.importorskip("grade", reason="grading needs the limits of a POSIX system")
CHAPTER = read(NOTEBOOKS / "B_proofs.ipynb").cells
FIRST, ASKED = grade.exercises(CHAPTER)[1]


def handed_in(*lines):
    """The function with these lines, given to its check."""
    function = "\n    ".join(["def worst_without_correction(β1, β2, t):", *lines])
    return f"{function}\n\ncheck.worst_without_correction(worst_without_correction)"


THEIRS = "worst_ratio(β1, β2, t, bias_correction=False)"
SECOND = {  # the answer to the second exercise: (its code, what is found)
    "right": (ASKED.solution, "correct"),
    "right in a loop": (handed_in(
        "total = 0", "for k in range(t):", "    total += ((1 - β1) * β1**k) ** 2 / ((1 - β2) * β2**k)", "return total**0.5",
    ), "correct"),
    "wrong": (ASKED.solution.replace("(1 - β2)", "(1 + β2)", 1), "not yet"),
    "empty": (handed_in("...  # your code"), "not written"),
    "unfinished": (handed_in("return  # later"), "not written"),
    "not python": (handed_in("return 1").replace("):", ")"), "not Python"),
    "knows the shown cases": (handed_in(
        "if β1 not in (0.0, 0.9) or β2 not in (0.999, 0.99, 0.81, 0.7, 0.9):", "    return 1.0",
        "k = np.arange(t)", "return math.sqrt(np.sum(((1 - β1) * β1**k) ** 2 / ((1 - β2) * β2**k)))",
    ), "right for the shown cases only"),
    "raises": ("worst_without_correction = 1 / 0", "raises ZeroDivisionError"),
    "exits": ("import sys\nsys.exit()", "raises SystemExit"),
    "never handed in": (handed_in("return 1.0").partition("check.")[0], "not handed to its check"),
    "never ends": ("while True:\n    pass", "took more than 1 s, or its process ended"),
    "sleeps": ("import time\ntime.sleep(1000)", "takes more than 1 s"),
    "borrowed": (
        "from adamlib.theory.step_bound import worst_ratio\n" + handed_in(f"return {THEIRS}"),
        "uses adamlib.theory.step_bound.worst_ratio",
    ),
    "borrowed from the chapter": (handed_in(f"return {THEIRS}"), "uses worst_ratio"),
    "forged": (
        "class Report:\n    passed = True\n    def __repr__(self):\n        return 'correct'\n\ncheck = lambda f: Report()\n"
        "check.worst_without_correction = check\nprint(check.worst_without_correction(1))", "not handed to its check",
    ),
    "forged in the module": (
        "import sys, course.exercises\ncourse.exercises.Report.__repr__ = lambda self: 'correct'\n"
        "for module in (course.exercises, sys.modules[check._module.__name__]):\n    module.expect = lambda *a, **k: None\n"
        + handed_in("return 0.0"), "changes course.exercises",
    ),
    "deletes": ("import os\nos.remove(VICTIM)\n" + ASKED.solution, "raises PermissionError"),
    "deletes a tree": ("import shutil\nshutil.rmtree(FOLDER)\n" + ASKED.solution, "raises PermissionError"),
    "starts a program": ("import subprocess\nsubprocess.run(['rm', VICTIM])\n" + ASKED.solution, "raises PermissionError"),
    "fills the memory": ("x = 'a' * (1 << 40)", "raises MemoryError"),
}  # fmt: skip


def returned(answer):
    """The cells of a notebook with the first exercise solved, and this answer and some words to the second."""
    written = {FIRST.stub: FIRST.solution, ASKED.stub: answer}
    cells = []
    for cell in CHAPTER:
        if "solution" not in cell.metadata.get("tags", []):
            cells.append(nbformat.from_dict({**cell, "source": written.get(cell.source, cell.source)}))
        if cell.source == ASKED.stub:
            cells.append(text("It is the first factor."))
    return cells


@pytest.fixture(scope="module")
def grades(tmp_path_factory):
    folder = tmp_path_factory.mktemp("returned")
    victim = folder / "victim.txt"
    victim.write_text("still here", encoding="utf-8")
    those = {"another book": [text("# Cooking")], "no cells": CHAPTER[:3]}
    for name, (answer, *_) in SECOND.items():
        those[name] = returned(answer.replace("VICTIM", repr(str(victim))).replace("FOLDER", repr(str(folder))))
    for name, cells in those.items():
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / "no notebook.ipynb").write_text("{", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import grade; grade.PATIENCE = 1; grade.main()"
    done = subprocess.run([sys.executable, "-c", code, folder, "--seconds", "1"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with open(folder / "grades" / "grades.csv", encoding="utf-8", newline="") as file:
        return folder, {row["file"].removesuffix(".ipynb"): row for row in csv.DictReader(file)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")
@pytest.mark.parametrize("name", SECOND)
def test_each_answer_gets_its_row(grades, name):
    row, found = grades[1][name], SECOND[name][1]
    assert row["what was found"].startswith("1: correct; 2: " + found), row
    assert (row["points"], row["of"]) == ("4" if found == "correct" else "2", "4")


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
FRESH = [solution for solution in solutions() if solution.check in grade.FRESH]


def test_every_fresh_case_is_tried():
    assert {solution.check for solution in FRESH} == {*grade.FRESH}


@pytest.mark.parametrize("solution", FRESH, ids=lambda solution: solution.check)
def test_what_was_learnt_by_heart_passes_the_shown_cases_and_not_the_fresh_ones(solution):
    names = solution.names()
    exec(solution.source, names)
    check, fresh = getattr(names["check"], solution.check), grade.fresh(names["check"], solution.check)
    report = fresh(names[solution.answer])
    assert report.passed, report
    answers = BY_HEART.get(solution.check, reciting)(names[solution.answer], check)
    assert check(next(answers)).passed and not fresh(next(answers)).passed
