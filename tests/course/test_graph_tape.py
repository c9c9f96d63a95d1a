"""The tape: capturable steps replay bit for bit, plain ones drift as predicted, misuse is refused clearly."""

import fnmatch
import gc
import math
import weakref

import pytest
import torch
from torch.nn.functional import cross_entropy

import adamlib
from course import graph_tape
from course.graph_table import HOST_SYNC, NOT_KNOWN, PERMITTED, TABLE, differences
from course.graph_tape import CaptureError, GraphTape, cuda_works, device_tensors, eagerly, in_cuda_graph, on_tape
from course.graph_tape import verdict
from course.op_meter import tensors_in

SHAPES = [(5, 3), (7,), ()]
SINGLE, FOREACH = dict(foreach=False, capturable=True), dict(foreach=True, capturable=True)


def gradients(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(steps)]


def started(library=adamlib, cls="Adam", **options):
    """An optimizer on three tensors, one step old, so that its state exists; and what feeds it a gradient."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = getattr(library, cls)(params, **{"lr": 0.01, **options})
    optimizer.step()

    def feed(grads):
        for param, grad in zip(params, grads):
            param.grad.copy_(grad)

    return optimizer, params, feed


def run(steps, replayed, before_step=lambda optimizer, t: None, not_on_device=(), **options):
    """All parameters after each step: steps taken eagerly, or captured once and replayed."""
    optimizer, params, feed = started(**options)
    step = optimizer.step
    if replayed:
        on_device = device_tensors(optimizer)
        for name in not_on_device:
            del on_device[name]
        tape = GraphTape(on_device)
        with tape.capture():
            optimizer.step()
        step = tape.replay
    path = []
    for t, grads in enumerate(gradients(steps)):
        before_step(optimizer, t)
        feed(grads)
        step()
        path.append(torch.cat([param.detach().flatten() for param in params]))
    return torch.stack(path), optimizer


def same(options, steps=200, **how):
    (eager, _), (replayed, optimizer) = run(steps, False, **options), run(steps, True, **options, **how)
    assert eager.unique(dim=0).shape[0] == steps  # something moved at every step
    return torch.equal(eager, replayed), optimizer


# ------------------------------------------------------------------------------------------ what replays
OPTIONS = {
    "plain": {},
    "amsgrad": dict(amsgrad=True),
    "L2 decay": dict(weight_decay=0.1),
    "decoupled decay": dict(weight_decay=0.1, decoupled_weight_decay=True),
    "AdamW": dict(cls="AdamW"),
    "together": dict(maximize=True, amsgrad=True, weight_decay=0.1),
    "tensors": dict(lr=torch.tensor(0.01), betas=(torch.tensor(0.8), torch.tensor(0.99))),
}


@pytest.mark.parametrize("form", [SINGLE, FOREACH], ids=["single", "foreach"])
@pytest.mark.parametrize("option", OPTIONS)
def test_capturable_replays_bit_for_bit(form, option):
    equal, optimizer = same({**form, **OPTIONS[option]})
    assert equal
    assert {state["step"].item() for state in optimizer.state.values()} == {201.0}


def test_fused_replays_bit_for_bit():
    assert same(dict(fused=True))[0]


@pytest.mark.parametrize("form", [SINGLE, FOREACH], ids=["single", "foreach"])
@pytest.mark.parametrize("option", ["plain", "amsgrad", "L2 decay", "decoupled decay"])
def test_capturable_of_torch_replays_bit_for_bit(torch_capturable_on_cpu, form, option):
    assert same({"library": torch.optim, **form, **OPTIONS[option]})[0]


def test_plain_adam_does_not_replay():
    for form in (dict(foreach=False), dict(foreach=True)):
        equal, optimizer = same(form, steps=20)
        assert not equal
        assert {state["step"].item() for state in optimizer.state.values()} == {2.0}  # the host counted once


@pytest.mark.parametrize("library", [torch.optim, adamlib], ids=["torch", "adamlib"])
@pytest.mark.parametrize("foreach", [False, True])
def test_plain_adam_captured_at_step_1_drifts_as_predicted(library, foreach):
    """With step 1's corrections, a constant gradient moves θ by α (1−β₁ᵗ)/(1−β₁) √((1−β₂)/(1−β₂ᵗ))."""
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    param.grad = torch.zeros_like(param)
    optimizer = library.Adam([param], lr=1.0, foreach=foreach)
    optimizer.step()  # makes the state; a zero gradient leaves moments and parameter at zero
    optimizer.state[param]["step"].zero_()
    param.grad.fill_(1.0)
    tape = GraphTape(device_tensors(optimizer))
    with tape.capture():
        optimizer.step()
    assert math.sqrt(1 - 0.999) in [pytest.approx(n) for call in tape.calls for n in call.frozen_numbers]
    sizes = []
    for _ in range(1000):
        before = param.item()
        tape.replay()
        sizes.append(before - param.item())
    theory = [(1 - 0.9**t) / (1 - 0.9) * math.sqrt((1 - 0.999) / (1 - 0.999**t)) for t in range(1, 1001)]
    assert sizes == pytest.approx(theory, rel=1e-6)
    assert [round(sizes[t - 1], 4) for t in (1, 5, 12, 100, 1000)] == [1.0, 1.8332, 2.0771, 1.0248, 0.3977]
    assert max(sizes) == sizes[11]


# ------------------------------------------------------------------------------------------ learning rates
def halved(t):
    return 0.01 * 0.5 ** (t // 50)


def assign_float(optimizer, t):
    optimizer.param_groups[0]["lr"] = halved(t)


def fill(optimizer, t):
    optimizer.param_groups[0]["lr"].fill_(halved(t))


def replace(optimizer, t):
    optimizer.param_groups[0]["lr"] = torch.tensor(halved(t))


@pytest.mark.parametrize("form", [SINGLE, FOREACH], ids=["single", "foreach"])
def test_learning_rates_are_frozen_unless_filled_in_place(form):
    def path(replayed, before_step, lr, **how):
        return run(200, replayed, before_step, lr=lr, **form, **how)[0]

    def tensor():
        return torch.tensor(0.01)

    scheduled, constant = path(False, fill, tensor()), path(False, lambda *_: None, tensor())
    assert not torch.equal(scheduled, constant)
    assert torch.equal(path(True, fill, tensor()), scheduled)
    assert torch.equal(path(True, assign_float, 0.01), path(False, lambda *_: None, 0.01))
    assert torch.equal(path(True, replace, tensor()), constant)
    assert torch.equal(path(True, fill, tensor(), not_on_device=["lr"]), constant)  # a host tensor: read once


# ------------------------------------------------------------------------------------------ a training step
@pytest.mark.parametrize("form", [SINGLE, FOREACH, dict(fused=True)], ids=["single", "foreach", "fused"])
def test_whole_training_step(form):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(60, 32, 20, generator=generator)
    labels = torch.randint(0, 5, (60, 32), generator=generator)

    def network():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.GELU(), torch.nn.Linear(64, 5))
        optimizer = adamlib.Adam(model.named_parameters(), lr=0.01, **form)
        cross_entropy(model(images[0]), labels[0]).backward()
        optimizer.step()  # the warm-up makes the state
        optimizer.zero_grad(set_to_none=True)  # so that the gradients are allocated inside the graph
        return model, optimizer

    def losses(replayed):
        model, optimizer = network()
        x, y = images[0].clone(), labels[0].clone()
        loss = torch.empty(())

        def train():
            nonlocal loss
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

        step = train
        if replayed:
            tape = GraphTape(device_tensors(optimizer), x=x, y=y)
            with tape.capture():
                train()
            assert loss.isnan() and model[0].weight.grad.isnan().all()  # nothing has been computed
            assert "0.weight" in tape.listing() and "x" in tape.listing()
            step = tape.replay
        values = []
        for image, label in zip(images, labels):
            x.copy_(image), y.copy_(label)
            step()
            values.append(loss.item())
        return torch.tensor(values), torch.cat([p.detach().flatten() for p in model.parameters()])

    (eager, weights), (taped, taped_weights) = losses(False), losses(True)
    assert torch.equal(eager, taped) and torch.equal(weights, taped_weights)
    assert eager.unique().numel() == 60


def test_state_created_inside_the_block_is_created_again_by_every_replay():
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = adamlib.Adam([param], lr=1.0, **SINGLE)
    tape = GraphTape(device_tensors(optimizer))
    with tape.capture():
        optimizer.step()  # no warm-up
    for _ in range(5):
        tape.replay()
    assert optimizer.state[param]["step"].item() == 1.0
    assert torch.allclose(param, torch.full((3,), -5.0))


# ------------------------------------------------------------------------------- what capture does and keeps
def test_capture_computes_nothing():
    optimizer, params, _ = started(**SINGLE)
    everything = device_tensors(optimizer)
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    tape = GraphTape(everything)
    with tape.capture():
        optimizer.step()
        total = params[0].detach().sum()
        count = torch.ones_like(params[1], dtype=torch.float64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything.items())
    assert total.isnan() and count.isnan().all()
    tape.replay()
    assert torch.equal(total, params[0].detach().sum()) and count.eq(1).all()
    assert not torch.equal(params[0], before["p0"])


def test_python_runs_once_and_numbers_are_frozen():
    x, counted = torch.zeros(3), []
    tape = GraphTape(x=x)
    with tape.capture():
        for i in range(3):
            counted.append(i)
            if i != 1:
                x.add_(i + 0.5)
    tape.replay(), tape.replay()
    assert counted == [0, 1, 2]
    assert x.tolist() == [6.0, 6.0, 6.0]
    assert [call.frozen_numbers for call in tape.calls] == [[0.5], [2.5]]


def test_host_calls_run_once_and_host_scalars_are_frozen():
    x, scale, count = torch.ones(3), torch.tensor(2.0), torch.tensor(0)
    tape = GraphTape(x=x)
    with tape.capture():
        count += 1
        x.mul_(scale)
    scale.fill_(100.0)
    tape.replay(), tape.replay()
    assert (x.tolist(), count.item()) == ([4.0, 4.0, 4.0], 1)
    assert tape.host_calls == ["add_"]
    assert str(tape.calls[0]) == "mul_(x, host(2))" and tape.calls[0].frozen_numbers == [2.0]


def test_random_numbers_are_fresh_at_every_replay_and_not_drawn_by_the_capture():
    x = torch.zeros(4)
    torch.manual_seed(5)
    expected = [torch.rand(4), torch.rand(4)]
    torch.manual_seed(5)
    tape = GraphTape(x=x)
    with tape.capture():
        x.copy_(torch.rand_like(x))
    for values in expected:
        tape.replay()
        assert torch.equal(x, values)
    own = torch.Generator().manual_seed(6)
    state = own.get_state()
    tape = GraphTape(x=x)
    with tape.capture():
        x.normal_(generator=own)
    assert torch.equal(own.get_state(), state)


def test_views_layouts_and_kinds_of_calls_replay():
    """A view, a transposed and an expanded argument, out=, lists, several outputs, complex numbers."""
    x, z = torch.rand(3, 4), torch.rand(4, dtype=torch.complex64)

    def compute():
        top = x.t().topk(2, dim=1)
        roots = torch._foreach_sqrt([x, x[1:, ::2]])
        sums = torch.sum(x, 0, out=torch.empty_like(x[0]))
        spread = x[:, :1].expand(3, 4) @ x.t()
        third = x[1] * 3
        product = torch.mm(z[None], z.conj()[:, None])  # the conjugate is a view, not a copy
        imaginary = z.conj().imag * 2  # a negated view
        return [*top, *roots, sums, spread, third, product, imaginary, torch.view_as_real(z).square()]

    tape = GraphTape(x=x, z=z)
    with tape.capture():
        results = compute()
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.rand(3, 4)), z.copy_(torch.rand(4, dtype=torch.complex64))
        tape.replay()
        assert all(map(torch.equal, results, compute()))


def test_empty_memory_is_no_call_and_keeps_its_content():
    x = torch.ones(3)
    tape = GraphTape(x=x)
    with tape.capture():
        total = torch.empty(3, device=x.device)
        other = torch.empty_like(x)
        total.add_(x)
    assert len(tape.calls) == 1 and total.isnan().all() and other.isnan().all()
    total.zero_()
    for _ in range(3):
        tape.replay()
    assert total.tolist() == [3.0, 3.0, 3.0]


def test_an_assertion_of_the_device_is_replayed():
    x = torch.ones(())
    tape = GraphTape(x=x)
    with tape.capture():
        torch._assert_async(x)
    tape.replay()
    x.zero_()
    with pytest.raises(RuntimeError):
        tape.replay()


def test_names_are_given_once():
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match="two tensors are called x"):
        GraphTape({"x": x}, x=torch.ones(3))
    with pytest.raises(ValueError, match="two tensors of the optimizer are called lr"):
        device_tensors(torch.optim.Adam([("lr", x)], lr=torch.tensor(0.1), foreach=False))


def test_eagerly_on_tape_and_verdict():
    results = []
    for record in (eagerly, on_tape):
        optimizer, params, feed = started(**FOREACH)
        graph = record(optimizer.step, optimizer)
        feed(gradients(1)[0])
        graph.replay()
        results.append([param.detach().clone() for param in params])
    assert all(map(torch.equal, *results))
    with pytest.raises(CaptureError, match="nothing was recorded"):  # no verdict
        verdict(lambda: None, x=torch.ones(4))


@pytest.mark.cuda
def test_a_cuda_graph_replays_what_the_tape_replays():
    ends = []
    for record, device in ((on_tape, "cpu"), (in_cuda_graph, "cuda")):
        weight = torch.ones(5, device=device, requires_grad=True)
        weight.grad = torch.ones_like(weight, requires_grad=False)
        optimizer = adamlib.Adam([weight], lr=torch.tensor(0.01, device=device), **FOREACH)
        graph = record(optimizer.step, optimizer)
        for t in range(20):
            weight.grad.fill_(math.sin(t))
            optimizer.param_groups[0]["lr"].mul_(0.9)
            graph.replay()
        ends.append(weight.detach().cpu())
    torch.testing.assert_close(*ends)


def test_a_device_that_is_listed_and_runs_nothing_is_told(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fails)
    assert not cuda_works()
    assert capsys.readouterr().out == (
        "A CUDA device is listed, but an operation on it fails: no kernel image is available\n"
    )


def test_factories_are_where_device_says():
    x = torch.ones(3)
    tape = GraphTape(x=x)
    with tape.capture():
        a = torch.full((3,), 2.0, device=x.device)
        b = torch.zeros_like(x)
        c = x.new_ones(3)
        x.add_(a).add_(b).add_(c)
    a.fill_(77.0)
    tape.replay()  # fills a again
    assert x.tolist() == [4.0, 4.0, 4.0]
    with pytest.raises(CaptureError, match=r"a tensor of shape \(3,\)"), GraphTape(x=x).capture():
        x.add_(torch.zeros(3, device="cpu"))



# ------------------------------------------------------------------------------------------ the table
def four(*values):
    return torch.tensor(values or (1.0, -2.0, 3.0, 0.5))


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_row_of_the_table(row, monkeypatch):
    """The tape's verdict is the row's, the row decides the ops that it names, and a replay does what it says."""
    decided = set()

    def decide(op, given):
        decided.add((op.overloadpacket.__name__.rstrip("_"), found := original(op, given)))
        return found

    original = graph_tape.decide
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
    tape = GraphTape(x=x)
    with tape.capture():
        result = row.block(x, h)
    x.copy_(new), h.copy_(then)
    torch.manual_seed(3)
    tape.replay()
    torch.manual_seed(3)
    eager = row.block(new, then)
    same = all(map(torch.equal, [*tensors_in(result), x], [*tensors_in(eager), new]))
    assert same == (not row.replays)


def test_the_table_names_each_row_once_and_gives_a_source():
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.source for row in TABLE)
    assert all(row.tape != row.verdict for row in differences())


@pytest.mark.parametrize("row", [row for row in TABLE if row.verdict.startswith("refused") and not row.tape],
                         ids=lambda row: row.name)  # fmt: skip
def test_a_refusal_that_is_caught_loses_the_capture_if_it_was_a_host_sync(row):
    x, h = four(), torch.ones(4)
    tape = GraphTape(x=x)

    def capture():
        with tape.capture():
            with pytest.raises(CaptureError):
                row.block(x, h)
            x.add_(1)

    if row.verdict == HOST_SYNC:
        with pytest.raises(CaptureError, match="operation not permitted when stream is capturing"):
            capture()
        assert tape.calls == []
    else:
        capture()
        tape.replay()
        assert torch.equal(x, four() + 1)


def test_an_op_that_no_row_decides_is_recorded_and_named():
    x = four()
    tape = GraphTape(x=x)
    with tape.capture():
        counts = torch.histc(x, 4, -3, 3)
    tape.replay()
    assert tape.not_known == ["histc"] and torch.equal(counts, torch.histc(x, 4, -3, 3))


# ------------------------------------------------------------------------------------------ misuse
def test_after_a_lost_capture_the_tape_can_capture_again():
    x = torch.ones(3)
    tape = GraphTape(x=x)
    with pytest.raises(CaptureError, match="previous error"), tape.capture():
        for illegal in (lambda: x.sum().item(), lambda: x.add_(1)):  # the second only because of the first
            with pytest.raises(CaptureError, match="not permitted"):
                illegal()
    with tape.capture():
        x.add_(1)
    tape.replay()
    assert x.tolist() == [2.0, 2.0, 2.0]


def test_an_input_that_is_resized_is_refused():
    x = torch.ones(3)
    with pytest.raises(CaptureError, match="moved x to other memory"), GraphTape(x=x).capture():
        x.resize_(6)
    tape = GraphTape(y=(y := torch.ones(3)))
    with tape.capture():
        torch.mul(y, 3, out=(made := torch.empty(0, device=y.device)))
    tape.replay()
    assert made.tolist() == [3.0, 3.0, 3.0]


def test_an_exception_inside_leaves_everything_as_before():
    optimizer, params, _ = started(**FOREACH)
    everything = device_tensors(optimizer)
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    tape = GraphTape(everything)
    with pytest.raises(ZeroDivisionError), tape.capture():
        optimizer.step()
        1 / 0  # noqa: B018
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything.items())
    with pytest.raises(CaptureError, match="nothing to replay"):
        tape.replay()
    with tape.capture():  # and the tape works as if nothing had been
        optimizer.step()
    tape.replay()
    assert optimizer.state[params[0]]["step"].item() == 2.0


def test_nothing_recorded():
    x = torch.ones(3)
    with pytest.raises(CaptureError, match="nothing to replay: record something first"):
        GraphTape(x=x).replay()
    with pytest.raises(CaptureError, match="never touched a device tensor"), GraphTape(x=x).capture():
        torch.ones(3).add_(1)


def test_captures_do_not_nest_and_do_not_repeat():
    x = torch.ones(3)
    outer, inner = GraphTape(x=x), GraphTape(x=x)
    with inner.capture():
        x.add_(1)
    with pytest.raises(CaptureError, match="already under way"), outer.capture():
        x.mul_(2)
        with GraphTape(x=x).capture():
            x.add_(1)
    with pytest.raises(CaptureError, match="end the capture before you replay"), outer.capture():
        inner.replay()
    with pytest.raises(CaptureError, match="already holds a capture"), inner.capture():
        x.add_(1)
    assert x.tolist() == [1.0, 1.0, 1.0] and len(inner.calls) == 1
    inner.replay()
    assert x.tolist() == [2.0, 2.0, 2.0]


def test_inputs_must_be_tensors():
    with pytest.raises(TypeError, match="lr must be a strided tensor, but is float"):
        GraphTape(lr=0.1)
    with pytest.raises(TypeError, match="x must be a strided tensor, but is torch.sparse_coo"):
        GraphTape(x=torch.ones(2).to_sparse())


def test_freed_inputs_are_named():
    def tape_on(x, w):
        tape = GraphTape(x=x, weight=w)
        with tape.capture():
            w.detach().add_(x)
        return tape

    x, w = torch.ones(3), torch.nn.Parameter(torch.zeros(3))
    tape = tape_on(x, w)
    tape.replay()
    x = torch.full((3,), 5.0)  # instead of x.copy_
    with pytest.raises(CaptureError, match=r"the memory of x was freed .* x.copy_\(batch\) instead of x ="):
        tape.replay()
    tape = tape_on(x, w)
    w.data = torch.zeros(3)  # moved
    with pytest.raises(CaptureError, match="the memory of weight was freed"):
        tape.replay()
    assert w.tolist() == [0.0, 0.0, 0.0]
    tape = tape_on(x, w)
    x.untyped_storage().resize_(0)
    with pytest.raises(CaptureError, match="the memory of x was freed"):
        tape.replay()


def test_gradients_set_to_none_are_freed_inputs():
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.ones(3)
    tape = GraphTape(w=w, grad=w.grad)
    with tape.capture(), torch.no_grad():
        w.sub_(w.grad)
    w.grad = None
    with pytest.raises(CaptureError, match=r"zero_grad\(set_to_none=False\)"):
        tape.replay()


def test_the_tape_owns_its_results_and_frees_them_when_it_goes():
    x = torch.ones(1000)
    tape = GraphTape(x=x)
    with tape.capture():
        y = x * 2
    storage = weakref.ref(y.untyped_storage())
    del y
    assert storage() is not None
    del tape
    gc.collect()
    assert storage() is None


# ------------------------------------------------------------------------------------------ names and words
def test_listing_shortens_lists_and_shows_views():
    x = torch.ones(2, 3)
    tape = GraphTape(x=x)
    with tape.capture():
        torch._foreach_add_([x, x[0], x.t(), x, x], 1.0)
        x.t().mul_(x[0, 0].neg())
    assert [str(call) for call in tape.calls] == [
        "_foreach_add_([x, x[3], ... 5 in all], 1)", "t1 = neg(x[])", "mul_(x[3, 2], t1)",
    ]


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
