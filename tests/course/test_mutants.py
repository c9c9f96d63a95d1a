"""Wrong answers to the exercises are made, not written: each folded solution is changed in one place and checked.

A change exchanges + and −, × and ÷, a power and a product, β₁ and β₂, m and v; leaves out a root, an absolute value,
a sign, a copy, an argument that has a name, one of several things, one side of an operation or a whole statement;
computes in a new tensor what was to change in place; or adds 1 to a number. Every change that a check lets pass must
stand in EXPLAINED with its reason. (The one kernel runs in a process of its own: test_exercise_kernel.py.)
"""

import ast
import contextlib
import copy
import io
import signal
import time

import pytest
from solutions import solutions

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
PARTNERS = {"beta1": "beta2", "β1": "β2", "m": "v", "exp_avg": "exp_avg_sq"}
PARTNERS |= {two: one for one, two in PARTNERS.items()}
LEFT_OUT = ("sqrt", "sqrt_", "abs", "clone", "deepcopy")  # calls that a change replaces by what they are given
# check: {changed text: why it is right all the same, or why no check need tell it}
EXPLAINED = {
    "settings": {"1000000000000.0 → 1000000000001.0": "any enormous ε hides the root"},
    "zeros_to_exceed": {"1001 → 1002": "one more step after the silence than the thousand that are enough"},
    "runaway_loss": {
        "-torch.exp(k * x) / k → -torch.exp(k * x)": "Adam does not see the size of the loss",
        "-torch.exp(k * x) / k → -torch.exp(k * x) * k": "Adam does not see the size of the loss",
    },
    "corrected_max_step": {"top.sqrt().add_(eps) → top.sqrt().add(eps)": "the same number in another new tensor"},
    "adamw": {
        "v → m": "the list of maxima, which nothing reads without amsgrad",
        "torch.tensor(0.0, dtype=torch.float32) → torch.tensor(0.0)": "float32 is the default",
    },
    "clip_in_lists": {
        "total + 1e-06 → total": "torch's guard against 0/0, a millionth of a norm of 1; an answer may guard otherwise",
        "total + 1e-06 → total - 1e-06": "the same millionth",
    },
    "reorder": {"0 → 1": "one block more at the start; any order within one launch of the best is right"},
    "safe_capture": {
        "30001 → 30002": "one step more, long after both averages have settled",
        "torch.arange(1, 30001, dtype=torch.float64) → torch.arange(1, 30001)": "float32 has digits enough",
    },
    "forward_hypergradient": {"1.0 → 2.0": "what stands under a slope that is 0"},
    "round_randomly_": {"0 → 1": "the smallest of 65,536 equally likely values is left out: no sample can tell"},
    "is_adam": {
        "np.allclose(taken, truth, rtol=0.0001, atol=0) → np.allclose(taken, truth, atol=0)": "NumPy's 1e-5 will do",
        "np.allclose(taken, truth, rtol=0.0001, atol=0) → np.allclose(taken, truth, rtol=0.0001)": "1e-8 is no help",
    },
    "which_amsgrad": {"[0.1] * 50 → [0.1]": "the gradients that an answer tries are its own choice"},
}
FREE_NUMBERS = {"is_adam", "which_amsgrad"}  # the gradients that an answer tries are its own choice


def replacements(node, numbers=True):
    """The nodes that may stand in this node's place."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in SWAPS:
            yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
        if type(node.op) in SWAPS or isinstance(node.op, ast.MatMult):
            yield node.left
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if numbers or not isinstance(node.operand, ast.Constant):
            yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and numbers:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in PARTNERS:
        yield ast.Name(PARTNERS[node.id], ast.Load())
    elif isinstance(node, (ast.Tuple, ast.List)) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1 and numbers:
        for left_out in node.elts:
            yield type(node)([element for element in node.elts if element is not left_out], ast.Load())
    elif isinstance(node, ast.Call):
        for left_out in node.keywords:
            yield ast.Call(node.func, node.args, [keyword for keyword in node.keywords if keyword is not left_out])
        if isinstance(node.func, ast.Attribute):
            yield from replacements_of_method(node)


def replacements_of_method(call):
    name = call.func.attr
    if name in LEFT_OUT:
        yield call.args[0] if call.args else call.func.value
    if name.endswith("_") and not name.endswith("__"):
        yield ast.Call(ast.Attribute(call.func.value, name[:-1], ast.Load()), call.args, call.keywords)


def changed(tree, numbers=True):
    """(what was changed, the changed tree) for every place of the functions and classes in `tree`."""
    for node in ast.walk(tree):
        for new in replacements(node, numbers) if isinstance(node, ast.expr) else ():
            yield f"{ast.unparse(node)} → {ast.unparse(new)}", exchanged(tree, node, new)
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) and not isinstance(node, ast.Module) else ():
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if len(body) > 1 and not is_docstring and not isinstance(statement, (ast.FunctionDef, ast.Return)):
                yield f"without {ast.unparse(statement)}", exchanged(tree, statement, ast.Pass())


def exchanged(tree, old, new):
    """A copy of the tree in which `new` stands where `old`, one of its nodes, stood."""
    return ast.fix_missing_locations(copy.deepcopy(tree, {id(old): new}))


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


def passes(solution, names, tree, seconds):
    """Whether the check accepts the answer that `tree` defines; an answer that never ends is not accepted."""
    try:
        with at_most(seconds), contextlib.redirect_stdout(io.StringIO()):
            return bool(solution.report(names, tree))
    except (TooLong, Exception):
        return False


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows lacks the signal that ends an endless answer")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a changed formula may divide by zero
@pytest.mark.parametrize("solution", list(solutions()), ids=lambda solution: f"{solution.chapter}-{solution.check}")
def test_a_change_in_one_place_is_caught(solution, tally):
    names, answer = solution.names(), ast.parse(solution.source)
    start = time.process_time()
    assert passes(solution, names, answer, seconds=60), "the solution itself"
    seconds = 0.3 + 2 * (time.process_time() - start)  # of computing, for a change that may never end
    start, made, through = time.perf_counter(), 0, []
    for what, tree in changed(answer, numbers=solution.check not in FREE_NUMBERS):
        made += 1
        if passes(solution, names, tree, seconds):
            through.append(what)
    took = f"({time.perf_counter() - start:.0f} s)"
    tally.figure(f"changed answers caught, {solution.check}", f"{made - len(through)} of {made} {took}")
    explained = EXPLAINED.get(solution.check, {})
    assert made >= 2
    assert not set(through) - set(explained), f"{solution.check} lets {len(through)} of {made} changed answers pass"
    assert not set(explained) - set(through), "these are caught now: take them out of EXPLAINED"
