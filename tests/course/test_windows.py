"""The figure of the two windows: the theory, and the script that lives in the page, compute and say the same.

Its still, its alt text, its sentence and its page are compared wherever a chapter shows it.
"""

import base64
import io
import json
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
from PIL import Image

matplotlib.use("agg")

from course import figures, windows  # noqa: E402

MAX_HTML = 40_000  # bytes, the small still included
CLOSE = dict(rtol=1e-12, atol=1e-300)
EDGES = (
    (0.0, 0.0), (0.0, 0.999), (0.9, 0.0), (0.9, 0.9), (0.5, 0.25), (0.9, 0.81), (0.9, 0.7), (0.99, 0.9999), (0.3, 0.9999),
)  # fmt: skip
RANDOM = tuple(tuple(1 - 10 ** -pair) for pair in np.random.default_rng(0).uniform(0, 4, (12, 2)))

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here to run the figure's script")


def script(page):
    return re.search(r"<script>(.*)</script>", page, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def run_script(tmp_path_factory):
    """Run the figure's own script under Node: states -> what it computes, or the sentence with which it refuses."""
    folder = tmp_path_factory.mktemp("node")
    now = windows.moment("constant", 1)
    page = windows.page(now, windows.still(now, windows.see(now)), "a")
    (folder / "figure.js").write_text(script(page), encoding="utf-8")
    (folder / "run.js").write_text(
        """
        const {see, sentence, label, title} = require("./figure.js"), fs = require("fs");
        const exact = (_, x) => typeof x === "number" && !Number.isFinite(x) ? String(x)
            : ArrayBuffer.isView(x) ? [...x] : x;
        for (const line of fs.readFileSync(0, "utf8").trim().split("\\n")) {
            // an emptied field is NaN in the page
            const s = JSON.parse(line, (key, x) => x === null && /beta|eps|dial/.test(key) ? NaN : x);
            let out;
            try {
                const seen = see(s), labels = [0, 1].map((i) => label(s, seen, i));
                out = {...seen, sentence: sentence(s, seen), title: title(s, seen), labels};
            } catch (problem) { if (typeof problem !== "string") throw problem; out = {refused: problem}; }
            console.log(JSON.stringify(out, exact));
        }""",
        encoding="utf-8",
    )

    def run(states):
        lines = "\n".join(json.dumps(state) for state in states)
        pipes = dict(input=lines, capture_output=True, encoding="utf-8")
        done = subprocess.run(["node", "run.js"], cwd=folder, **pipes)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def numbers(values):
    return np.array([float(str(x).replace("Infinity", "inf")) for x in values])


def moments():
    """Every preset over 300 steps at all betas, the options in turn, and a few others."""
    options = [
        dict(), dict(correction=False), dict(amsgrad=True), dict(eps=1e-3), dict(correction=1),
        dict(correction=7, amsgrad=True),
    ]  # fmt: skip
    for preset in windows.PRESETS:
        long = preset in ("growing", "second awakening")  # thousands of gradients before those that are shown
        for i, (beta1, beta2) in enumerate((EDGES + RANDOM)[:: 3 if long else 1]):
            t = 1 + 37 * i % 120
            yield windows.moment(preset, t, beta1=beta1, beta2=beta2, **options[i % 6])._replace(shown=300)
        for option in options:
            yield windows.moment(preset, 100, **option)._replace(shown=300)
    for zeros in (0, 1, 209, 5000):
        yield windows.moment("waking up", 12, dial=zeros)
        yield windows.moment("second awakening", 12, dial=zeros, amsgrad=True)
    spikes = np.random.default_rng(1).standard_cauchy(50)
    for t in (1, 2, 50):
        yield windows.moment(spikes, t)
        yield windows.moment(spikes, t, dial=30, amsgrad=True)
        yield windows.moment([3, 3, 3] + [-1e-3] * 50, t, amsgrad=True)


@needs_node
def test_the_script_computes_what_the_theory_says(run_script):
    refused = []
    both = list(moments())
    for now, js in zip(both, run_script([now._asdict() for now in both]), strict=True):
        told = str(now)
        try:
            seen = windows.see(now)
        except ValueError:
            assert list(js) == ["refused"], told
            refused.append(now)
            continue
        for name in ("gradients", "m_hat", "v_hat", "ratio", "bound"):
            np.testing.assert_allclose(numbers(js[name]), getattr(seen, name), **CLOSE, err_msg=f"{name} {told}")
        assert js["ages"] == seen.ages.tolist() and js["held"] == seen.held, told
        for name, bins in zip("mv", js["windows"]):
            np.testing.assert_allclose(np.array(bins).T, seen.windows[name], rtol=1e-9, atol=1e-13, err_msg=told)
        assert js["sentence"] == windows.sentence(now, seen), told
        assert js["title"] == windows.title(now, seen), told
        assert js["labels"] == [windows.label(now, seen, name) for name in "mv"], told
        assert not re.search("nan|inf|undefined", js["sentence"], re.IGNORECASE), told
    assert len(both) > 170 and len(refused) < 20
    for now in refused:  # extremal gradients may leave the range of numbers; the weight of the digits sleeps at first
        assert now.preset == "extremal" or now.preset == "digits" and now.t <= 36, str(now)


@needs_node
def test_where_there_is_nothing_to_see_a_sentence_says_so(run_script):
    fine = windows.moment("constant", 5)._asdict()
    bad = [
        dict(beta1=1), dict(beta2=1.5), dict(beta1=-0.1), dict(beta2=None), dict(eps=-1), dict(eps=None),
        dict(given=[0, 0, 0], t=2, shown=3, preset=None, dial=0), dict(preset="waking up", dial=-3),
        dict(preset="waking up", dial=0.5), dict(preset="growing", dial=0), dict(preset="growing", dial=1e6),
        dict(preset="extremal", beta1=1e-9), dict(preset="noise", dial=None), dict(preset="digits", t=30, shown=60),
        dict(preset="constant", given=[1e200, 1e200], t=2, shown=2, dial=0), dict(preset="extremal", beta2=0),
    ]  # fmt: skip
    for change, js in zip(bad, run_script([fine | change for change in bad]), strict=True):
        assert list(js) == ["refused"] and re.fullmatch(r"[A-ZΕΒβε\d].{20,}\.", js["refused"]), (change, js)
        assert not re.search("NaN|undefined|null", js["refused"]), change


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(gradients="wakes"), "take one of constant, waking up"), (dict(gradients=[]), "at least one"),
        (dict(gradients=[1, np.nan]), "finite"), (dict(t=0), "from 1"), (dict(t=1.5), "from 1"),
        (dict(beta1=1.0), "beta1"), (dict(beta2=-0.1), "beta2"), (dict(eps=-1e-8), "eps"),
        (dict(correction=0), "frozen"), (dict(dial=-1), "whole number"),
        (dict(gradients="growing", dial=1e9), "range"), (dict(gradients=[1, 2], t=3), "from 1 to 2"),
        (dict(gradients=[0, 0, 1], t=2), "0/0"), (dict(gradients=[1e200, 1.0], t=2), "range of numbers"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_with_what_to_write(wrong, words):
    with pytest.raises(ValueError, match=words):
        windows.see(windows.moment(**{"gradients": "waking up", "t": 12, **wrong}))


@pytest.mark.parametrize("x, words", [
    (1, "100 %"), (0.125, "13 %"), (0.0119, "1.2 %"), (0.002, "0.20 %"), (0.00012, "0.012 %"), (1e-9, "below 0.001 %"),
])
def test_percentages_have_two_digits_and_a_tie_is_rounded_up(x, words):
    assert windows.percent(x) == words


# ----------------------------------------------------------------------------------------------------- what is stored


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata: outputs.append((data, metadata)))
    with matplotlib.rc_context():
        figures.use_style()
        yield outputs


@pytest.mark.parametrize("gradients, t", [("digits", 94), (np.sin(range(120)), 100)])
def test_the_page_is_small_needs_nothing_else_and_holds_no_number_that_was_computed(shown, gradients, t):
    figures.windows(gradients, t)
    page = shown[0][0]["text/html"]
    assert len(page.encode()) < MAX_HTML
    assert not re.search(r"https?:|<link|\bimport\b|\bfetch\(|\bsrc=\"(?!data:)", page)
    small = base64.b64decode(re.search(r'base64,([\w+/=]+)"', page).group(1))
    assert Image.open(io.BytesIO(small)).width > 600
    assert page.index("<img alt=") < page.index("<script>"), "where no script runs, the still is there"
    now = windows.moment(gradients, t)
    state = json.loads(re.search(r"data-adam-windows='([^']*)'", page).group(1))
    assert state == json.loads(json.dumps(now._asdict()))
    other = windows.page(now._replace(t=90), windows.still(now, windows.see(now)), "another text")
    assert script(page) == script(other)


def test_the_page_for_the_projector_takes_keys_everywhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(windows.TEMPLATE.parents[1] / "tools"))
    import figure

    figure.write(tmp_path / "build" / "figure.html")
    page = (tmp_path / "build" / "figure.html").read_text(encoding="utf-8")
    assert '"page":true' in page and len(page.encode()) < MAX_HTML and page.startswith("<!doctype html>")
