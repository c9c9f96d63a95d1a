"""Figures have manners: a description, a sentence, legible text on opaque white, the same bytes on every run."""

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


def animation(frames=5):
    fig, line = curve()
    return FuncAnimation(fig, lambda k: line.set_ydata([0, k / frames, 0]), frames=frames)


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


@pytest.mark.parametrize("alt, see", [("", "x"), ("x", " "), (None, "x")])
def test_a_figure_without_its_texts_is_refused(shown, alt, see):
    with pytest.raises(ValueError, match="must be a sentence"):
        figures.show(curve()[0], alt=alt, see=see)
    assert shown == []


def test_no_text_is_small_and_the_background_is_opaque_white(shown):
    fig, _ = curve()
    fig.canvas.draw()
    assert min(text.get_fontsize() for text in fig.findobj(matplotlib.text.Text) if text.get_text()) >= 14
    figures.show(fig, alt="a", see="b")
    picture = Image.open(io.BytesIO(shown[0][0]["image/png"])).convert("RGBA")
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)
    assert 900 <= picture.width <= 1100 and 450 <= picture.height <= 600


def test_an_animation_is_one_gif_of_the_same_bytes_with_a_still(shown, capsys):
    for _ in range(2):
        figures.show_animation(animation(), alt='it "rises"', see="up to 0.8", fps=5)
    (bundle, metadata), (again, _) = shown
    assert bundle == again
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
