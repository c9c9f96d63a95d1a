"""The notebooks are clean, and what hygiene.py is to find it finds."""

import os
import subprocess
import sys

import pytest
from cells import FOLDED, SOLUTION, code, picture, printed, read, text, written
from hygiene import code_cells, problems, tags
from nbformat.v4 import new_output
from series import ROOT, TOOLS, chapters

SETUP = TOOLS / "setup_cell.py"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_notebook_is_clean_and_begins_with_the_setup_cell(path):
    found = problems(path)
    assert not found, "\n".join(found)
    first = code_cells(read(path))[0]
    assert "setup" in tags(first) and first.source == SETUP.read_text(encoding="utf-8").strip()


def set_up(folder, *before):
    """What the setup cell says in `folder`, after the code `before`."""
    setup = f"exec(open({str(SETUP)!r}, encoding='utf-8').read())"
    code = "\n".join([*before, setup, "print(course.__file__)"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")


@pytest.mark.parametrize("folder", [".", "notebooks", "notebooks/tools"])
def test_the_setup_cell_finds_adamlib_and_course(folder):
    done = set_up(ROOT / folder)
    assert done.stdout == f"{ROOT / 'notebooks' / 'course' / '__init__.py'}\n", done.stderr


def test_the_setup_cell_says_what_is_wrong(tmp_path):
    assert "This chapter needs the packages adamlib and course." in set_up(tmp_path).stderr
    (tmp_path / "adamlib").mkdir()
    (tmp_path / "adamlib" / "__init__.py").write_text("", encoding="utf-8")  # PyPI's, say
    for before in ((), ("import adamlib",)):
        assert "Another package named adamlib is in front" in set_up(tmp_path, *before).stderr


def test_links_may_point_ahead_but_not_into_a_gap(tmp_path):
    link = text("[04](04_foreach.ipynb) [05](05_fused_cuda.ipynb)")
    assert problems(written(tmp_path, "03_single_tensor.ipynb", [link]).rename(tmp_path / "notebooks/00_x.ipynb")) == []
    written(tmp_path, "05_fused_cuda.ipynb", [])
    assert problems(tmp_path / "notebooks/00_x.ipynb") == ["cell 1: the link to 04_foreach.ipynb leads nowhere"]


RAISED = new_output("error", ename="ValueError", evalue="", traceback=[])
BAD_CELLS = {
    "not executed": code(count=None),
    "an empty code cell": code("  \n"),
    "21 lines of code": code("\n".join(["x = 1"] * 21)),
    "a line of 89 characters": code(f"x = '{'y' * 83}'"),
    "wrote to stderr": code(outputs=[printed("UserWarning: careful", "stderr")]),
    "a path of this machine": code(outputs=[printed("saved to /home/ada/adam.png")]),
    "a path of this machine in": code(outputs=[new_output("execute_result", data={"text/html": "<b>/root/x</b>"})]),
    "raised ValueError": code(outputs=[RAISED]),
    "image/png without alt": code(outputs=[picture("")], metadata=FOLDED),
    "image/gif without alt": code(outputs=[picture(" ", "image/gif")], metadata=FOLDED),
    "a cell that draws must be folded": code(outputs=[picture("two curves")]),
    "a picture without alt text": text("![](../LICENSE)"),
    "a picture without": text('<img src="https://example.org/a.png">'),
    "leads nowhere": text("See [the next chapter](99_missing.ipynb)."),
    "not folded everywhere": code("#@title Solution\nx = 1", {"tags": ["solution"]}),
    "not folded": code("x = 1", SOLUTION),
    "are not compared": code(metadata={"tags": ["nbval-skip"]}),
    "1 of 1 code cells are not compared": code("# NBVAL_IGNORE_OUTPUT\n1 + 1"),
}
GOOD_CELLS = {  # those of the chapters have no problem either
    "no path": code(outputs=[printed("ratio 1/2 a/home/b ")]),
    "an open figure": code(outputs=[picture("two curves")], metadata={"tags": ["show-source"]}),
    "expected error": code(metadata={"tags": ["raises-exception"]}, outputs=[RAISED]),
}


@pytest.mark.parametrize("complaint", BAD_CELLS)
def test_a_bad_cell_is_found(tmp_path, complaint):
    found = problems(written(tmp_path, "00_bad.ipynb", [BAD_CELLS[complaint]]))
    assert len(found) == 1 and complaint in found[0], found


@pytest.mark.parametrize("name", GOOD_CELLS)
def test_a_good_cell_passes(tmp_path, name):
    assert problems(written(tmp_path, "00_good.ipynb", [GOOD_CELLS[name]])) == []


def chapter():
    """The cells of a chapter 03 with which everything is in order."""
    frame = [
        text("# 03 · A chapter\n**After this chapter you can** …"),
        text("30 minutes. Know first: [chapter 02](02_a.ipynb)."),
        code(outputs=[picture("one")], metadata=FOLDED),
    ]
    exercises = [cell for _ in range(3) for cell in (text("### Exercise ●●○"), code("#@title Solution\n1", SOLUTION))]
    figures = [code(outputs=[picture("more")], metadata=FOLDED) for _ in range(3)]
    end = [text("## Five lines to tell a colleague"), text("## References"), text("Next: [chapter 04](04_b.ipynb)")]
    filler = [text("and so on") for _ in range(25)]
    return frame + filler + figures + exercises + end


def problems_of_chapter(folder, cells):
    for other in ("02_a.ipynb", "04_b.ipynb"):
        written(folder, other, [])
    return problems(written(folder, "03_c.ipynb", cells))


@pytest.mark.parametrize("start, complaint", [
    ("# 03", "no title"),
    ("# 03", "what the reader will be able to do"),
    ("30 minutes", "how long it takes"),
    ("30 minutes", "what to know first"),
    ("30 minutes", "no link to chapter 02"),
    ("Next:", "no link to chapter 04"),
    ("## Five lines", "the summary"),
    ("## References", "the references"),
    ("and so on", "cells; a chapter has 40 to 70"),
    ("### Exercise", "0 exercises with a difficulty"),
    ("#@title Solution", "0 solutions"),
])
def test_a_chapter_without_a_part_is_found(tmp_path, start, complaint):
    found = problems_of_chapter(tmp_path, [cell for cell in chapter() if not cell.source.startswith(start)])
    assert any(complaint in one for one in found), found


def test_late_and_few_figures_are_found(tmp_path):
    early, *rest = [number for number, cell in enumerate(chapter()) if cell.get("outputs")]
    late, few = chapter(), chapter()
    late.append(late.pop(early))
    few[rest[0]] = text("and so on")
    for cells in (late, few):
        found = problems_of_chapter(tmp_path, cells)
        assert len(found) == 1 and "at least four, the first within ten cells" in found[0], found


def test_an_appendix_has_a_title_its_chapter_and_references(tmp_path):
    written(tmp_path, "02_a.ipynb", [])
    good = [text("# A · Bits\nRead it after [chapter 02](02_a.ipynb)."), text("## References")]
    assert problems(written(tmp_path, "A_good.ipynb", good)) == []
    found = problems(written(tmp_path, "A_bad.ipynb", [text("Bits")]))
    assert [one.partition(":")[0] for one in found] == [
        "the first cell is no title",
        "no link in the first cell to the chapter that an appendix belongs to",
        "the references are missing",
    ]
