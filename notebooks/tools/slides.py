"""Make one reveal.js deck per chapter, to be projected without network: build/slides/<chapter>.html.

    python notebooks/tools/slides.py

nbconvert does the work, with the slide metadata of the notebooks; press S for the speaker notes. reveal.js and MathJax are
copied beside the decks. What is ours is the pagination: a page holds about 16 lines, so long text is cut at its
paragraphs, and a cell that draws shows its figure and hides its code.
"""

import argparse
import copy
import importlib.util
import pathlib
import re
import shutil
import sys

import nbformat
from hygiene import pictures
from nbconvert import SlidesExporter
from series import BUILD as BUILDS
from series import MAIN_LINE, chapters
from traitlets.config import Config

BUILD = BUILDS / "slides"
PAGE = 16.0  # lines of running text that a page of 1280 x 720 holds
FIGURE = 11.5  # a figure's height in such lines
CODE = 0.62  # a line of code or of printed text


def height(cell):
    """About how many lines of a page the cell takes."""
    if cell.cell_type == "markdown":
        return sum(map(_block_height, _blocks(cell.source)))
    shown = "" if drawn(cell) else cell.source
    lines = CODE * (len(shown.splitlines()) + 1) if shown else 0
    for output in cell.get("outputs", []):
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        lines += FIGURE if "image/png" in output.get("data", {}) else CODE * sum(
            1 + len(line) // 110 for line in str(text).splitlines())  # fmt: skip
    return lines + 0.5


def drawn(cell):
    return cell.cell_type == "code" and any(True for _ in pictures(cell))


def _blocks(source):
    """Paragraphs, headings, lists, tables, formulas and code blocks of a markdown text; never cut inside one."""
    blocks, fence, formula = [[]], False, False
    for line in source.splitlines():
        fence ^= line.lstrip().startswith("```")
        formula ^= line.count("$$") % 2 == 1
        if line.strip() or fence or formula:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def _block_height(block):
    if block.startswith("#"):
        return 1.8
    if block.lstrip().startswith("$$") or "\\begin{" in block:
        return 2.5 + 1.6 * block.count("\\\\")
    if block.lstrip().startswith("```"):
        return CODE * len(block.splitlines())
    if block.lstrip().startswith("|"):
        return 1.3 * len(block.splitlines())
    return sum((1 + len(re.sub(r"\(\S+\)|[$*`\\]", "", line)) // 84) for line in block.splitlines()) + 0.6


def _pieces(cell):
    """The cell as cells that each fit a page: text cut between blocks, a long print between lines.

    A heading stays with what follows it.
    """
    if height(cell) <= PAGE:
        return [cell]
    if cell.cell_type == "code":
        return _printed_pages(cell)
    pages, room = [[]], PAGE
    blocks = _blocks(cell.source)
    for i, block in enumerate(blocks):
        needed = _block_height(block)
        if block.startswith("#") and i + 1 < len(blocks):
            needed += _block_height(blocks[i + 1])
        if needed > room and pages[-1]:
            pages.append([])
            room = PAGE
        pages[-1].append(block)
        room -= _block_height(block)
    pieces = []
    for number, page in enumerate(pages):
        piece = nbformat.v4.new_markdown_cell("\n\n".join(page), metadata=dict(cell.metadata))
        if number:
            piece.metadata["slideshow"] = {"slide_type": "subslide"}
        pieces.append(piece)
    return pieces


def _printed_pages(cell):
    """A code cell with one long print as several cells; the code is shown on the first."""
    prints = [output for output in cell.outputs if output.output_type == "stream"]
    if drawn(cell) or len(prints) != len(cell.outputs):
        return [cell]
    lines = "".join(output.text for output in prints).splitlines(keepends=True)
    first = max(4, int(PAGE / CODE) - len(cell.source.splitlines()) - 3)
    starts = [0, *range(first, len(lines), int(PAGE / CODE) - 2), len(lines)]
    pages = []
    for start, end in zip(starts, starts[1:]):
        page = copy.deepcopy(cell)
        page.outputs = [nbformat.v4.new_output("stream", name="stdout", text="".join(lines[start:end]))]
        page.id = f"{cell.id}-{start}"
        if start:
            page.metadata["slideshow"] = {"slide_type": "subslide"}
            page.metadata["tags"] = [*page.metadata.get("tags", []), "hide-code"]
        pages.append(page)
    return pages


def paginate(notebook):
    """Cut what is too long and start a new page where the next cell would not fit. Returns the notebook."""
    cells, used = [], 0.0
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "-")
        if kind == "skip" and "speaker" not in cell.metadata:
            continue
        if drawn(cell):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-code"]
        for piece in _pieces(cell) if kind != "skip" else ():
            kind = piece.metadata.get("slideshow", {}).get("slide_type", "-")
            tall = height(piece)
            if kind in ("slide", "subslide"):
                used = 0.0
            elif used + tall > PAGE:
                piece.metadata["slideshow"] = {"slide_type": "subslide"}
                used = 0.0
            used += tall
            cells.append(piece)
        if remark := cell.metadata.get("speaker"):
            cells.append(nbformat.v4.new_markdown_cell(remark, metadata={"slideshow": {"slide_type": "notes"}}))
    notebook.cells = cells
    return notebook


def exporter():
    config = Config()
    config.SlidesExporter.template_name = "lecture"
    config.SlidesExporter.extra_template_basedirs = [str(pathlib.Path(__file__).parent / "templates")]
    config.SlidesExporter.exclude_input_prompt = config.SlidesExporter.exclude_output_prompt = True
    config.SlidesExporter.reveal_url_prefix, config.SlidesExporter.reveal_theme = "reveal", "white"
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_input_tags = {"hide-code"}
    return SlidesExporter(config=config)


def copy_assets(out):
    """reveal.js and MathJax out of the Python packages that carry them."""
    for package, inside, name in (("sphinx_revealjs", "_static/revealjs", "reveal"),
                                  ("sphinx-mathjax-offline", "static/mathjax", "mathjax")):  # fmt: skip
        found = importlib.util.find_spec(package)
        if found is None:
            sys.exit(f"{package} is missing, which carries {name} as files: run `make slides`, which installs it.")
        folder = pathlib.Path(found.origin).parent / inside
        shutil.copytree(folder, out / name, ignore=shutil.ignore_patterns("*.map", "*.esm.js", "sre", "a11y"))


def build(out=BUILD):
    """Write every deck to ``out``, with what it loads."""
    notebooks = chapters(names=MAIN_LINE)
    if not notebooks:
        sys.exit("no chapters in notebooks/: is this a complete clone?")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    copy_assets(out)
    convert = exporter()
    for path in notebooks:
        html, _ = convert.from_notebook_node(
            paginate(nbformat.read(path, as_version=4)), {"metadata": {"name": path.stem.replace("_", " ")}}
        )
        (out / f"{path.stem}.html").write_text(html, encoding="utf-8")
        print(f"{path.stem}.html  {html.count('<section') - html.count('<section><section')} pages", flush=True)


def main(arguments=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(arguments)
    build()
    print("the decks are in build/slides: open one in a browser, S shows the speaker notes")


if __name__ == "__main__":
    main()
