"""The folded solutions of the exercises, each with what it needs of the cells above it, to be changed and checked."""

import ast
import json
import pathlib
import symtable
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "notebooks" / "tools"))
from series import chapters  # noqa: E402


class Solution(NamedTuple):
    chapter: str
    check: str  # its name in course.exercises
    answer: str  # the name of the function or class that the check is given
    source: str  # what defines it
    above: ast.Module  # what it needs of the cells above

    def names(self):
        """What the cells above define, as a dict."""
        names: dict = {}
        exec(compile(self.above, "the cells above", "exec"), names)
        return names

    def report(self, names, source):
        """What the check says to `source`, text or a syntax tree, in the place of the solution."""
        names = dict(names)
        exec(compile(source, "answer", "exec"), names)
        return getattr(names["check"], self.check)(names[self.answer])

    def exchanged(self, texts):
        """The source with each of the texts (a dict) exchanged. Each must stand in it once."""
        source = self.source
        for old, new in texts.items():
            assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in\n{source}"
            source = source.replace(old, new)
        return source


def solutions():
    """Every solution that is a function, a class or a lambda, in the order of the chapters."""
    for path in chapters():
        above = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code" or "setup" in tags:
                continue
            source = "".join(cell["source"])
            tree = ast.parse(source)
            if "solution" in tags:
                yield from _solutions_of_a_cell(path.stem, source, tree, above)
            else:
                above += tree.body


def _solutions_of_a_cell(chapter, source, tree, above):
    answers = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    for asked in ast.walk(tree):
        if not (isinstance(asked, ast.Call) and ast.unparse(asked.func).startswith("check.") and asked.args):
            continue
        check, given = asked.func.attr, asked.args[0]
        if isinstance(given, ast.Lambda):
            name, text = check, f"{check} = {ast.get_source_segment(source, given)}"
        elif isinstance(given, ast.Name) and given.id in {node.name for node in answers}:
            name, text = given.id, "\n\n".join(ast.get_source_segment(source, node) for node in answers)
        else:
            continue
        others = [node for node in tree.body if node not in answers and not _names([node])[1] & {"check", name}]
        needed = _names(ast.parse(text).body)[1] | {"check"}
        yield Solution(chapter, check, name, text, _slice([*above, *others], needed))


def _slice(statements, needed):
    """The imports, and those of the statements that the names depend on."""
    kept = []
    for statement in reversed(statements):
        defines, takes = _names([statement])
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            kept.append(statement)
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Assign)) and defines & needed:
            kept.append(statement)
            needed = needed | takes
    return ast.Module(kept[::-1], [])


def _names(statements):
    """The names that the statements define, and those that they take from outside their own functions."""
    module = symtable.symtable(ast.unparse(ast.Module(statements, [])), "answer", "exec")
    tables, taken = [module], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used = (s for s in table.get_symbols() if s.is_referenced() and (table is module or s.is_global()))
        taken |= {symbol.get_name() for symbol in used}
    return {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned()}, taken
