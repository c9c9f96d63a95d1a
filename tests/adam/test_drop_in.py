"""adamlib.Adam in the place of torch.optim.Adam: constructor, base class, dispatch, state, schedulers, mixed precision,
copies, users who reach inside, sharding. Checkpoints and torch.compile have files of their own."""

import contextlib
import copy
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import weakref
from collections import defaultdict

import pytest
import torch
from parameter_zoo import (
    ALL_FLAGS, FLAGS, as_in_torch, comparable, counts, each_class, each_of_torchs, each_variant, give_gradients,
    operations, refused, same_bits, train, trained, weights,
)
from torch.optim import lr_scheduler, swa_utils

import adamlib


# --- constructor

def signature(function):
    return [(p.name, str(p.kind), p.default) for p in inspect.signature(function).parameters.values()]


@each_class
@as_in_torch
def test_classes_and_function_have_torchs_signatures(library, name):
    assert issubclass(library.Adam, torch.optim.Optimizer) and issubclass(library.AdamW, library.Adam)
    return signature(getattr(library, name).__init__), signature(library.adam)


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
    return repr(opt), opt.defaults, opt, getattr(opt, "_step_supports_amp_scaling", False)


def retaining(p):
    p.retain_grad()
    return p


PARAMS = {
    "a tensor": lambda: torch.ones(3, requires_grad=True),
    "nothing": lambda: [],
    "an empty group": lambda: [dict(params=[]), dict(params=weights())],
    "a generator": lambda: (p for p in weights()),
    "a number": lambda: [1],
    "no leaf": lambda: [weights()[0] * 2],
    "no leaf, but with a gradient": lambda: [retaining(weights()[0] * 2)],
    "a parameter in two groups": lambda: [dict(params=p) for p in weights(1) * 2],
    "names": lambda: [("a", weights()[0]), ("b", weights()[1])],
    "names for some": lambda: [("a", weights()[0]), weights()[1]],
    "names in one group": lambda: [dict(params=[("a", weights()[0])]), dict(params=[weights()[0]])],
}


@pytest.mark.parametrize("what", PARAMS)
@as_in_torch
def test_parameters_are_taken_and_stepped_or_refused_as_in_torch(library, what):
    opt = library.Adam(PARAMS[what]())
    train(opt, [p for group in opt.param_groups for p in group["params"]], 2)
    return opt


# --- base class

@as_in_torch
def test_a_group_added_in_the_middle_of_training_is_the_dict_that_was_given(library):
    params, opt = trained(library.Adam, lr=0.1)
    group = dict(params=weights(3), betas=[0.5, 0.9], amsgrad=True, name="encoder", initial_lr=0.5)
    opt.add_param_group(group)
    assert opt.param_groups[1] is group
    train(opt, params + group["params"], 6)
    return opt


@each_variant
def test_a_group_of_an_empty_tensor_is_stepped_and_one_without_tensors_passed_by(variant):
    params = [torch.zeros(3, 0, requires_grad=True)]
    opt = adamlib.Adam([dict(params=params), dict(params=[])], **FLAGS[variant])
    train(opt, params, 2)
    assert counts(opt) == [2.0]


@pytest.mark.parametrize("variant", ["foreach", "fused"])
@as_in_torch
def test_duplicates_within_a_group_step_as_in_torch(library, variant):
    """The for-loop counts both entries before it steps, as foreach does; torch's in between. It is to be an error."""
    p = weights(1)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = library.Adam(p * 2, **FLAGS[variant])
    train(opt, p, 1)
    assert counts(opt) == [2.0]
    return p


@each_variant
def test_a_closure_runs_once_with_gradients_and_its_value_is_returned(variant):
    p = torch.ones(2, requires_grad=True)
    opt, calls = adamlib.Adam([p], **FLAGS[variant]), []

    def closure():
        loss = (p * p).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        assert float(opt.step(closure).detach()) == 2.0 and calls == [True] and bool((p < 1).all())
        assert opt.step() is None and not torch.is_grad_enabled()
    with refused(opt, "division by zero", ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    assert torch.is_grad_enabled()


HOOKS = "step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"


@as_in_torch
def test_hooks_run_once_and_in_order(library):
    params, log = weights(), []
    opt = library.Adam(params)
    for what in HOOKS:
        getattr(opt, f"register_{what}_hook")(lambda *_, what=what: log.append((what, params[0].tolist())))
    train(opt, params, 1)
    opt.load_state_dict(opt.state_dict())
    assert [what for what, _ in log] == [*HOOKS] and log[0][1] != log[1][1]
    return log


def test_step_keeps_two_wrappers_for_those_who_unwrap_it():
    adamlib.Adam(weights())  # the first instance adds the hook wrapper
    assert callable(adamlib.Adam.step.__wrapped__) and inspect.unwrap(adamlib.Adam.step) is not adamlib.Adam.step


# --- dispatch and state

@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)], ids=["float", "tensor"])
@as_in_torch
def test_the_flags_choose_the_variant_that_torch_would_choose(library, foreach, fused, lr):
    params = weights()
    opt = library.Adam(params, lr=lr, foreach=foreach, fused=fused)
    give_gradients(params)
    seen = operations(opt.step)  # on a CPU foreach calls the for-loop's operations inside
    kernel = next(name for name in ("aten::_fused_adam_", "aten::_foreach_lerp_", "aten::lerp_") if name in seen)
    assert kernel == ("aten::_fused_adam_" if fused else "aten::_foreach_lerp_" if foreach else "aten::lerp_")
    return kernel


# --- learning rates

SCHEDULERS = {  # and what they want besides the optimizer
    lr_scheduler.LambdaLR: dict(lr_lambda=lambda t: 0.9**t),
    lr_scheduler.PolynomialLR: dict(total_iters=6),
    lr_scheduler.CosineAnnealingWarmRestarts: dict(T_0=3),
    lr_scheduler.OneCycleLR: dict(max_lr=0.1, total_steps=20),
    lr_scheduler.CyclicLR: dict(base_lr=0.01, max_lr=0.1, step_size_up=3),
    lr_scheduler.ReduceLROnPlateau: dict(patience=0),
    swa_utils.SWALR: dict(swa_lr=0.05, anneal_epochs=4),
}
NUMBERS, TENSORS = dict(lr=0.01), dict(lr=torch.tensor(0.01), betas=(torch.tensor(0.9), torch.tensor(0.999)))


@pytest.mark.parametrize("options", [NUMBERS, TENSORS, TENSORS | {"fused": True}], ids=["numbers", "tensors", "fused"])
@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.filterwarnings("ignore")
@as_in_torch
def test_schedulers_of_torch_drive_adam(library, schedule, options):
    """One of every way to set lr. OneCycleLR and CyclicLR leave a float β₁ beside a tensor β₂."""
    params, options, lrs = weights(), copy.deepcopy(options), []
    opt = library.Adam(params, **options)
    scheduler = schedule(opt, **SCHEDULERS[schedule])
    for step in range(10):
        train(opt, params, [step])
        lrs.append(float(opt.param_groups[0]["lr"]))
        scheduler.step(*[1.0] * (schedule is lr_scheduler.ReduceLROnPlateau))
    if "betas" in options:
        assert opt.param_groups[0]["lr"] is options["lr"], "the scheduler must find the tensor it fills in place"
    assert len({*lrs}) > 1, "a schedule that changes nothing tests nothing"
    return opt


# --- mixed precision

@pytest.mark.parametrize("unscale_first", [False, True])
@each_of_torchs
@as_in_torch
def test_GradScaler_skips_infinite_gradients(library, variant, unscale_first):
    params, scaler = weights(), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    opt = library.Adam(params, lr=0.01, **FLAGS[variant])
    for step in range(10):
        opt.zero_grad()
        scaler.scale(sum(p.square().sum() for p in params)).backward()
        if step in (0, 4):
            params[0].grad[0] = float("inf")
        if unscale_first:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(params, 10.0)
        before = [p.detach().clone() for p in params]
        scaler.step(opt)
        scaler.update()
        assert step not in (0, 4) or all(map(same_bits, params, before))
        assert not hasattr(opt, "found_inf") and not hasattr(opt, "grad_scale")
    assert counts(opt) == [8.0, 8.0]
    return opt, scaler.get_scale()


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


# --- copies

@pytest.mark.parametrize("make", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"])
@each_variant
def test_copies_go_on_like_the_original_in_memory_of_their_own(variant, make):
    params, opt = trained(steps=3, amsgrad=True, **FLAGS[variant])
    twins, twin = make((params, opt))
    assert type(twin) is adamlib.Adam and list(twin.state)[0] is twins[0] is twin.param_groups[0]["params"][0]
    assert {*vars(opt)} - {*vars(twin)} <= {key for key in vars(opt) if key.startswith("_")}
    train(opt, params, range(3, 6))
    assert comparable(opt) != comparable(twin)
    train(twin, twins, range(3, 6))
    assert comparable(opt) == comparable(twin)
    ours, twins = ([value for entry in o.state.values() for value in entry.values()] for o in (opt, twin))
    assert not {value.data_ptr() for value in ours} & {value.data_ptr() for value in twins}
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in ours + twins), "a whole buffer for a piece"


MODES = {
    "inference": torch.inference_mode, "default device meta": lambda: torch.device("meta"),
    "default device cuda": lambda: torch.device("cuda:9"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [False, True])
@each_variant
def test_the_mode_around_a_step_changes_nothing(variant, first, mode):
    """A state that was made in inference mode can be stepped outside; a default device moves nothing."""
    results = []
    for around in (contextlib.nullcontext, MODES[mode]):
        params = weights()
        give_gradients(params)
        with around():
            opt = adamlib.Adam(params, amsgrad=True, **FLAGS[variant])
        if not first:
            opt.step()
            opt.load_state_dict(opt.state_dict())
        with around():
            opt.step()
        opt.step()
        assert counts(opt) == [3.0 - first] * 2
        results.append(comparable(opt))
    assert results[0] == results[1]


# --- for those who reach inside

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


@pytest.mark.parametrize("mixin", [Clamping, MadeByTheBase])
@each_of_torchs
@as_in_torch
def test_subclasses(library, mixin, variant):
    params = weights()
    opt = type(mixin.__name__, (mixin, library.Adam), {})(params)
    opt.param_groups[0].update(FLAGS[variant], eps=1.0)
    train(opt, params, 3)
    return opt


@each_of_torchs
@as_in_torch
def test_setstate_with_a_part_of_the_state(library, variant):
    params, opt = trained(library.Adam, **FLAGS[variant])
    opt.__setstate__({"state": defaultdict(dict)})
    assert len(opt.state) == 0
    train(opt, params, 1)
    assert counts(opt) == [1.0, 1.0]
    opt.__setstate__({"param_groups": [dict(opt.param_groups[0], lr=0.5)]})
    train(opt, params, 1)
    return opt


LETTING_GO = {
    "popped": lambda opt, p: opt.state.pop(p),
    "exchanged": lambda opt, p: setattr(opt, "state", defaultdict(dict)),
    "cleared with its groups": lambda opt, p: (opt.state.clear(), opt.param_groups.clear()),
    "a moment exchanged": lambda opt, p: opt.state[p].update(exp_avg=torch.zeros(8)),
}


@pytest.mark.parametrize("variant", ALL_FLAGS)
@pytest.mark.parametrize("how", LETTING_GO)
def test_memory_is_free_when_it_is_let_go(variant, how):
    p = torch.ones(8, requires_grad=variant != "differentiable")
    opt = adamlib.Adam([p], amsgrad=True, **ALL_FLAGS[variant])
    train(opt, [p], 2)
    moment, grad, param = weakref.ref(opt.state[p]["exp_avg"]), weakref.ref(p.grad), weakref.ref(p)
    opt.zero_grad()
    LETTING_GO[how](opt, p)
    del p
    assert moment() is None and grad() is None and (param() is None) == (not opt.param_groups)


# --- in processes of their own

SHARDED = """
    import os, sys, torch
    before = {*sys.modules}
    import adamlib
    imported = {*sys.modules} - before
    assert imported and all(name.startswith("adamlib") for name in imported), imported  # not the compiler, above all
    from torch import distributed, nn
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    rank, file = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = distributed.init_device_mesh("cpu", (2,))

    def train(cls, flags):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))  # shards: 3 and 2 rows, 1 and 0
        fully_shard(net, mesh=mesh)
        make = lambda: cls(net.parameters(), lr=0.05, amsgrad=True, weight_decay=0.1, **flags)
        opt = make()
        for t in range(7):
            if t == 4:
                saved, opt = get_optimizer_state_dict(net, opt), make()
                set_optimizer_state_dict(net, opt, saved)
            opt.zero_grad()
            net(torch.sin(torch.arange(8.0).reshape(2, 4) + t)).square().mean().backward()
            opt.step()
        return [p.full_tensor() for p in net.parameters()]

    for flags in {}, dict(foreach=True), dict(fused=True):
        assert all(map(torch.equal, train(adamlib.Adam, flags), train(torch.optim.Adam, flags))), flags
    sharded = [*fully_shard(nn.Linear(4, 5), mesh=mesh).parameters()]
    adamlib.functional.FOREACH_BY_DEFAULT = ("cpu",)  # as on an accelerator, where torch counts a DTensor as plain
    assert adamlib.functional.choose_variant(sharded, None, False, False, None, 0.1).__name__ == "adam_foreach"
    distributed.barrier()
    distributed.destroy_process_group()
    print("sharded ok", flush=True)
    os._exit(0)  # torch 2.11 now and then aborts in a gloo thread while the interpreter shuts down
"""


def test_two_processes_with_FSDP2_give_torchs_bits_and_foreach_and_importing_adamlib_imports_nothing_else(tmp_path):
    """Where a process may hold nothing of a tensor. DDP and ZeRO: appendix E, whose outputs are compared."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SHARDED)]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
               env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    processes = [subprocess.Popen([*command, rank, str(tmp_path / "rendezvous")], **how) for rank in "01"]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0 and "sharded ok" in output, "\n".join(outputs)
