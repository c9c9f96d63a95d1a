"""One thread for torch, and at the end of a run the number of configurations compared bit by bit."""

import collections
import contextlib
import os
import re
import subprocess
import sys

with contextlib.suppress(ImportError):  # before anyone imports Python 3.10's own distutils: torch's inductor imports
    import setuptools  # noqa: F401  setuptools late, and setuptools then refuses to start

import pytest
import torch

torch.set_num_threads(1)

class Tally:
    """Counts configurations compared bit by bit with torch's same variant, and those that were equal."""

    tried, equal, figures = collections.Counter(), collections.Counter(), {}

    def add(self, variant, equal):
        self.tried[variant] += 1
        self.equal[variant] += bool(equal)

    def figure(self, name, text):
        self.figures[name] = text


@pytest.fixture(scope="session")
def tally():
    return Tally()


@pytest.fixture
def torch_capturable_on_cpu(monkeypatch):
    """Let torch's own capturable code run on a CPU and the meta device, where it refuses to, to compare with it."""
    import torch.optim.adam as module

    monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu", "cuda", "meta"])


@pytest.fixture
def passed_in_the_interpreter(request):
    """How many tests of this file pass in Triton's interpreter: in a process of its own, as Triton settles whether it
    interprets when it is imported."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the interpreter")
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(request.path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return int(re.search(r"(\d+) passed", run.stdout)[1])


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_terminal_summary(terminalreporter):
    if Tally.tried:
        terminalreporter.section("bit for bit with torch")
        for variant in sorted(Tally.tried):
            terminalreporter.line(f"{variant}: {Tally.equal[variant]} of {Tally.tried[variant]} equal")
        terminalreporter.line(f"configurations equal / tried: {Tally.equal.total()} / {Tally.tried.total()}")
    for name, text in Tally.figures.items():
        terminalreporter.line(f"{name}: {text}")
