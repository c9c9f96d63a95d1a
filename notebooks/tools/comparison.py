"""When does what a cell gives now agree with what is stored? Numbers as numbers, pictures as pictures, words exactly.

nbval compares outputs as strings. What differs between processors is the last digit of a printed number and a few
pixels of a figure, so ``as_stored`` exchanges each new output that *agrees* with the stored one for it, and leaves the
verdict on the rest to nbval.
"""

import base64
import copy
import io
import re
from decimal import Decimal

import numpy as np
from matplotlib.testing.compare import calculate_rms
from PIL import Image, ImageSequence, UnidentifiedImageError

# Root mean square over all pixels and channels, 0 to 255. tests/notebooks/test_comparison.py measures what it stands
# between: what code paths differ by, and what a wrong curve makes.
TOLERANCE = 0.9
# A number that stands by itself: the 32 of float32 is part of a word. − is the minus sign of printed mathematics.
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w]|\.\d)")
ACCEPTED = []  # how far the pictures that agreed, but not byte for byte, are from the stored ones; for the run's summary
EMBEDDED = re.compile(r"data:image/(?:png|gif);base64,([A-Za-z0-9+/=\s]+)")


def same_text(new, stored):
    """Whether two printed texts agree: words, booleans and whole numbers exactly, other numbers to one unit in the last
    digit that is printed (in the finer of the two); the widths of blanks, which follow the numbers, do not count."""
    if new == stored:
        return True
    if _words(new) != _words(stored):
        return False
    return all(map(_same_number, NUMBER.findall(new), NUMBER.findall(stored)))


def _words(text):
    return re.sub(r"[ \t]+", " ", NUMBER.sub("0", text)).strip()


def _same_number(new, stored):
    if new == stored:
        return True
    one, two = (Decimal(text.replace("−", "-")) for text in (new, stored))
    if not re.search(r"[.eE]", new + stored):  # whole numbers: counts
        return one == two
    last_digit = min(Decimal(1).scaleb(number.as_tuple().exponent) for number in (one, two))
    return abs(one - two) <= last_digit


def same_picture(new, stored, tolerance=TOLERANCE):
    """Whether two pictures (bytes of PNG or GIF) have the same frames, the same size, and look the same.

    Raises ValueError where the stored one cannot be decoded.
    """
    if new == stored:
        return True
    apart = difference(new, stored)
    if apart <= tolerance:
        ACCEPTED.append(apart)
    return apart <= tolerance


def difference(new, stored):
    """The root-mean-square difference of two pictures, of the frame that differs most; inf where sizes differ."""
    ours, theirs = _frames(new), _frames(stored)
    if [frame.shape for frame in ours] != [frame.shape for frame in theirs]:
        return float("inf")
    return max(calculate_rms(one, two) for one, two in zip(ours, theirs))


def _frames(picture):
    try:
        with Image.open(io.BytesIO(picture)) as image:
            return [np.asarray(frame.convert("RGB"), np.int16) for frame in ImageSequence.Iterator(image)]
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("the figure cannot be decoded") from error


def _decoded(text):
    try:
        return base64.b64decode(text, validate=False)
    except ValueError as error:
        raise ValueError("the figure cannot be decoded") from error


def same_html(new, stored):
    """Whether two pieces of HTML agree: embedded pictures as pictures, the rest as text."""
    ours, theirs = (EMBEDDED.findall(text) for text in (new, stored))
    return (
        len(ours) == len(theirs)
        and same_text(EMBEDDED.sub("picture", new), EMBEDDED.sub("picture", stored))
        and all(same_picture(_decoded(one), _decoded(two)) for one, two in zip(ours, theirs))
    )


def agree(kind, new, stored):
    """Whether two outputs of one kind (a MIME type, or the name of a stream) agree."""
    if not (isinstance(new, str) and isinstance(stored, str)):
        return new == stored
    if kind in ("image/png", "image/gif"):
        return same_picture(_decoded(new), _decoded(stored))
    return same_html(new, stored) if kind == "text/html" else same_text(new, stored)


def as_stored(new, stored):
    """A copy of the outputs `new` in which each text and picture that agrees with its partner in `stored` is that one.

    Outputs are lists of notebook nodes; the n-th of a kind is the partner of the n-th of that kind.
    Raises ValueError where a stored figure cannot be decoded.
    """
    new = copy.deepcopy(new)
    partners: dict = {}
    for kind, holder, key in _values(stored):
        partners.setdefault(kind, []).append(holder[key])
    for kind, holder, key in _values(new):
        if partners.get(kind):
            partner = partners[kind].pop(0)
            if agree(kind, holder[key], partner):
                holder[key] = partner
    return new


def _values(outputs):
    """(kind, holder, key) of everything in the outputs that can be compared."""
    for output in outputs:
        if output.output_type == "stream":
            yield output.name, output, "text"
        elif output.output_type == "error":
            yield "evalue", output, "evalue"
        for mime in output.get("data", {}):
            yield mime, output.data, mime
