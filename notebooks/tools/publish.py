"""Build all that readers take from the web, and push it to the branch `published` of the repository: build/published.

    python notebooks/tools/publish.py                builds it from the stored outputs (about a minute)
    python notebooks/tools/publish.py --push origin  and pushes it to that remote, as the branch's only commit

    /            the site, which also reads from a disk, without network
    /slides/     a deck per chapter
    /notebooks/  the chapters as files that run alone, on Kaggle and Colab

On GitHub's runners GITHUB_REPOSITORY names the repository; then each chapter of the site and each file begins with links
that open the file in Colab and in Kaggle. Elsewhere there is no address to lead to, so the links are left out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

import book
import kaggle
import slides
from series import BUILD, ROOT

PUBLISHED = BUILD / "published"
BRANCH = "published"


def links(chapter, repository):
    """A line of Markdown that opens the published file of a chapter; `repository` is OWNER/NAME on GitHub."""
    path = f"{repository}/blob/{BRANCH}/notebooks/{chapter}.ipynb"
    return (f"[Open in Colab](https://colab.research.google.com/github/{path}) · "
            f"[Open in Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/{path})")


def build(repository=None, out=PUBLISHED):
    """Write the tree to `out`; with a repository, the chapters carry links to their files in it."""
    print("building the site, the decks and the files, in about a minute", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    opening = {path.stem: links(path.stem, repository) for path in book.chapters()} if repository else {}
    book.build(executing=False, site=out, opening=opening)
    (out / ".nojekyll").touch()  # or GitHub would leave out the folders that begin with _
    slides.build(out / "slides")
    (out / "notebooks").mkdir()
    for folder in kaggle.build(out=out.with_name("kaggle"), opening=opening):
        shutil.move(folder / f"{folder.name}.ipynb", out / "notebooks")


def push(remote, folder=PUBLISHED):
    """Make `folder` the branch's only commit: what was published before would make each clone larger.

    The commit is made by this clone's git, whose remotes and credentials it needs, in an index of its own.
    """
    with tempfile.TemporaryDirectory() as index:
        def git(*arguments):
            done = subprocess.run(
                ["git", "-c", "user.name=publish.py", "-c", "user.email=publish@localhost", *arguments], cwd=ROOT,
                env={**os.environ, "GIT_INDEX_FILE": f"{index}/index"}, capture_output=True, encoding="utf-8",
            )
            if done.returncode:
                sys.exit(f"git {arguments[0]}: {done.stderr.strip()}\nNothing was published, and the tree is complete in "
                         f"{folder}. Mend it (`git remote -v` lists the remotes), then run this again.")
            return done.stdout.strip()

        git("--work-tree", str(folder.resolve()), "add", "--all", "--force", ".")
        what = f"The site, the decks and the files of {git('rev-parse', '--short', 'HEAD')}"
        commit = git("commit-tree", git("write-tree"), "-m", what)
        git("push", "--quiet", "--force", remote, f"{commit}:refs/heads/{BRANCH}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--push", metavar="REMOTE", help="a remote of this clone, such as origin")
    remote = parser.parse_args(arguments).push
    repository = os.environ.get("GITHUB_REPOSITORY")
    build(repository)
    size = sum(path.stat().st_size for path in PUBLISHED.rglob("*") if path.is_file())
    said = "" if repository else "; without links to Colab and Kaggle, as GITHUB_REPOSITORY is not set"
    print(f"{PUBLISHED.relative_to(ROOT)} is ready, {size / 1e6:.0f} MB{said}")
    if remote:
        push(remote)
        print(f"pushed to the branch {BRANCH} of {remote}")


if __name__ == "__main__":
    main()
