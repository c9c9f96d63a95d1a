"""One style for all figures of the series, and the one way to show them.

Why a function of our own shows a figure: the stored picture must be the same bytes on every run (a test compares
them), must carry a description for readers who cannot see it, and must be followed by the sentence that says what
to see. ``show`` does all three.
"""

import base64
import html
import io

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.animation import AbstractMovieWriter
from PIL import Image

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/): its colours stay apart for colour-blind readers.
COLORS = {
    "blue": "#0072B2", "red": "#D55E00", "green": "#009E73", "orange": "#E69F00", "purple": "#CC79A7",
    "sky": "#56B4E9", "black": "#000000", "yellow": "#F0E442", "grey": "#8C8C8C",
}  # fmt: skip
# The line style that goes with a colour, so that no line is told by its colour alone: LINESTYLES["red"].
LINESTYLES = {
    "blue": "-", "red": "--", "green": "-.", "orange": ":", "purple": (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    "sky": (0, (1, 1)), "black": (0, (8, 2)), "yellow": (0, (3, 1)), "grey": "-",
}  # fmt: skip
MAX_ANIMATION_BYTES = 600_000  # a notebook must stay quick to open


def use_style():
    """Set matplotlib's defaults for the series: 9 x 4.5 inches at 110 dpi, no text below 14 points.

    The background is opaque white, so that a figure reads the same on a dark page. A title is a sentence of up to
    about 60 characters; break a longer one with a newline.
    """
    plt.rcdefaults()
    roles = [role for role in COLORS if role not in ("grey", "yellow")]  # too pale for a line of data
    plt.rcParams.update({
        "figure.figsize": (9, 4.5), "figure.dpi": 110, "figure.facecolor": "white", "savefig.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 15, "axes.labelsize": 15, "xtick.labelsize": 14, "ytick.labelsize": 14, "legend.fontsize": 14,
        "axes.titlesize": 16, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 12,
        "figure.titlesize": 16, "figure.titleweight": "bold",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4",
        "axes.axisbelow": True, "lines.linewidth": 2.5, "legend.frameon": False, "image.cmap": "cividis",
        "axes.prop_cycle": cycler(color=[COLORS[r] for r in roles], linestyle=[LINESTYLES[r] for r in roles]),
    })  # fmt: skip


def show(fig, *, alt, see):
    """Display ``fig`` as PNG with ``alt`` as its description, close it, and print the sentence ``see``.

    fig: a matplotlib Figure.  alt: what the picture shows, for readers who cannot see it (str, not empty).
    see: what to see in it, as one sentence with its computed number (str, not empty).
    The bytes depend on the figure and the matplotlib version alone: no date and no program name are stored.
    Raises ValueError when a text is missing.
    """
    _require_text(alt=alt, see=see)
    _display(alt, {"image/png": _png(fig)})
    print(see)


def windows(gradients="waking up", t=12, **settings):
    """Show Adam's two windows at step ``t`` of a stream of gradients, as a figure that the reader can move.

    gradients: a preset ("constant", "waking up", "second awakening", "growing", "extremal", "noise", "digits") or a
    sequence of numbers.  t: the step to start at (int >= 1).
    beta1=0.9, beta2=0.999, eps=0.0, amsgrad=False: Adam's options.
    correction=True: bias correction that follows t; False: none; a number: frozen at that step, as in a captured graph.
    dial: the preset's own number: the zeros before it wakes up, or between two awakenings; the growth a step,
    after 10,000 gradients of 1; the signal-to-noise ratio.  For a sequence of numbers, the zeros before its first.
    Where no script runs, a still of the same moment is seen. Below it stands, in words, what is to be seen.
    Raises ValueError for settings that leave nothing to show.
    """
    from course import windows as drawing  # it draws in the style above

    now = drawing.moment(gradients, t, **settings)
    seen = drawing.see(now)
    alt = drawing.alt(now, seen)
    fig = drawing.still(now, seen)
    living = drawing.page(now, fig, alt)
    _display(alt, {"image/png": _png(fig), "text/html": living})
    print(drawing.sentence(now, seen))


def show_animation(anim, *, alt, see, fps=10):
    """Display a matplotlib Animation as a looping GIF with the same manners as ``show``.

    fps: frames per second (float > 0). The picture has the figure's own size and dpi, and the axes stay where the
    first frame puts them. Its last frame is stored beside it as PNG, for pages that show no GIF.
    Raises ValueError for a missing text and for a GIF of more than 600 kB (``MAX_ANIMATION_BYTES``).
    """
    _require_text(alt=alt, see=see)
    film = _Film()
    anim.save("not written to disk", writer=film)
    gif = film.gif(fps)
    if len(gif) > MAX_ANIMATION_BYTES:
        raise ValueError(
            f"the animation has {len(gif) // 1000} kB, at most {MAX_ANIMATION_BYTES // 1000} kB are allowed: "
            "draw fewer frames, a smaller figure, or a lower dpi"
        )
    still = io.BytesIO()
    film.frames[-1].save(still, "PNG")
    img = f'<img alt="{html.escape(alt)}" src="data:image/gif;base64,{base64.b64encode(gif).decode()}">'
    _display(alt, {"image/png": still.getvalue(), "text/html": img})
    plt.close(film.fig)
    print(see)


class _Film(AbstractMovieWriter):
    """Collects the frames of an animation in memory and writes them as one small GIF."""

    def setup(self, fig, outfile, dpi=None):
        self.fig, self.frames = fig, []

    def grab_frame(self, **savefig_kwargs):
        self.fig.canvas.draw()
        self.frames.append(Image.fromarray(np.array(self.fig.canvas.buffer_rgba())).convert("RGB"))
        self.fig.set_layout_engine("none")  # keep the first frame's layout: axes that jump teach nothing

    def finish(self):
        pass

    def gif(self, fps):
        # One palette for all frames and no dithering: pixels that do not move stay the same and cost no bytes.
        sample = np.concatenate([np.asarray(f) for f in self.frames[:: max(1, len(self.frames) // 8)]])
        palette = Image.fromarray(sample).quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.putpalette([255 if level > 249 else level for level in palette.getpalette()])  # white stays white
        first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in self.frames]
        gif = io.BytesIO()
        first.save(gif, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, optimize=True)
        return gif.getvalue()


def label_line(ax, x, y, text, color, **kw):
    """Write ``text`` beside a line at data point (x, y), in the line's colour: a legend that needs no looking up.

    color: a role of COLORS or any matplotlib colour. ``kw`` goes to ``Axes.annotate``; the text starts 6 points right
    of the point and is centred on its height. Returns the annotation.
    """
    kw = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "weight": "bold", "annotation_clip": False, **kw}
    return ax.annotate(text, (x, y), color=COLORS.get(color, color), **kw)


def _png(fig):
    """The picture's bytes; the figure is closed."""
    png = io.BytesIO()
    fig.savefig(png, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    plt.close(fig)
    return png.getvalue()


def _display(alt, pictures):
    display({**pictures, "text/plain": f"[figure] {alt}"}, raw=True, metadata={"image/png": {"alt": alt}})


def _require_text(**texts):
    for name, text in texts.items():
        if not (isinstance(text, str) and text.strip()):
            raise ValueError(f"{name} must be a sentence (got {text!r}): every figure says what it shows")
