"""How every check answers: a right answer in any type, a wrong one, a stub, an exception; and what it says then."""

import numpy as np
import pytest
import torch
from exercise_reports import CHECKS, caught, reply_to, stub, unfinished

from course.exercises import ch05_fused_cuda, ch09_errata, check, expect


@check(start="the cell 'A mean that forgets'")
def halve(reader):
    """The reader's function halves a list of numbers."""
    for x in ([2.0, 4.0], [1.0, -3.0]):
        expect(reader(list(x)), [v / 2 for v in x], tried=f"halve({x})", look="the word half")
    return "two lists"


RIGHT = [
    lambda x: [v / 2 for v in x],
    lambda x: np.array(x) / 2,
    lambda x: torch.tensor(x, requires_grad=True) / 2,
    lambda x: tuple(torch.tensor(v / 2) for v in x),
    lambda x: torch.tensor(x, dtype=torch.bfloat16) / 2,
]
WRONG = [
    (lambda x: [v / 2 + 1e-3 for v in x], "tried halve([2.0, 4.0]) yours 1.001 at [0], 2 of 2"),
    (lambda x: [x[0] / 2, float("nan")], "nan at [1], 1 of 2 differ expected 2 at [1]"),
    (lambda x: [v / 2 * (1 + 1e-12) for v in x], "yours 1.00000000000"),
    (lambda x: x[0] / 2, "yours shape [] expected shape [2]"),
    (lambda x: [], "yours shape [0]"),
    (lambda x: "half", "yours half"),
    (lambda x: [[1.0], [2.0, 3.0]], "yours [[1.0], [2.0, 3.0]] (list)"),
    (lambda x: {"a": 1}, "yours {'a': 1} (dict)"),
    (lambda x: object(), "yours an object of class object"),
    (lambda x: 1 / 0, "yours raised ZeroDivisionError: division by zero at (lambda x: 1 / 0,"),
    (lambda: 1, "takes 0 positional arguments but 1 was given"),
    (7, "yours raised TypeError: 'int' object is not callable"),
]


def test_a_right_answer_passes_in_every_type():
    for answer in RIGHT:
        report = halve(answer)
        assert report and report.passed is True
        assert repr(report) == "correct: halve\n  checked   two lists"


@pytest.mark.parametrize("answer, words", WRONG)
def test_a_wrong_answer_is_shown_beside_the_right_one(answer, words):
    report = halve(answer)
    assert not report and report.passed is False
    caught(report)
    assert words in " ".join(repr(report).split())
    assert "0x" not in repr(report), "an address in memory differs from run to run"


@pytest.mark.parametrize("answer", [stub, lambda x: None, lambda x: ..., None, ...])
def test_a_stub_is_told_where_to_start(answer):
    assert repr(halve(answer)) == "not written yet: halve\n  start at  the cell 'A mean that forgets'"


def test_numbers_agree_within_the_tolerance_and_no_further():
    words = dict(tried="f()", look="there")
    expect(1.0 + 1e-9, 1.0, rtol=1e-8, **words)
    expect([0.0, 1e-12], [0.0, 0.0], atol=1e-11, **words)
    expect([np.inf, np.nan, True, 2 + 1j], [np.inf, np.nan, True, 2 + 1j], **words)
    for yours, expected in ((1.0 + 1e-7, 1.0), (np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf)):
        with pytest.raises(Exception, match="expected"):
            expect(yours, expected, rtol=1e-8, **words)


def test_an_exception_is_shown_with_its_cure_and_the_readers_own_line():
    def by_if(lr, t, peak, warmup, total):
        if t < warmup:
            lr.copy_(peak * t / warmup)

    report = repr(CHECKS["schedule_"](by_if))
    assert "Decide on the device (torch.where)" in " ".join(report.split()) and "at        if t < warmup:" in report
    assert max(map(len, report.splitlines())) <= 120


def test_a_long_message_loses_its_middle():
    def raises(*_):
        raise ValueError("first words " + "and so on " * 200 + "last words")

    report = " ".join(repr(CHECKS["first_step"](raises)).split())
    assert "first words" in report and "last words" in report and len(report) < 1000
    assert 'at raise ValueError("first words' in report


# ------------------------------------------------------------------------------------------- all checks alike

NO_FUNCTION = {"adamw", "momentum"}  # a class, a kernel: their stubs look otherwise
MUST_CHANGE_SOMETHING = {"corrected_max_step", "resume_with", "as_keras", "round_randomly_"}  # return nothing


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_knows_a_stub(name):
    for answer in (None, ..., *([] if name in NO_FUNCTION else [stub])):
        unfinished(CHECKS[name](answer))
    report = CHECKS[name](lambda *_, **__: None)
    (caught if name in NO_FUNCTION | MUST_CHANGE_SOMETHING else unfinished)(report)
    assert not CHECKS[name](lambda *_, **__: ...).passed


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_turns_nonsense_into_a_report(name):
    for answer in (lambda *_, **__: 1 / 0, 3, "text"):
        caught(CHECKS[name](answer))
    assert not CHECKS[name](lambda *_, **__: "text").passed


# --------------------------------------------------------------------------------- what single checks stand on


@pytest.mark.parametrize("numels, launches", [
    ([], 0),
    ([0, 0], 0),
    ([1, 1], 1),
    ([1, 1, 1], 2),
    ([3 * 65_536], 1),
    ([3 * 65_536 + 1], 2),
    ([4 * 65_536, 1, 1], 3),  # the rest of a tensor is one in the next launch
    ([1, 2 * 65_536], 1),  # the last tensor that a launch has room for brings all its blocks
])
def test_launches_of_torchs_kernel_end_where_a_limit_is_met(numels, launches):
    """Of 2 tensors and 3 blocks. (With torch's own limits they stand in appendix D, in what its check prints.)"""
    assert ch05_fused_cuda._launches(numels, 2, 3) == launches


def test_counting_one_by_one_is_ended_and_told_why(monkeypatch):
    limit = ch09_errata._at_most
    monkeypatch.setattr(ch09_errata, "_at_most", lambda _, *rest: limit(0.2, *rest))
    report = reply_to("counter_limit", {"n = n * 2": "n = n + (1 if dtype is torch.float64 else n)"})
    caught(report)
    assert "too far to try one by one" in str(report)
