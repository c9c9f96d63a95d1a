"""What python -m course.gpu does without a GPU: budget, crashes, going on, and each part's plumbing on the CPU."""

import json
import time
import types

import pytest
import torch

from course import RECORDED, figures
from course.gpu import __main__ as command
from course.gpu import blocks, checks, parity, race, record
from course.gpu.run import Part, deadlines, one_line, run_part, run_parts, without_paths, write

FAKE = '''
import os, time
def run(done, device, tell):
    for name in ("good", "dies", "hangs", "asks for a new process", "last"):
        if name in done:
            continue
        tell(name)
        if name == "dies":
            os._exit(3)
        if name == "hangs":
            time.sleep(60)
        tell(name, {"device": device, "done before": sorted(done)})
        if name.startswith("asks"):
            return False
    return True
def idle(done, device, tell):
    return False
def broken(done, device, tell):
    os._exit(4)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Dotted names of parts made for these tests, in a module that a new process can import."""
    (tmp_path / "fake_part.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "fake_part."


# --- running

def test_shares_of_the_budget():
    parts = [Part("a", "", 30), Part("b", "", 10), Part("c", "", 60)]
    assert deadlines(parts, 200) == {"a": 60, "b": 80, "c": 200}
    assert sum(part.seconds for part in command.PARTS) <= 480 - 15


def filled(function, results, item_seconds=30, saved=lambda: None):
    """Whether the part got to its end; its results are put into those that are there."""
    return run_part(Part("fake", function, 30, item_seconds), results, "cpu", 30, saved)


def test_a_part_survives_what_kills_its_process_and_stores_each_result(fake):
    results, saved = {}, []
    assert filled(fake + "run", results, item_seconds=1.5, saved=lambda: saved.append(len(results)))
    assert saved == [1, 2, 3, 4, 5]  # what is done is not done again
    assert results["dies"] == {"crashed": "its process ended with exit status 3"}
    assert results["hangs"] == {"crashed": "no result within 1.5 s"}
    assert results["asks for a new process"]["done before"] == ["dies", "good", "hangs"]
    assert results["last"]["device"] == "cpu"


@pytest.mark.parametrize("name, found", [("idle", []), ("broken", ["its process ended with exit status 4"])])
def test_a_part_that_gets_nowhere_is_given_up(fake, name, found):
    results = {}
    assert not filled(fake + name, results)
    assert [result["crashed"] for result in results.values()] == found


def test_time_that_is_over_leaves_the_rest_for_the_next_run(fake):
    kept = {"parts": {"before": {"complete": True, "seconds": 7.0, "results": {"x": {}}}}}
    start, before = time.monotonic(), json.dumps(kept["parts"]["before"])
    parts = [Part("before", fake + "broken", 0), Part("slow", fake + "run", 1), Part("next", fake + "idle", 1)]
    run_parts(parts, kept, "cpu", 3, lambda: None, say=lambda text: None)
    assert time.monotonic() - start < 6
    assert json.dumps(kept["parts"]["before"]) == before  # of a former run
    assert not kept["parts"]["slow"]["complete"] and "last" not in kept["parts"]["slow"]["results"]


def test_texts_name_no_folder_of_this_machine():
    place = f"{checks.ROOT}/adamlib/optimizer.py, {torch.__file__}"
    assert without_paths(place) == "adamlib/optimizer.py, torch/__init__.py"
    assert one_line(RuntimeError("\nfirst\nsecond")) == "RuntimeError: first"


def test_a_record_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "gpu.json"
    what = {"a": [1, 2.5, "x"], "b": [[], ["[\n 3,\n 4\n]"], [{"c": [1]}]]}
    write(what, file)
    with pytest.raises(ValueError):
        write({"a": float("nan")}, file)
    text = file.read_text(encoding="utf-8")
    assert json.loads(text) == what and ' "a": [1, 2.5, "x"],' in text  # a list, a line


# --- the command line

@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(capsys):
    assert command.main([]) == 2
    assert capsys.readouterr().out.startswith("There is no GPU here")


def test_a_dry_run_is_stored_and_goes_on(tmp_path, capsys):
    file = tmp_path / "dry.json"
    arguments = ["--dry-run", "--only", "race", "--output", str(file)]
    assert command.main(arguments) == 0
    first = json.loads(file.read_text(encoding="utf-8"))
    assert first["device"] == "cpu" and {"hardware", "software", "date"} <= first.keys()
    names = [*first["parts"]["race"]["results"]]
    assert names == ["predictions", *race.races("cpu")]  # what was predicted stands before what was measured
    assert command.main(arguments) == 0
    assert json.loads(file.read_text(encoding="utf-8")) == first
    assert "race, digits_mlp · fused · fixed gradients: ours" in capsys.readouterr().out


def test_another_file_is_left_alone(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text('{"schema": 1}', encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main(["--dry-run", "--output", str(file)])
    assert "is no record of this program" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == '{"schema": 1}'


# --- blocks

@pytest.fixture(scope="module")
def on_tape():
    """Every block on the tape."""
    return {name: blocks.observe(name, "cpu") for name in blocks.remarks("cpu")}


def test_every_block_gets_a_verdict_and_its_contents_after_replays(on_tape):
    assert len(on_tape) > 120 and len(blocks.lines()) == len(blocks.LINES.strip().splitlines())
    for name, seen in on_tape.items():
        assert "error" not in seen, (name, seen)
        assert ("contents" in seen) == (seen["verdict"] == "permitted"), name
        assert seen["verdict"] == "permitted" or seen["message"], name
    json.dumps(on_tape, allow_nan=False)
    assert on_tape["x.add_(h)"]["contents"]["x"] == [10, 7, 12, 9.5]  # h was 2 and stays 2; x was 1, and 1 is added
    assert on_tape["x.fill_(y[0])"]["contents"]["x"] == [32] * 4  # y doubles before each of three replays
    assert on_tape["z = torch.empty(4, device=x.device); x.copy_(z)"]["contents"]["x"] == [7] * 4


def test_a_disagreement_is_named(on_tape):
    chosen = ["x.sum().item()", "x.add_(h)", "x.sort()", "torch.rand_like(x)"]
    results = {name: {"cuda": json.loads(json.dumps(on_tape[name]))} for name in chosen}
    assert blocks.disagreements(results) == []
    results["x.sum().item()"]["cuda"] = {"verdict": "permitted"}
    results["x.add_(h)"]["cuda"]["contents"]["x"][0] += 1
    results["torch.rand_like(x)"]["cuda"]["contents"]["result 0"][0] = 9.0
    results["x.sort()"] = {"crashed": "its process ended with exit status 1"}
    results["no such block any more"] = {"cuda": {"verdict": "permitted"}}
    assert blocks.disagreements(results) == [
        "x.sum().item(): permitted by CUDA, refused by the tape",
        "x.add_(h): other contents after 3 replays",
    ]
    known = {"torch.save(x, io.BytesIO())": {"cuda": {"verdict": "refused"}}}
    assert blocks.disagreements(known) == [] and len(blocks.disagreements(known, differs=True)) == 1


def test_runs_on_a_gpu_are_stored_and_the_tape_does_what_they_saw():
    for file in RECORDED.glob("gpu-*.json"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        assert stored["device"] == "cuda" and stored["hardware"]["gpu"], file.name
    for stored in record.records():
        seen = record.results(stored, "blocks")
        assert blocks.disagreements(seen) + blocks.wrong_rows(seen) == []


def test_a_wrong_row_is_named(monkeypatch):
    def row(verdict):
        return types.SimpleNamespace(verdict=verdict, tape=None, block=lambda x, h: x.add_(1))

    monkeypatch.setattr(blocks, "rows", lambda: {"row: a": row("permitted"), "row: b": row("refused: host sync")})
    kept = {"verdict": "refused", "capture": "kept"}
    assert blocks.wrong_rows({"row: a": {"cuda": kept}, "row: b": {"cuda": kept}}) == [
        "row: a: refused by CUDA, permitted by the table",
        "row: b: after the error the capture was kept, refused: host sync by the table",
    ]
    after = [8.125, -2, 14.875, 6.4375]  # three times x ← 1.5 x, and the replay's x ← x + 1
    assert blocks.observe("row: a", "cpu")["contents"] == {"x": after, "result 0": after}


# --- parity, race, chapters

@pytest.mark.parametrize("variant, dtype, same, far", [
    ("fused", torch.float32, 12, 0),
    ("capturable foreach", torch.float64, None, 1e-3),  # no nearer: torch computes 1 − βᵗ from a count in float32
])
def test_promised_bits_are_there_on_the_cpu_and_the_others_near(variant, dtype, same, far):
    found = parity.parity(variant, dtype, "cpu")
    assert found["cases"] == 12 and not found["failed"] and found["largest_distance_in_lr"] <= far
    assert same in (None, found["same_bits"])


def test_what_the_fused_kernel_refuses_on_a_cpu_and_who_has_written_before():
    taken, seen = parity.bfloat16_moments("cpu"), parity.refused_step("cpu")
    assert taken.keys() == {"torch", "adamlib"} and all("RuntimeError" in text for text in taken.values())
    assert "RuntimeError" in seen["torch"]["step"] and "exp_avg" in seen["adamlib"]["step"]
    assert (seen["adamlib"]["count"], seen["adamlib"]["moved"]) == (0, False)


@pytest.mark.parametrize("mode, seconds, decides", [("graph", 2e-6, "bytes"), ("fixed gradients", 5e-6, "calls")])
def test_a_prediction_is_the_longer_of_two_times(mode, seconds, decides):
    known = dict(bytes_per_second=1e9, seconds_per_call=5e-6, seconds_per_call_in_a_graph=1e-6)
    counted = dict(bytes=2000, calls=1)
    assert race.prediction(counted, known, mode) == {"seconds": seconds, "decides": decides} | counted


def test_steps_are_counted_without_memory_and_graphs_and_triton_raced_on_cuda_alone():
    n = 124_439_808
    assert race.counts("gpt2_small", "fused", "graph", "torch")["bytes"] == 28 * n
    assert round(race.counts("gpt2_small", "foreach", "fixed gradients", "ours")["bytes"] / n) == 76
    assert race.counts("gpt2_small", "triton", "graph", "ours") == {"bytes": 28 * n, "calls": 2}
    assert {mode for _, _, mode in race.races("cpu").values()} == {"fixed gradients", "fresh gradients"}
    assert sum(mode == "graph" for _, _, mode in race.races("cuda").values()) >= 6


MADE_UP = """
import pytest
pytestmark = pytest.mark.NAME
def test_good(): pass
def test_bad(): assert 1 == 2
def test_skipped(): pytest.skip("no")
def test_done(): assert False
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_test_that_fails_is_told_with_its_reason(root):
    (root / "tests").mkdir()
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['cuda']\n", encoding="utf-8")
    (root / "tests" / "test_other.py").write_text("import nothing_that_exists\n", encoding="utf-8")
    (root / "tests" / "test_made_up.py").write_text(MADE_UP.replace("NAME", "cuda"), encoding="utf-8")
    told = []
    assert checks.run_tests({"tests/test_made_up.py::test_done"}, "cpu", lambda *message: told.append(message))
    results = {name.partition("::")[2]: result for name, *ended in told for result in ended}
    outcomes = {name: result["outcome"] for name, result in results.items()}
    assert outcomes == {"test_good": "passed", "test_bad": "failed", "test_skipped": "skipped"}
    assert "assert 1 == 2" in results["test_bad"]["why"]


def test_cells_are_run_down_to_the_last_about_cuda(root):
    sources = ["a = 1", "b", "print('cuda', a)\nimport inspect\ndef f(): pass\ninspect.getsource(f)", "never = 1 / 0"]
    cells = [{"cell_type": "code", "source": [source]} for source in sources]
    (root / "notebooks").mkdir()
    (root / "notebooks" / "x.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    found = checks.run_cells("x")
    assert found["cells"] == 3 and found["printed_by_cells_on_cuda"] == {"2": "cuda 1\n"}
    assert found["errors"] == {"1": "NameError: name 'b' is not defined"}


# --- what is drawn

def a_record(**parts):
    """A record with made-up numbers of a made-up device."""
    said = dict(seconds=8e-6, decides="calls")
    raced = dict(
        set="tiny", variant="fused", mode="graph", torch_seconds=[1e-5, 2e-5, 3e-5], our_seconds=[9e-6, 1e-5, 2e-5],
        ratio=[1.5, 2.0, 2.5],
    )
    usual = {
        "tests": {"t::good": {"outcome": "passed"}, "t::bad": {"outcome": "failed", "why": "assert 1 == 2"}},
        "blocks": {"x.item()": {"cuda": {"verdict": "refused"}, "tape": {"verdict": "permitted"}}},
        "race": {"predictions": {"a": {"ours": said, "torch": said}}, "a": raced},
    }
    return {
        "schema": record.SCHEMA, "date": "2026-01-31", "device": "cuda", "hardware": {"gpu": "Abacus"},
        "software": {"torch": "2.11.0"},
        "parts": {name: {"complete": True, "results": results} for name, results in (usual | parts).items()},
    }


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(figures, "show", lambda fig, *, alt, see: found.append((fig, alt, see)))
    return found


def test_a_record_is_drawn(tmp_path, shown, capsys):
    write(a_record(), tmp_path / "gpu-2026-01-31-abacus.json")
    record.show(folder=tmp_path)
    (fig, alt, see), = shown
    assert "Abacus, torch 2.11.0" in alt and see == (
        "torch's time / adamlib's: 2.00 to 2.00 over 1 races; of 2 tests on the GPU 1 passed."
    )
    fig.canvas.draw()
    record.show_blocks(folder=tmp_path)
    assert "  refused by CUDA, permitted by the tape: x.item()" in capsys.readouterr().out


def test_nothing_recorded_is_said(tmp_path, shown, capsys):
    write(a_record() | {"device": "cpu"}, tmp_path / "gpu-dry.json")  # a dry run is no run on a GPU
    record.show(folder=tmp_path), record.show_blocks(folder=tmp_path)
    assert capsys.readouterr().out == f"{record.NOTHING}\n" * 2 and not shown


def test_the_summary_tells_of_troubles():
    text = record.summary(a_record(chapters={"06": {"errors": {"3": "NameError: x"}}}))
    assert "tests: 1 failed, 1 passed" in text and "blocks, same verdict: 0 of 1" in text
    assert "trouble: tests, t::bad: assert 1 == 2" in text and "trouble: chapters, 06: cell 3: NameError: x" in text
