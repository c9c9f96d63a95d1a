"""The figure of the two windows: one picture that the chapters share, as a still and as a page that lives.

``course.figures.windows(...)`` shows it. The still is drawn here, from ``adamlib.theory``; the living part is the
script in ``windows.html``, which computes everything again in the browser from a few settings, so that what is stored
is the same on every processor. A test runs that script beside the theory.
"""

import base64
import html
import io
import json
import math
import pathlib
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from adamlib.theory.algorithm1 import State, algorithm1
from adamlib.theory.step_bound import extremal_gradients, worst_ratio
from course.figures import COLORS

TEMPLATE = pathlib.Path(__file__).with_name("windows.html")
SHOWN = (60, 120, 300, 1000, 3000)  # lengths of the time axis

# The gradients of one weight in units of 1e-5, as recorded: an MLP 64-128-10 of PyTorch's default start (seed 0) learns
# the digits with Adam at its defaults, batches of 32 drawn at random. The weight leads from pixel 43 to hidden unit 73.
# The unit sleeps for 36 steps.
DIGITS = (
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    145, 0, 0, 112, 230, 0, 0, 0, 78, -71, 229, 0, 0, 9, 0, -53, -16, -19, 0, -4, 520, 23, 385, 177, 310, 246,
    151, -241, 130, 91, 208, 156, 222, 304, 378, 155, 220, 498, 378, 574, 758, 420, -6, 390, -97, 447, 286, 431,
    258, 726, 550, 575, 487, 635, 446, 292, 630, 1047, 1419, 233, 77, 319, 168, 354, 117, 239, 559, -6, 52, -83,
    -13, 349, 249, 205, 63, -81, 68, 892, 379, 352, 272, 585, 500, 64,
)  # fmt: skip
PRESETS = {  # name -> (what its dial says, where the dial starts)
    "constant": (None, None),
    "waking up": ("zeros before", 20_000),
    "second awakening": ("zeros between", 3_000),  # after 1,000 ones
    "growing": ("growth a step", 1.05),  # after 10,000 ones
    "extremal": (None, None),
    "noise": ("signal to noise", 0.5),
    "digits": (None, None),
}


class Moment(NamedTuple):
    """What the figure shows: a stream of gradients, Adam's options, and a step t of the stream."""

    preset: str | None  # None: gradients that were given
    dial: float | None  # the preset's own number; for given gradients, the zeros before the first
    given: tuple | None
    t: int
    shown: int  # steps on the time axis
    beta1: float
    beta2: float
    eps: float
    correction: bool | int  # True: it follows t.  A number: frozen at that step, as a captured graph does.
    amsgrad: bool


def moment(gradients, t, *, dial=None, beta1=0.9, beta2=0.999, eps=0.0, correction=True, amsgrad=False):
    """The Moment of these settings. Raises ValueError, with what to write instead, where nothing could be shown."""
    if isinstance(gradients, str):
        if gradients not in PRESETS:
            raise ValueError(f"there is no preset {gradients!r}: take one of {', '.join(PRESETS)}, or give numbers")
        preset, given, longest = gradients, None, len(DIGITS) if gradients == "digits" else SHOWN[-1]
        dial = PRESETS[preset][1] if dial is None else dial
    else:
        given = tuple(float(f"{g:.6g}") for g in np.asarray(gradients, dtype=np.float64).ravel())  # kept in the page
        if not given or not all(map(math.isfinite, given)):
            raise ValueError("gradients must be a preset's name or at least one finite number")
        preset, longest, dial = None, min(len(given), SHOWN[-1]), dial or 0
    if t != int(t) or not 1 <= t <= longest:
        raise ValueError(f"t must be a step from 1 to {longest}, got {t}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {beta}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a number from 0 on, got {eps}")
    if not isinstance(correction, bool) and not (correction == int(correction) and correction >= 1):
        raise ValueError(f"correction is True, False, or the step at which it was frozen, got {correction}")
    shown = longest if given or preset == "digits" else next(n for n in SHOWN if t <= 0.85 * n or n == SHOWN[-1])
    return Moment(preset, dial, given, int(t), shown, float(beta1), float(beta2), float(eps), correction, bool(amsgrad))


def stream(now):
    """(before, gradients): runs (value, how often) from the first step on, then the gradients on the time axis."""
    n = now.shown
    if now.given is not None:
        return _asleep(now.dial), np.array(now.given[:n])
    if now.preset == "waking up":
        return _asleep(now.dial), np.ones(n)
    if now.preset == "second awakening":
        return [(1.0, 1000), *_asleep(now.dial)], np.ones(n)
    if now.preset == "growing":
        if not 0 < now.dial < math.inf or abs(math.log(now.dial)) * n > 300:
            raise ValueError(f"{n} gradients that grow by {now.dial} a step leave the range of numbers")
        return [(1.0, 10_000)], now.dial ** np.arange(1, n + 1)
    if now.preset == "extremal":
        return [], extremal_gradients(now.beta1, now.beta2, n)
    if now.preset == "noise":
        return [], now.dial + _noise(n)
    if now.preset == "digits":
        return [], np.array(DIGITS[:n]) / 1e5
    return [], np.ones(n)


def _asleep(zeros):
    if zeros != int(zeros) or not 0 <= zeros <= 1_000_000:
        raise ValueError(f"the number of zeros before must be a whole number up to a million, got {zeros}")
    return [(0.0, int(zeros))] if zeros else []


def _noise(n):
    """n numbers of mean 0 and variance 1, nearly normal: sums of twelve from a generator that a browser has too."""
    seed, noise = 1, []
    for _ in range(n):
        total = 0.0
        for _ in range(12):
            seed = seed * 48271 % 2147483647
            total += seed / 2147483647
        noise.append(total - 6)
    return np.array(noise)


class Seen(NamedTuple):
    """The numbers behind the picture; arrays over the steps of the time axis, but for the two windows at step t."""

    before: list
    gradients: np.ndarray
    m_hat: np.ndarray
    v_hat: np.ndarray
    ratio: np.ndarray  # Δ/α; 0 as long as all gradients were zero
    bound: np.ndarray  # the largest |Δ|/α that any gradients could make
    largest: float  # the largest |gradient| up to t
    ages: np.ndarray  # edges of the bins of age; the newest gradient has age 1
    windows: dict  # "m", "v" -> (the share of weight in each bin, of that without a gradient, from news, from before)
    held: int  # the step whose v AMSGrad holds at t


def see(now):
    """Compute what the figure shows. Raises ValueError where there is no step to show."""
    before, gradients = stream(now)
    β1, β2, n0, n = now.beta1, now.beta2, sum(count for _, count in before), len(gradients)
    options = dict(lr=1.0, betas=(β1, β2), eps=now.eps, amsgrad=now.amsgrad)
    asleep, history, state = 0, [np.full(count, value) for value, count in before], None
    if before and before[0][0] == 0:  # zeros leave zeros: no need to walk through them
        asleep, history, state = n0, [], State(n0, np.zeros(()), np.zeros(()), np.zeros(()) if now.amsgrad else None)
    run = algorithm1(0.0, np.concatenate([*history, gradients]), state=state, **options)
    v_max = np.maximum.accumulate(run.v) if now.amsgrad else run.v
    steps = n0 + np.arange(1, n + 1)
    follows = now.correction is True
    t = steps if follows else int(now.correction)
    f1, f2 = (1 - β1**t, 1 - β2**t) if now.correction is not False else (1.0, 1.0)
    m_hat, v_hat = run.m[-n:] / f1, v_max[-n:] / f2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(v_hat > 0, run.delta[-n:] if follows else m_hat / (np.sqrt(v_hat) + now.eps), 0.0)
    if not np.all(np.isfinite([m_hat, v_hat, ratio])):
        raise ValueError("these gradients leave the range of numbers")
    bound = worst_ratio(β1, β2, steps, bias_correction=follows)
    if not follows:
        bound = bound * np.sqrt(f2) / f1
    past = np.concatenate([np.zeros(asleep), *history, gradients[: now.t]])
    largest = np.abs(past).max()
    if largest == 0:
        raise ValueError(f"every gradient up to step {now.t} is zero: the step is 0/0, and there is nothing to show")
    at = now.t - 1
    held = int(np.argmax(run.v[: len(run.v) - n + now.t])) + 1 + asleep - n0 if now.amsgrad else now.t
    ages = _edges(now, len(past), now.t - held)
    f1, f2 = (f1[at], f2[at]) if follows else (1.0, 1.0)  # frozen: the windows as they are, before they are divided
    windows = {
        "m": _window(β1, f1, past / largest, 0, ages, now),
        "v": _window(β2, f2, (past / largest) ** 2, now.t - held, ages, now),
    }
    return Seen(before, gradients, m_hat, v_hat, ratio, bound, float(largest), ages, windows, held)


def _edges(now, steps, late):
    """Edges of the bins of age: whole numbers from 1, at most 24 a decade, until the longer window is empty.

    Where the gradients, the news and a window that lags begin or end, there is an edge.
    """
    oldest = max(5 / (1 - max(now.beta1, now.beta2)), 1.5 * late)
    decades = min(6, max(4, math.ceil(math.log10(oldest) - 1e-9)))
    regular = np.round(10 ** (np.arange(24 * decades + 1) / 24)).astype(int)
    extra = np.array([now.t + 1, steps + 1, late + 1])
    return np.unique(np.append(regular, extra[extra < regular[-1]]))


def _window(beta, f, values, late, ages, now):
    """Per bin of age, in shares of the whole window: weight, of that on the zero start, then what it holds of the news
    and of what was before, as parts of the largest.

    values: the gradients from the first step on, or their squares, in units of the largest.
    late: by how many steps AMSGrad's window lags behind.
    """
    k, n = ages - 1, len(values)  # k = 0 is the newest gradient
    weight = np.diff(1 - beta ** np.maximum(k - late, 0)) / f
    start = np.diff(1 - beta ** (np.maximum(k, n) - late)) / f
    if now.correction is True:  # the window ends where the gradients do
        weight, start = weight - start, 0 * start
    age = np.arange(n)
    each = np.where(age >= late, (1 - beta) * beta ** np.maximum(age - late, 0), 0) / f * values[::-1]
    held = np.append(0, np.cumsum(each))
    news = np.diff(held[np.minimum(k, now.t)])
    return weight, start, news, np.diff(held[np.minimum(k, n)]) - news


def same_news(now, seen):
    """Whether all gradients of the stream up to t are equal, so that one can say how much of them was heard."""
    return bool(np.all(seen.gradients[: now.t] == seen.gradients[0])) and abs(seen.gradients[0]) == seen.largest


def parts(now, seen):
    """Of the windows of m and v: what they hold of the largest gradient, or of its square; and v, from before."""
    before = seen.windows["v"][3].sum()
    if same_news(now, seen):
        return abs(seen.windows["m"][2].sum()), seen.windows["v"][2].sum(), before
    frozen = 0 if now.correction is True else int(now.correction)
    f1, f2 = (1 - now.beta1**frozen, 1 - now.beta2**frozen) if frozen else (1, 1)
    at = now.t - 1
    return seen.m_hat[at] * f1 / seen.largest, seen.v_hat[at] * f2 / seen.largest**2, before


def sentence(now, seen):
    """What is to be seen, in words."""
    m, v = names(now)
    at, (in_m, in_v, before) = now.t - 1, parts(now, seen)
    if same_news(now, seen):
        said = f"{m} has heard {percent(in_m)} of the news, {v} {percent(in_v)}"
        said += f" and keeps {percent(before)} from before" if before > 1e-5 else ""
    else:
        said = f"{m} is {percent(in_m)} of the largest gradient, √{v} {percent(math.sqrt(in_v))}"
    if seen.held < now.t:
        said += f" (AMSGrad holds the v of {steps(now.t - seen.held)} ago)"
    if not isinstance(now.correction, bool):
        said += f", corrected as at step {now.correction}"
    bound = f" of at most {number(seen.bound[at])} α" if seen.bound[at] < 1e6 else ", and there is no bound"
    return f"after {steps(now.t)} {said}; the step is {number(seen.ratio[at])} α{bound}"


def label(now, seen, name):
    """What stands in a window's picture."""
    symbol = dict(zip("mv", names(now)))[name]
    in_m, in_v, before = parts(now, seen)
    holds = percent(in_m if name == "m" else in_v)
    if not same_news(now, seen):
        return f"{symbol} is {holds} of the largest" + ("²" if name == "v" else "")
    return f"{symbol} has heard {holds}" + (f", keeps {percent(before)}" if name == "v" and before > 1e-5 else "")


def title(now, seen):
    """The claim that the numbers at t bear out."""
    (m, v), ratio = ("m̂", "v̂") if now.correction is not False else ("m", "v"), seen.ratio[now.t - 1]
    if not isinstance(now.correction, bool):
        return f"The correction is frozen at step {now.correction}: the step is {number(ratio)} α"
    if seen.held < now.t:
        return f"AMSGrad remembers: the step is {number(ratio)} α"
    if now.correction and abs(ratio) > 0.9995 * seen.bound[now.t - 1] > 1.005:
        return f"No gradients make a longer step: it is {number(ratio)} α"
    place = "and" if 0.995 < abs(ratio) < 1.005 else "is ahead of" if abs(ratio) > 1 else "is behind"
    return f"{m} {place} √{v}{' agree' * (place == 'and')}: the step is {number(ratio)} α"


def steps(t):
    return f"{t} step{'s' * (t > 1)}"


def names(now):
    """How the averages in the windows are called."""
    return ("m̂", "v̂") if now.correction is True else ("m", "v")


def number(x):
    """6.57, 99.99, 1234; beyond a million the digits mean nothing."""
    if abs(x) >= 1e6:
        return "more than a million" if x > 0 else "less than minus a million"
    return _fixed(x, 2 if abs(x) < 99.995 else 0)


def percent(x):
    """Two digits: 72 %, 1.2 %, 0.012 %."""
    x = 100 * x
    size = abs(x)
    if size < 0.0005:
        return "below 0.001 %" if x else "0 %"
    return _fixed(x, 0 if size >= 9.95 else 1 if size >= 0.995 else 2 if size >= 0.0995 else 3) + " %"


def _fixed(x, digits):
    text = f"{abs(x) * (1 + 1e-12):.{digits}f}"  # a tie is rounded up, as in a browser
    return ("−" if x < 0 and float(text) else "") + text


# ---------------------------------------------------------------------------------------------------------- the still


def still(now, seen):
    """The picture of the moment, as a matplotlib Figure: on the left over time, on the right over age."""
    fig, ((stream_ax, m_ax), (ratio_ax, v_ax)) = plt.subplots(2, 2, figsize=(10, 5.6), sharex="col")
    fig.suptitle(title(now, seen), x=0.008, ha="left")
    _draw_stream(stream_ax, now, seen)
    _draw_ratio(ratio_ax, now, seen)
    top = max(_density(seen, seen.windows[name][0]).max() for name in "mv")
    top = 1.4 * min(max(0.95, top), 2)  # a window that AMSGrad holds narrows with its age, and leaves the picture
    low = min(0, _density(seen, sum(seen.windows["m"][2:])).min()) * 1.3
    for ax, name, color, symbol in zip((m_ax, v_ax), "mv", ("blue", "red"), names(now)):
        _draw_window(ax, seen, name, color)
        words = dict(color=COLORS[color], weight="bold", va="top", transform=ax.transAxes)
        ax.text(0.02, 0.97, label(now, seen, name), **words)
        ax.set(xscale="log", xlim=(1, seen.ages[-1]), ylim=(low, top), yticks=[], ylabel=f"window of {symbol}")
    decades = 10 ** np.arange(round(math.log10(seen.ages[-1])) + 1)
    v_ax.set_xticks(decades, [f"{d}" if d < 10_000 else f"10{'⁴⁵⁶'[len(str(d)) - 5]}" for d in decades])
    v_ax.set_xlabel("age of a gradient, in steps")
    m_ax.text(0.99, 0.8, "area:\nshare of weight", color="#595959", fontsize=14, ha="right", va="top",
              transform=m_ax.transAxes)  # fmt: skip
    return fig


def _draw_stream(ax, now, seen):
    steps = np.arange(1, now.shown + 1)
    height = np.clip(seen.gradients / seen.largest, -1.3, 1.3)
    for part, color in ((steps > now.t, "#D9D9D9"), (steps <= now.t, COLORS["green"])):
        ax.fill_between(*_bars(now, steps[part], height[part]), color=color, linewidth=0)
    lead, was = _lead(now, seen)
    if was:
        earlier = _bars(now, np.arange(1 - lead, 1), np.full(lead, was / seen.largest))
        ax.fill_between(*earlier, color=COLORS["green"], linewidth=0)
    elif lead:
        ax.plot([1 - lead, 0.4], [0, 0], color=COLORS["grey"], linestyle="-", linewidth=4, solid_capstyle="butt")
    if lead:
        x, words, side = (1 - lead, f"{was:g} for long", "left") if was else (0.2, "asleep", "right")
        ax.text(x, was / seen.largest + 0.08, words, color="#595959", fontsize=14, ha=side)
    ax.axvline(now.t, color=COLORS["black"], linestyle=":", linewidth=1.5)
    ax.set(ylim=(1.3 * min(0, height[: now.t].min()), 1.3), yticks=[], ylabel="gradient")
    ax.set_xlim(0.4 - lead, now.shown + 1)
    ax.grid(False)


def _draw_ratio(ax, now, seen):
    steps, (lead, was) = np.arange(1, now.shown + 1), _lead(now, seen)
    highest = max(1, np.abs(seen.ratio).max())
    bound = seen.bound[-1] if np.isfinite(seen.bound[-1]) else math.inf
    ax.plot(steps, np.minimum(seen.bound, 1e9), color="#ACACAC", linestyle="--", linewidth=5)  # seen behind the step
    thick = 2.5 if now.shown <= 300 else 1.2
    ax.plot(steps, seen.ratio, color="#BFBFBF", linestyle="-", linewidth=thick)
    if lead:
        ax.plot([1 - lead, 0, 1], [was, was, seen.ratio[0]], color=COLORS["black"], linestyle="-")
    ax.plot(steps[: now.t], seen.ratio[: now.t], color=COLORS["black"], linestyle="-", linewidth=thick)
    ax.axvline(now.t, color=COLORS["black"], linestyle=":", linewidth=1.5)
    ax.plot(now.t, seen.ratio[now.t - 1], "o", color=COLORS["black"], markersize=9)
    ceiling = 1.3 * max(highest, min(3 * highest, bound))
    ax.set(ylim=(1.25 * min(0, seen.ratio.min()), ceiling), ylabel="step / α", xlabel="step")
    low = np.count_nonzero(seen.bound <= ceiling)  # where the bound leaves the picture
    if not low:
        return
    place = dict(ha="left" if low < now.shown / 2 else "right", va="bottom" if low == now.shown else "top")
    ax.text(low, seen.bound[low - 1] * 1.02, " the longest there can be ", color="#595959", fontsize=14, **place)


def _draw_window(ax, seen, name, color):
    weight, start, news, before = (_density(seen, share) for share in seen.windows[name])
    ages = seen.ages
    ax.stairs(weight, ages, fill=True, color=COLORS[color], alpha=0.16, linewidth=0)
    ax.stairs(weight, ages, color=COLORS[color], linestyle="-", linewidth=1.5)
    if start.max() > 0:
        ax.stairs(start, ages, fill=True, facecolor="white", hatch="///", edgecolor="#B0B0B0", linewidth=0)
    ax.stairs(news, ages, fill=True, color=COLORS[color], linewidth=0)
    if np.any(before):
        ax.stairs(before + news, ages, baseline=news, fill=True, color=COLORS[color], alpha=0.5, linewidth=0)
    ax.grid(False)


def _lead(now, seen):
    """How many steps of the axis show the run of zeros, or of ones, before the stream; and which of the two it is.

    A long run of ones makes steps of 1 α, so that the value stands for the step, too."""
    value, count = seen.before[-1] if seen.before else (0, 0)
    return min(count, now.shown // 5), value


def _bars(now, x, y):
    """The outline of bars at x, apart as long as they are few."""
    if now.shown > 120:
        return np.column_stack([x - 0.5, x + 0.5]).ravel(), np.column_stack([y, y]).ravel()
    corners = [x - 0.4, x - 0.4, x + 0.4, x + 0.4]
    return np.column_stack(corners).ravel(), np.column_stack([0 * y, y, y, 0 * y]).ravel()


def _density(seen, share):
    """Share of weight per decade of age: on a logarithmic axis areas are then shares, in both windows alike."""
    return share / np.diff(np.log10(seen.ages))


def alt(now, seen):
    """The picture for readers who cannot see it."""
    what = now.preset or "given"
    return (
        f"Four panels about step {now.t} of a stream of gradients ({what}). Left: the gradients over time, and below "
        "them the step in units of α with its bound. Right: the windows of m and v over the age of a gradient, on one "
        "logarithmic axis, an area being a share of the weight: " + sentence(now, seen) + "."
    )


# ------------------------------------------------------------------------------------------------------- the living one


def page(now, fig, description, alone=False):
    """The HTML of the figure: a small still, and the script that puts the living figure in its place.

    alone: it has the page to itself, and takes keys wherever the focus is.

    It holds settings and no computed number, so that it is the same on every processor but for the still.
    """
    settings = now._asdict() | ({"page": True} if alone else {})
    png, small = io.BytesIO(), io.BytesIO()
    fig.savefig(png, dpi=66 if now.shown <= 300 else 60, bbox_inches="tight", pad_inches=0.1)
    still = Image.open(png).convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)
    still.save(small, "WEBP", lossless=True, quality=75, method=4)  # a third smaller than PNG
    source = "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode()
    filled = {
        "STATE": html.escape(json.dumps(settings, separators=(",", ":")), quote=False).replace("'", "&#39;"),
        "STILL": f'<img alt="{html.escape(description)}" style="max-width:100%" src="{source}">',
        "PRESETS = {}": f"PRESETS = {json.dumps(PRESETS)}",
        "DIGITS = []": f"DIGITS = {json.dumps(DIGITS, separators=(',', ':'))}",
    }
    lines = map(str.strip, TEMPLATE.read_text(encoding="utf-8").splitlines())
    text = "\n".join(line for line in lines if line and not line.startswith("//"))
    for place, content in filled.items():
        text = text.replace(place, content, 1)
    return text


def _palette():
    """The few colours of the small still: those it is drawn in, and each half way to white for its edges."""
    inks = [COLORS[name] for name in ("blue", "red", "green", "black")] + ["#595959", "#E4E4E4", "#BFBFBF"]
    rgb = np.array([to_rgb(ink) for ink in inks])
    shades = np.concatenate([rgb, (rgb[:5] + 1) / 2, 0.16 * rgb[:2] + 0.84, np.ones((1, 3))])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.round(255 * shades).astype(np.uint8).ravel().tolist())
    return palette
