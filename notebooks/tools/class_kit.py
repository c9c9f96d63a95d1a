"""Write what a lecturer takes to class: build/class/.

    python notebooks/tools/class_kit.py

    students/   the chapters without solutions, outputs and remarks, each file alone enough for Colab, Kaggle and a laptop;
                with README, requirements.txt and LICENSE: zip the folder and hand it out
    lecturer/   the same files with outputs, solutions and the remarks that stand behind a question

The files carry adamlib, course and the digits as those for Kaggle do (tools/kaggle.py). Python is all that this needs.
"""

import argparse
import json
import re
import shutil
import sys

from kaggle import package_files, self_contained
from series import BUILD as BUILDS
from series import ROOT, chapters

BUILD = BUILDS / "class"
README = """# Adam, in every variant: the notebooks of the class

Each notebook is complete: it carries the packages it imports and the data. Begin with 00_start_here.ipynb.

* Colab: File, Upload notebook.
* Kaggle: Create, New Notebook, then File, Import Notebook. The internet may stay off.
* A laptop (Linux, macOS, Windows; Python 3.10 or newer; 2 GB on the disk, more where pip brings torch with CUDA):

      python -m pip install -r requirements.txt
      jupyter lab

The first code cell, folded, unpacks what the chapter imports, beside the notebook. Run it first. An exercise is a
function with `...` in it; the cell below it checks what you wrote, and says what is wrong.

Code: MIT. Text and figures: CC BY 4.0. The digits: E. Alpaydin and C. Kaynak, UCI, CC BY 4.0. (LICENSE)
"""
PACKAGES = ("torch", "numpy", "matplotlib", "triton")  # and what opens notebooks


def for_students(notebook):
    """A self-contained chapter (a dict, as in the file) less its solutions and outputs."""
    cells = [cell for cell in notebook["cells"] if "solution" not in cell["metadata"].get("tags", [])]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return {**notebook, "cells": cells}


def for_the_lecturer(notebook):
    """The chapter with each remark in a cell of its own, before the cell that it belongs to."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        if remark := cell["metadata"].pop("speaker", None):
            text = "> **To the lecturer.** " + remark.replace("\n", "\n> ")
            cells.append({"cell_type": "markdown", "id": f"remark-{number}", "metadata": {}, "source": text})
        cells.append(cell)
    return {**notebook, "cells": cells}


def requirements():
    """The text of requirements.txt: the packages of pyproject.toml's floors, and what opens notebooks."""
    listed = re.findall(r'"((?:%s)\b[^"]*)"' % "|".join(PACKAGES), (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return "\n".join([*dict.fromkeys(listed), "jupyterlab", "ipykernel"]) + "\n"


def build(out=BUILD):
    """Write both folders below `out`; returns the number of chapters."""
    originals = chapters(ROOT / "notebooks")
    if not originals:
        sys.exit("no chapters in notebooks/: is this a complete clone?")
    shutil.rmtree(out, ignore_errors=True)
    files = package_files()
    for name, made, remarks in (("students", for_students, False), ("lecturer", for_the_lecturer, True)):
        (out / name).mkdir(parents=True)
        for path in originals:
            text = json.dumps(made(self_contained(path, files, remarks=remarks)), indent=1, ensure_ascii=False)
            (out / name / path.name).write_text(text + "\n", encoding="utf-8")
    (out / "students" / "README.md").write_text(README, encoding="utf-8")
    (out / "students" / "requirements.txt").write_text(requirements(), encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out / "students")
    return len(originals)


def main(arguments=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(arguments)
    print(f"build/class has {build()} chapters: students/ to hand out, lecturer/ for you")


if __name__ == "__main__":
    main()
