"""Write one self-contained notebook per chapter for Kaggle and Colab, or push them to Kaggle.

    python notebooks/tools/kaggle.py                 writes build/kaggle/<chapter>/<chapter>.ipynb and kernel-metadata.json
    python notebooks/tools/kaggle.py --push [01 02]  hands them to the Kaggle CLI (all, or those chapters)

Python's standard library is all that writing needs, on any system. A written notebook has one folded cell in the place
of the setup cell. It holds the sources of adamlib and course as they are, the digits and the recorded benchmarks, and
writes them beside the notebook, where a reader can open and change them: what was changed stays. Nothing is installed
or downloaded, so it runs with the internet switched off; the same file opens in Colab. Pushing needs KAGGLE_USERNAME and
the `kaggle` command.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys

from series import BUILD as BUILDS
from series import ROOT, chapters

BUILD = BUILDS / "kaggle"
USE_GPU = {"05_fused_cuda", "06_capturable"}  # the others have nothing to do on one
CARRIED = ("adamlib", "notebooks/course", "notebooks/recorded")
NOBODY = "your-kaggle-name"  # stands in the metadata until a name is known; Kaggle refuses it
FOLDED = {"cellView": "form", "_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["setup"]}
UNPACK = '''
import base64, importlib.util, pathlib, sys, tempfile

try:  # beside the notebook, where you can open the files
    home = pathlib.Path.cwd()
    (home / "adamlib").mkdir(exist_ok=True)
except OSError:  # a folder that cannot be written to
    home = pathlib.Path(tempfile.mkdtemp())
for name, text in FILES.items():
    path, content = home / name, base64.b85decode(text) if name.endswith(".npz") else text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() != content:
        print(f"{name} differs from the file in this cell and stays as it is; delete it to get that one")
    else:
        path.write_bytes(content)
sys.path.insert(0, str(home))
import course
before = getattr(sys.modules.get("adamlib"), "__file__", None)  # not imported here: 05 must set up Triton first
if before and pathlib.Path(before).parents[1] != home:
    raise ImportError("Another package named adamlib was imported before: restart the kernel, run this cell first.")
'''


def package_files():
    """{path: text} of adamlib, course and the recorded benchmarks, binary files in base85.

    Raises ValueError for a source that cannot be quoted.
    """
    files = {}
    for path in sorted(path for folder in CARRIED for path in (ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix().removeprefix("notebooks/")
        if path.suffix in (".py", ".md", ".json", ".html"):
            files[name] = path.read_text(encoding="utf-8")
            if "'''" in files[name] or files[name].endswith("\\"):
                raise ValueError(f"{name}: ''' or a closing backslash cannot stand in the folded cell; write it otherwise")
        elif path.suffix == ".npz":
            files[name] = base64.b85encode(path.read_bytes()).decode()
    return files


def unpacking_cell(files, number):
    """The folded cell: every source readable between r-triple quotes, then the lines that write them."""
    quoted = "\n".join(f"    {name!r}: r'''{text}'''," for name, text in files.items())
    source = f"#@title adamlib and course, which this chapter imports: run this cell first\nFILES = {{\n{quoted}\n}}\n{UNPACK}"
    return {"cell_type": "code", "id": "adamlib-sources", "metadata": FOLDED, "execution_count": number, "outputs": [],
            "source": source.rstrip()}


def self_contained(path, files, opening="", remarks=False):
    """The chapter (a dict, as in the file) so that it needs no other file; links to other chapters become plain titles.

    `opening`: a line of Markdown to stand under its title; `remarks`: those to the lecturer stay in the metadata.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook["cells"]):
        cell["source"] = "".join(cell["source"])
        if not remarks:
            cell["metadata"].pop("speaker", None)
        if cell["cell_type"] == "markdown":
            cell["source"] = re.sub(r"\[([^\]]*)\]\((?:\w+\.ipynb|README\.md)[^)]*\)", r"*\1*", cell["source"])
        if "setup" in cell["metadata"].get("tags", []):
            notebook["cells"][number] = unpacking_cell(files, cell["execution_count"])
    notebook["cells"][0]["source"] = opened(notebook["cells"][0]["source"], opening)
    if path.stem in USE_GPU:  # asked for where the file is imported by hand, too: Colab's and Kaggle's words
        notebook["metadata"] |= {
            "accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []},
            "kaggle": {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": False,
                       "language": "python", "sourceType": "notebook"},
        }  # fmt: skip
    return notebook


def opened(text, opening):
    """A chapter's first cell with a line under its title."""
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{opening}\n\n{rest}" if opening else text


def kernel_metadata(chapter, title, user):
    """What `kaggle kernels push` reads (kaggle-cli, documentation of kernel-metadata.json)."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")  # Kaggle makes its address from the title
    metadata = {
        "id": f"{user}/{slug}", "title": title, "code_file": f"{chapter}.ipynb", "language": "python",
        "kernel_type": "notebook", "is_private": True, "enable_gpu": chapter in USE_GPU, "enable_internet": False,
        "dataset_sources": [], "competition_sources": [], "kernel_sources": [], "model_sources": [],
    }  # fmt: skip
    if chapter in USE_GPU:  # the default GPU, a P100, is too old for the kernels of Kaggle's torch
        metadata["machine_shape"] = "NvidiaTeslaT4"
    return metadata


def build(notebooks=ROOT / "notebooks", out=BUILD, user=None, opening=None):
    """Write every chapter below ``out`` and return the folders. `opening`: {chapter: a line under its title}."""
    files = package_files()
    shutil.rmtree(out, ignore_errors=True)
    folders = []
    for path in chapters(notebooks):
        folder = out / path.stem
        folder.mkdir(parents=True)
        text = json.dumps(self_contained(path, files, (opening or {}).get(path.stem, "")), indent=1, ensure_ascii=False)
        (folder / path.name).write_text(text + "\n", encoding="utf-8")
        number, _, name = path.stem.partition("_")
        metadata = kernel_metadata(path.stem, f"Adam {number} {name.replace('_', ' ')}", user or NOBODY)
        (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        folders.append(folder)
    return folders


def push(folders):
    """Hand the folders to the Kaggle CLI, which exits with 0 also where Kaggle refuses: what it says decides."""
    if shutil.which("kaggle") is None:
        sys.exit("The kaggle command is missing: pip install kaggle, then put your API token where it asks for it.")
    refused = []
    for folder in folders:
        done = subprocess.run(["kaggle", "kernels", "push", "-p", str(folder)], capture_output=True,
                              encoding="utf-8", errors="replace")
        said = (done.stdout + done.stderr).strip()
        print(f"{folder.name}: {said}", flush=True)
        if done.returncode or "error" in said.lower():
            refused.append(folder.name)
    if refused:
        sys.exit(f"Kaggle refused {', '.join(refused)} (its reason is above); push them again: --push "
                 + " ".join(name.partition("_")[0] for name in refused))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = [path.stem.partition("_")[0] for path in chapters()]
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
        push([folder for folder in folders if not wanted or folder.name.partition("_")[0] in wanted])


if __name__ == "__main__":
    main()
