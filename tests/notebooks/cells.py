"""Cells and notebooks for the tests: small, and in order unless a test wants otherwise."""

import functools

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def code(source="1 + 1", metadata=None, count=1, outputs=()):
    return new_code_cell(source, metadata=metadata or {}, execution_count=count, outputs=list(outputs))


def text(source, metadata=None):
    return new_markdown_cell(source, metadata=metadata or {})


def printed(words, name="stdout"):
    return new_output("stream", name=name, text=words)


def picture(alt, mime="image/png"):
    return new_output("display_data", data={mime: "aGk="}, metadata={mime: {"alt": alt} if alt else {}})


FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form", "_kg_hide-input": True}
SOLUTION = FOLDED | {"tags": ["solution"]}


def written(folder, name, cells):
    (folder / "notebooks").mkdir(exist_ok=True)
    (folder / "LICENSE").touch()
    path = folder / "notebooks" / name
    nbformat.write(new_notebook(cells=cells), path)
    return path


@functools.cache
def read(path):
    """The notebook that is stored at this path. It is read once: leave it as it is."""
    return nbformat.read(path, as_version=4)
