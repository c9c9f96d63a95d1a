"""Figures have manners: a description, a sentence, the same bytes on every run.

How they look (the style, the size of text) is compared as pictures, in every chapter.
"""

import base64
import io

import matplotlib
import pytest

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.animation import FuncAnimation  # noqa: E402
from PIL import Image  # noqa: E402

from course import figures  # noqa: E402


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


def animation(frames):
    fig, line = curve()
    return FuncAnimation(fig, lambda k: line.set_ydata([0, k / frames, 0]), frames=frames)


def test_a_figure_has_its_alt_text_and_is_closed_and_its_bytes_follow_from_the_figure_alone(shown):
    for height in (1.0, 1.0, 1.01):
        figures.show(curve(height)[0], alt="a triangle", see="its top")
    same, again, other = (bundle["image/png"] for bundle, _ in shown)
    assert same == again != other
    assert set(Image.open(io.BytesIO(same)).info) <= {"dpi"}, "no date and no program name in the file"
    assert shown[0][1] == {"image/png": {"alt": "a triangle"}}
    assert plt.get_fignums() == []


@pytest.mark.parametrize("alt, see", [("", "x"), ("x", " "), (None, "x")])
def test_a_figure_without_its_texts_is_refused(shown, alt, see):
    with pytest.raises(ValueError, match="must be a sentence"):
        figures.show(curve()[0], alt=alt, see=see)
    assert shown == []


def test_an_animation_is_one_gif_of_the_same_bytes_with_a_still(shown, capsys):
    for _ in range(2):
        figures.show_animation(animation(frames=4), alt='it "rises"', see="up to 0.8", fps=5)
    (bundle, metadata), (again, _) = shown
    assert bundle == again and metadata == {"image/png": {"alt": 'it "rises"'}}
    start, gif = bundle["text/html"].split("base64,")
    assert start == '<img alt="it &quot;rises&quot;" src="data:image/gif;'
    gif = Image.open(io.BytesIO(base64.b64decode(gif)))
    assert (gif.n_frames, gif.info["duration"], gif.info["loop"], gif.size) == (4, 200, 0, (990, 495))
    assert gif.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert Image.open(io.BytesIO(bundle["image/png"])).size == gif.size
    assert capsys.readouterr().out == "up to 0.8\n" * 2
    assert plt.get_fignums() == []


def test_a_big_animation_is_refused(shown, monkeypatch):
    monkeypatch.setattr(figures, "MAX_ANIMATION_BYTES", 1000)
    with pytest.raises(ValueError, match="draw fewer frames"):
        figures.show_animation(animation(frames=2), alt="a", see="b")
