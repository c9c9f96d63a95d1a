"""The checks of all exercises, and what the tests ask of their reports."""

import functools
import importlib
import pkgutil

from solutions import solutions

from course import exercises

NAMES = [found.name for found in pkgutil.iter_modules(exercises.__path__)]
MODULES = [importlib.import_module(f"{exercises.__name__}.{name}") for name in NAMES]
CHECKS = {
    name: check
    for module in MODULES
    for name, check in vars(module).items()
    if hasattr(check, "__wrapped__") and not name.startswith("_") and check.__module__ == module.__name__
}


SOLUTIONS = {solution.check: solution for solution in solutions()}


@functools.cache
def names_above(check):
    return SOLUTIONS[check].names()


def reply_to(check, answer):
    """What the check says to an answer: an object, or a dict of texts to exchange in the notebook's solution."""
    if isinstance(answer, dict):
        return SOLUTIONS[check].report(names_above(check), SOLUTIONS[check].exchanged(answer))
    return CHECKS[check](answer)


def caught(report):
    """A wrong answer, reported as such: with where to look, or with the exception that it raised."""
    text = repr(report)
    assert not report.passed, text
    assert text.startswith("not yet: "), text
    assert "look at" in text, text


def unfinished(report):
    """A stub, told from a wrong answer: with where to start."""
    text = repr(report)
    assert not report.passed, text
    assert text.startswith("not written yet: ") and "start at" in text, text


def stub(*args, **options):
    raise NotImplementedError
