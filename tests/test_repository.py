"""The repository keeps its word: one list of versions, floors without circles, public torch only."""

import ast
import base64
import pathlib
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from importlib.metadata import version
from importlib.util import resolve_name

import nbformat
import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import pip._vendor.tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "adamlib").rglob("*.py"))
COURSE = sorted((ROOT / "notebooks" / "course").rglob("*.py"))


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- versions


def pins():
    """The requirements under "- pip:" in environment.yml."""
    text = text_of("environment.yml").partition("- pip:")[2]
    return [Requirement(line) for line in re.findall(r"^ *- (.*?) *(?:#.*)?$", text, re.MULTILINE)]


def project():
    return tomllib.loads(text_of("pyproject.toml"))["project"]


def test_every_pin_is_exact_and_has_its_reason():
    for line in text_of("environment.yml").partition("- pip:")[2].splitlines():
        if line.strip():
            assert re.fullmatch(r' +- [\w.-]+==[\w.]+(; [\w "<>=.]+)?  # \S.*', line), line


def test_make_installs_exactly_these_pins():
    recipe = re.search(r"^\t@(sed .*) environment\.yml >", text_of("Makefile"), re.MULTILINE).group(1)
    command = recipe.replace("$$", "$") + " environment.yml"
    listed = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert [str(Requirement(line)) for line in listed.splitlines()] == [str(pin) for pin in pins()]


@pytest.mark.skipif(pathlib.Path(sys.prefix) != ROOT / ".venv", reason="not the environment that `make` installs")
def test_the_pins_are_what_is_installed():
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate():
            installed = version(pin.name).partition("+")[0]
            assert pin.specifier.contains(installed), f"{pin} is pinned, {installed} is installed"


def test_pyproject_asks_for_what_is_pinned():
    assert project()["name"] != "adamlib", "that name is somebody else's on PyPI"
    asked = [project()["dependencies"], *project()["optional-dependencies"].values()]
    asked = {one.name: one for one in map(Requirement, sum(asked, []))}
    del asked[project()["name"]]
    assert set(asked) == {pin.name for pin in pins()}, "pyproject.toml and environment.yml name other packages"
    for pin in pins():
        (exact,) = pin.specifier
        assert asked[pin.name].specifier.contains(exact.version), f"{asked[pin.name]} does not allow {pin}"


def test_ci_runs_make_test_and_the_oldest_supported_versions():
    steps = text_of(".github/workflows/ci.yml")
    python = project()["requires-python"].removeprefix(">=")
    torch = str(Requirement(project()["dependencies"][0]).specifier).removeprefix(">=")
    assert re.search(r"run: make test$", steps, re.MULTILINE)
    assert f'python: "{python}"\n            packages: "torch=={torch}.*' in steps
    assert text_of(".ci/run").rstrip().endswith("\nmake test")


def test_the_wheel_holds_adamlib_alone(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "adamlib"):  # a copy: building leaves files behind
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(build, cwd=tmp_path, check=True)
    packed = zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))).namelist()
    packed = {name for name in packed if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in MODULES}


# ----------------------------------------------------------------------------------------- who imports whom

# The floor of each room of adamlib, and what its modules may import from outside.
FLOORS = {
    "adamlib.theory": (0, {"numpy"}), "adamlib.variants": (0, {"torch", "triton"}),
    "adamlib.functional": (1, {"torch"}), "adamlib.optimizer": (2, {"torch"}), "adamlib": (3, set()),
}  # fmt: skip
# Private names of torch for which there is no public one, and why they are needed.
NEEDED = {
    "torch.utils._python_dispatch.TorchDispatchMode": "seeing every ATen call is what the op meter is for",
    "torch.utils._pytree.tree_leaves": "the tensors inside an ATen call's nested arguments",
    "torch.utils._pytree.tree_map": "the same call with other tensors in them",
    "torch._neg_view": "a captured call may have been given a view that is negated when it is read",
}
ALLOWED = re.compile(r"torch\._foreach_\w+|torch\._fused_adamw?_|torch\.__version__(\.\w+)*")


def name_of(path):
    """adamlib/theory/algorithm1.py -> adamlib.theory.algorithm1"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree, package="here"):
    """Dotted names that a module of this package imports, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def private_names(tree):
    """Private names of torch that a module imports or reaches by a dotted path, less those that are allowed."""
    names = {*imports(tree), *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))}
    found = {name for name in names if re.fullmatch(r"torch(\.\w+)+", name)}
    for name in found:
        private = any(part.startswith("_") for part in name.split(".")) or (
            name.startswith("torch.optim.optimizer.") and name != "torch.optim.optimizer.Optimizer"
        )
        is_start = any(other.startswith(name + ".") for other in found)
        if private and not is_start and not ALLOWED.fullmatch(name) and name not in NEEDED:
            yield name


def imported(path):
    return set(imports(parse(path), package=name_of(path.parent)))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_what_its_floor_may_and_from_its_own_room_and_lower_floors(path):
    def room(name):
        return next(room for room in FLOORS if f"{name}.".startswith(f"{room}."))

    here = room(name_of(path))
    floor, outside = FLOORS[here]
    for name in imported(path):
        root = name.partition(".")[0]
        allowed = root in outside | sys.stdlib_module_names
        assert allowed or root == "adamlib" and (room(name) == here or FLOORS[room(name)][0] < floor), name


def test_there_is_no_circle():
    names = {name_of(path) for path in MODULES}
    packages = {name.rpartition(".")[0] for name in names}  # which every import of their modules runs first
    graph = {}
    for path in MODULES:
        found = {name if name in names else name.rpartition(".")[0] for name in imported(path)}
        graph[name_of(path)] = found & names - packages
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES + COURSE, ids=name_of)
def test_only_public_torch(path):
    assert not list(private_names(parse(path)))


def test_no_exception_is_kept_that_nobody_needs():
    text = "\n".join(path.read_text(encoding="utf-8") for path in MODULES + COURSE)
    assert all(name.rpartition(".")[2] in text for name in NEEDED)


PRIVATE = {
    "from torch.optim.optimizer import _use_grad": "torch.optim.optimizer._use_grad",
    "from torch.optim.optimizer import ParamsT": "torch.optim.optimizer.ParamsT",
    "from torch.utils._foreach_utils import _group": "torch.utils._foreach_utils._group",
    "import torch\ntorch._dynamo.reset()": "torch._dynamo.reset",
    "import torch\ntorch.testing._internal.x": "torch.testing._internal.x",
    "import torch._inductor": "torch._inductor",
    "import torch\ntorch._fused_sgd_([])": "torch._fused_sgd_",
}


@pytest.mark.parametrize("code", PRIVATE)
def test_private_names_are_found(code):
    assert PRIVATE[code] in set(private_names(ast.parse(code)))


def test_adamlib_needs_torch_alone():
    """Without Triton, and without anything the notebooks need, the optimizer imports and steps."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['triton', 'matplotlib', 'IPython', 'PIL', 'course']))\n"
        "import torch, adamlib\np = torch.ones(3, requires_grad=True); p.sum().backward()\n"
        "adamlib.Adam([p], lr=0.5).step(); assert p.tolist() != [1, 1, 1]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "notebooks/README.md", "notebooks/course/DIGITS.md"])
def test_links_between_files_resolve(name):
    links = re.findall(r"\]\(([^)\s#:]+)\)|`((?:notebooks|tests)/[\w./]+)`", text_of(name))
    for link, path in links:
        target = (ROOT / name).parent / link if link else ROOT / path
        assert target.exists(), f"{name} points to {target}, which is not there"


def test_the_picture_of_the_readme_is_the_first_figure_of_chapter_02():
    notebook = nbformat.read(ROOT / "notebooks/02_the_step_bound.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stored = next(output.data["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    assert (ROOT / "notebooks/picture.png").read_bytes() == base64.b64decode(stored), "store the figure again"
    assert re.search(r"!\[[^\]]{20,}\]\(notebooks/picture\.png\)", text_of("README.md"))
