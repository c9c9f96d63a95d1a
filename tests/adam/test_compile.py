"""torch.compile around a step, and what else looks at adamlib through torch's eyes: torch.func, FakeTensor."""

import shutil

import pytest
import torch
from parameter_zoo import (
    ALL_FLAGS, CAPTURABLE, FLAGS, SETTINGS, TORCH, as_in_torch, counts, each_of_torchs, give_gradients, six_lists,
    trained, weights,
)
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import lr_scheduler

import adamlib

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def runs_of(cls, *turns, lr=0.01, backend="inductor", fullgraph=False, **options):
    """The parameters after a step per letter of each of `turns`: c with the compiled step, e with the eager one."""
    runs = []
    for these in turns:
        params = weights()
        opt = cls(params, lr=lr, **options)
        compiled = torch.compile(opt.step, backend=backend, fullgraph=fullgraph)
        for t, turn in enumerate(these):
            give_gradients(params, t)
            compiled() if turn == "c" else opt.step()
        assert counts(opt) == [float(len(these))] * len(params)
        runs.append(params)
    return runs


def assert_close(first, *others):
    for params in others:
        torch.testing.assert_close(params, first, rtol=1e-5, atol=1e-6)


def eager_and_compiled(function, backend):
    return [function(lambda f: f), function(lambda f: torch.compile(f, backend=backend))]


def assert_equal(runs):
    torch.testing.assert_close(*runs, rtol=0, atol=0)


# --- the for-loop, foreach and capturable: one graph

@pytest.mark.parametrize("variant", ["single_tensor", "foreach", *CAPTURABLE])
def test_step_compiles_to_one_graph_without_a_break(variant):
    backend, lr = CompileCounter(), 0.01 if "foreach" in FLAGS[variant] else torch.tensor(0.01)
    options = dict(fullgraph=True, backend=backend, **FLAGS[variant])
    assert_close(*runs_of(adamlib.AdamW, "eeee", "cccc", lr=lr, **options))
    assert backend.frame_count == 1


@pytest.mark.parametrize("variant", ["single_tensor", "foreach"])
def test_compiled_and_eager_steps_may_take_turns(variant):
    options = dict(amsgrad=True, fullgraph=True, backend="aot_eager", **FLAGS[variant])
    assert_close(*runs_of(adamlib.Adam, "eeeee", "eecce", "ceecc", **options))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="inductor needs a C++ compiler")
def test_inductor_compiles_a_whole_training_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)  # takes long, for one graph
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)  # trying what the compiler knows takes long
    assert_close(*runs_of(adamlib.Adam, "ee", "cc", lr=torch.tensor(0.01), fullgraph=True))


@pytest.mark.parametrize(
    "schedule, graphs",
    [
        (lambda opt: lr_scheduler.ExponentialLR(opt, 0.9), 1),
        (lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=20), 2),
    ],
    ids=["of lr", "of lr and beta1"],
)
@as_in_torch
def test_a_schedule_does_not_recompile_at_every_step(library, schedule, graphs):
    """A tensor lr not at all, a cycled β₁, which is a float, once."""
    backend, params = CompileCounter(), weights(1)
    opt = library.Adam(params, lr=torch.tensor(0.01))
    step = torch.compile(opt.step, backend=backend)
    scheduler = schedule(opt)
    for t in range(6):
        give_gradients(params, t)
        step()
        scheduler.step()
    assert backend.frame_count == graphs


# --- fused and differentiable: outside of the graph

@pytest.mark.parametrize("amsgrad", [False, True])
@as_in_torch
def test_fused_stays_out_of_the_graph(library, amsgrad):
    """A backend that makes the graph functional, as inductor does, cannot take torch's fused op without amsgrad."""
    backend, options = CompileCounter(), dict(fused=True, amsgrad=amsgrad)
    runs = runs_of(library.Adam, "eee", "ccc", backend=backend, **options)
    torch._dynamo.reset()
    runs += runs_of(library.Adam, "ccc", backend="aot_eager", **options)
    assert_equal(runs[:2])
    assert_equal(runs[1:])
    assert backend.frame_count == 0
    return runs


def test_a_compiled_fused_step_refuses_misfits_and_leaves_the_state():
    p, q = (torch.nn.Parameter(torch.ones(2, 4)) for _ in range(2))
    opt = adamlib.Adam([dict(params=[p]), dict(params=[q])], fused=True)
    step = torch.compile(opt.step, backend="aot_eager")
    p.grad = torch.ones(2, 4)
    for expected in [], [1.0, 1.0]:
        q.grad, before = torch.ones(4, 2).t(), p.detach().clone()
        with pytest.raises(RuntimeError, match="the gradient has strides"):
            step()
        assert counts(opt) == expected and torch.equal(p, before)
        q.grad = torch.ones(2, 4)
        step()


def test_compiled_groups_of_which_one_is_fused():
    def two_steps(compiler):
        params = weights()
        opt = adamlib.Adam([dict(params=params[:1], fused=True), dict(params=params[1:], foreach=True)], lr=0.01)
        step = compiler(opt.step)
        for t in range(2):
            give_gradients(params, t)
            assert step(lambda: torch.tensor(float(t))) == t
        return params

    assert_equal(eager_and_compiled(two_steps, "aot_eager"))


@pytest.mark.parametrize("groups", [1, 2])
def test_autograd_goes_through_a_compiled_differentiable_step(groups):
    def values_and_slopes(compiler):
        leaves, lr = weights(), torch.tensor(0.01, requires_grad=True)
        params = [p.clone() for p in leaves]
        parts = [params] if groups == 1 else [params[:1], params[1:]]
        opt = adamlib.Adam([dict(params=part) for part in parts], lr=lr, differentiable=True)
        step = compiler(opt.step)
        for _ in range(3):
            for p in params:
                p.grad = p.clone().sin()
            step()
        total = sum(p.square().sum() for p in params)
        return total, *torch.autograd.grad(total, (*leaves, lr))

    assert_equal(eager_and_compiled(values_and_slopes, "aot_eager"))


def test_the_fused_function_in_somebodys_own_compiled_function():
    def one_step(compiler):
        lists, g = six_lists([torch.ones(8)]), torch.arange(8.0)
        compiler(lambda: adamlib.adam(lists[0], [g * 2], *lists[2:], fused=True, **SETTINGS))()
        assert float(lists[5][0]) == 1
        return [column[0] for column in lists if column]

    assert_equal(eager_and_compiled(one_step, "aot_eager"))


@pytest.mark.skipif(torch.__version__ < (2, 12), reason="older torch makes no optimizer with a constructor of its own")
@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "fused", "differentiable"])
def test_an_optimizer_made_inside_a_compiled_function(variant):
    """AdamW, whose constructor calls Adam's."""
    def two_steps(compiler):
        params = [p.detach() if variant == "differentiable" else p for p in weights()]
        give_gradients(params)

        def inner():
            opt = adamlib.AdamW(params, lr=0.1, **ALL_FLAGS[variant])
            opt.step()
            return opt

        opt = compiler(inner)()
        opt.step()
        assert counts(opt) == [2.0, 2.0]
        return params

    assert_close(*eager_and_compiled(two_steps, "eager"))


# --- transforms of torch.func, and tensors without memory

def training_loop(library, lr, p0, slope):
    """The sum of a parameter after three unrolled steps."""
    p = p0.clone()
    opt = library.Adam([p], lr=lr, eps=1e-3, differentiable=True)
    for _ in range(3):
        p.grad = slope * p.clone()
        opt.step()
    return p.sum()


def test_transforms_of_torch_func_go_through_a_training_loop():
    """torch's grad over it, too; a batched lr no constructor takes, as it compares it with 0."""
    lr, p0, slope = torch.tensor(0.1), torch.linspace(1, 2, 6).view(2, 3), torch.ones(3)
    loop = lambda lr, p0: training_loop(adamlib, lr, p0, slope)
    of_torch = torch.func.grad(lambda lr: training_loop(TORCH, lr, p0[0], slope))(lr)
    backward = torch.func.grad(loop)(lr, p0[0])
    _, forward = torch.func.jvp(lambda lr: loop(lr, p0[0]), (lr,), (torch.tensor(1.0),))
    for ours in (backward, forward):
        torch.testing.assert_close(ours, of_torch, rtol=1e-4, atol=0)
    assert torch.func.hessian(loop)(lr, p0[0]).isfinite()
    torch.testing.assert_close(torch.vmap(loop, (None, 0))(lr, p0), torch.stack([loop(lr, p) for p in p0]))


def test_vmap_goes_through_the_function_with_a_batched_lr():
    def step(lr, p0):
        p = p0.clone()
        lists = six_lists([p], [p.clone()])
        adamlib.adam(*lists, differentiable=True, **SETTINGS | dict(lr=lr, eps=1.0))
        return p.sum()

    lrs, starts = torch.tensor([0.1, 0.2]), torch.linspace(1, 2, 6).view(2, 3)
    for function in (step, torch.func.grad(step)):
        one_by_one = torch.stack([function(lr, p) for lr, p in zip(lrs, starts)])
        torch.testing.assert_close(torch.vmap(function)(lrs, starts), one_by_one)


@each_of_torchs
@pytest.mark.parametrize("mode", [FakeTensorMode, lambda: torch.device("meta")], ids=["fake", "meta"])
def test_tensors_without_memory_are_stepped(variant, mode):
    """On fake tensors torch's MemTracker counts bytes."""
    if variant == "fused" and mode is not FakeTensorMode:
        pytest.skip("no fused kernel on the meta device")
    with mode():
        params, opt = trained(amsgrad=True, **FLAGS[variant])
    assert [entry["exp_avg"].shape for entry in opt.state.values()] == [p.shape for p in params]
