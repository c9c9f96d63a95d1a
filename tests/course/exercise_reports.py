"""What the tests of the exercises ask of a check's report."""


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
