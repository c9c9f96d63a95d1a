"""The decks: what is refused when they are read, and every page of each in a headless browser."""

import functools
import http.server
import json
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("sphinx_revealjs", reason="make slides needs the packages of environment.yml")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import deck  # noqa: E402
import slides  # noqa: E402
from series import MAIN_LINE, NOTEBOOKS  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1280,720"]  # fmt: skip
PICTURE = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "a line"}})
CHAPTER = new_notebook(cells=[
    new_markdown_cell("# A chapter"), new_markdown_cell("The reason why.", metadata={"speaker": "Ask first."}),
    new_code_cell("x = 1\ny = 2\nprint(x)", outputs=[new_output("stream", name="stdout", text="1\n")]),
    new_markdown_cell("Prose."), new_code_cell("plot(x)", outputs=[PICTURE]), new_code_cell("wide = " + "1 + " * 20 + "1"),
])  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that reads a deck from its text, for CHAPTER."""
    monkeypatch.setattr(deck, "DECKS", tmp_path)
    monkeypatch.setattr(deck, "NOTEBOOKS", tmp_path)

    def read(text):
        (tmp_path / "00_chapter.md").write_text(text, encoding="utf-8")
        return deck.read("00_chapter", CHAPTER)

    return read


def test_a_slide_takes_code_print_and_figure_from_its_chapter_and_the_prose_becomes_its_note(written):
    (section,) = written(
        '# First [drop when late]\n## A claim\n{code "y = 2" 2-3}\n{print "y = 2"}\nNote: Slowly.\n## A picture\n'
        '{figure "plot(x)"}\n## A vote\n{vote}\n- yes\n- no\n'
    )
    assert section.title == "First" and section.marks == ["drop when late"]
    code, picture, vote = section.slides
    assert code.parts == [("code", "y = 2\nprint(x)"), ("print", "1")]
    assert code.note == "Slowly.\n\nA chapter\n\nAsk first.\n\nThe reason why."
    assert picture.note == "Prose." and picture.parts[0].content is CHAPTER.cells[4]
    assert vote.vote and not code.vote
    assert code.seconds == 25 + 2 * 0.5 + 3 * 5 and picture.seconds == 25 + 1 + 75 and vote.seconds == 25 + 4 * 0.5 + 90


def test_a_line_of_a_proof_comes_a_click_before_its_reason():
    page = slides.rendered("+ $a$ // it is small\n+ so $b$\n")
    assert page.count('<li class="fragment">') == 2 and '<span class="fragment reason">it is small</span></li>' in page


def test_a_fenced_block_is_one_box_and_no_higher_than_its_lines():
    assert slides.rendered("```\nx\ny\n```").strip() == '<pre class="highlight">x\ny\n</pre>'


REFUSED = {
    "41 words": "# A\n## Claim\n" + "word " * 40,
    "11 lines of code": "# A\n## B\n```\n" + "x\n" * 11 + "```",
    "a line of 88 characters, 68 fit": '# A\n## B\n{code "wide"}',
    "2 code cells contain": '# A\n## B\n{code "1"}',
    "draws no figure": '# A\n## B\n{figure "y = 2"}',
    "two figures": '# A\n## B\n{figure "plot(x)"}\n{figure "plot(x)"}',
    "a figure and code": '# A\n## B\n{figure "plot(x)"}\n{code "y = 2"}',
    "a vote without options": "# A\n## B\n{vote}\nyes or no",
    "is none of": "# A\n## B\n{picture plot}",
    "stands in no section": "## B\nText",
    "text before the first heading": "Text\n# A\n## B",
    "nothing to show as print": '# A\n## B\n{print "plot(x)"}',
    "31 slides; an hour holds 30": "# A\n" + "## B\n" * 31,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_a_slide_is_refused_with_its_place_and_the_cure(written, reason):
    with pytest.raises(deck.Refused, match="00_chapter.md.*" + re.escape(reason)) as refused:
        written(REFUSED[reason])
    assert "\n" not in str(refused.value)


def test_a_chapter_without_a_deck_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(deck, "DECKS", NOTEBOOKS / "decks" / "nowhere")
    with pytest.raises(deck.Refused, match="00_chapter has no deck: write notebooks/decks/nowhere/00_chapter.md"):
        deck.read("00_chapter", CHAPTER)


@functools.cache
def read(chapter):
    notebook = nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    return notebook, deck.read(chapter, notebook)


@pytest.mark.parametrize("chapter", MAIN_LINE)
def test_numbers_on_slides_are_the_chapters_and_the_minutes_hold(chapter):
    notebook, sections = read(chapter)
    said = " ".join(
        [c.source for c in notebook.cells] + [str(o.get("text", "")) for c in notebook.cells for o in c.get("outputs", [])]
    )
    shown = [part.content for section in sections for slide in section.slides for part in slide.parts if part.kind == "text"]
    titles = [slide.title for section in sections for slide in section.slides]
    numbers = {n for text in shown + titles for n in re.findall(r"(?<![\w.])\d[\d,]*\.\d+|(?<![\w.])\d[\d,]{2,}(?![\w.])", text)}
    options = {n for s in sections for x in s.slides if x.vote for p in x.parts for n in re.findall(r"[\d.,]*\d", str(p.content))}
    assert not {n for n in numbers - options if n not in said and n.replace(",", "") not in said}
    stated = int(re.search(r"^\*(\d+) minutes", said, re.MULTILINE)[1])
    slides = [slide for section in sections for slide in section.slides]
    assert deck.minutes(slides) <= min(stated, 60), "longer than the chapter states, or than an hour"
    assert any(slide.vote for slide in slides)


GUIDE = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")


def spoken(plan):
    """The minutes of the slides that a plan's words name: '00; 01 to "A"', '08: "B", "C"', '09 without "D"'."""
    total = 0
    for piece in plan.split("; "):
        number, quoted = re.match(r"\d\d", piece), re.findall(r'"([^"]+)"', piece)
        if not number or re.match(r"\d\d\.\d", piece):
            continue  # exercises
        (chapter,) = (name for name in MAIN_LINE if name.startswith(number[0]))
        _, sections = read(chapter)
        titles = [section.title for section in sections]
        assert {*quoted} <= {*titles}, f"{chapter} has no section {quoted}"
        at, words = titles.index(quoted[0]) if quoted else 0, re.sub(r'"[^"]+"', "", piece)
        chosen = (titles[: at + 1] if " to " in words else titles[at:] if " from " in words or not quoted
                  else [t for t in titles if t not in quoted] if "without" in words else quoted)  # fmt: skip
        total += sum(deck.minutes(section.slides) for section in sections if section.title in chosen)
    return total


def test_the_guides_plans_add_up_and_leave_a_sixth_for_questions():
    for chapter in MAIN_LINE:
        row = re.search(rf"^\| \[[^]]*\]\({chapter}.ipynb\) \| \d+ \| (\d+) \| (\d+) \|(.*)\|$", GUIDE, re.MULTILINE)
        assert int(row[1]) == round(deck.minutes([x for s in read(chapter)[1] for x in s.slides])), chapter
        source = "".join(c.source + "\n" for c in read(chapter)[0].cells)
        listed = re.findall(r"^### (\d) · .*\((●○○|●●○|●●●), (\d+) minutes\)", source, re.MULTILINE)
        assert re.findall(r"(\d) ([●○]+) (\d+)", row[3]) == listed and int(row[2]) == sum(int(m) for *_, m in listed), chapter
    minutes = {c[:2] + "." + i: int(m) for c in MAIN_LINE for i, _, m in re.findall(
        r"(\d) ([●○]+) (\d+)", re.search(rf"{c}.ipynb\)(.*)", GUIDE)[1])}  # fmt: skip
    for name, whole in (("90 minutes", 90), ("One afternoon", 240)):
        breaks = 30 if name == "One afternoon" else 0
        rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", GUIDE.split(f"\n**{name}**")[1].split("\n\n**")[0], re.MULTILINE)
        assert sum(int(n) for n, _ in rows) == whole
        for n, what in rows:
            if re.match(r"\d\d", what):
                assert abs(int(n) - spoken(what.replace(", all", ""))) <= 1, (n, what)
            elif what.startswith("exercise"):
                assert int(n) == minutes[what.split()[1]]
            elif what == "questions":
                assert int(n) >= (whole - breaks) / 6, name
    for name, whole in (("Four weeks", 90), ("Eight weeks", 120)):
        rows = re.findall(r"^\| \d \| ([^|]*) \| (\d+) \| (\d+) \| (\d+) \|", GUIDE.split(f"\n**{name}**")[1], re.MULTILINE)[:8]
        assert len(rows) == 8
        for what, slides_, exercises, questions in rows:
            named = re.findall(r"\d\d\.\d(?: to \d\d\.\d)?", what)
            each = [f"{x[:3]}{i}" for x in named for i in range(int(x[3]), int(x[-1]) + 1)]
            extra = sum(map(int, re.findall(r"and (\d+) minutes on", what)))
            assert abs(int(slides_) - spoken(what.replace(", \"", ": \""))) <= 1, what
            assert int(exercises) == sum(minutes[x] for x in each) + extra, what
            assert int(slides_) + int(exercises) + int(questions) == whole and int(questions) >= whole / 6, what


CHECK = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<style>iframe { position: absolute; border: 0 }</style>
<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const frames = Array.from({ length: FRAMES }, () => document.body.appendChild(
  Object.assign(document.createElement("iframe"), { width: 1280, height: 720 })));
async function open(frame, deck, page) {
  frame.src = `${deck}?${page}#/${page}`;
  for (let i = 0; i < 2000; i++) {
    await wait(10);
    const view = frame.contentWindow;
    const there = view.location.pathname.endsWith(deck) && view.location.search === `?${page}`; // not the page before
    if (there && view.document.body && view.document.body.dataset.ready) return view;
  }
  throw new Error(`page ${page} was not ready after 20 s`);
}
async function faults(view) {
  const slide = view.Reveal.getCurrentSlide(), found = [];
  for (const element of slide.querySelectorAll("*")) {
    if (element.closest(".notes, mjx-assistive-mml") || element.matches(".section")) continue;
    const box = element.getBoundingClientRect(), inMath = element.closest("mjx-container");
    if (box.right > 1281 || box.bottom > 721 || box.left < -1 || box.top < -1)
      found.push(`${element.tagName} ends at ${box.right.toFixed(0)} × ${box.bottom.toFixed(0)}`);
    if (element.matches("pre") && element.scrollWidth > element.clientWidth + 1) found.push("code is cut at the right");
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const size = parseFloat(view.getComputedStyle(element).fontSize);
    if (text && !inMath && size < (element.closest("pre") ? 28 : 32)) found.push(`text of ${size} px: ${element.textContent}`);
    if (element.matches("mjx-merror")) found.push(`formula: ${element.textContent}`);
    if (element.matches("img.figure")) {
      const scale = Math.min(box.width / element.naturalWidth, box.height / element.naturalHeight);
      const part = Math.max(element.naturalWidth * scale / 1280, element.naturalHeight * scale / 720);
      if (!(part >= 2 / 3)) found.push(`the figure takes ${part.toFixed(2)} of the page`);
    }
    if (element.matches("iframe.figure")) found.push(...await moving(element, box));
  }
  if (/\\\\\\(|\\$\\$/.test(slide.innerText)) found.push("a formula that was not set");
  return found;
}
async function moving(frame, box) { // the two windows: large, whole, without controls, moved by a key
  let found;
  const inside = () => frame.contentDocument.querySelector("[data-adam-windows]").shadowRoot;
  for (let i = 0; i < 500; i++) { // it is laid out when its frame is: the faults that stay are faults
    await wait(10);
    if (!frame.contentDocument.querySelector("[data-alive]")) continue;
    found = [];
    for (const svg of inside().querySelectorAll("svg")) {
      const place = svg.getBoundingClientRect(), print = 14 * svg.getScreenCTM().a;
      if (print < 32) found.push(`the moving figure prints in ${print.toFixed(1)} px`);
      if (place.right > box.width + 1 || place.bottom > box.height + 1) found.push("the moving figure is cut");
    }
    if (!found.length) break;
  }
  if (!found) return ["the moving figure is not alive"];
  if (box.width * box.height < 1280 * 720 * 2 / 3) found.push("the moving figure is small");
  if ([...inside().querySelectorAll("button, input, select")].some((knob) => knob.offsetParent)) found.push("controls");
  const step = () => +inside().querySelector(".stream").getAttribute("aria-valuenow"), before = step();
  for (const key of ["ArrowRight", "ArrowLeft"]) {
    frame.contentDocument.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, composed: true }));
    if (key === "ArrowRight" && step() !== before + 1) found.push("a key does not move the figure");
  }
  return found;
}
async function look(deck) {
  const report = { deck, pages: [], visited: [], remote: [], seconds: performance.now() / 1000 };
  const view = await open(frames[0], `${deck}.html`, 0), { Reveal, document } = view, total = report.total = Reveal.getTotalSlides();
  const press = () => document.dispatchEvent(new view.KeyboardEvent("keydown", { keyCode: 39, bubbles: true }));
  const see = async () => {
    const page = Reveal.getIndices().h;
    if (report.visited.at(-1) !== page) { report.visited.push(page); report.pages.push([page, "by key", await faults(view)]); }
  };
  for (let i = 0; i < 500 && !(Reveal.isLastSlide() && !Reveal.availableFragments().next); i++) { await see(); press(); }
  await see();
  const vote = document.querySelector("section.vote");
  Reveal.slide(Reveal.getIndices(vote).h);
  report.tally = [document.querySelector(".tally").textContent];
  vote.querySelectorAll(".option")[1].click();
  for (let i = 0; i < 2; i++) { report.tally.push(document.querySelector(".tally").textContent); press(); }
  let next = 0; // each page opened directly, as after a reload: what is visible while its formulas are set is another page
  await Promise.all(frames.map(async (frame) => {
    while (next < total) {
      const page = next++, view = await open(frame, `${deck}.alone.html`, page);
      if (view.Reveal.getIndices().h !== page) throw new Error(`page ${page} was asked for, ${view.Reveal.getIndices().h} came`);
      report.pages.push([page, "opened", await faults(view)]);
      report.remote.push(...view.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:")));
    }
  }));
  report.seconds = performance.now() / 1000 - report.seconds;
  return report;
}
async function main() {
  for (const deck of new URLSearchParams(location.search).get("decks").split(","))
    await look(deck).catch((error) => ({ deck, error: String(error) }))
      .then((report) => fetch("/report", { method: "POST", body: JSON.stringify(report) }));
}
main();
</script>"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A function: chapter -> what one Chromium, which turns the pages of all decks, saw of the chapter's."""
    folder, came, seen = tmp_path_factory.mktemp("slides"), queue.Queue(), {}
    for name in slides.build(folder):  # opened directly without its notes, which have most of the formulas
        page = (folder / f"{name}.html").read_text(encoding="utf-8")
        alone = re.sub('<aside class="notes">.*?</aside>', "", page, flags=re.DOTALL)
        (folder / f"{name}.alone.html").write_text(alone, encoding="utf-8")
    (folder / "check").write_text(CHECK.replace("FRAMES", "2"), encoding="utf-8")

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, "": "text/html"}

        def do_POST(self):
            came.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    def report(chapter):
        while chapter not in seen:
            one = came.get(timeout=180)
            seen[one["deck"]] = one
        return seen[chapter]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{served.server_port}/check?decks={','.join(MAIN_LINE)}"
        with subprocess.Popen([BROWSER, *FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", address],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:  # fmt: skip
            yield report
            browser.terminate()
        served.shutdown()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to look at the decks")
@pytest.mark.parametrize("chapter", MAIN_LINE)
def test_every_page_fits_the_projector_turned_to_and_opened_directly(reports, chapter):
    report = reports(chapter)
    assert "error" not in report, report
    every = list(range(report["total"]))
    assert report["visited"] == every == sorted(page for page, how, _ in report["pages"] if how == "opened")
    assert not [page for page in report["pages"] if page[2]] and not report["remote"]
    before, counted, later = report["tally"]
    assert before == "" and re.fullmatch(r"A 0\s+B 1(\s+[C-Z] 0)*", counted) and later == counted, "the tally stays"
