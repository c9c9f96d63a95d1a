"""What all checks of all chapters have in common; their right and wrong answers are in test_exercises_ch*.py."""

import importlib
import pkgutil

import pytest
from exercise_reports import caught, stub, unfinished

from course import exercises

MODULES = [importlib.import_module(f"{exercises.__name__}.{name}") for _, name, _ in pkgutil.iter_modules(exercises.__path__)]
CHECKS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": one
    for module in MODULES
    for name, one in vars(module).items()
    if not name.startswith("_") and hasattr(one, "__wrapped__") and one.__module__ == module.__name__
}
NO_FUNCTION = {"ch03_single_tensor.adamw", "ch05_fused_cuda.momentum"}  # a class, a kernel: their stubs look otherwise
RETURNS_NOTHING = {  # and must do something all the same
    "ch03_single_tensor.corrected_max_step", "ch08_in_practice.resume_with", "ch08_in_practice.as_keras",
    "ch08_in_practice.round_randomly_",
}  # fmt: skip


def test_every_chapter_has_its_checks():
    chapters = [name for name in (module.__name__.rpartition(".")[2] for module in MODULES) if name.startswith("ch")]
    count = {name[2:4]: sum(one.startswith(f"{name}.") for one in CHECKS) for name in chapters}
    assert list(count) == [f"{n:02}" for n in range(10)] and count.pop("00") == 1
    assert all(number >= 3 for number in count.values()), count


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("reader", [None, ..., stub], ids=["None", "...", "stub"])
def test_a_stub_is_told_where_to_start(name, reader):
    if not (name in NO_FUNCTION and reader is stub):
        unfinished(CHECKS[name](reader))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("reader", [lambda *_, **__: 1 / 0, 3, "text"], ids=["raises", "number", "text"])
def test_nonsense_becomes_a_report(name, reader):
    caught(CHECKS[name](reader))


@pytest.mark.parametrize("name", CHECKS)
def test_a_function_that_does_nothing_is_a_stub_too(name):
    report = CHECKS[name](lambda *_, **__: None)
    (caught if name in NO_FUNCTION | RETURNS_NOTHING else unfinished)(report)


@pytest.mark.parametrize("name", CHECKS)
def test_a_function_that_returns_an_ellipsis_does_not_pass(name):
    report = CHECKS[name](lambda *_, **__: ...)
    assert not report.passed
    if name.startswith(("ch00", "ch01", "ch02", "ch09")):  # their stubs are written so
        unfinished(report)
