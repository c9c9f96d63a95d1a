"""What the checks of all chapters share: a Report, and a few words to say what was tried and what came back.

A chapter's module (``ch01_math`` and so on) holds one check per exercise:

    @check(start="the cell under 'How full is the window?'")
    def window_share(reader):
        for t in (1, 12, 3000):
            expect(reader(0.9, t), 1 - 0.9**t, tried=f"window_share(0.9, {t})", look="how 1 - β1**t grew")
        return "agrees for t = 1, 12 and 3000"

In a notebook ``check.window_share(my_function)`` then shows what an assistant would say who stands beside the reader.
A check never raises for what a reader wrote: wrong answers, exceptions and unfinished stubs all become a Report.
"""

import functools
import sysconfig
import textwrap
import traceback
from pathlib import Path

import numpy as np
import torch

import adamlib

_COURSE = Path(__file__).parents[1]  # the checks and the instruments that they use
_NOT_THE_READERS = tuple(map(str, (_COURSE, Path(adamlib.__file__).parent, sysconfig.get_path("stdlib"))))

__all__ = ["Report", "check", "expect", "expect_that", "not_written"]


class Report:
    """The answer of a check. ``passed`` says whether the exercise is solved; ``lines`` is the text, shown by repr."""

    def __init__(self, passed, *lines):
        self.passed = bool(passed)
        self.lines = [str(line) for line in lines]

    def __bool__(self):
        return self.passed

    def __repr__(self):
        return "\n".join(self.lines)


class _Stop(Exception):
    """Ends a check early with the lines to report."""

    def __init__(self, *lines, written=True):
        self.lines, self.written = lines, written


def check(start):
    """Decorator that turns a function with one argument, the reader's object, into a check that returns a Report.

    start: where to begin, shown when the exercise is not written yet (str).
    The decorated function compares with ``expect`` and ``expect_that`` and returns the sentence that a right answer
    gets. Whatever the reader's code raises on the way becomes part of the report.
    """

    def decorate(function):
        @functools.wraps(function)
        def run(reader):
            name = function.__name__
            try:
                if reader is None or reader is Ellipsis:
                    not_written()
                return Report(True, f"correct: {name}", _line("checked", function(reader)))
            except NotImplementedError:
                return _unfinished(name, start)
            except _Stop as stop:
                return Report(False, f"not yet: {name}", *stop.lines) if stop.written else _unfinished(name, start)
            except Exception as error:
                return Report(False, f"not yet: {name}", *_raised(error))

        return run

    return decorate


def expect(yours, expected, *, tried, look, rtol=0.0, atol=0.0):
    """Compare the reader's result with the expected one; end the check where they differ.

    yours, expected: number, bool, str, NumPy array, torch tensor, or a list or tuple of these (shapes must agree).
    tried: the call that was made, as text.  look: where to look when it is wrong, as text.
    rtol, atol: numbers agree when |yours - expected| <= atol + rtol·|expected|; the default is equality, where a nan
    equals a nan. ``yours`` None or ... counts as "not written yet".
    """
    if yours is None or yours is Ellipsis:
        not_written()
    got, want = _shown(yours), _shown(expected)
    if isinstance(expected, str) or isinstance(yours, str):
        same, where = got == want, ""
    else:
        same, got, want, where = _same_numbers(yours, expected, rtol, atol)
    if not same:
        raise _Stop(
            _line("tried", tried), _line("yours", got + where), _line("expected", want + where), _line("look at", look)
        )


def expect_that(fact, *, tried, yours, expected, look):
    """Like ``expect`` for a property that no comparison of two values can say.

    fact: bool.  yours, expected: what was seen and what should be, in words.
    """
    if not fact:
        raise _Stop(
            _line("tried", tried), _line("yours", yours), _line("expected", expected), _line("look at", look)
        )


def not_written():
    """End the check with "not written yet": for stubs that a check recognises in its own way (nothing was changed)."""
    raise _Stop(written=False)


def _same_numbers(yours, expected, rtol, atol):
    """(agree?, text of yours, text of expected, " at [i]" of the first difference)."""
    want = _array(expected)
    try:
        got = _array(yours)
    except (TypeError, ValueError):
        return False, f"{_shown(yours)} ({type(yours).__name__})", _shown(expected), ""
    if got.dtype == object or want.dtype == object:
        return False, f"{_shown(yours)} ({type(yours).__name__})", _shown(expected), ""
    if got.shape != want.shape:
        return False, f"shape {list(got.shape)}", f"shape {list(want.shape)}", ""
    with np.errstate(all="ignore"):
        distance = np.abs(np.subtract(got, want, dtype=np.result_type(got, want, np.float64)))
        agree = (got == want) | (np.isfinite(want) & (distance <= atol + rtol * np.abs(want)))
    agree |= np.isnan(got) & np.isnan(want)
    if agree.all():
        return True, "", "", ""
    index = tuple(int(i) for i in np.argwhere(~agree)[0])
    digits = "{:.6g}" if f"{got[index]:.6g}" != f"{want[index]:.6g}" else "{:.17g}"
    where = f" at {list(index)}, {int((~agree).sum())} of {agree.size} differ" if index else ""
    return False, digits.format(got[index]), digits.format(want[index]), where


def _array(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg().cpu()
        value = value.float() if value.dtype is torch.bfloat16 else value  # NumPy has no bfloat16
        return value.numpy()
    if isinstance(value, (list, tuple)):
        return np.array([_array(item) for item in value])
    return np.asarray(value)


def _shown(value):
    """A short text for a value of any type."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    if type(value).__repr__ is object.__repr__:  # its text is an address in memory, another one on each run
        text = f"an object of class {type(value).__name__}"
    return text if len(text) <= 70 else text[:67] + "..."


def _raised(error):
    """Lines about an exception, with the last line of the reader's own code that led to it, where there is one.

    The message is shown whole, but for the middle of a very long one: what went wrong stands at its start and the cure
    at its end.
    """
    message = " ".join(f"{type(error).__name__}: {error}".split())
    message = message if len(message) <= 600 else f"{message[:350]} ... {message[-240:]}"
    yield textwrap.fill(message, 100, initial_indent=_line("yours", "raised "), subsequent_indent=_line("", ""))
    frames = traceback.extract_tb(error.__traceback__)
    others = [f for f in frames if f.filename.startswith(_NOT_THE_READERS) or "-packages" in f.filename]
    own = [f.line for f in frames if f.line and f not in others]
    if own:
        yield _line("at", own[-1][:100])
    yield _line("look at", "the call it happened in: run it in a cell of its own")


def _unfinished(name, start):
    return Report(False, f"not written yet: {name}", _line("start at", start))


def _line(word, text):
    return f"  {word:<9} {text}"
