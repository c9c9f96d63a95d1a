"""Make one reveal.js deck per chapter, to be projected without network: build/slides/index.html.

    python notebooks/tools/slides.py

A deck is written in notebooks/decks (tools/deck.py says how) and takes figures, code and printed lines from its chapter's
stored outputs. reveal.js and MathJax are copied beside the decks. The index holds each deck's plan: sections, slides,
minutes, votes, what to drop when late.
"""

import argparse
import html
import importlib.util
import pathlib
import re
import shutil
import sys

import deck
import jinja2
import nbformat
from hygiene import pictures
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from projector import projected
from series import BUILD as BUILDS
from series import MAIN_LINE, TOOLS, chapters

BUILD = BUILDS / "slides"
KEYS = '<div class="section keys">M: keys to the figure (← → space), Esc back</div>'
ROOM = 571  # pixels below a heading of one line, at 1280 × 720


def _mathematics(content, options):
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(content.strip())}{right}"


def _colored(code, language="python", attributes=None):
    """Code as one <pre>: into what begins otherwise, Markdown's renderer would put another around it."""
    lines = highlight(code, get_lexer_by_name(language or "text"), HtmlFormatter(nowrap=True))
    return f'<pre class="highlight">{lines}</pre>'


MARKDOWN = MarkdownIt("commonmark", {"highlight": _colored}).enable("table").use(
    dollarmath_plugin, renderer=_mathematics, double_inline=True
)


def rendered(text, vote=False):
    """Markdown as HTML; items of a list with + come a click each, the reason after // one later; those of a vote are
    buttons."""
    tokens = MARKDOWN.parse(text)
    for token in tokens:
        if token.type == "list_item_open":
            token.attrSet("class", "option" if vote else "fragment" if token.markup == "+" else "")
            if vote:
                token.attrSet("tabindex", "0")
    page = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    page = re.sub(r'(<li class="fragment">.*?) // (.*?)(?=</li>)', r'\1 <span class="fragment reason">\2</span>', page)
    return re.sub(r"(\\\([^<]*?\\\))([.,:;?])", r'<span class="whole">\1\2</span>', page)  # no line begins with a comma


def enlarged(slide):
    """How much larger than the smallest print a slide without a figure can be set, 1 to 1.25, by a rough count of lines."""
    if any(part.kind == "figure" for part in slide.parts):
        return 1
    for scale in (1.25, 1.12):
        height, width = 55 * -(-len(slide.title) // 40) + 20, 0
        for part in slide.parts:
            text, code = re.sub(r"^```.*?^```", "", str(part.content), flags=re.S | re.M), deck.code_lines(part)
            height += scale * (36.4 * len(code) + 50 * bool(code))
            width = max([width, *(16.9 * scale * len(line) + 40 for line in code)])
            if part.kind != "text":
                continue
            formulas = re.findall(r"\$\$(.*?)\$\$", text, re.S)
            if any(len(tex) > 64 for tex in formulas) or "\\dfrac" in text:  # how wide it is, only the browser knows
                return 1
            text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
            height += 150 * scale * len(formulas)
            columns = [[len(cell) for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
            width = max(width, scale * sum(20 * max(lengths) + 18 for lengths in zip(*columns)))
            height += sum(scale * (49 * -(-len(line) * scale // 56) + 13) for line in text.splitlines() if line.strip())
        if height < 560 and width < 1150:
            return scale
    return 1


def shown(part, vote):
    """A part of a slide as HTML."""
    if part.kind == "text":
        return rendered(part.content, vote)
    if part.kind == "code":
        return _colored(part.content)
    if part.kind == "print":
        return f'<pre class="print">{html.escape(part.content)}</pre>'
    for output in part.content.outputs:  # the figure that moves; a page of its own, so that its keys are its own
        if "data-adam-windows" in (page := output.get("data", {}).get("text/html", "")):
            page = projected(page, ROOM, title=False, how="background: white")
            page = html.escape(f'<!doctype html><meta charset="utf-8"><body>{page}')
            return f'<iframe class="figure" title="a figure to move" srcdoc="{page}"></iframe>{KEYS}'
    (_, alt), *_ = pictures(part.content)
    png = next(o.data["image/png"] for o in part.content.outputs if "image/png" in o.get("data", {}))
    return f'<img class="figure" src="data:image/png;base64,{png.strip()}" alt="{html.escape(alt)}">'


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
    """Write every deck to ``out``, with what it loads. Exits where a deck breaks a rule, with all that is to mend."""
    notebooks, decks, refused = chapters(names=MAIN_LINE), {}, []
    if not notebooks:
        sys.exit("no chapters in notebooks/: is this a complete clone?")
    for path in notebooks:
        try:
            decks[path.stem] = deck.read(path.stem, nbformat.read(path, as_version=4))
        except deck.Refused as reason:
            refused.append(str(reason))
    if refused:
        sys.exit("\n".join(refused))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    copy_assets(out)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TOOLS / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.globals |= dict(shown=shown, rendered=rendered, minutes=deck.minutes, enlarged=enlarged, spoken=deck.SPOKEN,
                              colors=HtmlFormatter().get_style_defs())  # fmt: skip
    for name, sections in decks.items():
        title = name.replace("_", " · ", 1).replace("_", " ")
        page = templates.get_template("deck.html").render(title=title, sections=sections)
        (out / f"{name}.html").write_text(page, encoding="utf-8")
    (out / "index.html").write_text(templates.get_template("plan.html").render(decks=decks), encoding="utf-8")
    return decks


def main(arguments=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(arguments)
    for name, sections in build().items():
        slides = [slide for section in sections for slide in section.slides]
        print(f"{name}.html  {len(slides)} slides, {deck.minutes(slides):.0f} minutes")
    print("build/slides/index.html has the decks and their plans: arrows turn the pages, S shows the speaker notes")


if __name__ == "__main__":
    main()
