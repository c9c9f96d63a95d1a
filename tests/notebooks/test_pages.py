"""The slides and the site: complete, with local files only, and with every figure described."""
import pathlib
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("sphinx_revealjs", reason="make slides and make book need the packages of environment.yml")
pytest.importorskip("myst_nb", reason="make slides and make book need the packages of environment.yml")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import book  # noqa: E402
import publish  # noqa: E402
import slides  # noqa: E402
from series import MAIN_LINE, chapters  # noqa: E402

CHAPTERS = chapters()


class Page(HTMLParser):
    """What a browser would load with a page, and its pictures without a description."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.undescribed = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(attributes["href"])
        if tag in ("script", "img", "iframe") and "src" in attributes:
            self.loaded.append(attributes["src"])
        if tag == "img" and not attributes.get("alt"):
            self.undescribed.append(attributes.get("src", "")[:60])


def check(path):
    page = Page(path)
    for address in page.loaded:
        address = address.partition("?")[0]
        assert address.startswith("data:") or (path.parent / address).is_file(), f"{path.name} loads {address[:80]}"
    assert not page.undescribed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What is published: the site, and in it the decks and the files for Kaggle and Colab."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "SOURCE", folder / "source")
        publish.build("owner/name", folder / "site")
    shutil.rmtree(folder / "source")
    return folder / "site"


@pytest.fixture(scope="module")
def decks(site):
    return site / "slides"


@pytest.mark.parametrize("chapter", chapters(names=MAIN_LINE), ids=lambda path: path.stem)
def test_a_deck_has_the_chapters_slides_and_loads_local_files_only(decks, chapter):
    deck = decks / f"{chapter.stem}.html"
    check(deck)
    html = deck.read_text(encoding="utf-8")
    cells = nbformat.read(chapter, as_version=4).cells
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in cells]
    assert html.count('<aside class="notes">') == sum("speaker" in cell.metadata for cell in cells)
    assert len(re.findall(r"<section", html)) >= kinds.count("slide") + kinds.count("subslide")
    assert "#@title Solution" not in html


def test_long_text_is_cut_between_its_paragraphs_and_nothing_is_lost():
    paragraphs = [f"Paragraph {i}. " + "word " * 80 for i in range(12)]
    source = "\n\n".join(["## Heading", *paragraphs, "$$\na\n\nb\n$$", "```\ncode\n\ncode\n```"])
    slide = {"slideshow": {"slide_type": "slide"}}
    pages = slides.paginate(new_notebook(cells=[new_markdown_cell(source, metadata=slide)])).cells
    assert len(pages) > 3
    assert "\n\n".join(page.source for page in pages) == source
    assert all(slides.height(page) <= slides.PAGE for page in pages)
    assert all(page.metadata["slideshow"]["slide_type"] == "subslide" for page in pages[1:])


def test_a_long_print_is_cut_between_its_lines_and_nothing_is_lost():
    text = "".join(f"line {i}\n" for i in range(90))
    cell = new_code_cell("print(listing)", outputs=[new_output("stream", name="stdout", text=text)])
    cell.metadata = nbformat.from_dict({"slideshow": {"slide_type": "slide"}})
    pages = slides.paginate(new_notebook(cells=[cell])).cells
    assert "".join(page.outputs[0].text for page in pages) == text
    assert all(slides.height(page) <= slides.PAGE for page in pages)
    assert ["hide-code" in page.metadata.get("tags", []) for page in pages] == [False] + [True] * (len(pages) - 1)


def test_cells_to_skip_make_no_page_and_full_pages_are_turned():
    def cell(kind, text):
        return new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})

    ten_lines = "\n\n".join(["word " * 15] * 6)
    pages = slides.paginate(new_notebook(cells=[
        cell("slide", ten_lines), cell("skip", "not shown"), cell("-", ten_lines), cell("fragment", "short"),
    ])).cells  # fmt: skip
    assert [page.metadata["slideshow"]["slide_type"] for page in pages] == ["slide", "subslide", "fragment"]


def test_the_site_has_every_chapter_and_loads_local_files_only(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for chapter in CHAPTERS:
        assert f'href="{chapter.stem}.html"' in index
        check(site / f"{chapter.stem}.html")
    check(site / "index.html")
    assert (site / "_static" / "mathjax" / "tex-chtml.js").is_file()


def test_solutions_of_the_site_are_folded(site):
    for chapter in CHAPTERS:
        solutions = sum("solution" in c.metadata.get("tags", []) for c in nbformat.read(chapter, as_version=4).cells)
        assert (site / f"{chapter.stem}.html").read_text(encoding="utf-8").count("Show the solution") == solutions
        assert solutions or chapter.stem not in MAIN_LINE


def test_published_chapters_lead_to_their_files_that_run_alone(site):
    for chapter in CHAPTERS:
        path = f"owner/name/blob/published/notebooks/{chapter.name}"
        addresses = (f"https://colab.research.google.com/github/{path}",
                     f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}")
        alone = nbformat.read(site / "notebooks" / chapter.name, as_version=4)
        html = (site / f"{chapter.stem}.html").read_text(encoding="utf-8")
        for address in addresses:
            assert f"]({address})" in alone.cells[0].source and f'href="{address}"' in html
        assert alone.cells[0].source.startswith(nbformat.read(chapter, as_version=4).cells[0].source.splitlines()[0])


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_publishing_leaves_one_commit_on_its_branch_and_touches_no_other(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet", "--bare", "remote")
    git(tmp_path, "clone", "--quiet", "remote", "clone")
    clone, tree = tmp_path / "clone", tmp_path / "tree"
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "work")
    git(clone, "push", "--quiet", "origin", "HEAD:main")
    monkeypatch.setattr(publish, "ROOT", clone)
    tree.mkdir()
    for content in ("first", "second"):
        (tree / "_page.html").write_text(content, encoding="utf-8")
        publish.push("origin", tree)
        assert git(tmp_path / "remote", "show", "published:_page.html") == content
    assert git(tmp_path / "remote", "rev-list", "--count", "published") == "1"
    assert git(tmp_path / "remote", "log", "-1", "--format=%s", "main") == "work"
    with pytest.raises(SystemExit, match="(?s)elsewhere.*Nothing was published"):
        publish.push("elsewhere", tree)
