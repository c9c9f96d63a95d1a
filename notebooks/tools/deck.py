"""What a deck is: notebooks/decks/<chapter>.md, a claim or a picture a slide, and what it takes from its chapter.

    # Waking up [drop when late]           a section: a row of the lecturer's plan; [exercise 1] [minutes 12] may follow
    ## 6.57 α, at the 12th gradient        a slide: its heading is the claim, below it at most 40 words or a formula
    {figure "A weight that wakes up"}      the figure of the one code cell whose source contains these words
    {code "def C(" 1-4}                    lines of such a cell (all without a range); {print "def C("}: what it printed
    + line // by Cauchy and Schwarz        a list whose items come a click each, what follows // with one more click;
                                           the items of a list with - are all there
    {vote}                                 the list that follows has the options; a click on one counts a hand
    Note: wait ten seconds                 what only the lecturer sees, to the end of the slide

Prose of the chapter is not projected: the last of it before the cell that a slide shows becomes its speaker note, with
all remarks to the speaker since the slide before.
"""

import re
from typing import NamedTuple

from series import NOTEBOOKS

DECKS = NOTEBOOKS / "decks"
WORDS, LINES, WIDTH = 40, 10, 68  # the most a slide holds: words, lines of code or print, characters in one
PAGES = 30
SPOKEN = {"slide": 25, "word": 0.5, "line": 5, "figure": 75, "formula": 45, "click": 15, "vote": 90}  # seconds
DIRECTIVE = re.compile(r'^\{(figure|code|print|vote)(?: "(.+)")?(?: (\d+)-(\d+))?\}$')


class Part(NamedTuple):
    """A piece of a slide: `kind` is text, figure, code or print; `content` Markdown, code, or the cell of a figure."""

    kind: str
    content: object


class Slide(NamedTuple):
    title: str
    parts: list[Part]
    vote: bool
    note: str
    seconds: float


class Section(NamedTuple):
    title: str
    marks: list[str]  # such as "drop when late"
    slides: list[Slide]


class Refused(Exception):
    """A deck that breaks a rule; says the deck, the slide and what to do."""


def read(chapter, notebook):
    """The sections of a chapter's deck, checked. `chapter`: the notebook's stem; `notebook`: as nbformat reads it.

    Raises Refused.
    """
    path, sections, used = DECKS / f"{chapter}.md", [], 0
    if not path.is_file():
        raise Refused(f"{chapter} has no deck: write {path.relative_to(NOTEBOOKS.parent)} (its form stands in tools/deck.py)")
    for block in re.split(r"^(?=##? )", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = block.strip().partition("\n")
        if heading.startswith("# "):
            sections.append(Section(re.sub(r" *\[[^]]*\]", "", heading[2:]), re.findall(r"\[([^]]*)\]", heading), []))
        elif heading.startswith("## "):
            if not sections:
                raise Refused(f"{path.name}: the slide {heading[3:]!r} stands in no section: put a line `# …` over it")
            try:
                slide, used = _slide(heading[3:], body, notebook.cells, used)
            except Refused as reason:
                raise Refused(f"{path.name}, {heading[3:]!r}: {reason}") from None
            sections[-1].slides.append(slide)
        elif heading:
            raise Refused(f"{path.name}: text before the first heading: {heading!r}")
    pages = sum(len(section.slides) for section in sections)
    if not 1 <= pages <= PAGES:
        raise Refused(f"{path.name} has {pages} slides; an hour holds {PAGES} at most: drop or join some")
    return sections


def minutes(slides):
    """How long they take to show, by SPOKEN."""
    return sum(slide.seconds for slide in slides) / 60


def _slide(title, body, cells, used):
    """(the slide, the number of cells used up to it)."""
    body, _, remark = body.partition("\nNote:")
    parts, vote, text, prose = [], False, [], []
    for line in [*body.strip().splitlines(), None]:
        directive = line and DIRECTIVE.match(line.strip())
        if line is not None and line.startswith("{") and not directive:
            raise Refused(f"{line} is none of {{figure \"…\"}}, {{code \"…\" 1-4}}, {{print \"…\"}}, {{vote}}")
        if line is not None and not directive:
            text.append(line)
            continue
        if any(map(str.strip, text)):
            parts.append(Part("text", "\n".join(text).strip()))
        text = []
        if directive and directive[1] == "vote":
            vote = True
        elif directive:
            number, cell = _cell(cells, directive[2])
            parts.append(_taken(directive[1], cell, directive[3], directive[4]))
            passed = [c for c in cells[used:number] if c.cell_type == "markdown"]
            prose += [c.metadata["speaker"] for c in passed if "speaker" in c.metadata] + [c.source for c in passed[-1:]]
            used = max(used, number)
    _check(title, parts, vote)
    note = "\n\n".join(filter(None, [remark.strip(), *(re.sub(r"^#+ ", "", p, flags=re.MULTILINE) for p in prose)]))
    return Slide(title, parts, vote, note, _seconds(title, parts, vote)), used


def _cell(cells, words):
    """The one code cell whose source contains the words."""
    found = [(i, c) for i, c in enumerate(cells) if c.cell_type == "code" and words and words in c.source
             and "solution" not in c.metadata.get("tags", [])]  # fmt: skip
    if len(found) != 1:
        raise Refused(f"{len(found)} code cells contain {words!r}: quote words that stand in one alone")
    return found[0]


def _taken(kind, cell, first, last):
    if kind == "figure":
        if not any("image/png" in output.get("data", {}) for output in cell.outputs):
            raise Refused("this cell draws no figure")
        return Part(kind, cell)
    text = cell.source if kind == "code" else "".join(output.get("text", "") for output in cell.outputs)
    lines = text.rstrip("\n").splitlines()
    lines = lines[int(first or 1) - 1:int(last or len(lines))]
    if not lines:
        raise Refused(f"there is nothing to show as {kind}")
    return Part(kind, "\n".join(lines))


def _check(title, parts, vote):
    words = _words(title) + sum(_words(part.content) for part in parts if part.kind == "text")
    if words > WORDS:
        raise Refused(f"{words} words; a slide holds {WORDS}: say the rest, or put it into the note")
    figures = [part for part in parts if part.kind == "figure"]
    if len(figures) > 1:
        raise Refused("two figures: each wants a slide of its own")
    lines = [line for part in parts for line in code_lines(part)]
    if len(lines) > LINES:
        raise Refused(f"{len(lines)} lines of code or print; a slide holds {LINES}: name the lines that matter, as in 2-7")
    if figures and lines:
        raise Refused("a figure and code: each wants a slide of its own")
    if wide := [line for line in lines if len(line) > WIDTH]:
        raise Refused(f"a line of {len(wide[0])} characters, {WIDTH} fit: {wide[0].strip()[:40]}…")
    if vote and not re.search(r"^[-+] ", "\n".join(p.content for p in parts if p.kind == "text"), re.MULTILINE):
        raise Refused("a vote without options: list them, a line each, after {vote}")


def code_lines(part):
    """The lines of code and print of a part."""
    if part.kind in ("code", "print"):
        return part.content.splitlines()
    if part.kind == "text":
        return [line for block in re.findall(r"^```.*?\n(.*?)^```", part.content, re.S | re.M) for line in block.splitlines()]
    return []


def _words(text):
    """Words of a text; a formula counts as one, code that is fenced not at all."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]+\$", " formula ", text, flags=re.S)
    return len(re.findall(r"\w[\w.,’'\-−/×·%]*", re.sub(r"[*_`#|\[\]()>+]|^- ", " ", text, flags=re.M)))


def _seconds(title, parts, vote):
    text = "\n".join(part.content for part in parts if part.kind == "text")
    counts = {
        "slide": 1, "word": _words(title) + _words(text), "line": sum(len(code_lines(part)) for part in parts),
        "figure": sum(part.kind == "figure" for part in parts), "formula": text.count("$$") // 2,
        "click": 0 if vote else len(re.findall(r"^\+ ", text, re.M)), "vote": vote,
    }  # fmt: skip
    return sum(SPOKEN[kind] * number for kind, number in counts.items())
