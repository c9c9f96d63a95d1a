"""The exported notebooks: self-contained, and each runs alone in an empty folder without network."""

import json
import os
import re
import shutil
import subprocess
import sys

import kaggle
import nbformat
import pytest
from cells import code, read
from nbformat.v4 import new_notebook
from series import NOTEBOOKS, ROOT, chapters

CHAPTERS = [path.stem for path in chapters()]
# What a file needs and a clone has: the kernel in Triton's interpreter; the data and a figure; the recorded benchmarks;
# processes of its own; the package, but not the one of this repository. `make test` runs one notebook with the cell that
# unpacks, those of three files as far as the first one with these words, and LAST, as nbval runs the whole chapters.
# ADAM_FILES=all runs every file to its end, as the workflow does.
NEEDS = {"05_fused_cuda": 'fused="triton"', "00_start_here": "figures.show(", "08_in_practice": "course.RECORDED"}
LAST = """import adamlib, pathlib
from course import two_processes
assert len(two_processes.launch("ddp", steps=1)) == 2
assert pathlib.Path(adamlib.__file__).parents[1] == pathlib.Path.cwd()"""
ALONE = CHAPTERS if os.environ.get("ADAM_FILES") == "all" else ["parts of three files"]
# A process without network that may write to a folder and not to the folder above it. A new network namespace lacks
# even the loopback, which every machine has and processes need to talk to each other.
NAMESPACE = """
import fcntl, os, pathlib, socket, struct, subprocess, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
folder, mode, *command = sys.argv[1:]
above = str(pathlib.Path(folder).parent)
for path in (above, folder):  # mounts of their own, so that one can be read-only and the other not
    subprocess.run(["mount", "--bind", path, path], check=True)
for path in [above] + [folder] * (mode == "ro"):
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
os.chdir(folder)
os.execvp(command[0], command)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """{chapter: its folder for Kaggle}."""
    folders = kaggle.build(out=tmp_path_factory.mktemp("kaggle"), user="somebody")
    return {folder.name: folder for folder in folders}


def file_in(folder):
    return read(folder / f"{folder.name}.ipynb")


def code_of(folder):
    """The code cells of a file: the one that unpacks, the others."""
    cells = [cell for cell in file_in(folder).cells if cell.cell_type == "code"]
    (setup,) = (cell for cell in cells if "setup" in cell.metadata.get("tags", []))
    cells.remove(setup)
    return setup, cells


@pytest.fixture
def unpacking(built, monkeypatch):
    """The cell that unpacks, the same in every file."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cells = [code_of(folder)[0] for folder in built.values()]
    assert len({cell.source for cell in cells}) == 1
    return cells[0]


def alone(folder, writable=True):
    """The words that start a command without network, that may write to `folder` but not to the folder above it
    (with writable=False to neither), where this machine allows such namespaces."""
    inside = [sys.executable, "-c", NAMESPACE, str(folder), "rw" if writable else "ro"]
    start = ["unshare", "--map-root-user", "--net", "--mount", *inside]
    allowed = shutil.which("unshare") and subprocess.run([*start, "true"], capture_output=True).returncode == 0
    return start if allowed else []


@pytest.mark.parametrize("chapter", ALONE)
def test_runs_alone_in_an_empty_folder_without_network(built, unpacking, chapter, tmp_path):
    if chapter in built:
        cells = code_of(built[chapter])[1]
    else:
        cells = []
        for name, words in NEEDS.items():
            its_own = code_of(built[name])[1]
            first = next(i for i, cell in enumerate(its_own) if words in cell.source)
            cells += its_own[: first + 1]
    folder = tmp_path / "empty"  # the folder above it is read-only
    folder.mkdir()
    sources = [unpacking.source, *(cell.source for cell in cells), LAST]
    nbformat.write(new_notebook(cells=list(map(code, sources))), folder / "file.ipynb")
    options = ["--to", "notebook", "--execute", "--output", "done", "--KernelManager.transport=ipc"]
    command = [sys.executable, "-m", "nbconvert", *options, "--ExecutePreprocessor.timeout=600", "file.ipynb"]
    run = subprocess.run([*alone(folder), *command], cwd=folder, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr[-3000:]
    outputs = [output for cell in read(folder / "done.ipynb").cells for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def run_in(folder, source, inside=()):
    command = [*inside, sys.executable, "-c", "import sys; exec(sys.stdin.read())"]
    return subprocess.run(command, input=source, cwd=folder, capture_output=True, encoding="utf-8")


def test_what_a_reader_changed_is_kept_and_the_cell_says_so(unpacking, tmp_path):
    assert run_in(tmp_path, unpacking.source).stdout == ""
    changed = tmp_path / "course" / "data.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\nMINE = 1\n", encoding="utf-8")
    again = run_in(tmp_path, unpacking.source)
    assert again.stdout.startswith("course/data.py differs from the file in this cell and stays as it is")
    assert "MINE = 1" in changed.read_text(encoding="utf-8")


def test_another_adamlib_that_was_imported_before_is_refused_by_the_cell(unpacking, tmp_path):
    other = tmp_path / "elsewhere" / "adamlib"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("", encoding="utf-8")
    before = f"import sys; sys.path.insert(0, {str(other.parent)!r}); import adamlib\n"
    run = run_in(tmp_path, before + unpacking.source)
    assert "Another package named adamlib was imported before: restart the kernel" in run.stderr


def test_unpacks_elsewhere_where_its_own_folder_is_read_only(unpacking, tmp_path):
    inside = alone(tmp_path, writable=False)
    if not inside:
        pytest.skip("needs mount namespaces: a user who may make them, on Linux")
    seen = "\nimport adamlib\nprint(pathlib.Path(adamlib.__file__).parents[1] == home != pathlib.Path.cwd())"
    run = run_in(tmp_path, unpacking.source + seen, inside)
    assert (run.stdout, run.stderr) == ("True\n", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_file_is_whole_and_its_metadata_is_what_the_kaggle_cli_reads(built, chapter):
    file = file_in(built[chapter])
    assert file.cells[0].source.startswith("# "), "the title comes first"
    texts = [cell.source for cell in file.cells if cell.cell_type == "markdown"]
    assert not [link for text in texts for link in re.findall(r"\]\((?!https?:|#|mailto:).*?\)", text)]
    metadata = json.loads((built[chapter] / "kernel-metadata.json").read_text(encoding="utf-8"))
    gpu = chapter in kaggle.USE_GPU
    assert metadata["id"] == "somebody/" + metadata["title"].lower().replace(" ", "-")
    assert (built[chapter] / metadata["code_file"]).is_file()
    assert metadata["enable_internet"] is False and metadata["enable_gpu"] is gpu
    assert metadata.get("machine_shape") == ("NvidiaTeslaT4" if gpu else None)
    assert file.metadata.get("accelerator") == ("GPU" if gpu else None)
    assert (metadata["kernel_type"], metadata["language"]) == ("notebook", "python")


def test_carried_sources_are_the_package_and_readable(unpacking):
    assert unpacking.metadata["cellView"] == "form" and unpacking.metadata["_kg_hide-input"]
    for path in [*ROOT.glob("adamlib/**/*.py"), *NOTEBOOKS.glob("course/**/*.py"), *NOTEBOOKS.glob("recorded/*.json")]:
        name = path.relative_to(ROOT).as_posix().removeprefix("notebooks/")
        text = path.read_text(encoding="utf-8")
        assert f"{name!r}: r'''{text}''',\n" in unpacking.source  # as it is, not escaped


def test_pushing_needs_a_name_and_building_does_not(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    with pytest.raises(SystemExit, match="KAGGLE_USERNAME=your-name"):
        kaggle.main(["--push"])
    with pytest.raises(SystemExit):
        kaggle.main(["--push", "01", "17"])
    assert "there is no chapter 17: name some of 00" in capsys.readouterr().err
    folders = kaggle.build(out=tmp_path)
    assert kaggle.NOBODY in (folders[0] / "kernel-metadata.json").read_text(encoding="utf-8")


def test_a_push_that_kaggle_refuses_is_noticed(monkeypatch, tmp_path, capsys):
    """The CLI prints the refusal and exits with 0."""
    command = tmp_path / "kaggle"
    refused, pushed = "Kernel push error: Maximum batch GPU session count", "Kernel version 1 successfully pushed."
    script = f'#!/bin/sh\ncase "$4" in *02*) echo "{refused}";; *) echo "{pushed}";; esac\n'
    command.write_text(script, encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SystemExit, match="Kaggle refused 02_the_step_bound .*--push 02"):
        kaggle.push([tmp_path / "01_the_math", tmp_path / "02_the_step_bound"])
    assert "01_the_math: Kernel version 1" in capsys.readouterr().out


def test_writing_needs_pythons_standard_library_alone():
    """So that who has no environment can make the files: python -S sees no installed package."""
    code = "import sys; sys.path.insert(0, 'notebooks/tools'); import kaggle; print(len(kaggle.package_files()) > 20)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stdout == "True\n", done.stderr


def test_a_source_that_cannot_be_quoted_is_refused(monkeypatch, tmp_path):
    (tmp_path / "adamlib").mkdir()
    (tmp_path / "adamlib" / "bad.py").write_text("x = '''text'''\n", encoding="utf-8")
    monkeypatch.setattr(kaggle, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="adamlib/bad.py"):
        kaggle.package_files()
