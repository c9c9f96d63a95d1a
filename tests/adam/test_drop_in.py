"""adamlib.Adam in the place of torch.optim.Adam: constructor, base class, dispatch, state, checkpoints, schedulers,
mixed precision, weight averaging, copies, hooks, those who reach inside, compilation, sharding."""

import contextlib
import copy
import gc
import inspect
import io
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import weakref
from collections import defaultdict

import pytest
import torch
from parameter_zoo import (
    FLAGS,
    SAME_BITS,
    as_in_torch,
    awkward_parameters,
    comparable,
    differences,
    same_bits,
    set_gradients,
)
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

import adamlib

PAIR = (adamlib.Adam, torch.optim.Adam)
ALL_FLAGS = FLAGS | {"differentiable": dict(differentiable=True)}
each_variant = pytest.mark.parametrize("variant", FLAGS)
each_of_torchs = pytest.mark.parametrize("variant", SAME_BITS)
each_class = pytest.mark.parametrize("name", ["Adam", "AdamW"])


def weights(n=3, **kw):
    return [torch.linspace(-1, 1, 5 + i, **kw).requires_grad_() for i in range(n)]


def step_with(opt, params, step):
    for i, p in enumerate(params):
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + step + i).reshape(p.shape)
    opt.step()


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def inputs(step):
    return torch.sin(torch.arange(12.0).reshape(3, 4) + step)


def loss_of(model, step):
    return model(inputs(step)).square().mean()


def train(model, opt, steps):
    for step in steps:
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()


def same_parameters(a, b):
    return all(same_bits(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def counts(opt):
    return [float(entry["step"]) for entry in opt.state.values()]


def signature(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# --- constructor


@each_class
@as_in_torch
def test_the_constructor_has_torchs_signature(library, name):
    with pytest.raises(TypeError):
        getattr(library, name)(weights(), 1e-3, (0.9, 0.999), 1e-8, 0.0, False, False)
    return signature(getattr(library, name).__init__)


@as_in_torch
def test_the_function_has_torchs_signature(library):
    return signature(library.adam)


def test_classes():
    assert issubclass(adamlib.Adam, torch.optim.Optimizer) and issubclass(adamlib.AdamW, adamlib.Adam)
    assert set(adamlib.__all__) == {"Adam", "AdamW", "adam"}


OPTIONS = [
    {},
    dict(lr=0.1, betas=[0.5, 0.6], eps=0, weight_decay=3, amsgrad=True, maximize=True),
    dict(fused=True),
    dict(foreach=True),
    dict(capturable=True, lr=torch.tensor(0.1)),
    dict(betas=(torch.tensor([0.9]), torch.ones(1) / 2)),
    dict(lr=float("inf")),
    dict(lr=0),
    dict(betas=(0.0, 0.0)),
]


@each_class
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@as_in_torch
def test_defaults_groups_and_repr_are_torchs(library, name, options):
    opt = getattr(library, name)(weights(), **options)
    assert isinstance(opt.defaults["betas"], tuple)
    return repr(opt), list(opt.defaults), str(opt.defaults), list(opt.param_groups[0])


@pytest.mark.parametrize("variant", ALL_FLAGS)
@as_in_torch
def test_only_a_fused_instance_supports_amp_scaling(library, variant):
    return getattr(library.Adam(weights(), **ALL_FLAGS[variant]), "_step_supports_amp_scaling", False)


@as_in_torch
def test_a_group_is_the_dict_that_was_given_and_keeps_unknown_keys(library):
    group, opt = dict(params=weights(), betas=[0.5, 0.9], name="encoder", initial_lr=0.5), library.Adam(weights())
    opt.add_param_group(group)
    assert opt.param_groups[1] is group
    return opt.state_dict()


# --- base class


@pytest.mark.parametrize(
    "params",
    [
        lambda: torch.ones(3, requires_grad=True),
        lambda: [],
        lambda: [dict(params=set(weights()))],
        lambda: [1],
        lambda: [weights()[0] * 2],
        lambda: (lambda p: [dict(params=p), dict(params=p)])(weights()),
        lambda: [("a", weights()[0]), weights()[1]],
        lambda: [dict(params=[("a", weights()[0])]), dict(params=[weights()[0]])],
    ],
)
@as_in_torch
def test_wrong_parameters_are_refused_in_torchs_words(library, params):
    library.Adam(params())


@each_variant
def test_an_empty_group_is_fine_in_every_variant(variant):
    opt = adamlib.Adam([dict(params=[]), dict(params=weights())], **FLAGS[variant])
    step_with(opt, opt.param_groups[1]["params"], 1)
    assert len(opt.state) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_set_or_generator_at_the_top_is_accepted():
    assert len(adamlib.Adam(set(weights())).param_groups[0]["params"]) == 3
    assert len(adamlib.Adam(p for p in weights()).param_groups[0]["params"]) == 3


def test_duplicates_within_a_group_warn_and_step_as_in_torch():
    """Except the for-loop: adamlib counts both entries before it steps, as foreach does; torch in between.

    torch announces that duplicates will become an error.
    """
    results = []
    for cls in PAIR:
        for variant in SAME_BITS:
            p = weights()[0]
            with pytest.warns(UserWarning, match="duplicate parameters"):
                opt = cls([p, p], **FLAGS[variant])
            step_with(opt, [p], 1)
            assert counts(opt) == [2.0]
            results.append(p.detach())
    assert same_bits(results[1], results[4]) and same_bits(results[2], results[5])
    assert not same_bits(results[0], results[3])


@as_in_torch
def test_named_parameters(library):
    opt = library.Adam(small_model().named_parameters())
    assert opt.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    return opt


@as_in_torch
def test_a_group_added_in_the_middle_of_training(library):
    model, head = small_model(), small_model(1)
    opt = library.Adam(model.parameters(), lr=0.1)
    train(model, opt, range(4))
    opt.add_param_group(dict(params=head.parameters(), lr=0.01, amsgrad=True))
    for step in range(6):
        opt.zero_grad()
        (loss_of(model, step) + loss_of(head, step)).backward()
        opt.step()
    return opt


@each_variant
def test_zero_grad(variant):
    params = weights()
    opt = adamlib.Adam(params, **FLAGS[variant])
    step_with(opt, params, 1)
    grads = [p.grad for p in params]
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is g and not g.any() for p, g in zip(params, grads))
    opt.zero_grad()
    assert all(p.grad is None for p in params)


@each_variant
def test_a_closure_runs_once_with_gradients_and_its_value_is_returned(variant):
    p = torch.ones(2, requires_grad=True)
    opt, calls = adamlib.Adam([p], **FLAGS[variant]), []

    def closure():
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert float(loss.detach()) == 2.0 and calls == [True] and bool((p < 1).all())
    assert opt.step() is None


def test_step_leaves_the_gradient_mode_as_it_was():
    params = weights()
    opt = adamlib.Adam(params)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            step_with(opt, params, 1)
            assert torch.is_grad_enabled() == enabled
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    assert torch.is_grad_enabled()


@each_class
@as_in_torch
def test_hooks_run_once_and_in_order(library, name):
    params, order = weights(), []
    opt = getattr(library, name)(params)
    before = [p.detach().clone() for p in params]

    def moved():
        return any(not torch.equal(p, b) for p, b in zip(params, before))

    handles = [
        opt.register_step_post_hook(lambda o, a, k: order.append(("own post", moved(), o is opt))),
        opt.register_step_pre_hook(lambda o, a, k: order.append(("own pre", moved(), o is opt))),
        register_optimizer_step_post_hook(lambda o, a, k: order.append(("global post", moved(), len(a)))),
        register_optimizer_step_pre_hook(lambda o, a, k: order.append(("global pre", moved(), len(a)))),
    ]
    step_with(opt, params, 1)
    for handle in handles:
        handle.remove()
    step_with(opt, params, 2)
    assert [what for what, *_ in order] == ["global pre", "own pre", "own post", "global post"]
    return order


@as_in_torch
def test_a_pre_hook_may_replace_the_arguments(library):
    seen, opt = [], library.Adam(weights())
    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: seen.append("closure") or 7.0), {}))
    assert opt.step() == 7.0 and seen == ["closure"]
    opt.register_step_pre_hook(lambda o, args, kwargs: 5)
    opt.step()


@each_class
def test_profiler_ranges(name):
    params = weights()
    opt = getattr(adamlib, name)(params)
    with torch.autograd.profiler.profile() as profile:
        step_with(opt, params, 1)
        opt.zero_grad()
    seen = {event.name for event in profile.function_events}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= seen


# --- dispatch


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))

    @property
    def kind(self):
        if any(name.startswith("_fused") for name in self.names):
            return "fused"
        return "foreach" if "_foreach_lerp_" in self.names else "single_tensor"


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)], ids=["float", "tensor"])
@as_in_torch
def test_the_flags_choose_the_variant_that_torch_would_choose(library, foreach, fused, lr):
    params = weights()
    opt = library.Adam(params, lr=lr, foreach=foreach, fused=fused)
    with Ops() as ops:
        step_with(opt, params, 1)
    assert ops.kind == ("fused" if fused else "foreach" if foreach else "single_tensor")
    return ops.kind


@pytest.mark.parametrize("variant", ALL_FLAGS)
def test_without_gradients_nothing_happens(variant):
    params = weights()
    before = [p.detach().clone() for p in params]
    opt = adamlib.Adam(params, **ALL_FLAGS[variant])
    opt.step()
    assert len(opt.state) == 0 and all(map(torch.equal, params, before))


@each_variant
def test_a_parameter_without_gradient_keeps_its_own_step(variant):
    a, b = weights(2)
    opt = adamlib.Adam([a, b], **FLAGS[variant])
    step_with(opt, [a, b], 1)
    b.grad = None
    for _ in range(3):
        opt.step()
    assert counts(opt) == [4.0, 1.0]


SETTINGS = dict(amsgrad=False, beta1=0.9, beta2=0.99, lr=0.1, weight_decay=0.0, eps=1e-8, maximize=False)


@as_in_torch
def test_integer_steps_are_refused_by_the_function_in_torchs_words(library):
    p = torch.ones(2)
    library.adam([p], [p], [p], [p], [], [1], **SETTINGS)


# --- state


@pytest.mark.parametrize("amsgrad", [False, True])
@each_variant
@as_in_torch
def test_state_looks_as_in_torch(library, variant, amsgrad, torch_capturable_on_cpu):
    params = awkward_parameters(torch.float32, fused=variant == "fused")
    opt = library.Adam(params.values(), amsgrad=amsgrad, **FLAGS[variant])
    set_gradients(params, 1)
    opt.step()
    looks = ("dtype", "shape", "device", "layout", "requires_grad")
    return [
        (name, key, [getattr(value, look) for look in looks], value.stride())
        for name, p in params.items() for key, value in opt.state.get(p, {}).items()
    ]  # fmt: skip


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.float16])
@each_variant
def test_dtype_of_step(variant, default):
    torch.set_default_dtype(default)
    try:
        p = torch.ones(2, dtype=torch.float32, requires_grad=True)
        opt = adamlib.Adam([p], **FLAGS[variant])
        p.grad = torch.ones(2, dtype=torch.float32)
        opt.step()
        wide = default == torch.float64 and variant != "fused"
        assert opt.state[p]["step"].dtype == (torch.float64 if wide else torch.float32)
        assert opt.state[p]["step"].shape == ()
    finally:
        torch.set_default_dtype(torch.float32)


@each_variant
@pytest.mark.parametrize("options", [{}, dict(weight_decay=0.1), dict(maximize=True, weight_decay=0.1)])
def test_gradients_are_never_written_and_parameters_keep_their_memory(variant, options):
    params = awkward_parameters(torch.float32, fused=variant == "fused")
    pointers = [p.data_ptr() for p in params.values()]
    opt = adamlib.Adam(params.values(), **FLAGS[variant], **options)
    for step in range(1, 4):
        set_gradients(params, step)
        kept = {n: (p.grad, p.grad.clone()) for n, p in params.items() if p.grad is not None}
        opt.step()
        for name, (grad, copy_) in kept.items():
            assert params[name].grad is grad and same_bits(grad, copy_), name
    assert [p.data_ptr() for p in params.values()] == pointers
    assert all(p.is_leaf and p.requires_grad for p in params.values())


@pytest.mark.parametrize("variant", ["single_tensor", "foreach"])
def test_meta_parameters_are_stepped(variant):
    p = torch.ones(3, device="meta", requires_grad=True)
    opt = adamlib.Adam([p], **FLAGS[variant])
    p.grad = torch.ones(3, device="meta")
    opt.step()
    assert opt.state[p]["exp_avg"].device.type == "meta" and counts(opt) == [1.0]


@as_in_torch
def test_retained_gradients_of_a_non_leaf_are_used(library):
    p = torch.ones(3, requires_grad=True) * 1.0
    p.retain_grad()
    opt = library.Adam([p])
    p.square().sum().backward()
    opt.step()
    return p


# --- checkpoints


def stored(state_dict, weights_only):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def same_state_dict(a, b):
    return comparable(a) == comparable(b)


@each_class
@each_of_torchs
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_go_both_ways(name, variant, amsgrad, weights_only):
    ours, theirs = getattr(adamlib, name), getattr(torch.optim, name)
    options = dict(lr=0.01, weight_decay=0.1, amsgrad=amsgrad, **FLAGS[variant])

    def go(params, opt, steps):
        for step in steps:
            set_gradients(params, step)
            opt.step()

    for source, target in ((ours, theirs), (theirs, ours), (ours, ours)):
        p, q = (awkward_parameters(torch.float32, fused=variant == "fused") for _ in "ab")
        a, b = source(p.values(), **options), target(q.values(), **options)
        go(p, a, range(1, 7))
        with torch.no_grad():
            for key in p:
                q[key].copy_(p[key])
        b.load_state_dict(stored(a.state_dict(), weights_only))
        assert same_state_dict(a.state_dict(), b.state_dict())
        go(p, a, range(7, 12))
        go(q, b, range(7, 12))
        assert not differences(a, b, p, q)


@pytest.mark.parametrize("saved", ALL_FLAGS)
@pytest.mark.parametrize("built", ALL_FLAGS)
@as_in_torch
def test_a_checkpoint_brings_its_flags(library, saved, built):
    """The instance becomes what was saved, as in torch, and can go on."""
    source_params = weights()
    source = adamlib.Adam([p.detach() if saved == "differentiable" else p for p in source_params], **ALL_FLAGS[saved])
    step_with(source, source.param_groups[0]["params"], 1)
    params = [p.detach() for p in weights()]
    opt = library.Adam(params, lr=0.5, **ALL_FLAGS[built])
    opt.load_state_dict(source.state_dict())
    assert opt.defaults["lr"] == 0.5
    if library is adamlib:
        step_with(opt, params, 2)
        assert counts(opt) == [2.0] * 3 and opt._step_supports_amp_scaling == (saved == "fused")
    return {k: v for k, v in opt.param_groups[0].items() if k != "params"}


def loaded(library, params, entries, **options):
    """An optimizer that has loaded a state with these entries for each parameter."""
    opt = library.Adam(params, **options)
    state = {i: copy.deepcopy(entries(p)) for i, p in enumerate(params)}
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return opt


@each_variant
@as_in_torch
def test_moments_take_the_parameters_dtype_and_step_becomes_a_tensor(library, variant):
    params = weights(2)
    entries = lambda p: dict(step=7, exp_avg=torch.ones_like(p).double(), exp_avg_sq=torch.ones_like(p).half())
    opt = loaded(library, params, entries, **FLAGS[variant])
    for entry in opt.state.values():
        assert [entry[key].dtype for key in entry] == [torch.float32] * 3
        assert float(entry["step"]) == 7.0 and entry["step"].shape == ()
    return opt


@each_of_torchs
@pytest.mark.parametrize("step", [torch.tensor([3.0]), torch.tensor(3.0, dtype=torch.float64), 3, 3.0], ids=str)
@as_in_torch
def test_steps_of_older_checkpoints_go_on(library, variant, step):
    """Shape (1,) is torch 2.0's, an int is torch 1.11's."""
    params = weights(2)
    entries = lambda p: dict(step=step, exp_avg=torch.ones_like(p), exp_avg_sq=torch.ones_like(p))
    opt = loaded(library, params, entries, **FLAGS[variant])
    for t in range(3):
        step_with(opt, params, t)
    assert counts(opt) == [6.0, 6.0]
    return params


@each_variant
@pytest.mark.parametrize("dtype, start", [(torch.bfloat16, 256.0), (torch.float16, 2048.0)], ids=str)
def test_short_counts_do_not_stand_still(variant, dtype, start):
    """torch's for-loop goes on with a count that no longer grows; its foreach raises for float16."""
    for how in ("loaded", "set"):
        params = weights(1)
        entries = lambda p: dict(
            step=torch.tensor(start, dtype=dtype), exp_avg=torch.ones_like(p), exp_avg_sq=torch.ones_like(p)
        )
        opt = loaded(adamlib, params, entries, **FLAGS[variant])
        if how == "set":
            opt.state[params[0]]["step"] = torch.tensor(start, dtype=dtype)
        for t in range(3):
            step_with(opt, params, t)
        assert counts(opt) == [start + 3]


@each_class
@as_in_torch
def test_a_checkpoint_of_torch_1_lacks_keys_and_loads(library, name):
    """torch 1.0 to 1.11 saved lr, betas, eps, weight_decay (and amsgrad later), with an int as step."""
    model = small_model()
    opt = getattr(library, name)(model.parameters())
    group = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, params=[0, 1, 2, 3])
    state = {
        i: dict(step=5, exp_avg=torch.full_like(p, 0.1), exp_avg_sq=torch.full_like(p, 0.2))
        for i, p in enumerate(model.parameters())
    }
    opt.load_state_dict({"state": state, "param_groups": [group]})
    train(model, opt, range(5))
    assert opt.param_groups[0]["decoupled_weight_decay"] == (name == "AdamW")
    return opt


@pytest.mark.parametrize(
    "betas", [(0, 0.99), [0.9, 0.99], (0.85, torch.tensor(0.99)), (torch.tensor(0.85), torch.tensor(0.99))], ids=str
)
@as_in_torch
def test_betas_that_older_versions_or_a_one_cycle_schedule_leave_load_and_run(library, betas):
    """OneCycleLR replaces a tensor β₁ by a float; a checkpoint or copy made then must still be taken."""
    model = small_model()
    opt = library.Adam(model.parameters())
    saved = opt.state_dict()
    saved["param_groups"][0]["betas"] = betas
    opt.load_state_dict(saved)
    train(model, opt, range(3))
    model, opt = copy.deepcopy((model, opt))
    train(model, opt, range(3))
    return model


@as_in_torch
def test_setstate_of_an_old_pickle(library):
    """An optimizer object pickled by an old torch comes back through __setstate__."""
    model = small_model()
    opt = library.Adam(model.parameters())
    group = dict(params=list(model.parameters()), lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0)
    state = {p: dict(step=5, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.ones_like(p)) for p in group["params"]}
    old = library.Adam.__new__(library.Adam)
    old.__setstate__(dict(defaults=dict(opt.defaults), state=state, param_groups=[group]))
    train(model, old, range(3))
    return model


@pytest.mark.parametrize("saved, name", [("AdamW", "Adam"), ("Adam", "AdamW"), ("Adam", "Adam")])
@as_in_torch
def test_decoupled_decay_is_kept_by_Adam_and_forced_by_AdamW(library, saved, name):
    opt = getattr(library, name)(weights())
    opt.load_state_dict(getattr(torch.optim, saved)(weights()).state_dict())
    assert opt.param_groups[0]["decoupled_weight_decay"] is ("AdamW" in (saved, name))
    return opt


@pytest.mark.parametrize("saved", ["saved", None])
@as_in_torch
def test_saved_names_win_and_absent_ones_leave_the_own(library, saved):
    named = lambda prefix: [(f"{prefix}{i}", p) for i, p in enumerate(weights())] if prefix else weights()
    opt = library.Adam(named("own"))
    opt.load_state_dict(torch.optim.Adam(named(saved)).state_dict())
    assert opt.param_groups[0]["param_names"] == [f"{saved or 'own'}{i}" for i in range(3)]
    return opt


@as_in_torch
def test_state_of_something_else_is_carried_along(library):
    """torch copies entries that belong to no parameter as they are."""
    opt = library.Adam(weights())
    opt.load_state_dict({**opt.state_dict(), "state": {"ema": {"decay": 0.9}}})
    return opt.state["ema"]


@as_in_torch
def test_state_dict_hooks_run_in_order(library):
    opt, log, other = library.Adam(weights()), [], library.Adam(weights(), lr=0.25).state_dict()
    opt.register_state_dict_pre_hook(lambda o: log.append("pre"))
    opt.register_state_dict_post_hook(lambda o, sd: log.append("post") or {**sd, "extra": 1})
    opt.register_load_state_dict_pre_hook(lambda o, sd: log.append(("load pre", "extra" in sd)))
    opt.register_load_state_dict_post_hook(lambda o: log.append(("load post", o.param_groups[0]["lr"])))
    opt.load_state_dict(opt.state_dict())
    opt.register_load_state_dict_pre_hook(lambda o, sd: other)
    opt.load_state_dict(opt.state_dict())
    assert log[:4] == ["pre", "post", ("load pre", True), ("load post", 1e-3)]
    return log


def test_saving_and_loading_again_changes_nothing():
    params = weights()
    opt = adamlib.Adam(params, amsgrad=True)
    for t in range(3):
        step_with(opt, params, t)
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(opt.state_dict())
    assert same_state_dict(saved, opt.state_dict())


# --- learning-rate schedules

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=4),
}


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore")
@as_in_torch
def test_every_scheduler_of_torch_drives_adam(library, name, tensor):
    model = small_model()
    opt = library.Adam(model.parameters(), lr=torch.tensor(0.01) if tensor else 0.01)
    given, seen = opt.param_groups[0]["lr"], set()
    scheduler = SCHEDULERS[name](opt)
    for step in range(10):
        train(model, opt, [step])
        seen.add(float(opt.param_groups[0]["lr"]))
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    if tensor:
        assert opt.param_groups[0]["lr"] is given, "the scheduler must find the tensor it fills in place"
    assert len(seen) > 1, "a schedule that changes nothing tests nothing"
    return model


@pytest.mark.parametrize("variant", ["single_tensor", "fused"])
@pytest.mark.filterwarnings("ignore")
@as_in_torch
def test_one_cycle_leaves_a_float_beside_a_tensor_beta_and_adam_goes_on(library, variant):
    model, betas = small_model(), (torch.tensor(0.9), torch.tensor(0.999))
    opt = library.Adam(model.parameters(), lr=torch.tensor(0.01), betas=betas, **FLAGS[variant])
    scheduler = lr_scheduler.OneCycleLR(opt, 0.1, total_steps=20)
    for step in range(5):
        train(model, opt, [step])
        scheduler.step()
    assert isinstance(opt.param_groups[0]["betas"][0], float)
    if library is adamlib:  # goes on in the capturable form, which torch has not on a CPU
        opt.param_groups[0].update(capturable=True, fused=None)
        twin, twin_opt = copy.deepcopy((model, opt))
        train(twin, twin_opt, [5])
        assert all(p.isfinite().all() for p in twin.parameters())
    return model


@pytest.mark.parametrize("variant", ["single_tensor", "fused", "capturable_single", "capturable_foreach"])
def test_a_tensor_learning_rate_filled_in_place_is_used_at_the_next_step(variant):
    lr, params = torch.tensor(0.1), weights()
    opt = adamlib.Adam(params, lr=lr, **FLAGS[variant])
    step_with(opt, params, 1)
    before = [p.detach().clone() for p in params]
    lr.fill_(0.0)
    step_with(opt, params, 2)
    assert all(map(torch.equal, params, before))
    lr.fill_(0.1)
    step_with(opt, params, 3)
    assert not any(map(torch.equal, params, before))


# --- mixed precision


@pytest.mark.parametrize("unscale_first", [False, True])
@each_of_torchs
@as_in_torch
def test_GradScaler_skips_infinite_gradients(library, variant, unscale_first):
    model, scaler = small_model(), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    opt = library.Adam(model.parameters(), lr=0.01, **FLAGS[variant])
    for step in range(10):
        opt.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step in (0, 4):
            model[0].weight.grad[0, 0] = float("inf")
        if unscale_first:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(opt)
        scaler.update()
        if step in (0, 4):
            assert all(same_bits(p, b) for p, b in zip(model.parameters(), before))
        assert not hasattr(opt, "found_inf") and not hasattr(opt, "grad_scale")
    assert {*counts(opt)} == {8.0}
    return opt, scaler.get_scale()


@as_in_torch
def test_a_first_step_with_infinite_gradients_creates_the_state(library):
    params = weights()
    opt = library.Adam(params, fused=True)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    step_with(opt, params, 1)
    assert counts(opt) == [0.0] * 3
    return opt


@each_variant
def test_bfloat16_autocast_trains(variant):
    model = small_model()
    opt = adamlib.Adam(model.parameters(), lr=0.02, **FLAGS[variant])
    losses = []
    for _ in range(20):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, 0)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


# --- averages, copies, hooks


@pytest.mark.filterwarnings("ignore")
@as_in_torch
def test_swa_utils(library):
    model = small_model()
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
    opt = library.Adam(model.parameters(), lr=0.05)
    swa = torch.optim.swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=3)
    for step in range(8):
        train(model, opt, [step])
        averaged.update_parameters(model)
        swa.step()
    torch.optim.swa_utils.update_bn([inputs(0)], averaged)
    return model, averaged


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@each_variant
def test_copies_go_on_like_the_original(variant, how):
    model = small_model()
    opt = adamlib.Adam(model.parameters(), lr=0.05, amsgrad=True, **FLAGS[variant])
    train(model, opt, range(3))
    both = model, opt
    twin_model, twin = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert type(twin) is adamlib.Adam and list(twin.state)[0] is next(twin_model.parameters())
    train(model, opt, range(3, 6))
    assert not same_parameters(model, twin_model)
    train(twin_model, twin, range(3, 6))
    assert same_parameters(model, twin_model) and same_state_dict(opt.state_dict(), twin.state_dict())
    owned = [{value.data_ptr() for entry in o.state.values() for value in entry.values()} for o in (opt, twin)]
    assert not owned[0] & owned[1]


def test_a_deep_copy_takes_the_public_attributes_and_holds_its_own_parameters():
    opt = adamlib.Adam(weights(), lr=0.5)
    twin = copy.deepcopy(opt)
    public = [{key for key in vars(o) if not key.startswith("_")} for o in (opt, twin)]
    assert public[0] == public[1] and twin.param_groups[0]["params"][0] is not opt.param_groups[0]["params"][0]


@each_variant
@pytest.mark.parametrize("first", [False, True])
def test_a_step_in_inference_mode_leaves_a_state_that_can_be_stepped_outside(variant, first):
    results = []
    for mode in (contextlib.nullcontext, torch.inference_mode):
        params = weights(2)
        opt = adamlib.Adam(params, amsgrad=True, **FLAGS[variant])
        for p in params:
            p.grad = torch.ones_like(p)
        if not first:
            opt.step()
            opt.load_state_dict(opt.state_dict())
        with mode():
            opt.step()
        opt.step()
        assert counts(opt) == [3.0 - first] * 2
        results.append(params)
    assert all(map(torch.equal, *results))


# --- for those who reach inside


class Halving(torch.optim.Optimizer):
    """Mixed into either library's Adam: an option of its own."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] /= 2
        return loss


class Clamping(torch.optim.Optimizer):
    """Mixed into either library's Adam: hands other gradients to the step."""

    def _init_group(self, group, params, grads, *rest):
        has_complex = super()._init_group(group, params, grads, *rest)
        grads[:] = [grad.clamp(-0.1, 0.1) for grad in grads]
        return has_complex


class MadeByTheBase(torch.optim.Optimizer):
    """Mixed into either library's Adam: whose __init__ is passed by, and so are its checks."""

    def __init__(self, params):
        defaults = torch.optim.Adam(weights(), lr=1.0).defaults
        torch.optim.Optimizer.__init__(self, params, defaults | dict(lr=-0.1))


@pytest.mark.parametrize("mixin", [Halving, Clamping, MadeByTheBase])
@each_of_torchs
@as_in_torch
def test_subclasses(library, mixin, variant):
    params = weights()
    opt = type(mixin.__name__, (mixin, library.Adam), {})(params)
    opt.param_groups[0].update(FLAGS[variant], eps=1.0)
    for t in range(3):
        step_with(opt, params, t)
    return opt


@each_of_torchs
@as_in_torch
def test_setstate_with_a_part_of_the_state(library, variant):
    params = weights()
    opt = library.Adam(params, **FLAGS[variant])
    step_with(opt, params, 1)
    opt.__setstate__({"state": defaultdict(dict)})
    assert len(opt.state) == 0
    step_with(opt, params, 2)
    assert counts(opt) == [1.0] * 3
    opt.__setstate__({"param_groups": [dict(opt.param_groups[0], lr=0.5)]})
    step_with(opt, params, 3)
    return opt


@pytest.mark.parametrize("fused", [False, True])
@as_in_torch
def test_the_answer_to_the_gradient_scaler_can_be_set_and_deleted(library, fused):
    opt = library.Adam(weights(), fused=fused)
    answers = [getattr(opt, "_step_supports_amp_scaling", False)]
    for answer in (False, True):
        opt._step_supports_amp_scaling = answer
        answers.append(opt._step_supports_amp_scaling)
    del opt._step_supports_amp_scaling
    return [*answers, getattr(opt, "_step_supports_amp_scaling", False)]


@pytest.mark.parametrize("variant", ALL_FLAGS)
@pytest.mark.parametrize(
    "clear",
    [
        lambda opt: opt.state.clear(),
        lambda opt: setattr(opt, "state", defaultdict(dict)),
        lambda opt: opt.state.pop(opt.param_groups[0]["params"][0]),
        lambda opt: (opt.state.clear(), opt.param_groups.clear()),
        lambda opt: opt.state[opt.param_groups[0]["params"][0]].update(exp_avg=torch.zeros(8)),
    ],
    ids=["cleared", "exchanged", "popped", "cleared with its groups", "a moment exchanged"],
)
def test_memory_is_free_when_it_is_let_go(variant, clear):
    p = torch.ones(8, requires_grad=variant != "differentiable")
    opt = adamlib.Adam([p], amsgrad=True, **ALL_FLAGS[variant])
    for _ in range(2):
        p.grad = torch.ones(8)
        opt.step()
    gc.collect()
    moment, grad, param = weakref.ref(opt.state[p]["exp_avg"]), weakref.ref(p.grad), weakref.ref(p)
    opt.zero_grad()
    clear(opt)
    del p
    assert moment() is None and grad() is None and (param() is None) == (not opt.param_groups)


@each_variant
def test_what_lies_in_shared_memory_stays_there(variant):
    """Counts that several workers share are advanced in place."""
    p = torch.ones(2, requires_grad=True)
    opt = adamlib.Adam([p], lr=0.1, **FLAGS[variant])
    p.grad = torch.ones(2)
    opt.step()
    shared = {key: value.share_memory_() for key, value in opt.state[p].items()}
    opt.step()
    assert all(opt.state[p][key] is value and value.is_shared() for key, value in shared.items())
    assert float(shared["step"]) == 2.0


@each_variant
def test_one_parameters_state_weighs_no_more_than_it_holds(variant):
    params = [torch.ones(16, requires_grad=True) for _ in range(100)]
    opt = adamlib.Adam(params, **FLAGS[variant])
    step_with(opt, params, 1)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in opt.state[params[0]].values())


@pytest.mark.parametrize("device", ["meta", "cuda:9"])
@each_variant
def test_a_default_device_moves_nothing(variant, device):
    results = []
    for where in (contextlib.nullcontext(), torch.device(device)):
        params = weights()
        for i, p in enumerate(params):
            p.grad = torch.full_like(p, i + 1.0)
        with where:
            opt = adamlib.Adam(params, amsgrad=True, **FLAGS[variant])
            for _ in range(2):
                opt.step()
        results.append(comparable(opt))
    assert results[0] == results[1]


@each_of_torchs
def test_fake_tensors(variant):
    """FakeTensorMode, and with it torch's MemTracker: shapes without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        params = weights()
        opt = adamlib.Adam(params, amsgrad=True, **FLAGS[variant])
        for t in range(2):
            step_with(opt, params, t)
        assert [entry["exp_avg"].shape for entry in opt.state.values()] == [p.shape for p in params]


def training_loop(library, lr, p0, slope):
    """The sum of a parameter after three unrolled steps."""
    p = p0.clone()
    opt = library.Adam([p], lr=lr, eps=1e-3, differentiable=True)
    for _ in range(3):
        p.grad = slope * p.clone()
        opt.step()
    return p.sum()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func_go_through_a_training_loop():
    """torch's grad over it, too; a batched lr no constructor takes, as it compares it with 0."""
    lr, p0, slope = torch.tensor(0.1), torch.linspace(1, 2, 6).view(2, 3), torch.ones(3)
    loop = lambda lr, p0: training_loop(adamlib, lr, p0, slope)
    theirs = torch.func.grad(lambda lr: training_loop(torch.optim, lr, p0[0], slope))(lr)
    torch.testing.assert_close(torch.func.grad(loop)(lr, p0[0]), theirs, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.func.jvp(lambda lr: loop(lr, p0[0]), (lr,), (torch.tensor(1.0),))[1], theirs, rtol=1e-4, atol=0)
    assert torch.func.hessian(loop)(lr, p0[0]).isfinite()
    torch.testing.assert_close(torch.vmap(loop, (None, 0))(lr, p0), torch.stack([loop(lr, p) for p in p0]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_goes_through_the_function_with_a_batched_lr():
    def step(lr, p0):
        p = p0.clone()
        lists = [p], [p.clone()], [torch.zeros_like(p)], [torch.zeros_like(p)], [], [torch.tensor(0.0)]
        adamlib.adam(*lists, differentiable=True, **SETTINGS | dict(lr=lr, eps=1.0))
        return p.sum()

    lrs, starts = torch.tensor([0.1, 0.2]), torch.linspace(1, 2, 6).view(2, 3)
    torch.testing.assert_close(torch.vmap(step)(lrs, starts), torch.stack([*map(step, lrs, starts)]))
    slopes = torch.stack([torch.func.grad(step)(lr, p) for lr, p in zip(lrs, starts)])
    torch.testing.assert_close(torch.vmap(torch.func.grad(step))(lrs, starts), slopes)


def test_importing_adamlib_does_not_import_the_compiler():
    """It takes as long as importing torch; torch itself imports it with the first optimizer."""
    code = "import sys, torch; before = set(sys.modules); import adamlib; print(*set(sys.modules) - before)"
    process = python(code)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and output.split(), output
    assert not [name for name in output.split() if not name.startswith("adamlib")], output


def test_the_memory_tracker_of_torch_runs():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        model = small_model()
        opt, tracker = adamlib.Adam(model.parameters()), MemTracker()
        tracker.track_external(model, opt)
        with tracker:
            train(model, opt, [0])


# --- compiling


class Counted:
    """A compile backend that counts graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sines(params, t):
    for i, p in enumerate(params):
        p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + t + i).view_as(p)


def run_compiled(opt, params, turns, **compiler):
    """Step once per letter of `turns`: c with the compiled step, e with the eager one."""
    compiled = torch.compile(opt.step, **compiler)
    for t, turn in enumerate(turns):
        sines(params, t)
        compiled() if turn == "c" else opt.step()
    assert counts(opt) == [float(len(turns))] * len(params)
    return params


def assert_close(runs):
    for params in runs[1:]:
        for p, q in zip(runs[0], params):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "capturable_single", "capturable_foreach"])
@each_class
@pytest.mark.filterwarnings("ignore")
def test_step_compiles_to_one_graph_without_a_break(variant, name, fresh_dynamo):
    backend, runs = Counted(), []
    for turns in ("eeee", "cccc"):
        params, lr = weights(2), 0.01 if "foreach" in FLAGS[variant] else torch.tensor(0.01)
        opt = getattr(adamlib, name)(params, lr=lr, **FLAGS[variant])
        runs.append(run_compiled(opt, params, turns, fullgraph=True, backend=backend))
    assert backend.graphs == 1
    assert_close(runs)


def fused_steps(backend, amsgrad=False, library=adamlib):
    """Parameters after three fused steps, compiled by a backend if one is given."""
    params = weights(2)
    opt = library.Adam(params, lr=0.01, fused=True, amsgrad=amsgrad)
    step = torch.compile(opt.step, backend=backend) if backend else opt.step
    for t in range(3):
        for p in params:
            p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype) + t).view_as(p)
        step()
    return params


@pytest.mark.parametrize("library", [torch.optim, adamlib])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_fused_stays_out_of_the_graph(amsgrad, library, fresh_dynamo):
    """A backend that makes the graph functional, as inductor does, cannot take torch's fused op without amsgrad."""
    backend = Counted()
    for compiler in (backend, "aot_eager"):
        torch._dynamo.reset()
        compiled = fused_steps(compiler, amsgrad, library)
        assert all(map(torch.equal, compiled, fused_steps(None, amsgrad)))
    assert backend.graphs == 0


@pytest.mark.filterwarnings("ignore")
def test_compiled_fused_refuses_misfits_and_leaves_the_state(fresh_dynamo):
    p, q = (torch.nn.Parameter(torch.ones(2, 4)) for _ in range(2))
    opt = adamlib.Adam([dict(params=[p]), dict(params=[q])], fused=True)
    step = torch.compile(opt.step, backend="aot_eager")
    p.grad, q.grad = torch.ones(2, 4), torch.ones(4, 2).t()
    with pytest.raises(RuntimeError, match="the gradient has strides"):
        step()
    assert not opt.state and torch.equal(p, torch.ones(2, 4))
    q.grad = torch.ones(2, 4)
    step()
    q.grad = torch.ones(4, 2).t()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="the gradient has strides"):
        step()
    assert torch.equal(p, before) and float(opt.state[p]["step"]) == 1


@pytest.mark.filterwarnings("ignore")
def test_compiled_groups_of_which_one_is_fused(fresh_dynamo):
    results = []
    for compiled in (False, True):
        params = weights(2)
        opt = adamlib.Adam([dict(params=params[:1], fused=True), dict(params=params[1:], foreach=True)], lr=0.01)
        step = torch.compile(opt.step, backend="aot_eager") if compiled else opt.step
        for t in range(3):
            for p in params:
                p.grad = torch.full_like(p, float(t))
            loss = step(lambda: torch.tensor(float(t)))
            assert loss == t
        results.append(params)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_autograd_goes_through_a_compiled_differentiable_step(groups, fresh_dynamo):
    results = []
    for compiled in (False, True):
        leaves, lr = weights(2), torch.tensor(0.01, requires_grad=True)
        params = [p.clone() for p in leaves]
        parts = [params] if groups == 1 else [params[:1], params[1:]]
        opt = adamlib.Adam([dict(params=part) for part in parts], lr=lr, differentiable=True)
        step = torch.compile(opt.step, backend="aot_eager") if compiled else opt.step
        for _ in range(3):
            for p in params:
                p.grad = p.clone().sin()
            step()
        total = sum(p.square().sum() for p in params)
        results.append((total, *torch.autograd.grad(total, (*leaves, lr))))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "fused", "differentiable"])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_made_inside_a_compiled_function(name, variant, fresh_dynamo):
    results = []
    for compiled in (False, True):
        params = weights(2)
        for p in params:
            p.grad = torch.ones_like(p)
        if variant == "differentiable":
            grads = [p.grad for p in params]
            params = [p.detach() for p in params]
            for p, g in zip(params, grads):
                p.grad = g

        def inner():
            opt = getattr(adamlib, name)(params, lr=0.1, **ALL_FLAGS[variant])
            opt.step()
            return opt

        opt = (torch.compile(inner, backend="eager") if compiled else inner)()
        opt.step()
        assert all(float(entry["step"]) == 2.0 for entry in opt.state.values())
        results.append(params)
    for p, q in zip(*results):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_compiled_fused_function(fresh_dynamo):
    """adamlib.adam inside somebody's own compiled function."""
    results = []
    for compiled in (False, True):
        p, g, m, v = torch.ones(8), torch.arange(8.0), torch.zeros(8), torch.zeros(8)
        count = torch.zeros(())

        def update():
            adamlib.adam([p], [g * 2], [m], [v], [], [count], fused=True, **SETTINGS)

        (torch.compile(update, backend="aot_eager") if compiled else update)()
        results.append((p, m, v, count))
    assert all(map(torch.equal, *results)) and float(count) == 1


@pytest.mark.filterwarnings("ignore")
def test_step_keeps_two_wrappers_for_those_who_unwrap_it():
    assert inspect.unwrap(adamlib.Adam.step) is not adamlib.Adam.step
    adamlib.Adam(weights())  # the first instance adds the hook wrapper
    assert callable(adamlib.Adam.step.__wrapped__)


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_learning_rate_does_not_recompile(fresh_dynamo):
    backend, params = Counted(), weights(1)
    opt = adamlib.Adam(params, lr=torch.tensor(0.01))
    step = torch.compile(opt.step, fullgraph=True, backend=backend)
    scheduler = lr_scheduler.ExponentialLR(
        opt, 0.9
    )  # wraps opt.step in a function that dynamo skips, torch's too
    for _ in range(6):
        params[0].grad = torch.ones_like(params[0])
        step()
        scheduler.step()
    assert backend.graphs == 1


@pytest.mark.filterwarnings("ignore")
def test_a_cycled_beta1_recompiles_once_and_not_at_every_step(fresh_dynamo):
    graphs = {}
    for cls in (torch.optim.Adam, adamlib.Adam):
        torch._dynamo.reset()
        backend, params = Counted(), weights(1)
        opt = cls(params, lr=torch.tensor(0.01))
        step = torch.compile(opt.step, backend=backend)
        scheduler = lr_scheduler.OneCycleLR(opt, 0.1, total_steps=20)  # moves β₁, a float
        for _ in range(6):
            params[0].grad = torch.ones_like(params[0])
            step()
            scheduler.step()
        graphs[cls] = backend.graphs
    assert graphs == {torch.optim.Adam: 2, adamlib.Adam: 2}


@pytest.mark.parametrize("variant", ["single_tensor", "foreach"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_and_eager_steps_may_take_turns(variant, fresh_dynamo):
    runs = []
    for turns in ("eeeeee", "eeccee", "cceecc"):
        params = weights(3)
        opt = adamlib.Adam(params, lr=0.01, amsgrad=True, **FLAGS[variant])
        runs.append(run_compiled(opt, params, turns, fullgraph=True, backend="aot_eager"))
    assert_close(runs)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor_compiles_a_whole_training_step(fresh_dynamo, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runs = []
    for turns in ("eee", "ccc"):
        params = weights(2)
        runs.append(run_compiled(adamlib.Adam(params, lr=torch.tensor(0.01)), params, turns, fullgraph=True))
    assert_close(runs)


# --- torch's own tables, and sharding


def python(script, *args, **env):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *args],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


OPTIM_DB = """
    import copy, sys, types, unittest, warnings
    import torch

    # optim_db sits among PyTorch's test helpers, which import expecttest for a base class.
    try:
        import expecttest
    except ModuleNotFoundError:
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db
    import adamlib

    checked = 0
    for name in ("Adam", "AdamW"):
        ours, theirs = getattr(adamlib, name), getattr(torch.optim, name)
        info = next(i for i in optim_db if i.optim_cls is theirs)
        for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            given = case.optimizer_error_input
            params = given.params if given.params is not None else [torch.ones(1, requires_grad=True)]
            test = unittest.TestCase()
            if case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
                warns = issubclass(case.error_type, Warning)
                expect = test.assertWarnsRegex if warns else test.assertRaisesRegex
                with expect(case.error_type, case.error_regex):
                    ours(copy.deepcopy(params), **given.kwargs)
            else:
                opt = ours(params, **given.kwargs)
                with test.assertRaisesRegex(case.error_type, case.error_regex):
                    opt.step()
            checked += 1
        for case in info.optim_inputs_func(device="cpu", dtype=torch.float32):
            for schedulers in ((), *info.scheduler_inputs):
                results = []
                for cls in (ours, theirs):
                    p = torch.linspace(-1, 1, 10).requires_grad_()
                    opt = cls([p], **copy.deepcopy(case.kwargs))
                    chain = [make(opt) for make in schedulers]
                    for t in range(10):
                        p.grad = torch.sin(torch.arange(10.0) + t)
                        opt.step()
                        for s in chain:
                            s.step(*[1.0] * isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau))
                    results.append(p.detach())
                assert torch.equal(*results), (name, case.kwargs, schedulers)
                checked += 1
    print("checked", checked)
"""


def test_torchs_own_table_of_inputs_and_error_inputs():
    process = python(OPTIM_DB)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert int(output.split("checked")[-1]) >= 70


SHARDED = """
    import os
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    import adamlib

    rank, file = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))  # shards: 3 and 2 rows, 1 and 0

    def train(net, opt, steps):
        for t in steps:
            opt.zero_grad()
            net(torch.sin(torch.arange(8.0).reshape(2, 4) + t)).square().mean().backward()
            opt.step()

    def full(net):
        return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]

    for flags in (dict(), dict(foreach=True), dict(fused=True)):
        runs = []
        for cls in (adamlib.Adam, torch.optim.Adam):
            net = model()
            fully_shard(net, mesh=mesh)
            opt = cls(net.parameters(), lr=0.05, amsgrad=True, weight_decay=0.1, **flags)
            train(net, opt, range(4))
            fresh = cls(net.parameters(), lr=0.05, amsgrad=True, weight_decay=0.1, **flags)
            set_optimizer_state_dict(net, fresh, get_optimizer_state_dict(net, opt))
            train(net, fresh, range(4, 7))
            runs.append([p.detach() for p in full(net)])
        assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True)), ("fully_shard", flags)

    options = dict(lr=0.05, weight_decay=0.1)
    for wrap in ("ddp", "zero"):
        runs = []
        for cls in (adamlib.Adam, torch.optim.Adam):
            net = nn.parallel.DistributedDataParallel(model())
            if wrap == "zero":
                opt = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=cls, **options)
            else:
                opt = cls(net.parameters(), **options)
            train(net, opt, range(5))
            runs.append([p.detach() for p in net.parameters()])
        assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True)), wrap
    dist.barrier()
    dist.destroy_process_group()
    print("sharded ok", flush=True)
    os._exit(0)  # torch 2.11 now and then aborts in a gloo thread while the interpreter shuts down
"""


def test_two_processes_with_FSDP2_DDP_and_ZeRO_give_torchs_bits(tmp_path):
    processes = [python(SHARDED, str(rank), str(tmp_path / "rendezvous")) for rank in (0, 1)]
    try:
        outputs = [p.communicate(timeout=150)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert all(p.returncode == 0 and "sharded ok" in out for p, out in zip(processes, outputs)), "\n".join(
        outputs
    )
