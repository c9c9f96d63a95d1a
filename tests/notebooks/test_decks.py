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


CHECK = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" width="1280" height="720" style="border:0"></iframe>
<script>
const frame = document.getElementById("frame"), deck = new URLSearchParams(location.search).get("deck");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const view = () => frame.contentWindow;
async function open(page) {
  frame.src = `${deck}.html?${page}#/${page}`;
  for (let i = 0; i < 2000; i++) {
    await wait(10);
    if (view().location.search === `?${page}` && view().document.body && view().document.body.dataset.ready) return;
  }
  throw new Error(`page ${page} was not ready after 20 s`);
}
function faults() {
  const slide = view().Reveal.getCurrentSlide(), found = [];
  for (const element of slide.querySelectorAll("*")) {
    if (element.closest(".notes, mjx-assistive-mml") || element.matches(".section")) continue;
    const box = element.getBoundingClientRect(), inMath = element.closest("mjx-container");
    if (box.right > 1281 || box.bottom > 721 || box.left < -1 || box.top < -1)
      found.push(`${element.tagName} ends at ${box.right.toFixed(0)} × ${box.bottom.toFixed(0)}`);
    if (element.matches("pre") && element.scrollWidth > element.clientWidth + 1) found.push("code is cut at the right");
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const size = parseFloat(view().getComputedStyle(element).fontSize);
    if (text && !inMath && size < (element.closest("pre") ? 28 : 32)) found.push(`text of ${size} px: ${element.textContent}`);
    if (element.matches("mjx-merror")) found.push(`formula: ${element.textContent}`);
    if (element.matches("img.figure")) {
      const scale = Math.min(box.width / element.naturalWidth, box.height / element.naturalHeight);
      const part = Math.max(element.naturalWidth * scale / 1280, element.naturalHeight * scale / 720);
      if (!(part >= 2 / 3)) found.push(`the figure takes ${part.toFixed(2)} of the page`);
    }
  }
  if (/\\\\\\(|\\$\\$/.test(slide.innerText)) found.push("a formula that was not set");
  return found;
}
async function main() {
  const report = { pages: [], visited: [], remote: [] };
  await open(0);
  const total = view().Reveal.getTotalSlides();
  for (let page = 0; page < total; page++) {
    if (DIRECT(page)) {
      await open(page);
      report.pages.push([page, "opened", faults()]);
      report.remote.push(...view().performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:")));
    }
  }
  await open(0);
  for (let press = 0; press < 500; press++) {
    const page = view().Reveal.getIndices().h;
    if (report.visited.at(-1) !== page) { report.visited.push(page); report.pages.push([page, "by key", faults()]); }
    view().document.dispatchEvent(new KeyboardEvent("keydown", { keyCode: 39, bubbles: true }));
    if (view().Reveal.isLastSlide() && !view().Reveal.availableFragments().next) break;
  }
  const last = view().Reveal.getIndices().h;
  if (report.visited.at(-1) !== last) { report.visited.push(last); report.pages.push([last, "by key", faults()]); }
  const vote = view().document.querySelector("section.vote");
  if (vote) {
    vote.querySelectorAll(".option")[1].click();
    report.tally = view().document.querySelector(".tally").textContent;
  }
  report.total = total;
  return report;
}
main().catch((error) => ({ error: String(error) }))
  .then((report) => fetch("/report", { method: "POST", body: JSON.stringify(report) }));
</script>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(its address, a queue of reports): serves the decks and the page that turns their pages."""
    folder, reports = tmp_path_factory.mktemp("slides"), queue.Queue()
    slides.build(folder)
    # every page of each deck is turned to by key; opened directly, which takes longer, every fourth
    (folder / "check").write_text(CHECK.replace("DIRECT(page)", "page % 4 === 1"), encoding="utf-8")

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, "": "text/html"}

        def do_POST(self):
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", reports
        served.shutdown()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to look at the decks")
@pytest.mark.parametrize("chapter", MAIN_LINE)
def test_every_page_fits_the_projector(server, tmp_path, chapter):
    address, reports = server
    with subprocess.Popen([BROWSER, *FLAGS, f"--user-data-dir={tmp_path}", f"{address}/check?deck={chapter}"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:  # fmt: skip
        try:
            report = reports.get(timeout=180)
        finally:
            browser.terminate()
    assert "error" not in report, report
    assert report["visited"] == list(range(report["total"]))
    assert not [page for page in report["pages"] if page[2]] and not report["remote"]
    assert re.fullmatch(r"A 0\s+B 1(\s+[C-Z] 0)*", report["tally"])
