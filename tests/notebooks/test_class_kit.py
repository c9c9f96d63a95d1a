"""What is handed out in class: students get every exercise and no answer, the lecturer also outputs and remarks."""

import ast

import class_kit
import pytest
from cells import read
from series import MAIN_LINE, NOTEBOOKS, chapters

CHAPTERS = [path.stem for path in chapters()]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    class_kit.build(folder)
    return folder


def cells_of(folder, chapter):
    return read(folder / f"{chapter}.ipynb").cells


def code_without(cells, *left_out):
    tagged = [(cell.source, cell.metadata.get("tags", [])) for cell in cells if cell.cell_type == "code"]
    return [source for source, tags in tagged if not set(left_out) & set(tags)]


def names(sources):
    """The names that these cells bind anywhere, and those that they read."""
    bound, read = set(), set()
    for node in [node for source in sources for node in ast.walk(ast.parse(source))]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    return bound, read


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_students_get_every_exercise_and_nothing_that_answers_it(kit, chapter):
    ours, handed_out = cells_of(NOTEBOOKS, chapter), cells_of(kit / "students", chapter)
    solutions = [cell.source for cell in ours if "solution" in cell.metadata.get("tags", [])]
    assert solutions or chapter not in MAIN_LINE
    kept = code_without(handed_out, "setup")
    assert kept == code_without(ours, "setup", "solution")
    assert not any(cell.get("outputs") or "speaker" in cell.metadata for cell in handed_out)
    bound, read = names(kept)
    assert not (names(solutions)[0] - bound) & read, "a cell needs what a solution defines"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_lecturer_gets_solutions_outputs_and_remarks(kit, chapter):
    ours, cells = cells_of(NOTEBOOKS, chapter), cells_of(kit / "lecturer", chapter)
    remarks = [cell for cell in cells if cell.source.startswith("> **To the lecturer.**")]
    assert len(remarks) == sum("speaker" in cell.metadata for cell in ours) and len(cells) == len(ours) + len(remarks)
    assert sum(bool(cell.get("outputs")) for cell in cells) == sum(bool(cell.get("outputs")) for cell in ours)


def test_the_class_kit_says_how_to_open_it_and_needs_nothing_else(kit):
    folder = kit / "students"
    listed = (folder / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert "jupyterlab" in listed and any(line.startswith("torch>=") for line in listed)
    assert (folder / "LICENSE").is_file() and "Colab" in (folder / "README.md").read_text(encoding="utf-8")
