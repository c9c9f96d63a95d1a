"""The tape: capturable steps replay bit for bit, misuse is refused clearly.

Chapter 06 shows, with outputs that are compared: how a plain step drifts, which changes of a learning rate reach a
replay, that state which is created in the block is created again, and whole training, eager and replayed, with equal
losses.
"""

import contextlib
import fnmatch
import gc
import itertools
import math
import weakref

import pytest
import torch

import adamlib
from course import graph_tape
from course.graph_table import HOST_SYNC, NOT_KNOWN, PERMITTED, TABLE, differences
from course.graph_tape import CaptureError, GraphTape, cuda_works, device_tensors, eagerly, in_cuda_graph, on_tape
from course.graph_tape import verdict
from course.op_meter import tensors_in

FORMS = {
    "single": dict(foreach=False, capturable=True),
    "foreach": dict(foreach=True, capturable=True),
    "fused": dict(fused=True),
}


def recorded(block, /, **tensors):
    """A tape that holds the block, and what the block returned."""
    tape = GraphTape(**tensors)
    with tape.capture():
        result = block()
    return tape, result


# --- steps that replay

OPTIONS = {
    "plain": {},
    "amsgrad": dict(amsgrad=True),
    "L2 decay": dict(weight_decay=0.1),
    "decoupled decay": dict(weight_decay=0.1, decoupled_weight_decay=True),
    "AdamW": dict(cls="AdamW"),
    "together": dict(maximize=True, amsgrad=True, weight_decay=0.1),
    "tensors": dict(lr=torch.tensor(0.01), betas=(torch.tensor(0.8), torch.tensor(0.99))),
}


def started(library=adamlib, cls="Adam", **options):
    """An optimizer on three tensors, one step old, so that its state exists; and the tensors."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in [(5, 3), (7,), ()]]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = getattr(library, cls)(params, **{"lr": 0.01, **options})
    optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("library, form, option", [
    *itertools.product([adamlib], ["single", "foreach"], OPTIONS),
    (torch.optim, "single", "together"),
    (torch.optim, "foreach", "together"),
    (adamlib, "fused", "plain"),
])
def test_a_capturable_step_replays_bit_for_bit(library, form, option, torch_capturable_on_cpu):
    paths = []
    for record in (eagerly, on_tape):
        optimizer, params = started(library, **FORMS[form], **OPTIONS[option])
        graph = record(optimizer.step, optimizer)
        paths.append([])
        for t in range(50):
            for param in params:
                param.grad.copy_(param.detach() + math.sin(t))
            graph.replay()
            paths[-1].append(torch.cat([param.detach().flatten() for param in params]))
        assert {state["step"].item() for state in optimizer.state.values()} == {52.0}
    eager, replayed = map(torch.stack, paths)
    assert torch.equal(eager, replayed) and eager.unique(dim=0).shape[0] == 50  # something moved at every step


# --- what capture does and keeps

def contents(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def unchanged(tensors, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_capture_computes_nothing():
    optimizer, params = started(**FORMS["single"])
    everything = device_tensors(optimizer)
    before = contents(everything)
    tape = GraphTape(everything)
    with tape.capture():
        optimizer.step()
        total = params[0].detach().sum()
        count = torch.ones_like(params[1], dtype=torch.float64)
    assert unchanged(everything, before)
    assert total.isnan() and count.isnan().all()
    tape.replay()
    assert torch.equal(total, params[0].detach().sum()) and count.eq(1).all()
    assert not torch.equal(params[0], before["p0"])


def test_python_and_host_calls_run_once_and_their_numbers_are_frozen():
    x, scale, count, seen = torch.ones(3), torch.tensor(2.0), torch.tensor(0), []

    def block():
        for i in range(3):
            seen.append(i)
            if i != 1:
                x.add_(i + 0.5)
        count.add_(1)
        x.mul_(scale)

    tape, _ = recorded(block, x=x)
    scale.fill_(100.0)
    tape.replay(), tape.replay()
    assert (seen, count.item(), x.tolist()) == ([0, 1, 2], 1, [22.0] * 3)
    assert [str(call) for call in tape.calls] == ["add_(x, 0.5)", "add_(x, 2.5)", "mul_(x, host(2))"]
    assert [call.frozen_numbers for call in tape.calls] == [[0.5], [2.5], [2.0]] and tape.host_calls == ["add_"]


def test_random_numbers_are_fresh_at_every_replay_and_not_drawn_by_the_capture():
    x, generators = torch.zeros(4), (torch.default_generator, torch.Generator())
    for generator in generators:
        generator.manual_seed(5)
    expected = torch.rand(8).split(4)
    generators[0].manual_seed(5)
    for generator in generators:
        tape, _ = recorded(lambda one=generator: x.uniform_(generator=one), x=x)
        for values in expected:
            tape.replay()
            assert torch.equal(x, values)


def test_views_layouts_and_kinds_of_calls_replay():
    """A view, a transposed and an expanded argument, out=, lists, several outputs, complex numbers."""
    x, z = torch.rand(3, 4), torch.rand(4, dtype=torch.complex64)

    def compute():
        return [
            *x.t().topk(2, dim=1), *torch._foreach_sqrt([x, x[1:, ::2]]), torch.sum(x, 0, out=torch.empty_like(x[0])),
            x[:, :1].expand(3, 4) @ x.t(), x[1] * 3,
            torch.mm(z[None], z.conj()[:, None]),  # the conjugate is a view, not a copy
            z.conj().imag * 2, torch.view_as_real(z).square(),  # a negated view
        ]

    tape, results = recorded(compute, x=x, z=z)
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.rand(3, 4)), z.copy_(torch.rand(4, dtype=torch.complex64))
        tape.replay()
        assert all(map(torch.equal, results, compute()))


def test_empty_memory_keeps_its_content_and_made_memory_is_filled_again():
    x = torch.ones(3)

    def block():
        total = torch.empty(3, device=x.device).add_(x)
        filled = torch.full((3,), 2.0, device=x.device)
        product = torch.mul(x + filled, 3, out=torch.empty(0, device=x.device))  # it gets its size at the capture
        return total, torch.empty_like(x), filled, product

    tape, made = recorded(block, x=x)
    assert len(tape.calls) == 4 and all(tensor.isnan().all() for tensor in made)
    total, _, filled, product = made
    total.zero_(), filled.fill_(77.0)
    tape.replay(), tape.replay()
    assert (total.tolist(), filled.tolist(), product.tolist()) == ([2.0] * 3, [2.0] * 3, [9.0] * 3)


def test_an_assertion_of_the_device_is_replayed():
    x = torch.ones(())
    tape, _ = recorded(lambda: torch._assert_async(x), x=x)
    tape.replay()
    x.zero_()
    with pytest.raises(RuntimeError):
        tape.replay()


def test_the_tape_owns_its_results_and_frees_them_when_it_goes():
    x = torch.ones(1000)
    tape, y = recorded(lambda: x * 2, x=x)
    storage = weakref.ref(y.untyped_storage())
    del y
    assert storage() is not None
    del tape
    gc.collect()
    assert storage() is None


@pytest.mark.cuda
def test_a_cuda_graph_replays_what_the_tape_replays():
    ends = []
    for record, device in ((on_tape, "cpu"), (in_cuda_graph, "cuda")):
        weight = torch.ones(5, device=device, requires_grad=True)
        weight.grad = torch.ones_like(weight, requires_grad=False)
        optimizer = adamlib.Adam([weight], lr=torch.tensor(0.01, device=device), **FORMS["foreach"])
        graph = record(optimizer.step, optimizer)
        for t in range(20):
            weight.grad.fill_(math.sin(t))
            optimizer.param_groups[0]["lr"].mul_(0.9)
            graph.replay()
        ends.append(weight.detach().cpu())
    torch.testing.assert_close(*ends)


# --- the table


def four(*values):
    return torch.tensor(values or (1.0, -2.0, 3.0, 0.5))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_row_of_the_table(row, monkeypatch):
    """The tape's verdict is the row's, the row decides the ops that it names, and a replay does what it says."""
    decided, original = set(), graph_tape.decide

    def decide(op, given):
        decided.add((op.overloadpacket.__name__.rstrip("_"), found := original(op, given)))
        return found

    monkeypatch.setattr(graph_tape, "decide", decide)
    x, h = four(), torch.ones(4)
    expected = row.tape or row.verdict
    assert verdict(lambda: row.block(x, h), x=x) == expected
    assert torch.equal(x, four())
    for pattern in row.ops.split():
        assert any(by is row and fnmatch.fnmatchcase(op, pattern) for op, by in decided), pattern
    if expected not in (PERMITTED, NOT_KNOWN) or row.tape:
        return
    x, h, new, then = four(), torch.ones(4), four(-1.0, 2.0, 0.25, 5.0), torch.full((4,), 5.0)
    tape, result = recorded(lambda: row.block(x, h), x=x)
    x.copy_(new), h.copy_(then)
    torch.manual_seed(3)
    tape.replay()
    torch.manual_seed(3)
    eager = row.block(new, then)
    same = all(map(torch.equal, [*tensors_in(result), x], [*tensors_in(eager), new]))
    assert same == (not row.replays)


def test_the_table_names_each_row_once_and_gives_a_source():
    assert len({row.name for row in TABLE}) == len(TABLE) and all(row.source for row in TABLE)
    assert all(row.tape != row.verdict for row in differences())


REFUSED = [row for row in TABLE if row.verdict.startswith("refused") and not row.tape]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_a_refusal_that_is_caught_loses_the_capture_if_it_was_a_host_sync(row):
    x = four()
    tape, lost = GraphTape(x=x), row.verdict == HOST_SYNC
    said = pytest.raises(CaptureError, match="operation not permitted when stream is capturing")
    with said if lost else contextlib.nullcontext(), tape.capture():
        with pytest.raises(CaptureError):
            row.block(x, torch.ones(4))
        x.add_(1)
    assert bool(tape.calls) is not lost
    if not lost:
        tape.replay()
        assert torch.equal(x, four() + 1)


# --- misuse

def add_one(x):
    """A tape that adds 1 to x."""
    return recorded(lambda: x.add_(1), x=x)[0]


MISUSE = [  # with a tensor x: what is raised, what it says
    (lambda x: GraphTape({"x": x}, x=torch.ones(3)), TypeError, "two tensors are called x"),
    (lambda x: GraphTape(lr=0.1), TypeError, "lr must be a strided tensor, but is float"),
    (lambda x: GraphTape(x=x.to_sparse()), TypeError, "x must be a strided tensor, but is torch.sparse_coo"),
    (lambda x: device_tensors(torch.optim.Adam([("lr", torch.nn.Parameter(x))], lr=torch.tensor(0.1), foreach=False)),
     ValueError, "two tensors of the optimizer are called lr"),
    (lambda x: GraphTape(x=x).replay(), CaptureError, "nothing to replay: record something first"),
    (lambda x: recorded(lambda: torch.ones(3).add_(1), x=x), CaptureError, "never touched a device tensor"),
    (lambda x: verdict(lambda: None, x=x), CaptureError, "nothing was recorded"),  # no verdict
    (lambda x: recorded(lambda: x.detach().resize_(6), x=x), CaptureError, "moved x to other memory"),
    (lambda x: recorded(lambda: x.add_(torch.zeros(3, device="cpu")), x=x), CaptureError, r"a tensor of shape \(3,\)"),
    (lambda x: recorded(lambda: add_one(x.mul_(2)), x=x), CaptureError, "already under way"),
    (lambda x: recorded(add_one(x).replay, x=x), CaptureError, "end the capture before you replay"),
    (lambda x: add_one(x).capture().__enter__(), CaptureError, "already holds a capture"),
]


@pytest.mark.parametrize("wrong, error, message", MISUSE, ids=[message for *_, message in MISUSE])
def test_misuse_is_refused_and_leaves_everything_as_before(wrong, error, message):
    x = torch.ones(3)
    with pytest.raises(error, match=message):
        wrong(x)
    assert x.tolist() == [1.0, 1.0, 1.0]
    add_one(x).replay()
    assert x.tolist() == [2.0, 2.0, 2.0]


def test_an_exception_or_a_lost_capture_leaves_everything_as_before():
    optimizer, params = started(**FORMS["foreach"])
    everything = device_tensors(optimizer)
    before, tape = contents(everything), GraphTape(everything)
    with pytest.raises(ZeroDivisionError), tape.capture():
        optimizer.step()
        1 / 0  # noqa: B018
    with pytest.raises(CaptureError, match="previous error"), tape.capture():
        optimizer.step()
        for illegal in (params[0].sum().item, optimizer.step):  # the second only because of the first
            with pytest.raises(CaptureError, match="not permitted"):
                illegal()
    assert unchanged(everything, before)
    with pytest.raises(CaptureError, match="nothing to replay"):
        tape.replay()
    with tape.capture():  # and the tape works as if nothing had been
        optimizer.step()
    tape.replay()
    assert optimizer.state[params[0]]["step"].item() == 2.0


@pytest.mark.parametrize("free, message", [
    (lambda it: it.update(x=torch.full((3,), 5.0)), r"the memory of x was freed .* x.copy_\(batch\) instead of x ="),
    (lambda it: it["x"].untyped_storage().resize_(0), "the memory of x was freed"),
    (lambda it: setattr(it["w"], "data", torch.zeros(3)), "the memory of weight was freed"),
    (lambda it: setattr(it["w"], "grad", None), r"the memory of grad was freed .* zero_grad\(set_to_none=False\)"),
], ids=["another tensor of that name", "no memory", "moved", "no gradient"])
def test_a_replay_on_freed_memory_is_refused(free, message):
    it = dict(x=torch.ones(3), w=torch.nn.Parameter(torch.zeros(3)))
    it["w"].grad = torch.ones(3)
    inputs = dict(x=it["x"], weight=it["w"], grad=it["w"].grad)
    tape = recorded(lambda: it["w"].detach().add_(it["x"]).add_(it["w"].grad), **inputs)[0]
    del inputs
    tape.replay()
    free(it)
    before = it["w"].tolist()
    with pytest.raises(CaptureError, match=message):
        tape.replay()
    assert it["w"].tolist() == before


def test_a_device_that_is_listed_and_runs_nothing_is_told(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fails)
    assert not cuda_works()
    assert capsys.readouterr().out == (
        "A CUDA device is listed, but an operation on it fails: no kernel image is available\n"
    )


# --- names and words

def test_listing_shortens_lists_shows_views_and_names_what_no_row_decides():
    x = torch.ones(2, 3)

    def block():
        torch._foreach_add_([x, x[0], x.t(), x, x], 1.0)
        x.t().mul_(x[0, 0].neg())
        torch.histc(x, 4)

    tape, _ = recorded(block, x=x)
    assert [str(call) for call in tape.calls] == [
        "_foreach_add_([x, x[3], ... 5 in all], 1)", "t1 = neg(x[])", "mul_(x[3, 2], t1)", "t2 = histc(x, 4)",
    ]
    assert tape.not_known == ["histc"]


def test_device_tensors_of_an_optimizer():
    a, b, c = (torch.zeros(2, requires_grad=True) for _ in range(3))
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    groups = [
        dict(params=[a], lr=torch.tensor(0.1), capturable=True, amsgrad=True),
        dict(params=[b, c], lr=torch.tensor(0.2)),
    ]
    optimizer = adamlib.Adam(groups, foreach=False)
    optimizer.step()
    tensors = device_tensors(optimizer)
    assert list(tensors) == [
        "lr", "p0", "p0.grad", "p0.step", "p0.exp_avg", "p0.exp_avg_sq", "p0.max_exp_avg_sq",
        "group1.lr", "p1", "p1.grad", "p1.exp_avg", "p1.exp_avg_sq", "p2",
    ]
    assert tensors["p0"] is a and tensors["p1.grad"] is b.grad
    named = adamlib.Adam([("weight", a)], foreach=False)
    assert list(device_tensors(named)) == ["weight", "weight.grad"]
    assert list(device_tensors(torch.optim.SGD([c]))) == ["p0"]
