"""The exported notebooks: self-contained, and each runs alone in an empty folder without network."""
import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import class_kit  # noqa: E402
import kaggle  # noqa: E402
from series import MAIN_LINE, chapters  # noqa: E402

CHAPTERS = [path.stem for path in chapters()]
# Run alone in `make test`, one for each thing that a file needs and a clone has, and only as far as the first cell with
# it, as nbval runs the whole chapter: the package, the data and a figure; the kernel in Triton's interpreter; the recorded
# benchmarks; processes of its own. ADAM_FILES=all runs every file to its end, as the workflow does.
NEEDS = {
    "00_start_here": "figures.show(", "05_fused_cuda": 'fused="triton"', "08_in_practice": "course.RECORDED",
    "E_many_machines": "two_processes.launch(",
}  # fmt: skip
ALONE = dict.fromkeys(CHAPTERS) if os.environ.get("ADAM_FILES") == "all" else {k: v for k, v in NEEDS.items() if k in CHAPTERS}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folders = kaggle.build(out=tmp_path_factory.mktemp("kaggle"), user="somebody")
    return {folder.name: folder for folder in folders}


def alone(folder, writable=True):
    """The words that start a command without network, that may write to `folder` but not to the folder above it
    (with writable=False to neither), where this machine allows such namespaces."""
    inside = [sys.executable, "-c", NAMESPACE, str(folder), "rw" if writable else "ro"]
    start = ["unshare", "--map-root-user", "--net", "--mount", *inside]
    allowed = shutil.which("unshare") and subprocess.run([*start, "true"], capture_output=True).returncode == 0
    return start if allowed else []


# A new network namespace lacks even the loopback, which every machine has and processes need to talk to each other.
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


@pytest.mark.parametrize("chapter", ALONE)
def test_runs_alone_in_an_empty_folder_without_network(built, chapter, tmp_path, monkeypatch):
    tmp_path = tmp_path / "empty"  # the folder above it is read-only
    tmp_path.mkdir()
    notebook = nbformat.read(built[chapter] / f"{chapter}.ipynb", as_version=4)
    if ALONE[chapter]:
        is_code = [cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []) for cell in notebook.cells]
        first = next(i for i, cell in enumerate(notebook.cells) if is_code[i] and ALONE[chapter] in cell.source)
        del notebook.cells[first + 1 :]
    source = "import adamlib, pathlib\nassert pathlib.Path(adamlib.__file__).parents[1] == pathlib.Path.cwd()"
    notebook.cells.append(nbformat.v4.new_code_cell(source))  # not the package of this repository
    nbformat.write(notebook, tmp_path / f"{chapter}.ipynb")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = subprocess.run(
        [*alone(tmp_path), sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "done",
         "--KernelManager.transport=ipc", "--ExecutePreprocessor.timeout=600", f"{chapter}.ipynb"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    done = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    warned = [out.text for cell in done.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]
    assert not warned


def unpacking(built):
    """The cell that unpacks, of chapter 00."""
    notebook = nbformat.read(built["00_start_here"] / "00_start_here.ipynb", as_version=4)
    assert notebook.cells[0].source.startswith("# "), "the title comes first"
    return next(cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", []))


def unpack_in(folder, built, more=""):
    code = "import sys; exec(sys.stdin.read())"
    source = unpacking(built).source + more
    return subprocess.run([sys.executable, "-c", code], input=source, cwd=folder, capture_output=True, text=True)


def test_what_a_reader_changed_is_kept_and_the_cell_says_so(built, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert unpack_in(tmp_path, built).stdout == ""
    changed = tmp_path / "course" / "data.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\nMINE = 1\n", encoding="utf-8")
    again = unpack_in(tmp_path, built)
    assert again.stdout.startswith("course/data.py differs from the file in this cell and stays as it is")
    assert "MINE = 1" in changed.read_text(encoding="utf-8")


def test_another_adamlib_that_was_imported_before_is_refused_by_the_cell(built, tmp_path):
    other = tmp_path / "elsewhere" / "adamlib"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("", encoding="utf-8")
    source = f"import sys; sys.path.insert(0, {str(other.parent)!r}); import adamlib\n" + unpacking(built).source
    run = subprocess.run([sys.executable, "-"], input=source, cwd=tmp_path, capture_output=True, text=True)
    assert "Another package named adamlib was imported before: restart the kernel" in run.stderr


def test_unpacks_elsewhere_where_its_own_folder_is_read_only(built, tmp_path, monkeypatch):
    inside = alone(tmp_path, writable=False)
    if not inside:
        pytest.skip("needs mount namespaces: a user who may make them, on Linux")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cell = unpacking(built)
    source = cell.source + "\nimport adamlib\nprint(pathlib.Path(adamlib.__file__).parents[1] == home != pathlib.Path.cwd())"
    run = subprocess.run([*inside, sys.executable, "-c", "import sys; exec(sys.stdin.read())"], input=source, cwd=tmp_path,
                         capture_output=True, text=True)  # fmt: skip
    assert (run.stdout, run.stderr) == ("True\n", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_metadata_is_what_the_kaggle_cli_reads(built, chapter):
    metadata = json.loads((built[chapter] / "kernel-metadata.json").read_text(encoding="utf-8"))
    assert metadata["id"] == "somebody/" + metadata["title"].lower().replace(" ", "-")
    assert (built[chapter] / metadata["code_file"]).is_file()
    assert metadata["enable_internet"] is False
    assert metadata["enable_gpu"] is (chapter in kaggle.USE_GPU)
    assert metadata.get("machine_shape") == ("NvidiaTeslaT4" if chapter in kaggle.USE_GPU else None)
    inside = nbformat.read(built[chapter] / f"{chapter}.ipynb", as_version=4).metadata
    assert inside.get("accelerator") == ("GPU" if chapter in kaggle.USE_GPU else None)
    assert (metadata["kernel_type"], metadata["language"]) == ("notebook", "python")


def test_carried_sources_are_the_package_and_readable(built):
    cell = unpacking(built)
    assert cell.metadata["cellView"] == "form" and cell.metadata["_kg_hide-input"]
    names: dict = {}
    exec(cell.source.rpartition("\nimport base64, importlib")[0], names)
    for above, folder in ((ROOT, "adamlib"), (ROOT / "notebooks", "course"), (ROOT / "notebooks", "recorded")):
        for path in [*(above / folder).rglob("*.py"), *(above / folder).glob("*.json")]:
            assert names["FILES"][path.relative_to(above).as_posix()] == path.read_text(encoding="utf-8")
            assert path.read_text(encoding="utf-8").strip() in cell.source  # as it is, not escaped


def test_no_link_leads_out_of_the_file(built):
    for chapter, folder in built.items():
        for cell in nbformat.read(folder / f"{chapter}.ipynb", as_version=4).cells:
            assert cell.cell_type != "markdown" or not re.search(r"\]\((?!https?:)[^)]*\.ipynb", cell.source)


def test_pushing_needs_a_name_and_building_does_not(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    with pytest.raises(SystemExit, match="KAGGLE_USERNAME=your-name"):
        kaggle.main(["--push"])
    for wrong, said in ((["--publish"], "--publish"), (["--push", "01", "17"], "there is no chapter 17: name some of 00")):
        with pytest.raises(SystemExit):
            kaggle.main(wrong)
        assert said in capsys.readouterr().err
    folders = kaggle.build(out=tmp_path)
    assert kaggle.NOBODY in (folders[0] / "kernel-metadata.json").read_text(encoding="utf-8")


def test_a_push_that_kaggle_refuses_is_noticed(monkeypatch, tmp_path, capsys):
    """The CLI prints the refusal and exits with 0."""
    command = tmp_path / "kaggle"
    command.write_text('#!/bin/sh\ncase "$4" in *02*) echo "Kernel push error: Maximum batch GPU session count";; '
                       '*) echo "Kernel version 1 successfully pushed.";; esac\n', encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SystemExit, match="Kaggle refused 02_the_step_bound .*--push 02"):
        kaggle.push([tmp_path / "01_the_math", tmp_path / "02_the_step_bound"])
    assert "01_the_math: Kernel version 1" in capsys.readouterr().out


def test_writing_needs_pythons_standard_library_alone():
    """So that who has no environment can make the files: python -S sees no installed package."""
    code = "import sys; sys.path.insert(0, 'notebooks/tools'); import kaggle; print(len(kaggle.package_files()) > 20)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_source_that_cannot_be_quoted_is_refused(monkeypatch, tmp_path):
    (tmp_path / "adamlib").mkdir()
    (tmp_path / "adamlib" / "bad.py").write_text("x = '''text'''\n", encoding="utf-8")
    monkeypatch.setattr(kaggle, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="adamlib/bad.py"):
        kaggle.package_files()


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    class_kit.build(folder)
    return folder


def names(sources):
    """The names that these cells define, those that they bind anywhere, and those that they read."""
    defined, bound, read = set(), set(), set()
    for node in [node for source in sources for node in ast.walk(ast.parse(source))]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    return defined, bound | defined, read


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_students_get_every_exercise_and_nothing_that_answers_it(kit, chapter):
    ours = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    handed_out = nbformat.read(kit / "students" / f"{chapter}.ipynb", as_version=4).cells
    solutions = [cell.source for cell in ours if "solution" in cell.metadata.get("tags", [])]
    assert solutions or chapter not in MAIN_LINE
    kept = [cell.source for cell in handed_out if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", [])]
    assert kept == [c.source for c in ours if c.cell_type == "code" and not {"setup", "solution"} & {*c.metadata.get("tags", [])}]
    assert not any(cell.get("outputs") or "speaker" in cell.metadata for cell in handed_out)
    assert not any(re.search(r"\]\((?!https?:|#|mailto:)", c.source) for c in handed_out if c.cell_type == "markdown")
    _, bound, read = names(kept)
    assert not (names(solutions)[0] - bound) & read, "a cell needs what a solution defines"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_lecturer_gets_solutions_outputs_and_remarks(kit, chapter):
    ours = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    cells = nbformat.read(kit / "lecturer" / f"{chapter}.ipynb", as_version=4).cells
    remarks = [cell for cell in cells if cell.source.startswith("> **To the lecturer.**")]
    assert len(remarks) == sum("speaker" in cell.metadata for cell in ours) and len(cells) == len(ours) + len(remarks)
    assert sum(bool(cell.get("outputs")) for cell in cells) == sum(bool(cell.get("outputs")) for cell in ours)


def test_the_class_kit_says_how_to_open_it_and_needs_nothing_else(kit):
    listed = (kit / "students" / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert "jupyterlab" in listed and any(line.startswith("torch>=") for line in listed)
    assert (kit / "students" / "LICENSE").is_file() and "Colab" in (kit / "students" / "README.md").read_text(encoding="utf-8")


def test_the_class_kit_takes_no_arguments(capsys):
    with pytest.raises(SystemExit):
        class_kit.main(["chapter"])
    assert "unrecognized arguments: chapter" in capsys.readouterr().err
