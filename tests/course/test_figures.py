"""What the notebooks share: figures with their manners, the digits, and the answers of exercise checks."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.animation import FuncAnimation  # noqa: E402
from PIL import Image  # noqa: E402

from course import data, figures  # noqa: E402
from course.exercises import Report, check, expect, expect_that, not_written  # noqa: E402


@pytest.fixture
def shown(monkeypatch):
    """What figures hand to the notebook: a list of (data, metadata)."""
    outputs = []
    plt.close("all")  # what other tests left open
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata: outputs.append((data, metadata)))
    with matplotlib.rc_context():
        figures.use_style()
        yield outputs
    plt.close("all")


def curve(height=1.0):
    fig, ax = plt.subplots()
    (line,) = ax.plot([0, 1, 2], [0, height, 0])
    ax.set_title("The step goes up, then down")
    figures.label_line(ax, 2, 0, "a step", "blue")
    return fig, line


def test_a_figure_has_its_alt_text_and_sentence_and_is_closed(shown, capsys):
    figures.show(curve()[0], alt="a triangle", see="its top is at 1")
    (bundle, metadata), *rest = shown
    assert not rest and metadata == {"image/png": {"alt": "a triangle"}}
    assert "a triangle" in bundle["text/plain"]
    assert capsys.readouterr().out == "its top is at 1\n"
    assert plt.get_fignums() == []


def test_the_bytes_of_a_figure_follow_from_the_figure_alone(shown):
    for height in (1.0, 1.0, 1.01):
        figures.show(curve(height)[0], alt="a", see="b")
    same, again, other = (bundle["image/png"] for bundle, _ in shown)
    assert same == again != other
    assert set(Image.open(io.BytesIO(same)).info) <= {"dpi"}, "no date and no program name in the file"


@pytest.mark.parametrize("texts", [{"alt": "", "see": "x"}, {"alt": "x", "see": " "}, {"alt": None, "see": "x"}])
def test_a_figure_without_its_texts_is_refused(shown, texts):
    with pytest.raises(ValueError, match="must be a sentence"):
        figures.show(curve()[0], **texts)
    assert shown == []


def test_no_text_is_small_and_the_background_is_opaque_white(shown):
    fig, _ = curve()
    fig.canvas.draw()
    assert min(text.get_fontsize() for text in fig.findobj(matplotlib.text.Text) if text.get_text()) >= 14
    figures.show(fig, alt="a", see="b")
    picture = Image.open(io.BytesIO(shown[0][0]["image/png"])).convert("RGBA")
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)
    assert 900 <= picture.width <= 1100 and 450 <= picture.height <= 600


def animation(frames=5, **kw):
    fig, line = curve()
    return FuncAnimation(fig, lambda k: line.set_ydata([0, k / frames, 0]), frames=frames, **kw)


def test_an_animation_is_one_small_gif_with_a_still(shown, capsys):
    for _ in range(2):
        figures.show_animation(animation(), alt='it "rises"', see="up to 0.8", fps=5)
    (bundle, metadata), (again, _) = shown
    assert bundle == again, "the same bytes twice"
    assert metadata == {"image/png": {"alt": 'it "rises"'}}
    assert bundle["text/html"].startswith('<img alt="it &quot;rises&quot;" src="data:image/gif;base64,')
    assert Image.open(io.BytesIO(bundle["image/png"])).size == (990, 495)
    assert capsys.readouterr().out == "up to 0.8\n" * 2
    assert plt.get_fignums() == []


def test_the_gif_holds_all_frames_and_its_speed():
    film = figures._Film()
    animation(frames=4).save("", writer=film)
    gif = Image.open(io.BytesIO(film.gif(fps=5)))
    assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (4, 200, 0)
    assert gif.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    plt.close("all")


def test_a_big_animation_is_refused(shown, monkeypatch):
    monkeypatch.setattr(figures, "MAX_ANIMATION_BYTES", 1000)
    with pytest.raises(ValueError, match="draw fewer frames"):
        figures.show_animation(animation(), alt="a", see="b")


def test_digits_are_the_uci_test_set_in_two_parts():
    x, y, x_test, y_test = data.digits()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    assert x.dtype == x_test.dtype == torch.float32 and y.dtype == y_test.dtype == torch.int64
    assert (x.min(), x.max()) == (0, 1)
    # class counts as UCI's page of data set 80 gives them for the test set
    assert torch.bincount(torch.cat([y, y_test])).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert all(torch.equal(a, b) for a, b in zip(data.digits(), (x, y, x_test, y_test)))


def test_digits_are_read_from_a_zip_too(tmp_path):
    """The single-file notebooks may carry the package as a zip."""
    import shutil

    root = figures.__file__.rpartition("course")[0]
    archive = shutil.make_archive(str(tmp_path / "course"), "zip", root, "course")
    code = f"import sys; sys.path.insert(0, {archive!r}); from course import data; print(len(data.digits()[0]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1437\n", done.stderr


# ---------------------------------------------------------------------------------------------------- Report


@check(start="the cell 'A mean that forgets'")
def halve(reader):
    """The reader's function halves a list of numbers."""
    for x in ([2.0, 4.0], [1.0, -3.0]):
        expect(reader(list(x)), [v / 2 for v in x], tried=f"halve({x})", look="the word half")
    return "two lists"


@pytest.mark.parametrize(
    "right",
    [
        lambda x: [v / 2 for v in x],
        lambda x: np.array(x) / 2,
        lambda x: torch.tensor(x) / 2,
        lambda x: torch.tensor(x, requires_grad=True) / 2,
        lambda x: tuple(torch.tensor(v / 2) for v in x),
        lambda x: torch.tensor(x, dtype=torch.bfloat16) / 2,
    ],
)
def test_right_answers_pass_in_every_type(right):
    report = halve(right)
    assert report and report.passed is True
    assert repr(report) == "correct: halve\n  checked   two lists"


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda x: [v / 2 + 1e-3 for v in x], ["tried     halve([2.0, 4.0])", "yours     1.001 at [0], 2 of 2", "expected  1 at"]),
        (lambda x: [x[0] / 2, float("nan")], ["yours     nan at [1], 1 of 2", "look at   the word half"]),
        (lambda x: [v / 2 * (1 + 1e-12) for v in x], ["yours     1.00000000000", "expected  1 at [0]"]),
        (lambda x: x[0] / 2, ["yours     shape []", "expected  shape [2]"]),
        (lambda x: [], ["yours     shape [0]"]),
        (lambda x: "half", ["yours     half"]),
        (lambda x: [[1.0], [2.0, 3.0]], ["yours     [[1.0], [2.0, 3.0]] (list)"]),
        (lambda x: {"a": 1}, ["yours     {'a': 1} (dict)"]),
        (lambda x: object(), ["yours     an object of class object"]),
        (lambda x: 1 / 0, ["yours     raised ZeroDivisionError: division by zero", "look at"]),
        (lambda: 1, ["yours     raised TypeError", "takes 0 positional arguments but 1 was given"]),
        (7, ["yours     raised TypeError: 'int' object is not callable"]),
        (lambda x: list(map(int, x)), ["yours     2 at [0]"]),
    ],
)  # fmt: skip
def test_wrong_answers_become_a_report(wrong, words):
    report = halve(wrong)
    assert not report and report.passed is False
    assert repr(report).startswith("not yet: halve\n")
    for word in words:
        assert word in repr(report)
    assert "0x" not in repr(report), "an address in memory differs from run to run"


def unfinished(x):
    raise NotImplementedError


@pytest.mark.parametrize("stub", [unfinished, lambda x: None, lambda x: ..., None, ...])
def test_stubs_are_recognised(stub):
    report = halve(stub)
    assert not report
    assert repr(report) == "not written yet: halve\n  start at  the cell 'A mean that forgets'"


def test_the_readers_line_is_shown(tmp_path):
    (tmp_path / "cell.py").write_text("def mine(x):\n    y = 0\n    return x[0] / y  # the reader's own line\n", encoding="utf-8")
    scope = {}
    exec(compile((tmp_path / "cell.py").read_text(encoding="utf-8"), str(tmp_path / "cell.py"), "exec"), scope)
    assert "at        return x[0] / y  # the reader's own line" in repr(halve(scope["mine"]))


def test_tolerances_are_kept():
    kw = dict(tried="f()", look="there")
    expect(1.0 + 1e-9, 1.0, rtol=1e-8, **kw)
    expect([0.0, 1e-12], [0.0, 0.0], atol=1e-11, **kw)
    expect([np.inf, np.nan, True, 2 + 1j], [np.inf, np.nan, True, 2 + 1j], **kw)
    for yours, expected in ((1.0 + 1e-7, 1.0), (np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, -np.inf)):
        with pytest.raises(Exception, match="expected"):
            expect(yours, expected, rtol=1e-8, **kw)


def test_properties_and_own_stubs():
    @check(start="here")
    def changes(reader):
        before = [1.0]
        reader(before)
        if before == [1.0]:
            not_written()
        expect_that(before[0] > 0, tried="changes([1.0])", yours=f"{before[0]}", expected="above zero", look="the sign")
        return "one list"

    assert repr(changes(lambda x: None)) == "not written yet: changes\n  start at  here"
    assert changes(lambda x: x.__setitem__(0, 2.0))
    assert "yours     -2.0" in repr(changes(lambda x: x.__setitem__(0, -2.0)))


def test_report_is_text_and_truth():
    assert repr(Report(True, "a", 1)) == "a\n1" and Report(True) and not Report(False)
