"""Wrong answers to the exercises are made, not written: each folded solution is changed in one place, and its check asked.

A solution comes out of its notebook with what it needs of the cells above it. A change exchanges + and −, × and ÷, a
power and a product, β₁ and β₂, m and v; leaves out a root, an absolute value, a sign, one side of an operation or a
whole statement; or adds 1 to a number. Every change that a check lets pass must stand in EXPLAINED with its reason.
"""

import ast
import contextlib
import copy
import io
import json
import pathlib
import signal
import symtable
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
from series import chapters  # noqa: E402

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
PARTNERS = {"beta1": "beta2", "β1": "β2", "m": "v", "exp_avg": "exp_avg_sq"}
PARTNERS |= {two: one for one, two in PARTNERS.items()}
# check: {changed text: why it is right all the same, or why no check need tell it}
EXPLAINED = {
    "settings": {
        "1000000000000.0 → 1000000000001.0": "any enormous ε hides the root",
    },
    "zeros_to_exceed": {"1001 → 1002": "one more step after the silence than the thousand that are enough"},
    "runaway_loss": {
        "-torch.exp(k * x) / k → -torch.exp(k * x)": "Adam does not see the size of the loss",
        "-torch.exp(k * x) / k → -torch.exp(k * x) * k": "Adam does not see the size of the loss",
    },
    "adamw": {"v → m": "the list of maxima, which nothing reads without amsgrad"},
    "clip_in_lists": {
        "total + 1e-06 → total": "torch's guard against 0/0, a millionth of a norm of 1; an answer may guard otherwise",
        "total + 1e-06 → total - 1e-06": "the same millionth",
    },
    "reorder": {"0 → 1": "one block more at the start; any order within one launch of the best is right"},
    "safe_capture": {"30001 → 30002": "one step more, long after both averages have settled"},
    "forward_hypergradient": {"1.0 → 2.0": "what stands under a slope that is 0"},
    "round_randomly_": {"0 → 1": "the smallest of 65,536 equally likely values is left out: no sample can tell"},
    "which_amsgrad": {"[0.1] * 50 → [0.1]": "the gradients that an answer tries are its own choice"},
}
FREE_NUMBERS = {"is_adam", "which_amsgrad"}  # the gradients that an answer tries are its own choice
NOT_TRIED = {"momentum": "a Triton kernel, which runs in a process of its own: test_exercise_kernel.py"}


def replacements(node, numbers=True):
    """The nodes that may stand in this node's place."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
        yield node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if numbers or not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and numbers:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in PARTNERS:
        yield ast.Name(PARTNERS[node.id], ast.Load())
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sqrt", "sqrt_", "abs"):
        yield node.args[0] if node.args else node.func.value


def changed(tree, numbers=True):
    """(what was changed, the changed tree) for every place of the functions and classes in `tree`."""
    nodes = list(ast.walk(tree))
    for place, node in enumerate(nodes):
        for new in replacements(node, numbers) if isinstance(node, ast.expr) else ():
            yield f"{ast.unparse(node)} → {ast.unparse(new)}", _with(tree, place, new)
        body = getattr(node, "body", None)
        for number, statement in enumerate(body if isinstance(body, list) and not isinstance(node, ast.Module) else ()):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if len(body) > 1 and not is_docstring and not isinstance(statement, (ast.FunctionDef, ast.Return)):
                fresh = copy.deepcopy(tree)
                del list(ast.walk(fresh))[place].body[number]
                yield f"without {ast.unparse(statement)}", fresh


def _with(tree, place, new):
    fresh = copy.deepcopy(tree)
    target = list(ast.walk(fresh))[place]

    class Put(ast.NodeTransformer):
        def visit(self, node):
            return copy.deepcopy(new) if node is target else self.generic_visit(node)

    return ast.fix_missing_locations(Put().visit(fresh))


def _free(tree):
    """The names that the code takes from outside its own functions."""
    tables, names = [symtable.symtable(ast.unparse(tree), "answer", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        own = table.get_type() == "module"
        names |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (own or s.is_global())}
    return names


def _bound(statement):
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def solutions():
    """(id, statements that a solution needs, its functions and classes, name of the check, name of the answer)."""
    for path in chapters():
        above = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code" or "setup" in cell["metadata"].get("tags", []):
                continue
            tree = ast.parse("".join(cell["source"]))
            if "solution" not in cell["metadata"].get("tags", []):
                above += tree.body
                continue
            answer = ast.Module([n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))], [])
            asked = [
                node for node in ast.walk(tree)
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("check.") and node.args
            ]
            if answer.body and asked and isinstance(asked[-1].args[0], ast.Name):
                check, function = asked[-1].func.attr, asked[-1].args[0].id
                others = [n for n in tree.body if n not in answer.body and not _free(ast.Module([n], [])) & {"check", function}]
                needed = _slice([*above, *others], _free(answer) | {"check"})
                yield pytest.param(needed, answer, check, function, id=f"{path.stem}-{check}")


def _slice(statements, names):
    """The imports, and those of the statements that the names depend on."""
    kept, names = [], set(names)
    for statement in reversed(statements):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            kept.append(statement)
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Assign)) and _bound(statement) & names:
            kept.append(statement)
            names |= _free(ast.Module([statement], []))
    return ast.Module(kept[::-1], [])


class TooLong(BaseException):
    """No exception that a check would turn into a report."""


@contextlib.contextmanager
def at_most(seconds):
    """Raise TooLong after so many seconds of computing (not of waiting for a busy machine): a change may never end."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def passes(check, function, tree, names, seconds):
    """Whether the check accepts the answer that `tree` defines; an answer that never ends is not accepted."""
    names = dict(names)
    try:
        with at_most(seconds), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, "answer", "exec"), names)
            return bool(getattr(names["check"], check)(names[function]))
    except (TooLong, Exception):
        return False


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="an endless answer is ended by a signal that Windows lacks")
@pytest.mark.parametrize("needed, answer, check, function", list(solutions()))
def test_a_change_in_one_place_is_caught(needed, answer, check, function, tally):
    if check in NOT_TRIED:
        pytest.skip(NOT_TRIED[check])
    names: dict = {}
    exec(compile(needed, "the cells above", "exec"), names)
    start = time.process_time()
    assert passes(check, function, answer, names, seconds=60), "the solution itself"
    seconds = 0.3 + 2 * (time.process_time() - start)  # of computing, for a change that may never end
    start, made, through = time.perf_counter(), 0, []
    for what, tree in changed(answer, numbers=check not in FREE_NUMBERS):
        made += 1
        if passes(check, function, tree, names, seconds):
            through.append(what)
    tally.figure(f"changed answers caught, {check}", f"{made - len(through)} of {made} ({time.perf_counter() - start:.0f} s)")
    explained = EXPLAINED.get(check, {})
    assert made >= 2
    assert not set(through) - set(explained), f"{check} lets {len(through)} of {made} changed answers pass"
    assert not set(explained) - set(through), "these are caught now: take them out of EXPLAINED"
