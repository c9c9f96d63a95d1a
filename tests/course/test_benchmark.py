"""The benchmark's statistics, its report and its command line. No assertion on how long anything takes."""

import collections
import functools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch

import adamlib
from course import benchmark, benchmark_report, stopwatch
from course.benchmark import NOISE, VARIANTS, Settings
from course.parameter_sets import SETS, count_parameters
from course.stopwatch import Contender, Race, quartiles, race

BRIEF = Settings(device="cpu", threads=1, rounds=2, min_seconds=1e-4, seed=0)


@pytest.fixture(autouse=True)
def no_collection_of_garbage_after_each_round(monkeypatch):
    """In a process that holds all tests it takes a second."""
    monkeypatch.setattr(stopwatch.gc, "collect", lambda *_: 0)


def a_row(**changes):
    row = dict(
        set="digits_mlp", tensors=4, parameters=1000, variant="single", mode="eager",
        torch_seconds=[0.0029, 0.003, 0.0031], our_seconds=[0.0009, 0.001, 0.0011], ratio=[2.9, 3.0, 3.25],
        limit_seconds=0.0005, limit_bytes_per_second=28e3 / 0.0005, torch_temporary_bytes=8000,
        our_temporary_bytes=2000, same_bits=True, rounds=5, rounds_thrown_away=0, disturbed=False,
    )
    return row | changes


def types(row):
    return {key: type(value) for key, value in row.items()}


def a_report(*rows):
    return {
        "schema": 1, "date": "2026-01-31", "hardware": {"cpu": "Abacus", "cores": 2},
        "software": {"torch": "2.13.0", "python": "3.11"}, "settings": BRIEF._asdict(), "rows": list(rows),
        "failed": [],
    }


# --- the stopwatch

@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 21])
def test_quartiles_are_numpys(n):
    values = numpy.random.default_rng(n).lognormal(size=n).tolist()
    assert quartiles(values) == pytest.approx(numpy.percentile(values, [25, 50, 75]))


@pytest.mark.parametrize("rounds, foreign_loads, kept, thrown_away, disturbed", [
    (3, [0.0, 0.5, 0.1, 0.13, 0.05], [1, 3, 5], 2, False),  # loud rounds are thrown away
    (2, [0.9, 0.8, 0.3, 0.7, 0.2, 0.6], [3, 5], 4, True),  # without quiet ones the quietest are kept, and it is said
])
def test_which_rounds_are_kept(rounds, foreign_loads, kept, thrown_away, disturbed, monkeypatch):
    """The n-th round takes n seconds for "a" and 2n for "b"."""
    loads, calls = iter(foreign_loads), collections.Counter()

    def seconds(contender, times):
        name = contender.call()
        calls[name] += 1
        return (calls[name] - 1 or 1) * {"a": 1.0, "b": 2.0}[name]  # the first is a trial call

    monkeypatch.setattr(stopwatch, "_others_since", lambda: (lambda load=next(loads): load))
    monkeypatch.setattr(stopwatch, "_time", seconds)
    result = race({name: Contender(lambda name=name: name) for name in "ab"}, rounds, min_seconds=0)
    assert sorted(result.seconds["a"]) == kept
    assert result.seconds["b"] == [2 * a for a in result.seconds["a"]]  # ratios stay within their round
    assert (result.thrown_away, result.disturbed) == (thrown_away, disturbed)


def test_every_round_runs_everyone_in_an_order_that_changes_and_rewinds_after_each_call(monkeypatch):
    monkeypatch.setattr(stopwatch, "_others_since", lambda: lambda: 0.0)
    log = []
    contenders = {name: Contender(lambda name=name: log.append(name), 1, lambda: log.append("rewind")) for name in "ab"}
    race(contenders, rounds=20, min_seconds=0)
    assert log[1::2] == ["rewind"] * 42
    pairs = [tuple(log[i:i + 4:2]) for i in range(4, len(log), 4)]  # the first two are trial calls
    assert len(pairs) == 20 and {*pairs} == {("a", "b"), ("b", "a")}


def test_time_is_per_step_and_the_rewind_is_free(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch, "timer", lambda: now[0])

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    for rewind in (None, takes(100.0)):
        assert stopwatch._time(Contender(takes(6.0), 3, rewind), 5) == pytest.approx(2.0)


def test_load_of_others_is_what_was_not_this_process(monkeypatch):
    clocks = {"wall": iter([10.0, 14.0]), "own": iter([1.0, 3.0]), "busy": iter([100.0, 105.0])}
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clocks["wall"]))
    monkeypatch.setattr(stopwatch.time, "process_time", lambda: next(clocks["own"]))
    monkeypatch.setattr(stopwatch, "_busy_seconds", lambda: next(clocks["busy"]))
    assert stopwatch._others_since()() == pytest.approx((5 - 2) / 4)


def test_busy_seconds_are_those_of_proc_stat_and_without_it_every_round_counts(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr("builtins.open", lambda name, encoding, real=open: real(stat, encoding=encoding))
    monkeypatch.setattr(stopwatch.os, "sysconf", lambda _: 100, raising=False)
    assert stopwatch._others_since()() == 0.0
    stat.write_text("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n", encoding="utf-8")
    assert stopwatch._busy_seconds() == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / 100)


# --- one pair

ON_A_CPU = [name for name in [*VARIANTS, *NOISE] if benchmark._makes_sense(name, "eager", BRIEF)]


def digits_optimizer(library, set_name="", **options):
    return benchmark.optimizer(library, SETS["digits_mlp"](), options, BRIEF, set_name)


@pytest.mark.parametrize("variant", ON_A_CPU)
def test_a_row_of_every_variant(variant, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # compiling takes long
    row = benchmark.measure_pair("digits_mlp", variant, "eager", BRIEF)
    assert types(row) == types(a_row()) and (row["tensors"], row["parameters"]) == (4, 2410)
    for key in ("torch_seconds", "our_seconds", "ratio"):
        assert len(row[key]) == 3 and sorted(row[key]) == row[key] and row[key][0] > 0
    assert row["limit_seconds"] * row["limit_bytes_per_second"] == pytest.approx(28 * 2410)
    if variant in ("single", "foreach", "fused", *NOISE):  # the variants that promise torch's bits
        assert row["same_bits"]


@pytest.mark.parametrize("set_name", benchmark.UNUSUAL)
def test_a_row_of_the_sets_that_are_stepped_in_a_way_of_their_own(set_name):
    row = benchmark.measure_pair(set_name, "fused", "eager", BRIEF)
    parameters = {"coming_and_going": 200 * 64, "groups_300x64": 300 * 64, "resnet18_training": 11_689_512}
    assert row["same_bits"] and row["parameters"] == parameters[set_name]


def test_between_two_steps_of_training_every_gradient_is_made_anew():
    one = benchmark.optimizer(torch.optim.Adam, benchmark.resnet18(), {}, BRIEF, "resnet18_training")
    contender, params = benchmark.contender([one], "eager"), one.param_groups[0]["params"]
    before = [p.grad for p in params]
    contender.call()
    assert all(p.grad is grad for p, grad in zip(params, before))  # a step computes no gradient
    contender.rewind()
    assert all(p.grad is not None and p.grad is not grad for p, grad in zip(params, before))


@pytest.mark.parametrize("variant, other", [("fused", adamlib.Adam), ("noise, fused", torch.optim.Adam)])
def test_torch_is_raced_against_adamlib_or_as_noise_against_itself(variant, other, monkeypatch):
    """And the ratio is torch's time over the other's."""
    raced, optimizer = [], benchmark.optimizer
    monkeypatch.setattr(benchmark, "optimizer", lambda kind, *rest: raced.append(kind) or optimizer(kind, *rest))
    monkeypatch.setattr(benchmark, "race", lambda *_: Race(dict(torch=[4.0], ours=[2.0], limit=[1.0]), 0, False))
    assert benchmark.measure_pair("digits_mlp", variant, "eager", BRIEF)["ratio"] == [2.0] * 3
    assert raced == [torch.optim.Adam, other]


def test_gradients_that_come_and_go():
    one = digits_optimizer(adamlib.Adam, "coming_and_going")
    for _ in range(4):
        one.step()
    assert [float(one.state[p]["step"]) for p in one.param_groups[0]["params"]] == [2, 4, 2, 4]


def test_same_bits_sees_one_bit():
    one, other = (digits_optimizer(library) for library in (adamlib.Adam, torch.optim.Adam))
    one.step(), other.step()
    assert benchmark.same_bits(one, other)
    moment = other.state[other.param_groups[0]["params"][2]]["exp_avg_sq"]
    moment.view(-1)[5] = torch.nextafter(moment.view(-1)[5], torch.tensor(1.0))
    assert not benchmark.same_bits(one, other)


def test_tensors_of_a_contender_are_its_own_and_the_same_every_time():
    pair = [[t for p in digits_optimizer(torch.optim.Adam).param_groups[0]["params"] for t in (p, p.grad)]
            for _ in range(2)]
    tensors = [*pair[0], *pair[1]]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert all(map(torch.equal, *pair)) and all(t.is_contiguous() and t.abs().max() > 0.5 for t in tensors)


def test_peak_of_temporary_memory():
    def call():
        a = torch.empty(1000)  # 4000 bytes
        b = torch.empty(500)  # 6000 held
        del a
        c = torch.empty(300)  # 3200 held
        del b, c
        torch.empty(1200)  # 4800 held

    assert benchmark.peak_temporary_bytes(Contender(call), cuda=False) == 6000


def test_differentiable_steps_do_not_pile_up_a_graph():
    one = digits_optimizer(torch.optim.Adam, **VARIANTS["differentiable"])
    contender, param = benchmark.contender([one], "eager"), one.param_groups[0]["params"][0]
    contender.call()
    assert param.grad_fn is not None  # the step is in the graph
    contender.rewind()
    assert param.grad_fn is None and one.state[param]["exp_avg"].grad_fn is None


@pytest.mark.parametrize("name, bytes_", [("tiny_200x64", 12 * 2 * 12800), ("large_8x8m", 12 * 2**26)])
def test_the_limit_streams_what_a_step_touches(name, bytes_, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda n: torch.empty(n, device="meta"))
    _, moved = benchmark.stream(count_parameters(SETS[name]()), "cpu")
    assert moved == bytes_


# --- what is raced where

@pytest.mark.parametrize("device, variant, expected", [
    ("cpu", "triton", []),
    ("cpu", "compiled", []),  # without a compiler
    ("cpu", "fused", ["eager"]),
    *[("cuda", variant, ["eager", "graph"]) for variant in ("triton", "fused", "noise, fused", "capturable foreach")],
    *[("cuda", variant, ["eager"]) for variant in ("single", "differentiable")],
])
def test_what_a_device_can_run(device, variant, expected, monkeypatch):
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
    settings = BRIEF._replace(device=device)
    assert [mode for mode in ("eager", "graph") if benchmark._makes_sense(variant, mode, settings)] == expected
    assert {*VARIANTS, *NOISE} - {*ON_A_CPU} <= {"triton", "compiled"}


@pytest.mark.parametrize("name", SETS)
def test_a_rotation_of_sets_is_cold_and_of_bounded_length(name):
    shapes = SETS[name]()
    copies = benchmark.sets_in_rotation(shapes)
    assert copies * len(shapes) <= 20_000
    assert 16 * copies * count_parameters(shapes) >= 2**28 or name in ("digits_mlp", "tiny_200x64") and not copies


def test_a_pair_that_fails_does_not_cost_the_others_and_a_small_set_has_no_cold_row(monkeypatch):
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(benchmark, "hardware", lambda device: {"gpu": "Abacus"})
    monkeypatch.setattr(benchmark, "measure_pair", lambda set_name, variant, mode, settings: race({}, 0, 0))
    settings, lines = BRIEF._replace(device="cuda"), []
    report = benchmark.run(["tiny_200x64", "resnet18"], ["fused"], settings, lambda *line: lines.append(line))
    assert [(row["set"], row["mode"]) for row in report["failed"]] == [
        ("tiny_200x64", "eager"), ("tiny_200x64", "graph"),
        ("resnet18", "eager"), ("resnet18", "graph"), ("resnet18", "cold graph"),
    ]
    assert report["rows"] == [] and len(lines) == 5
    assert report["failed"][0]["variant"] == "fused" and "at least one round" in report["failed"][0]["error"]
    assert "failed: tiny_200x64 · fused · eager" in benchmark_report.table(report)


# --- report and command line

def test_command_line_writes_a_report_of_the_schema(tmp_path, capfd):
    output, picture = tmp_path / "run.json", tmp_path / "run.png"
    arguments = "--sets digits_mlp --rounds 2 --threads 1 --min-seconds 0.001 --variants".split()
    assert benchmark.main([*arguments, "noise, fused", "--output", str(output), "--picture", str(picture)]) == 0

    report = json.loads(output.read_text(encoding="utf-8"))
    assert types(report) == types(a_report()) and report["schema"] == 1 and report["failed"] == []
    assert [(row["variant"], types(row)) for row in report["rows"]] == [("noise, fused", types(a_row()))]
    assert report["software"]["torch"] == torch.__version__
    assert report["hardware"]["cpu"] and report["hardware"]["cores"] >= 1
    assert report["settings"] == {"device": "cpu", "threads": 1, "rounds": 2, "min_seconds": 0.001, "seed": 0}
    assert str(tmp_path) not in output.read_text(encoding="utf-8")  # none of this machine's folders
    assert picture.read_bytes().startswith(b"\x89PNG")

    printed, progress = capfd.readouterr()
    assert "digits_mlp: 4 tensors, 2,410 parameters" in printed and "torch twice" in printed
    assert "[ 1/1] digits_mlp · noise, fused · eager" in progress

    assert benchmark.main(["--read", str(output)]) == 0
    assert capfd.readouterr().out == printed


def test_quick_stands_back_where_something_is_named(monkeypatch):
    runs = []
    monkeypatch.setattr(benchmark, "run", lambda sets, variants, settings, save: runs.append((sets, *settings[2:4])))
    monkeypatch.setattr(benchmark, "show", lambda report, picture: 0)
    for arguments in ([], ["--quick"], ["--quick", "--sets", "resnet18", "--rounds", "7"]):
        assert benchmark.main(arguments) == 0
    assert runs == [(benchmark.DEFAULT_SETS, 21, 0.1), (["tiny_200x64"], 5, 0.01), (["resnet18"], 7, 0.01)]


@pytest.mark.parametrize("arguments, message", [
    (["--output", "/no/such/folder/run.json"], "there is no folder /no/such/folder"),
    (["--read", "no_such_run.json"], "there is no report no_such_run.json"),
    (["--read", __file__], "is no report of this benchmark"),
    (["--read", __file__, "--output", "run.json"], "leave one of them out"),
    (["--output", "."], ". is a folder: name a file in it"),
    (["--picture", "run.pdf"], "run.pdf does not end in .png"),
    (["--rounds", "0"], "--rounds needs at least 1"),
    (["--threads", "100000"], "--threads 1 to"),
    (["--min-seconds", "-1"], "--min-seconds at least 0"),
    (["--variants", "fused", "triton"], '"triton" needs --device cuda'),
    (["--device", "cuda"], "no CUDA device"),
])
def test_wrong_arguments_are_told_before_anything_is_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_table_says_the_numbers():
    text = benchmark_report.table(a_report(a_row(), a_row(variant="fused", same_bits=False, disturbed=True)))
    single, fused = (line for line in text.splitlines() if line.startswith(("  single", "  fused")))
    assert single.split() == "single 3.000 1.000 ms 3.00 [2.90, 3.25] 17 → 50 8.00 → 2.00 same".split()
    assert fused.endswith("differ *") and "too few quiet rounds" in text
    assert "28 bytes each at 0.1 GB/s: 0.500 ms" in text
    assert "Abacus (2 cores, 1 used) · torch 2.13.0, Python 3.11 · 2026-01-31" in text


def test_picture_has_a_panel_per_set_and_a_dot_per_variant():
    rows = [a_row(), a_row(variant="noise, single", ratio=[0.97, 1.01, 1.02]), a_row(set="resnet18")]
    figure = benchmark_report.picture(a_report(*rows))
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["noise, single", "single"]
    assert [line.get_xdata()[0] for line in first.lines if line.get_marker() == "o"] == [1.01, 3.0]
    assert len(second.get_yticklabels()) == 1
