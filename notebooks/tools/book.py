"""Build the series as a static site that reads without network: build/book/index.html.

    python notebooks/tools/book.py              executes every chapter first (some minutes), in a copy
    python notebooks/tools/book.py --as-stored  takes the stored outputs as they are

Sphinx does the work, with MyST-NB (notebooks), sphinx-book-theme (pages, light and dark, narrow screens) and a MathJax
that is copied into the site. What is ours is the preparation: solutions and the sources of figures become cells that
open on a click, each figure gets its alt text, and an index shows the aims of every chapter and mostly a picture.
"""

import argparse
import base64
import re
import shutil
import subprocess
import sys

import figure
import nbformat
from execute import execute
from hygiene import pictures, tags
from kaggle import opened
from series import MAIN_LINE, ROOT, chapters

SOURCE, SITE = ROOT / "build" / "book-source", ROOT / "build" / "book"
CONFIGURATION = """
project = "Adam, in every variant"
author = "The adam-notebooks authors"
html_title = project
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "sphinx_book_theme"
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2,
                      "home_page_in_toc": True, "article_footer_items": [], "toc_title": "In this chapter"}
html_static_path, html_css_files = ["_static"], ["series.css"]
html_context = {"default_mode": "auto"}
html_show_copyright = html_copy_source = html_show_sourcelink = False
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 10)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
"""
STYLE = """
.bd-header { display: none; }  /* the theme's own bar over the page has all it holds */
.cell_output img { background: white; border-radius: 4px; max-width: 100%; height: auto; }
.cell pre { font-size: 0.78rem; }  /* a line of 88 characters fits between the two side bars */
mjx-container[display="true"] { overflow-x: auto; overflow-y: hidden; }
code.literal, code.literal .pre { white-space: normal; overflow-wrap: anywhere; }  /* a long path on a phone */
"""

# The front page's picture of a chapter, by words of its cell: one that answers no vote of the deck. The others have none.
FRONT = {
    "00_start_here": "64 numbers are enough to recognize a digit", "01_the_math": "RMSprop keeps bouncing",
    "02_the_step_bound": "A weight wakes up. How long is its longest step?", "04_foreach": "Buckets pay for memory with calls",
    "05_fused_cuda": "The scaler feels its way along the edge", "06_capturable": "A graph closes the gaps",
    "07_differentiable": "Twenty unrolled steps tell right labels", "08_in_practice": "The scale grows until a gradient overflows",
}  # fmt: skip


def prepare(notebook):
    """The notebook as MyST-NB wants it. Returns it."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "solution" in tags(cell):
                cell.metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide it"}
                cell.metadata["tags"] = [*tags(cell), "hide-cell"]
            elif "setup" in tags(cell) or cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata["mystnb"] = {"code_prompt_show": "Show the code", "code_prompt_hide": "Hide it"}
                cell.metadata["tags"] = [*tags(cell), "hide-input"]
            alts = [alt for _, alt in pictures(cell)]
            if alts:
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": " ".join(alts)}
    return notebook


def abilities(notebook):
    """(title, the lines under "After this chapter you can") of a chapter."""
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    text = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    listed = re.search(r"after this chapter you can[^\n]*\n((?:.*\S.*\n)+)", text + "\n", re.IGNORECASE)
    return title, listed.group(1).strip() if listed else ""


def index(chapters):
    """The first page: what this is, a figure to move, and for each chapter the reader's aims and mostly a picture."""
    lines = ["# Adam, in every variant", "", "Notebooks that take Adam from five lines of algebra to every form "
             "PyTorch ships. Numbers come from the cells beside the text; what was not run says so.", "",
             "Adam's step is a ratio of two averages of the same gradients, and one of them looks back further. Move "
             "the figure (<a href='figure.html'>or open it alone</a>): how long can one step become?", "",
             f"```{{raw}} html\n{figure.living()}\n```", ""]  # fmt: skip
    for name, notebook in chapters.items():
        title, aims = abilities(notebook)
        lines += [f"## [{title}]({name}.ipynb)", ""]
        words = FRONT.get(name, None if name in MAIN_LINE else "")
        for cell in notebook.cells:
            drawn = [(o.data["image/png"], alt) for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
                     for _, alt in [next(pictures(cell))]]  # fmt: skip
            if drawn and words is not None and words in cell.source:
                png, alt = drawn[0]
                (SOURCE / "_static" / f"{name}.png").write_bytes(base64.b64decode(png))
                lines += [f"```{{image}} _static/{name}.png\n:alt: {' '.join(alt.split())}\n:width: 480px\n```", ""]
                break
        lines += [aims, ""]
    names = "\n".join(chapters)
    lines += [f"```{{toctree}}\n:hidden:\n{names}\n```", ""]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--as-stored", action="store_true", help="do not execute the chapters")
    build(executing=not parser.parse_args(arguments).as_stored)
    print(f"{(SITE / 'index.html').relative_to(ROOT)} is ready: open it in a browser, no server and no network needed")


def build(executing, site=SITE, opening=None):
    """Write the site. Exits with what to do where there is nothing to build, or Sphinx complains.

    `opening`: {chapter: a line of Markdown under its title}.
    """
    originals = chapters()
    if not originals:
        sys.exit("no chapters in notebooks/: is this a complete clone?")
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    (SOURCE / "_static").mkdir(parents=True)
    guide = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    (SOURCE / "README.md").write_text(f"---\norphan: true\n---\n{guide}", encoding="utf-8")  # in no list: it answers the votes
    if (ROOT / "notebooks" / "recorded").is_dir():
        shutil.copytree(ROOT / "notebooks" / "recorded", SOURCE / "recorded")
    pages = {}
    for number, original in enumerate(originals, 1):
        path = SOURCE / original.name
        shutil.copy(original, path)
        if executing:  # some ten minutes in all
            print(f"[{number} of {len(originals)}] executing {original.name}, half a minute to two", flush=True)
            execute(path)
        pages[path.stem] = prepare(nbformat.read(path, as_version=4))
        first = pages[path.stem].cells[0]
        first.source = opened(first.source, (opening or {}).get(path.stem))
        nbformat.write(pages[path.stem], path)
    (SOURCE / "conf.py").write_text(CONFIGURATION, encoding="utf-8")
    (SOURCE / "_static" / "series.css").write_text(STYLE, encoding="utf-8")
    (SOURCE / "index.md").write_text(index(pages), encoding="utf-8")
    built = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", SOURCE, site])
    if built.returncode:
        sys.exit("Sphinx found something wrong in a chapter (above). Mend it in notebooks/ and run this again.")
    figure.write(site / "figure.html")


if __name__ == "__main__":
    main()
