"""The slides and the site: complete, with local files only (MathJax, too), and with every figure described."""

import subprocess
from html.parser import HTMLParser

import pytest
from cells import read

pytest.importorskip("sphinx_revealjs", reason="make slides and make book need the packages of environment.yml")
pytest.importorskip("myst_nb", reason="make slides and make book need the packages of environment.yml")
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
        alt = attributes.get("alt")
        if tag == "img" and (not alt or alt.endswith((".png", ".svg"))):  # without one Sphinx puts the file's name
            self.undescribed.append(attributes.get("src", "")[:60])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What is published: the site, and in it the decks and the files for Kaggle and Colab."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "SOURCE", folder / "source")
        publish.build("owner/name", folder / "site")
    return folder / "site"


PAGES = ["index", *(path.stem for path in CHAPTERS), "slides/index", *(f"slides/{name}" for name in MAIN_LINE)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_local_files_only_its_figures_are_described_and_it_is_listed(site, name):
    path = site / f"{name}.html"
    page = Page(path)
    for address in page.loaded:
        address = address.partition("?")[0]
        assert address.startswith("data:") or (path.parent / address).is_file(), f"it loads {address[:80]}"
    assert not page.undescribed
    assert f'href="{path.name}"' in path.with_name("index.html").read_text(encoding="utf-8") or path.stem == "index"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_published_chapter_folds_its_solutions_and_leads_to_its_file_that_runs_alone(site, chapter):
    ours, alone = read(chapter).cells, read(site / "notebooks" / chapter.name).cells
    page = (site / f"{chapter.stem}.html").read_text(encoding="utf-8")
    assert page.count("Show the solution") == sum("solution" in cell.metadata.get("tags", []) for cell in ours)
    assert alone[0].source.startswith(ours[0].source.splitlines()[0])
    path = f"owner/name/blob/published/notebooks/{chapter.name}"
    for service in ("colab.research.google.com/github/", "kaggle.com/kernels/welcome?src=https://github.com/"):
        address = f"https://{service}{path}"
        assert f"]({address})" in alone[0].source and f'href="{address}"' in page


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
