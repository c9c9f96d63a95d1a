"""What every notebook of the series must keep to, as a list of sentences about what it does not.

    python notebooks/tools/hygiene.py notebooks/*.ipynb
"""

import argparse
import pathlib
import re
import sys

import nbformat
from series import APPENDICES, EXAMPLE, MAIN_LINE, chapter_path

WIDEST = 88  # characters in a line of code: the site and Kaggle cut what is longer
NOT_COMPARED = {"nbval-skip", "nbval-ignore-output"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users)/|[A-Z]:\\Users\\")
FRAME = {  # what a chapter's text must contain
    "what the reader will be able to do": r"after this chapter you can",
    "how long it takes": r"minutes",
    "what to know first": r"know first|before you (start|begin)|you should know|prerequisite",
    "the summary": r"## five lines ",
    "the references": r"references",
}


def problems(path):
    """Sentences about the notebook at ``path``; an empty list when there is nothing to mend.

    Chapters from 01 on must have the whole frame (length, figures, exercises, headings); others just the cell rules.
    """
    path = pathlib.Path(path)
    notebook = nbformat.read(path, as_version=4)
    found = [text for number, cell in enumerate(notebook.cells, 1) for text in _cell(number, cell, path.parent)]
    found += _compared(notebook)
    if re.match(r"(?!00)\d\d_", path.name):
        found += _frame(notebook, path)
    if re.match(r"[A-Z]_", path.name):
        found += _appendix(notebook)
    return found


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def pictures(cell):
    """(mime type, alt text) of the pictures among a code cell's outputs."""
    for output in cell.get("outputs", []):
        for mime in output.get("data", {}):
            if mime.startswith("image/"):
                yield mime, output.get("metadata", {}).get(mime, {}).get("alt", "")


def _cell(number, cell, folder):
    if cell.cell_type == "markdown":
        yield from _markdown(number, cell, folder)
    elif cell.cell_type == "code":
        yield from _code(number, cell)


def _markdown(number, cell, folder):
    for alt, _ in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", cell.source):
        if not alt.strip():
            yield f"cell {number}: a picture without alt text"
    for img in re.findall(r"<img\b[^>]*>", cell.source):
        if not re.search(r'\balt="[^"]+"', img):
            yield f"cell {number}: a picture without alt text"
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", cell.source):
        if ":" not in target and not (folder / target).exists() and target not in _to_come(folder):
            yield f"cell {number}: the link to {target} leads nowhere"


def _to_come(folder):
    """Files of the chapters after the last one that is written: a link may point ahead to them, and to no other."""
    written = [number for number, name in enumerate(MAIN_LINE) if (folder / f"{name}.ipynb").exists()]
    return [f"{name}.ipynb" for name in (*MAIN_LINE[max(written, default=-1) + 1 :], *APPENDICES)]


def _code(number, cell):
    if not cell.source.strip():
        yield f"cell {number}: an empty code cell; delete it"
        return
    if cell.execution_count is None:
        yield f"cell {number}: not executed; run notebooks/tools/execute.py"
    lines = len(cell.source.splitlines())
    if lines > 20:
        yield f"cell {number}: {lines} lines of code; split it (20 at most)"
    widest = max(map(len, cell.source.splitlines()))
    if widest > WIDEST:
        yield f"cell {number}: a line of {widest} characters; pages have room for {WIDEST}"
    for output in cell.outputs:
        if output.get("name") == "stderr":
            yield f"cell {number}: wrote to stderr: {output.text.strip()[:80]!r}"
        if output.output_type == "error" and not tags(cell) & {"raises-exception", "nbval-raises-exception"}:
            yield f"cell {number}: raised {output.ename}"
        # a path in a picture's bytes would be chance, and base64 has slashes of its own
        texts = [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if "image/" not in k]
        texts += output.get("traceback", [])
        for text in texts:
            leak = MACHINE_PATH.search(re.sub(r"base64,[\w+/=]+", "", str(text)))
            if leak:
                yield f"cell {number}: a path of this machine in its output ({leak.group()}...)"
    for mime, alt in pictures(cell):
        if not str(alt).strip():
            yield f"cell {number}: {mime} without alt text; show it with course.figures.show"
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden") is True and cell.metadata.get("_kg_hide-input") is True
    if any(True for _ in pictures(cell)) and "show-source" not in tags(cell) and not hidden:
        yield f"cell {number}: a cell that draws must be folded; run notebooks/tools/execute.py"
    if "solution" in tags(cell):
        folded = (
            cell.metadata.get("jupyter", {}).get("source_hidden") is True
            and cell.metadata.get("cellView") == "form"
            and cell.metadata.get("_kg_hide-input") is True
            and cell.source.startswith("#@title Solution")
        )
        if not folded:
            yield (
                f"cell {number}: a solution that is not folded everywhere; it needs jupyter.source_hidden, cellView "
                "form, _kg_hide-input and '#@title Solution' as its first line"
            )


def _compared(notebook):
    cells = code_cells(notebook)
    off = [cell for cell in cells if tags(cell) & NOT_COMPARED or "NBVAL_" in cell.source]
    if len(off) > 0.05 * len(cells):
        yield f"{len(off)} of {len(cells)} code cells are not compared; at most 5 % may be left out"


def _frame(notebook, path):
    cells = notebook.cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    if not 40 <= len(cells) <= 70:  # 55 once all chapters have their main line
        yield f"{len(cells)} cells; a chapter has 40 to 70"
    if not cells[0].source.startswith("# "):
        yield "the first cell is no title"
    for meaning, words in FRAME.items():
        if not re.search(words, text, re.IGNORECASE):
            yield f"{meaning} is missing: nothing like {words!r} in the text"
    number = int(path.name[:2])
    for other in (number - 1, number + 1):
        there = other <= 9 or any(path.parent.glob(f"{other}_*.ipynb"))
        if there and not re.search(rf"\]\({other:02}_\w+\.ipynb", text):
            yield f"no link to chapter {other:02}"
    drawn = [number for number, cell in enumerate(cells, 1) if any(True for _ in pictures(cell))]
    if len(drawn) < 4 or drawn[0] > 10:
        yield f"figures in cells {drawn}; at least four, the first within ten cells"
    solutions = [cell for cell in cells if "solution" in tags(cell)]
    marks = re.findall(r"●○○|●●○|●●●", text)
    if len(solutions) < 3 or len(marks) < 3:
        yield f"{len(marks)} exercises with a difficulty (●○○ to ●●●), {len(solutions)} solutions; at least three each"


def _appendix(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if not notebook.cells[0].source.startswith("# "):
        yield "the first cell is no title"
    if not re.search(r"\]\(\d\d_\w+\.ipynb", notebook.cells[0].source):
        yield "no link in the first cell to the chapter that an appendix belongs to"
    if not re.search(FRAME["the references"], text, re.IGNORECASE):
        yield "the references are missing"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=chapter_path, metavar="NOTEBOOK", help=f"such as {EXAMPLE}")
    bad = 0
    for path in parser.parse_args(arguments).notebooks:
        for problem in problems(path):
            bad += 1
            print(f"{path}: {problem}")
    sys.exit(f"{bad} to mend" if bad else 0)


if __name__ == "__main__":
    main()
