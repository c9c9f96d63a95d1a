"""What passes as the same output and what does not; and what the tolerance of pictures stands between."""

import base64
import functools
import io

import comparison
import matplotlib
import numpy as np
import pytest
from cells import printed
from comparison import TOLERANCE, as_stored, difference, same_html, same_picture, same_text
from mutants import MUTANTS, changed
from nbformat.v4 import new_output
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from course import figures  # noqa: E402

# The largest difference of a figure of the series between the code paths of tools/paths.py and what is stored, as the
# run of paths.py printed it (Intel Xeon with AVX-512, torch 2.13.0, numbers stored on the same machine).
LARGEST_BETWEEN_CODE_PATHS = 0.50

SAME = [
    ("loss 0.82", "loss 0.83"), ("97.8 %", "97.9 %"), ("1e-07", "9e-08"), ("9.99", "10.0"), ("-0.00", "0.00"),
    ("−0.10 α", "−0.11 α"), ("at 12: 6.5685 α", "at 12: 6.5684 α"), ("[0.1, 0.25]", "[0.1, 0.26]"),
    ("   9.99  a", "  10.00  a"), ("1.2e+03", "1.3e+03"), ("float32 0.5", "float32 0.6"),
]
OTHER = [
    ("loss 0.82", "loss 0.84"), ("8e-08", "2e-07"), ("1e-08", "3e-08"), ("0.5", "0.5003"), ("0.5", "-0.5"),
    ("-0.02", "0.02"), ("12 steps", "13 steps"), ("0.82 of 3", "0.82 of 4"), ("1,797", "1,798"),
    ("6.5685 α at step 12", "6.5685 α at step 13"), ("2.13.0", "2.13.1"), ("True", "False"), ("float32", "float64"),
    ("a 0.5", "b 0.5"), ("0.5", "0.5 0.5"), ("0.82\n0.83", "0.82 0.83"), ("nan", "0.1"), ("inf", "1e30"), ("", "1"),
]


@pytest.mark.parametrize("new, stored", SAME)
def test_numbers_agree_to_one_unit_in_the_last_printed_digit(new, stored):
    assert same_text(new, stored) and same_text(stored, new)


@pytest.mark.parametrize("new, stored", OTHER)
def test_other_numbers_and_other_words_differ(new, stored):
    assert not same_text(new, stored) and not same_text(stored, new)


@functools.cache
def png(beta=0.9, shift=0.0, label="m̂", color="blue", linestyle="-", title="The average forgets", order=1, until=60):
    """A figure as the series draws them, or one in which something is changed."""
    with matplotlib.rc_context():
        figures.use_style()
        fig, ax = plt.subplots()
        t = np.arange(1, until + 1)
        one, two = (1 - beta**t, 1 - 0.99**t)[::order]
        pixel = 1 / (ax.get_window_extent().height * 0.9)  # about one pixel in units of the axis
        ax.plot(t, one + shift * pixel, color=figures.COLORS[color], linestyle=linestyle)
        ax.plot(t, two, color=figures.COLORS["red"], linestyle="--")
        figures.label_line(ax, t[-1], one[-1], label, color)
        ax.set(xlabel="step", ylabel="share", title=title, xlim=(0, 66), ylim=(0, 1.1))
        file = io.BytesIO()
        fig.savefig(file, format="png")
        plt.close(fig)
    return file.getvalue()


WRONG = {
    "a coefficient, 0.9 to 0.88": {"beta": 0.88},
    "a curve shifted by its own width": {"shift": 3.8},
    "a label lost": {"label": ""},
    "another label": {"label": "v̂"},
    "another colour": {"color": "green"},
    "another line style": {"linestyle": "-."},
    "two curves exchanged": {"order": -1},
    "a word of the title": {"title": "The average remembers"},
    "the last ten steps missing": {"until": 50},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_figure_is_outside_the_tolerance(what, tally):
    apart = difference(png(**WRONG[what]), png())
    tally.figure(f"figure, {what}", f"{apart:.2f}")
    assert apart > 1.5 * TOLERANCE


def test_last_bits_are_inside_the_tolerance(tally):
    for nudge in (1e-7, 1e-4):  # relative to a pixel
        assert difference(png(shift=nudge), png()) < 0.1 * TOLERANCE
    tally.figure("figures, tolerance", f"{TOLERANCE}")
    tally.figure("figures, largest difference between code paths", f"{LARGEST_BETWEEN_CODE_PATHS}")
    assert LARGEST_BETWEEN_CODE_PATHS < TOLERANCE / 1.5


def gif(*shades, size=(20, 10)):
    first, *others = [Image.new("RGB", size, (shade, shade, shade)) for shade in shades]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=100)
    return file.getvalue()


def test_films_are_compared_frame_by_frame():
    assert same_picture(gif(0, 100, 200), gif(0, 100, 200))
    assert not same_picture(gif(0, 100, 200), gif(0, 150, 200))
    assert not same_picture(gif(0, 100, 200), gif(0, 100))
    assert not same_picture(gif(0, 100), gif(0, 100, size=(20, 11)))


def test_a_picture_that_cannot_be_decoded_is_an_error():
    with pytest.raises(ValueError, match="cannot be decoded"):
        same_picture(png(), b"no picture")


def test_pictures_in_html_are_compared_as_pictures_and_the_rest_as_text():
    def page(picture, words):
        return f'<img src="data:image/gif;base64,{base64.b64encode(picture).decode()}"> {words}'

    assert same_html(page(gif(0, 100), "0.82 α"), page(gif(0, 100), "0.83 α"))
    assert not same_html(page(gif(0, 200), "0.82 α"), page(gif(0, 100), "0.82 α"))
    assert not same_html(page(gif(0, 100), "0.82 α"), page(gif(0, 100), "0.82 β"))
    assert not same_html(page(gif(0, 100), "0.82 α"), "0.82 α")


def test_what_agrees_becomes_the_stored_output_and_the_rest_stays():
    stored, new = ([printed(f"0.8{i}\n"), new_output("display_data", data={"text/plain": f"1{i}"})] for i in (2, 3))
    settled = as_stored(new, stored)
    assert settled[0].text == "0.82\n" and settled[1].data["text/plain"] == "13"
    assert new[0].text == "0.83\n", "the new outputs themselves are left alone"
    assert as_stored(new, []) == new and as_stored([], stored) == []


def test_the_summary_knows_how_far_accepted_pictures_are(monkeypatch):
    monkeypatch.setattr(comparison, "ACCEPTED", [])
    assert same_picture(png(), png()) and comparison.ACCEPTED == []
    assert same_picture(png(shift=0.05), png()) and 0 < comparison.ACCEPTED[0] < TOLERANCE


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_of_adamlib_is_another_program(mutant):
    """tools/mutants.py asks the notebooks whether they notice it: it has to change something, in one place."""
    compile(changed(mutant), mutant.file, "exec")
    with pytest.raises(ValueError, match=f"{mutant.name}.*not once"):
        changed(mutant._replace(right="nowhere"))
