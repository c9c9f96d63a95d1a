"""Grade a folder of returned notebooks: a table, and a page of feedback for each.

    python notebooks/tools/grade.py returned/                         writes returned/grades/
    python notebooks/tools/grade.py returned/ --out marks --seconds 30

Of a returned notebook only the cells of its exercises are run, each exercise in a process of its own, forked from one
that has run the chapter: with a limit of time and memory, without network, without programs, and without a way to write
or delete a file outside of an empty folder. (That stops accidents and mischief, not an expert: for strangers' notebooks
start this in a container.) The checks are those of this clone, whatever the notebook brought along, and a right answer
must also pass with fresh cases: the same check, its decimal numbers changed or, where it has none, what FRESH names.
An answer that calls a function of adamlib which the exercise asks for is named. An exercise gives as many points as it
has ●. Names are those of the files.

    grades/grades.csv   a row a notebook: points, and what was found at each exercise
    grades/feedback/    a page each, to hand back
    grades/written.md   what was written in words, to read
"""

import argparse
import ast
import contextlib
import copy
import csv
import functools
import importlib
import inspect
import io
import json
import math
import multiprocessing
import os
import pathlib
import re
import resource
import sys
import tempfile
import textwrap
import time
import traceback
from typing import NamedTuple

from series import NOTEBOOKS, ROOT, chapters

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.startfile", "subprocess.",
             "socket.", "ctypes.", "shutil.", "os.symlink", "os.link", "os.chown", "signal.")
WRITING = ("open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.utime")
GIBIBYTE = 2**30
PATIENCE = 5  # seconds that are added to twice the limit before an answer that only waits is given up
# Fresh cases where numbers are whole ones, words or orders: {check: {text in its module: what stands in its place}}.
# Only `counter_limit` has none: the four dtypes that it asks for are all that can count.
FRESH = {
    "cut": {
        "[t(3), t(4), t(5)]": "[t(6), t(2), t(7)]", "t(10, 10)": "t(7, 13)",
        "t(2), t(5, 5), t(1)": "t(3), t(4, 9), t(2)", "t(64) for _ in range(200)": "t(48) for _ in range(150)",
        "t(4), t(10, 6).t(), t(40)": "t(5), t(9, 7).t(), t(50)",
    },
    "bytes_per_weight": {
        "(torch.float32, 0.1, False, False": "(torch.float64, 0.1, False, False",
        "(torch.float32, 0.0, False, True,": "(torch.bfloat16, 0.1, True, True,",
        "(torch.bfloat16, 0.1, False, True, True": "(torch.float64, 0.1, False, True, True",
    },
    "step_bytes": {
        "((4, 4, 4,": "((6, 8, 2,", "((2, 2, 4,": "((8, 4, 6,", "((4, 2, 4,": "((2, 6, 8,", "((4, 4, 2,": "((8, 2, 4,",
    },
    "load_in_place": {
        "manual_seed(6)": "manual_seed(60)", "0.003": "0.007", "[:20]": "[:17]", "[20:]": "[17:]",
        "(4, 3), (5,)": "(2, 3), (7,)",
    },
    "is_adam": {  # the wrong ones first, and one more
        "for name, steps, look in _right():\n        _verdict(reader, name, steps, True, look)":
            "for name, rule, look in _WRONG[::-1]:\n        _verdict(reader, name, _from_rule(rule), False, look)",
        "for name, rule, look in _WRONG:\n        _verdict(reader, name, _from_rule(rule), False, look)":
            "for name, steps, look in _right():\n        _verdict(reader, name, steps, True, look)",
        "_WRONG = [": "_WRONG = [('no root, twice the rate', lambda m, v, t, lr, *r: _no_root(m, v, t, 2 * lr, *r), ''),",
    },
    "which_amsgrad": {
        "((0.9, 0.999), (0.9, 0.99), (0.8, 0.95), (0.0, 0.9), (0.5, 0.001))":
            "((0.8, 0.99), (0.95, 0.999), (0.0, 0.97), (0.6, 0.01))",
        '("torch", "paper", "corrected max", "adam"):': '("paper", "adam", "torch", "corrected max"):',
    },
    "reorder": {
        "[1000] * 360 + [32 * chunk] * 100": "[900] * 300 + [27 * chunk] * 90",
        "[300 * chunk] * 30": "[290 * chunk] * 31", "[700] * 500 + [100 * chunk + 1] * 40": "[600] * 400 + [80 * chunk + 1] * 50",
        "[7], 36": "[9], 36", "*[500] * 30] * 20": "*[400] * 25] * 24", "[1000, 5 * chunk] * 30": "[800, 4 * chunk] * 35",
        "[0, 300] * 60 + [50 * chunk] * 8": "[0, 200] * 50 + [40 * chunk] * 9",
    },
}  # fmt: skip


class Exercise(NamedTuple):
    title: str
    points: int
    checks: list[str]  # functions of the chapter's module in course.exercises
    stub: str
    solution: str


class Verdict(NamedTuple):
    points: int
    found: str  # one line, for the table
    said: str  # for the feedback


def exercises(cells):
    """The exercises of a chapter and the code that comes before them, from our own notebook's cells."""
    found, title, before = [], "", []
    for place, cell in enumerate(cells):
        source = "".join(cell["source"])
        heading = re.findall(r"^#+ (.*●.*)$", source, re.MULTILINE) if cell["cell_type"] == "markdown" else ()
        title = heading[-1] if heading else title
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "solution" in tags:
            stub = next("".join(c["source"]) for c in reversed(cells[:place])
                        if c["cell_type"] == "code" and "check." in "".join(c["source"]))
            checks = list(dict.fromkeys(re.findall(r"\bcheck\.(\w+)\(", source)))
            found.append(Exercise(title, title.count("●"), checks, stub, source))
        elif cell["cell_type"] == "code" and not title:
            before.append(source)
    return before, found


def answers(cells, wanted, ours):
    """{exercise's title: (its code cells, its words)} of a returned notebook; what stands in `ours` is the chapter's."""
    found, title, given = {}, None, {e.title for e in wanted}
    chapters_own = {"".join(cell["source"]).strip() for cell in ours} - {
        text.strip() for e in wanted for text in (e.stub, e.solution)
    }
    for cell in cells:
        source = "".join(cell.get("source", ""))
        if cell.get("cell_type") == "markdown":
            headings = re.findall(r"^#+ (.*)$", source, re.MULTILINE)
            if headings:
                title = headings[-1] if headings[-1] in given else None
                continue
        if title and source.strip() not in chapters_own:
            code, words = found.setdefault(title, ([], []))
            (code if cell.get("cell_type") == "code" else words).append(source)
    return found


class Recorder:
    """Stands in the place of `check` while an answer runs: hands it to the true checks and keeps their reports."""

    def __init__(self, module, names):
        self._module, self._names, self.answers, self.reports = module, names, {}, {}

    def __getattr__(self, name):
        if name not in self._names:
            return getattr(self._module, name)

        def run(answer):
            self.answers[name] = answer
            self.reports[name] = getattr(self._module, name)(answer)
            return self.reports[name]

        return run


def nudged(module, name):
    """Variants of a check: its decimal numbers changed, each everywhere alike; one with all, then one with each."""
    function = inspect.unwrap(getattr(module, name))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    values = sorted({n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, float)
                     and 1e-4 < abs(n.value) < 1e4})  # fmt: skip
    for chosen in [values, *([value] for value in values)] if values else []:
        changed = copy.deepcopy(tree)
        for node in ast.walk(changed):
            if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value in chosen:
                near_one = 0.5 < node.value < 1  # a β stays one
                node.value = 1 - (1 - node.value) * 1.19 if near_one else node.value * 1.07
        namespace = dict(vars(module))
        exec(compile(ast.fix_missing_locations(changed), "<fresh cases>", "exec"), namespace)
        yield namespace[name]


def fresh(module, name):
    """The check with the cases of FRESH: its module, changed. Raises RuntimeError where a text is not in it."""
    source = inspect.getsource(module)
    for old, new in FRESH[name].items():
        if old not in source:
            raise RuntimeError(f"{module.__name__} has no {old!r} any more: change FRESH[{name!r}], too")
        source = source.replace(old, new)
    namespace = {"__name__": module.__name__, "__package__": module.__package__, "__file__": "<fresh cases>"}
    exec(compile(source, "<fresh cases>", "exec"), namespace)
    return namespace[name]


def borrowed(code, namespace, exercise):
    """Names of adamlib and of the checks that the answer uses, and stub and solution do not."""

    def used(source):
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("adamlib", "course"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name.split(".")[0] in ("adamlib", "course", "importlib")}
            elif isinstance(node, (ast.Name, ast.Attribute)):
                text = ast.unparse(node)
                with contextlib.suppress(Exception):
                    thing = namespace[text.split(".")[0]]
                    for part in text.split(".")[1:]:
                        thing = getattr(thing, part)
                    home = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", None) or ""
                    if home.startswith(("adamlib", "course.exercises")) and text != "check":
                        found.add(text)
                if text in ("__import__", "sys.modules", "globals", "eval", "exec"):
                    found.add(text)
        return found

    return sorted(used("\n".join(code)) - used(exercise.stub) - used(exercise.solution) - {"adamlib"}
                  - {f"check.{name}" for name in exercise.checks})


def untouched():
    """What an answer could tamper with: the names of the modules that checks compute with, and what they stand for."""
    modules = [module for name, module in sys.modules.items()
               if name.split(".")[0] in ("adamlib", "course", "numpy", "math", "builtins") or name == "torch"]
    return [(module, dict(vars(module))) for module in modules if module is not None]


def tampered(before):
    """The first name of `before` that stands for something else now."""
    for module, names in before:
        for name, thing in names.items():
            if not name.startswith("__") and vars(module).get(name) is not thing and callable(thing):
                return f"{module.__name__}.{name}"
    return None


def locked(folder, seconds):
    """Take from this process what an answer does not need."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    with contextlib.suppress(ValueError, OSError):
        pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + 4 * GIBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def refuse(event, arguments):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed while an answer is graded")
        if event in WRITING:
            reading = event == "open" and not (
                set(arguments[1] or "") & set("wax+") or isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if not reading and isinstance(arguments[0], (str, bytes)):
                path = os.path.realpath(os.fsdecode(arguments[0]))
                if not path.startswith(folder + os.sep) and path != os.devnull:
                    raise PermissionError(f"{event}({path}): an answer may write in its own folder only")

    sys.addaudithook(refuse)


def verdict(exercise, code, namespace, recorder):
    """Run an answer's cells, and say what they are worth. Never raises."""
    before = untouched()
    fresh = {name: namespace["__fresh__"].get(name, []) for name in exercise.checks}
    space = {**namespace, "check": recorder}
    try:
        for cell in code:
            exec(compile(cell, "<answer>", "exec"), space)
    except SyntaxError as error:
        return Verdict(0, "not Python", f"line {error.lineno}: {error.msg}")
    except BaseException as error:  # also SystemExit
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not recorder.reports:
            return Verdict(0, f"raises {type(error).__name__}", f"line {last.lineno}: {type(error).__name__}: {error}")
    said = "\n".join(map(str, recorder.reports.values()))
    if missing := [name for name in exercise.checks if name not in recorder.reports]:
        return Verdict(0, "not handed to its check", f"run check.{missing[0]}(...) on your answer\n{said}")
    if name := tampered(before):
        return Verdict(0, f"changes {name}", f"{name} was replaced while the answer ran")
    if not all(type(r).__name__ == "Report" and r.passed is True for r in recorder.reports.values()):
        return Verdict(0, "not written" if "not written yet" in said else "not yet", said)
    if names := borrowed(code, space, exercise):
        return Verdict(0, f"uses {', '.join(names)}", f"{said}\nbut it uses {', '.join(names)}, not your own lines")
    for name, checks in fresh.items():
        for again in checks:
            report = again(recorder.answers[name])
            if not report.passed:
                return Verdict(0, "right for the shown cases only", f"{said}\nwith other numbers: {report}")
    return Verdict(exercise.points, "correct", said)


def apart(function, seconds):
    """What the function returns in a forked process, locked; a Verdict where it does not come back."""
    here, there = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            try:
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(nowhere.fileno(), 2)
                locked(os.path.realpath(folder), seconds)
                there.send_bytes(json.dumps(function()).encode())
            finally:
                os._exit(0)
        there.close()
        came = here.poll(2 * seconds + PATIENCE)
        try:
            points, found, said = json.loads(here.recv_bytes()) if came else (0, f"takes more than {seconds} s", "It did not end.")
        except (EOFError, ValueError):
            points, found, said = 0, f"took more than {seconds} s, or its process ended", "The process ended without an answer."
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        os.waitpid(child, 0)
    return Verdict(points, found, said)


def prepared(chapter):
    """(the chapter's cells, the namespace that they leave before the exercises, its checks, its exercises), ready to fork.

    Checks get the cases of FRESH, and those with changed decimals that the chapter's own solution passes. Raises
    RuntimeError where that solution fails as it stands, or with FRESH: nothing could be graded fairly.
    """
    cells = json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    before, wanted = exercises(cells)
    imported = re.search(r"from course\.exercises import (\w+) as check", "\n".join(before))
    if not imported:
        return cells, {}, None, []
    module, namespace = importlib.import_module(f"course.exercises.{imported[1]}"), {"__name__": "__main__"}
    for cell in before:
        exec(compile(cell, f"<{chapter}>", "exec"), namespace)
    namespace["__fresh__"] = {}
    for exercise in wanted:
        recorder = Recorder(module, exercise.checks)
        ours = verdict(exercise, [exercise.solution], namespace, recorder)
        if ours.found != "correct":
            raise RuntimeError(f"{chapter}, {exercise.title}: our own solution is graded {ours.found!r}: {ours.said}")
        for name, answer in recorder.answers.items():
            fits = [fresh(module, name)] if name in FRESH else []
            if fits and not (report := fits[0](answer)).passed:
                raise RuntimeError(f"{chapter}, {exercise.title}: our own solution fails the cases of FRESH: {report}")
            for check in nudged(module, name):
                with contextlib.suppress(Exception):
                    fits += [check] if len(fits) < 2 and check(answer).passed else []
            namespace["__fresh__"][name] = fits
    return cells, namespace, module, wanted


@functools.cache
def titles():
    """{the first line of a chapter: its name}."""
    return {title_of(json.loads(path.read_text(encoding="utf-8"))["cells"]): path.stem for path in chapters()}


def title_of(cells):
    """The first line of the first cell of text."""
    return "".join(next(cell for cell in cells if cell["cell_type"] == "markdown")["source"]).splitlines()[0].strip()


def chapter_of(path):
    """(chapter, cells) of a returned notebook; ValueError says what is wrong with the file."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = title_of(cells)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, IndexError):
        raise ValueError("no notebook, or one without its title") from None
    if first not in titles():
        raise ValueError(f"no chapter of this series begins with {first[:60]!r}")
    return titles()[first], cells


def graded(chapter, returned, seconds):
    """{path: [(exercise's title, its points, Verdict)]} and what was written in words, for one chapter's notebooks."""
    os.chdir(NOTEBOOKS)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ours, namespace, module, wanted = prepared(chapter)
    rows, words = {}, {}
    for path, cells in returned.items():
        found = answers(cells, wanted, ours)
        rows[path] = []
        for exercise in wanted:
            code, written = found.get(exercise.title, ([], []))
            if not code:
                result = Verdict(0, "its cells are missing", "")
            elif [c.strip() for c in code] == [exercise.stub.strip()]:
                result = Verdict(0, "not written", "The stub is as it was.")
            else:
                recorder = Recorder(module, exercise.checks)
                result = apart(lambda: verdict(exercise, code, namespace, recorder), seconds)  # noqa: B023
            rows[path].append((exercise.title, exercise.points, result))
            if text := "\n\n".join(filter(str.strip, written)):
                words.setdefault(exercise.title, []).append((path.name, text))
    return rows, words


def write(out, rows, words, refused):
    """The table, the pages of feedback and the answers in words."""
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    with open(out / "grades.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "points", "of", "what was found"])
        for path in sorted({*rows, *refused}):
            if path in refused:
                table.writerow([path.name, 0, "", refused[path]])
                continue
            points, most = sum(v.points for _, _, v in rows[path]), sum(p for _, p, _ in rows[path])
            table.writerow([path.name, points, most, "; ".join(f"{i}: {v.found}" for i, (_, _, v) in enumerate(rows[path], 1))])
            page = [f"# {path.name}: {points} of {most} points", ""]
            for title, most, v in rows[path]:
                page += [f"## {title}", "", f"{v.points} of {most}: {v.found}", "", "```", v.said, "```", ""]
            (out / "feedback" / f"{path.stem}.md").write_text("\n".join(page), encoding="utf-8")
    text = "\n".join(f"## {title}\n\n" + "\n\n".join(f"**{name}**\n\n{said}" for name, said in those) for title, those in words.items())
    (out / "written.md").write_text(text + "\n" if text else "Nobody wrote in words.\n", encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="the returned notebooks, of one chapter or of several")
    parser.add_argument("--out", type=pathlib.Path, help="where to write (FOLDER/grades)")
    parser.add_argument("--seconds", type=int, default=60, help="the most that one exercise may take (60)")
    wanted = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        sys.exit("Grading forks processes, which Windows cannot: run it under Linux, macOS or WSL.")
    paths = sorted(wanted.folder.glob("*.ipynb")) if wanted.folder.is_dir() else []
    if not paths:
        sys.exit(f"{wanted.folder} is no folder with notebooks (.ipynb): put what was returned into one.")
    out = (wanted.out or wanted.folder / "grades").resolve()
    sys.path[:0] = [str(ROOT), str(NOTEBOOKS)]
    os.environ["MPLBACKEND"] = "agg"
    returned, refused, rows, words, start = {}, {}, {}, {}, time.monotonic()
    for path in map(pathlib.Path.resolve, paths):
        try:
            chapter, cells = chapter_of(path)
            returned.setdefault(chapter, {})[path] = cells
        except ValueError as reason:
            refused[path] = str(reason)
    for chapter, those in returned.items():
        print(f"{chapter}: running the chapter, then {len(those)} notebooks", flush=True)
        its_rows, its_words = graded(chapter, those, wanted.seconds)
        rows |= its_rows
        words |= its_words
    write(out, rows, words, refused)
    seconds = math.ceil(time.monotonic() - start)
    print(f"{len(rows)} graded, {len(refused)} could not be, in {seconds} s: {out / 'grades.csv'}")


if __name__ == "__main__":
    main()
