"""The decks: what is refused when they are read, and every page of each in a headless browser."""

import functools
import http.server
import itertools
import json
import pathlib
import queue
import re
import shutil
import subprocess
import threading

import pytest
from cells import code, picture, printed, read, text
from nbformat.v4 import new_notebook

pytest.importorskip("sphinx_revealjs", reason="make slides needs the packages of environment.yml")
import deck  # noqa: E402
import slides  # noqa: E402
from series import MAIN_LINE, NOTEBOOKS  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1280,720"]  # fmt: skip
CHAPTER = new_notebook(cells=[
    text("# A chapter"), text("The reason why.", {"speaker": "Ask first."}),
    code("x = 1\ny = 2\nprint(x)", outputs=[printed("1\n")]),
    text("Prose."), code("plot(x)", outputs=[picture("a line")]), code("wide = " + "1 + " * 20 + "1"),
])  # fmt: skip
GUIDE = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that reads a deck from its text, for CHAPTER."""
    monkeypatch.setattr(deck, "DECKS", tmp_path)
    monkeypatch.setattr(deck, "NOTEBOOKS", tmp_path)

    def read(text):
        if text:
            (tmp_path / "00_chapter.md").write_text(text, encoding="utf-8")
        return deck.read("00_chapter", CHAPTER)

    return read


def test_a_slide_takes_code_print_and_figure_from_its_chapter_and_the_last_prose_becomes_its_note(written):
    (section,) = written(
        '# First [drop when late]\n## A claim\n{code "y = 2" 2-3}\n{print "y = 2"}\nNote: Slowly.\n## A picture\n'
        '{figure "plot(x)"}\n## A vote\n{vote}\n- yes\n- no\n'
    )
    assert section.title == "First" and section.marks == ["drop when late"]
    claim, figure, vote = section.slides
    assert claim.parts == [("code", "y = 2\nprint(x)"), ("print", "1")]
    assert claim.note == "Slowly.\n\nAsk first.\n\nThe reason why."
    assert figure.note == "Prose." and figure.parts[0].content is CHAPTER.cells[4]
    assert vote.vote and not claim.vote
    assert claim.seconds == 25 + 2 * 0.5 + 3 * 5 and figure.seconds == 25 + 1 + 75 and vote.seconds == 25 + 4 * 0.5 + 90


def test_a_line_of_a_proof_comes_a_click_before_its_reason():
    page = slides.rendered("+ $a$ // it is small\n+ so $b$\n")
    assert page.count('<li class="fragment">') == 2 and '<span class="fragment reason">it is small</span></li>' in page


def test_a_fenced_block_is_one_box_and_no_higher_than_its_lines():
    assert slides.rendered("```\nx\ny\n```").strip() == '<pre class="highlight">x\ny\n</pre>'


REFUSED = {
    "has no deck: write ": "",
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
    with pytest.raises(deck.Refused, match=re.escape(reason)) as refused:
        written(REFUSED[reason])
    assert "00_chapter.md" in str(refused.value) and "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------- the decks and the guide's plans


def cells_of(chapter):
    return read(NOTEBOOKS / f"{chapter}.ipynb").cells


@functools.cache
def sections_of(chapter):
    return deck.read(chapter, read(NOTEBOOKS / f"{chapter}.ipynb"))


def slides_of(chapter):
    return [slide for section in sections_of(chapter) for slide in section.slides]


@pytest.mark.parametrize("chapter", MAIN_LINE)
def test_numbers_on_slides_are_the_chapters_and_the_minutes_hold(chapter):
    outputs = [str(output.get("text", "")) for cell in cells_of(chapter) for output in cell.get("outputs", [])]
    said = " ".join([*(cell.source for cell in cells_of(chapter)), *outputs])
    for slide in slides_of(chapter):
        texts = [part.content for part in slide.parts if part.kind == "text" and not slide.vote]  # options may be wrong
        shown = "\n".join([slide.title, *texts])
        numbers = re.findall(r"(?<![\w.])\d[\d,]*\.\d+|(?<![\w.])\d[\d,]{2,}(?![\w.])", shown)
        assert not [n for n in numbers if n not in said and n.replace(",", "") not in said], slide.title
    stated = int(re.search(r"^\*(\d+) minutes", said, re.MULTILINE)[1])
    assert deck.minutes(slides_of(chapter)) <= min(stated, 60), "longer than the chapter states, or than an hour"
    assert any(slide.vote for slide in slides_of(chapter))


def table(heading):
    """The rows of the guide's first table after a heading, each the texts of its cells."""
    lines = itertools.dropwhile(lambda line: line[:1] != "|", GUIDE.partition(heading)[2].splitlines())
    rows = itertools.takewhile(lambda line: line[:1] == "|", lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][2:]


def exercises(chapter):
    """(number, difficulty, minutes) of each exercise of a chapter."""
    source = "\n".join(cell.source for cell in cells_of(chapter))
    return re.findall(r"^### (\d) · .*\((●○○|●●○|●●●), (\d+) minutes\)", source, re.MULTILINE)


def lab(*names):
    """The minutes of the exercises of these names, such as 01.2."""
    minutes = {f"{chapter[:2]}.{number}": int(m) for chapter in MAIN_LINE for number, _, m in exercises(chapter)}
    return sum(minutes[name] for name in names)


def spoken(plan):
    """The minutes of the slides that a plan's words name: '00; 01 to "A"', '08: "B", "C"', '09 without "D"'."""
    total = 0
    for piece in plan.split("; "):
        if not re.match(r"\d\d(?!\.)", piece):
            continue  # exercises
        (chapter,) = (name for name in MAIN_LINE if name.startswith(piece[:2]))
        titles, quoted = [section.title for section in sections_of(chapter)], re.findall(r'"([^"]+)"', piece)
        assert {*quoted} <= {*titles}, f"{chapter} has no section {quoted}"
        words = re.sub(r'"[^"]+"', "", piece)
        if " to " in words:
            titles = titles[: titles.index(quoted[0]) + 1]
        elif " from " in words:
            titles = titles[titles.index(quoted[0]) :]
        elif " without " in words:
            titles = [title for title in titles if title not in quoted]
        elif quoted:
            titles = quoted
        total += sum(deck.minutes(section.slides) for section in sections_of(chapter) if section.title in titles)
    return total


def test_the_guide_gives_the_minutes_of_each_deck_and_of_its_exercises():
    for chapter, (name, _, minutes, its_lab, *both) in zip(MAIN_LINE, table("## Minutes and exercises"), strict=True):
        assert name.endswith(f"]({chapter}.ipynb)") and int(minutes) == round(deck.minutes(slides_of(chapter)))
        assert re.findall(r"(\d) ([●○]+) (\d+)", " ".join(both)) == exercises(chapter), chapter
        assert int(its_lab) == sum(int(minutes) for *_, minutes in exercises(chapter)), chapter


@pytest.mark.parametrize("name, whole, breaks", [("90 minutes", 90, 0), ("One afternoon", 240, 30)])
def test_a_plan_of_the_guide_adds_up_and_leaves_a_sixth_for_questions(name, whole, breaks):
    rows = [(int(minutes), what) for minutes, what, _ in table(f"\n**{name}**")]
    assert sum(minutes for minutes, _ in rows) == whole
    for minutes, what in rows:
        if re.match(r"\d\d", what):
            assert abs(minutes - spoken(what)) <= 1, what
        elif what.startswith("exercise"):
            assert minutes == lab(what.split()[1])
        elif what == "questions":
            assert minutes >= (whole - breaks) / 6


@pytest.mark.parametrize("name, whole", [("Four weeks", 90), ("Eight weeks", 120)])
def test_a_course_of_the_guide_adds_up_and_leaves_a_sixth_for_questions(name, whole):
    rows = table(f"\n**{name}**")
    assert len(rows) == 8
    for _, what, *minutes in rows:
        shown, asked, questions = map(int, minutes)
        ranges = re.findall(r"(\d\d)\.(\d)(?: to \d\d\.(\d))?", what)
        names = [f"{chapter}.{i}" for chapter, first, last in ranges for i in range(int(first), int(last or first) + 1)]
        more = sum(map(int, re.findall(r"and (\d+) minutes on", what)))
        assert abs(shown - spoken(what)) <= 1 and asked == lab(*names) + more, what
        assert shown + asked + questions == whole and questions >= whole / 6, what


# ----------------------------------------------------------------------------------------------- pages in a browser


def one_by_one(page):
    """For each slide of a deck: its page with the other slides empty and this one without notes. It opens quickly."""
    pieces = re.split(r"(<section\b.*?</section>)", page, flags=re.DOTALL)  # every second one is a slide
    for number in range(1, len(pieces), 2):
        others = [piece if i % 2 == 0 else "<section></section>" for i, piece in enumerate(pieces)]
        others[number] = re.sub('<aside class="notes">.*?</aside>', "", pieces[number], flags=re.DOTALL)
        yield "".join(others)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A function: chapter -> what one Chromium, which turns the pages of all decks (deck_check.html), saw of its pages."""
    folder, came, seen = tmp_path_factory.mktemp("slides"), queue.Queue(), {}
    for name in slides.build(folder):
        for number, page in enumerate(one_by_one((folder / f"{name}.html").read_text(encoding="utf-8"))):
            (folder / f"{name}.{number}.html").write_text(page, encoding="utf-8")
    shutil.copy(pathlib.Path(__file__).with_name("deck_check.html"), folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
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
        address = f"http://127.0.0.1:{served.server_port}/deck_check.html?decks={','.join(MAIN_LINE)}"
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
