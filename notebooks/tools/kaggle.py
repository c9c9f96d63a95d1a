"""Write one self-contained notebook per chapter for Kaggle and Colab, or push them to Kaggle.

    python notebooks/tools/kaggle.py                 writes build/kaggle/<chapter>/<chapter>.ipynb and kernel-metadata.json
    python notebooks/tools/kaggle.py --push [01 02]  hands them to the Kaggle CLI (all, or those chapters)

A written notebook begins with one folded cell that holds the sources of adamlib and course as they are, the digits and
the recorded benchmarks, and writes them beside itself, where a reader can open them. Nothing is installed or downloaded, so it runs
with the internet switched off; the same file opens in Colab. Pushing needs KAGGLE_USERNAME and the `kaggle` command;
writing does not.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "kaggle"
USES_GPU = {"05_fused_cuda", "06_capturable"}  # the others have nothing to do on one
CARRIED = ("adamlib", "notebooks/course", "notebooks/recorded")
NOBODY = "your-kaggle-name"  # stands in the metadata until a name is known; Kaggle refuses it
FOLDED = {"cellView": "form", "_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["adamlib"],
          "slideshow": {"slide_type": "skip"}}  # fmt: skip
UNPACK = '''
import base64, pathlib, sys, tempfile

try:  # beside the notebook, where you can open the files
    home = pathlib.Path.cwd()
    (home / "adamlib").mkdir(exist_ok=True)
except OSError:  # a folder that cannot be written to
    home = pathlib.Path(tempfile.mkdtemp())
for name, content in FILES.items():
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b85decode(content) if path.suffix == ".npz" else content.encode())
sys.path.insert(0, str(home))
'''


def package_files():
    """{path: text} of adamlib, course and the recorded benchmarks, binary files in base85.

    Raises ValueError for a source that cannot be quoted.
    """
    files = {}
    for path in sorted(path for folder in CARRIED for path in (ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix().removeprefix("notebooks/")
        if path.suffix in (".py", ".md", ".json", ".html"):
            files[name] = path.read_text()
            if "'''" in files[name] or files[name].endswith("\\"):
                raise ValueError(f"{name}: ''' or a closing backslash cannot stand in the folded cell; write it otherwise")
        elif path.suffix == ".npz":
            files[name] = base64.b85encode(path.read_bytes()).decode()
    return files


def unpacking_cell(files):
    """The folded cell: every source readable between r-triple quotes, then the lines that write them."""
    quoted = "\n".join(f"    {name!r}: r'''{text}'''," for name, text in files.items())
    source = f"#@title adamlib, the package this chapter imports: run this cell first\nFILES = {{\n{quoted}\n}}\n{UNPACK}"
    cell = nbformat.v4.new_code_cell(source.rstrip(), id="adamlib-sources", metadata=FOLDED)
    cell.execution_count = 0
    return cell


def self_contained(path, files):
    """The chapter as a notebook that needs no other file; links to other chapters become plain titles."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[([^\]]*)\]\((?:\w+\.ipynb|README\.md)[^)]*\)", r"*\1*", cell.source)
    notebook.cells.insert(0, unpacking_cell(files))
    return notebook


def kernel_metadata(chapter, title, user):
    """What `kaggle kernels push` reads (kaggle-cli, documentation of kernel-metadata.json)."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")  # Kaggle makes its address from the title
    return {
        "id": f"{user}/{slug}", "title": title, "code_file": f"{chapter}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": chapter in USES_GPU, "enable_internet": False,
        "dataset_sources": [], "competition_sources": [], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip


def build(notebooks=ROOT / "notebooks", out=BUILD, user=None):
    """Write every chapter below ``out`` and return the folders."""
    files = package_files()
    shutil.rmtree(out, ignore_errors=True)
    folders = []
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        folder = out / path.stem
        folder.mkdir(parents=True)
        nbformat.write(self_contained(path, files), folder / path.name)
        number, _, name = path.stem.partition("_")
        metadata = kernel_metadata(path.stem, f"Adam {number} {name.replace('_', ' ')}", user or NOBODY)
        (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        folders.append(folder)
    return folders


def push(folders):
    if shutil.which("kaggle") is None:
        sys.exit("The kaggle command is missing: pip install kaggle, then put your API token where it asks for it.")
    for folder in folders:
        print(f"pushing {folder.name}", flush=True)
        subprocess.run(["kaggle", "kernels", "push", "-p", str(folder)], check=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    parser.add_argument("--push", nargs="*", metavar="NN", help="hand them to the Kaggle CLI: all, or these chapters")
    wanted = parser.parse_args(arguments).push
    if unknown := sorted({*(wanted or ())} - {*numbers}):
        parser.error(f"there is no chapter {', '.join(unknown)}: name some of {' '.join(numbers)}")
    user = os.environ.get("KAGGLE_USERNAME")
    if wanted is not None and not user:
        sys.exit("Pushing needs your Kaggle name: KAGGLE_USERNAME=your-name python notebooks/tools/kaggle.py --push")
    folders = build(user=user)
    for folder in folders:
        size = (folder / f"{folder.name}.ipynb").stat().st_size
        print(f"{folder.relative_to(ROOT)}  {size / 1e6:.2f} MB")
    if wanted is not None:
        push([folder for folder in folders if not wanted or folder.name[:2] in wanted])


if __name__ == "__main__":
    main()
