"""The slides and the site: complete, with local files only, and with every figure described."""
import pathlib
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest

pytest.importorskip("sphinx_revealjs", reason="make slides and make book need the packages of environment.yml")
pytest.importorskip("myst_nb", reason="make slides and make book need the packages of environment.yml")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import book  # noqa: E402
import publish  # noqa: E402
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


@pytest.mark.parametrize("chapter", MAIN_LINE)
def test_a_deck_loads_local_files_only_and_its_figures_are_described(site, chapter):
    check(site / "slides" / f"{chapter}.html")
    assert f'href="{chapter}.html"' in (site / "slides" / "index.html").read_text(encoding="utf-8")


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
