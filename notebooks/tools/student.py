"""Write the series without solutions and without outputs, to hand out in class: build/student/.

    python notebooks/tools/student.py

The cells tagged "solution" and the speaker notes are left out; a lecturer keeps the originals. adamlib, course and the
recorded benchmarks are copied beside the notebooks, so the folder is complete: zip it and hand it out.
"""

import argparse
import re
import shutil
import sys

import nbformat
from series import BUILD as BUILDS
from series import ROOT, chapters

BUILD = BUILDS / "student"


def without_solutions(notebook):
    """The notebook less its solutions, its speaker notes, all outputs and the link to the lecturer's guide."""
    notebook.cells = [
        cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])
    ]  # fmt: skip
    for cell in notebook.cells:
        cell.metadata.pop("speaker", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown":
            cell.source = re.sub(r"\[([^\]]*)\]\(README\.md[^)]*\)", r"\1", cell.source)
    return notebook


def main(arguments=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(arguments)
    notebooks = chapters(ROOT / "notebooks")
    if not notebooks:
        sys.exit("no chapters in notebooks/: is this a complete clone?")
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        before = len(notebook.cells)
        nbformat.write(without_solutions(notebook), BUILD / path.name)
        print(f"{(BUILD / path.name).relative_to(ROOT)}  {before - len(notebook.cells)} of {before} cells left out")
    for folder in ("adamlib", "notebooks/course", "notebooks/recorded"):  # chapters 05 and 08 read the last
        shutil.copytree(ROOT / folder, BUILD / folder.rpartition("/")[2], ignore=shutil.ignore_patterns("__pycache__"))


if __name__ == "__main__":
    main()
