"""state_dict and load_state_dict: to torch and back, from older versions, and what is refused when it is loaded."""

import copy
import io

import numpy
import pytest
import torch
from parameter_zoo import (
    ALL_FLAGS, FLAGS, Raises, as_in_torch, awkward_parameters, comparable, counts, each_class, each_of_torchs,
    each_variant, refused, set_gradients, train, trained, unlike_torch, weights,
)

import adamlib


def stored(state_dict, weights_only=True):
    """A state_dict that has been on the disk."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def loaded(library, entry, **options):
    """Parameters, and an optimizer that has loaded an entry of its state, made by `entry(p)`, for each."""
    params = weights()
    opt = library.Adam(params, **options)
    state = {i: entry(p) for i, p in enumerate(params)}
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return params, opt


# --- to torch and back

@each_class
@each_of_torchs
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("way", ["to torch", "from torch", "to adamlib"])
def test_checkpoints_go_both_ways(name, variant, amsgrad, way):
    source, target = (torch.optim if way == where else adamlib for where in ("from torch", "to torch"))
    options = dict(lr=0.01, weight_decay=0.1, amsgrad=amsgrad, **FLAGS[variant])
    p, q = (awkward_parameters(torch.float32, fused=variant == "fused") for _ in range(2))
    a, b = getattr(source, name)(p.values(), **options), getattr(target, name)(q.values(), **options)
    for step in range(1, 10):
        if step == 6:
            for old, new in zip(p.values(), q.values()):
                new.data.copy_(old.data)
            b.load_state_dict(stored(a.state_dict(), weights_only=amsgrad))
            assert comparable(a) == comparable(b)
        for params, opt in ((p, a), (q, b))[: 1 + (step >= 6)]:
            set_gradients(params, step)
            opt.step()
    assert comparable(a) == comparable(b)


@pytest.mark.parametrize("of", ALL_FLAGS)
@pytest.mark.parametrize("built", ALL_FLAGS)
@as_in_torch
def test_a_checkpoint_brings_its_flags_and_can_be_gone_on_with(library, of, built):
    params = [p.detach() if of == "differentiable" else p for p in weights()]
    source = adamlib.Adam(params, decoupled_weight_decay=True, **ALL_FLAGS[of])
    train(source, params, 1)
    params = [p.detach() for p in weights()]
    opt = library.Adam(params, lr=0.5, **ALL_FLAGS[built])
    opt.load_state_dict(source.state_dict())
    if library is adamlib:
        train(opt, params, 1)
        assert counts(opt) == [2.0, 2.0] and opt._step_supports_amp_scaling == (of == "fused")
    return opt.defaults["lr"], {key: value for key, value in opt.param_groups[0].items() if key != "params"}


@each_variant
@unlike_torch(theirs=True, ours=False)
def test_loading_shares_memory_with_its_source_in_torch(library, variant):
    """There two optimizers that load one checkpoint write into each other's moments."""
    source = trained(amsgrad=True, **FLAGS[variant])[1].state_dict()
    params, opt = trained(library.Adam, 0, amsgrad=True, **FLAGS[variant])
    opt.load_state_dict(source)
    theirs, ours = (
        {value.data_ptr() for entry in entries.values() for value in entry.values()}
        for entries in (source["state"], opt.state)
    )
    return bool(theirs & ours)


@as_in_torch
def test_state_of_something_else_and_what_a_subclass_keeps_in_an_entry_is_carried_along(library):
    params, opt = trained(library.Adam)
    opt.state[params[0]].update({"row_exp_avg_sq": torch.ones(1), "slow_exp_avg": None, 7: "seven"})
    checkpoint = opt.state_dict()
    checkpoint["state"]["ema"] = {"decay": 0.9}
    opt = library.Adam(params)
    opt.load_state_dict(checkpoint)
    return opt.state["ema"], opt.state[params[0]]


# --- amsgrad switched on later

@each_of_torchs
@pytest.mark.parametrize("how", ["in a group", "in a checkpoint"])
@unlike_torch(theirs=Raises(KeyError, "max_exp_avg_sq"), ours=[0.0, 0.0])
def test_amsgrad_can_be_switched_on_after_the_state_exists(library, variant, how):
    params, opt = trained(library.Adam, **FLAGS[variant])
    if how == "in a checkpoint":
        checkpoint = opt.state_dict()
        checkpoint["param_groups"][0]["amsgrad"] = True
        opt.load_state_dict(checkpoint)
    opt.param_groups[0]["amsgrad"] = True
    opt.step()
    torch.optim.Adam(weights()).load_state_dict(stored(opt.state_dict()))  # it goes back to torch
    return [float((opt.state[p]["max_exp_avg_sq"] - opt.state[p]["exp_avg_sq"]).abs().max()) for p in params]


# --- from older versions, and by way of schedules

OLDER = {
    "an int, as in torch 1.11": lambda p: dict(step=3, exp_avg=p.detach() / 2, exp_avg_sq=torch.ones_like(p)),
    "a NumPy integer": lambda p: dict(step=numpy.int64(3), exp_avg=p.detach() / 2, exp_avg_sq=torch.ones_like(p)),
    "a float": lambda p: dict(step=3.0, exp_avg=p.detach() / 2, exp_avg_sq=torch.ones_like(p)),
    "one dimension, as in torch 2.0": lambda p: dict(OLDER["a float"](p), step=torch.tensor([3.0])),
    "float64": lambda p: dict(OLDER["a float"](p), step=torch.tensor(3.0, dtype=torch.float64)),
    "other dtypes": lambda p: dict(step=3, exp_avg=p.detach().double(), exp_avg_sq=torch.ones_like(p).half()),
}


@each_of_torchs
@pytest.mark.parametrize("what", OLDER)
@as_in_torch
def test_states_of_older_checkpoints_are_converted_and_go_on(library, variant, what):
    params, opt = loaded(library, OLDER[what], **FLAGS[variant])
    train(opt, params, 3)
    assert counts(opt) == [6.0, 6.0]
    return params, [entry["exp_avg"] for entry in opt.state.values()]


LATE = torch.tensor(256.0, dtype=torch.bfloat16), torch.tensor(2048.0, dtype=torch.float16)  # here counting by 1 stops


@each_variant
@pytest.mark.parametrize("step", [3, 3.0, *LATE], ids=str)
@pytest.mark.parametrize("how", ["loaded", "set"])
def test_counts_as_numbers_and_short_ones_go_on(variant, step, how):
    """torch's for-loop goes on with a count that no longer grows; its foreach raises for float16."""
    entry = lambda p: dict(step=step, exp_avg=torch.ones_like(p), exp_avg_sq=torch.ones_like(p))
    params, opt = loaded(adamlib, entry, **FLAGS[variant])
    if how == "set":
        opt.state[params[0]]["step"] = step
    train(opt, params, 3)
    assert counts(opt) == [float(step) + 3] * 2


@pytest.mark.parametrize("how", ["a checkpoint", "a pickle"])
@each_class
@as_in_torch
def test_what_torch_1_saved_lacks_options_and_goes_on(library, name, how):
    """A pickled optimizer comes back through __setstate__."""
    params, cls = weights(), getattr(library, name)
    opt = cls(params)
    group = dict(params=params, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    state = {p: dict(step=5, exp_avg=p.detach() / 2, exp_avg_sq=torch.ones_like(p)) for p in params}
    if how == "a pickle":
        defaults, opt = opt.defaults, cls.__new__(cls)
        opt.__setstate__(dict(defaults=defaults, state=state, param_groups=[group]))
    else:
        opt.load_state_dict(dict(state=dict(enumerate(state.values())), param_groups=[group | dict(params=[0, 1])]))
    train(opt, params, 5)
    assert opt.param_groups[0]["decoupled_weight_decay"] == (name == "AdamW"), "AdamW forces it"
    return opt


MIXED = [(0, 0.99), [0.9, 0.99], (0.85, torch.tensor(0.99)), (torch.tensor(0.85), torch.tensor(0.99))]


@pytest.mark.parametrize("betas", MIXED, ids=str)
@as_in_torch
def test_betas_that_older_versions_or_a_one_cycle_schedule_leave_load_and_run(library, betas):
    """OneCycleLR replaces a tensor β₁ by a float; a checkpoint or copy made then must still be taken."""
    params, opt = trained(library.Adam)
    checkpoint = opt.state_dict()
    checkpoint["param_groups"][0]["betas"] = betas
    opt.load_state_dict(checkpoint)
    train(opt, params, 3)
    params, opt = copy.deepcopy((params, opt))
    train(opt, params, 3)
    return params


# --- what is refused

def entry(**changes):
    return lambda checkpoint: checkpoint["state"][1].update(changes)


def group(**changes):
    return lambda checkpoint: checkpoint["param_groups"][0].update(changes)


KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of a parameter of shape (4,)
DAMAGES = {  # what was done to a checkpoint: how, and words of the error
    **{f"{key} {s}": (entry(**{key: torch.ones(s)}), f"{key} has shape {s}")
       for key in KEYS for s in [(), (1,), (1, 4), (0,)]},
    **{f"{key} is {value}": (entry(**{key: value}), key) for key in (*KEYS, "step") for value in (None, [1.0, 2.0])},
    **{f"no {key}": (lambda checkpoint, key=key: checkpoint["state"][1].pop(key), key)
       for key in ("step", "exp_avg", "exp_avg_sq")},
    **{f"no {option}": (lambda checkpoint, option=option: checkpoint["param_groups"][0].pop(option), option)
       for option in ("lr", "betas", "eps", "weight_decay")},
    "no state": (lambda checkpoint: checkpoint.pop("state"), "state"),
    "an entry is no dict": (lambda checkpoint: checkpoint["state"].update({1: 3}), "not a dict"),
    "another optimizer's": (lambda checkpoint: checkpoint["state"].update({1: {"momentum_buffer": 0}}), "has no"),
    "a count of four": (entry(step=torch.ones(4)), "step must be one number"),
    "a count below 0": (entry(step=-1), "step must be one number, 0 or more"),
    "another parameter": (group(params=[0, 1, 2]), "doesn't match the size of optimizer's group"),
    "betas 1.5": (group(betas=(0.9, 1.5)), "Invalid beta parameter at index 1: 1.5"),
    "betas None": (group(betas=None), "NoneType"),
    "fused and foreach": (group(fused=True, foreach=True), "`fused` and `foreach`"),
}


@pytest.mark.parametrize("variant", ["single_tensor", "fused"])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(variant, what):
    damage, words = DAMAGES[what]
    _, source = trained(amsgrad=True, **FLAGS[variant])
    checkpoint = copy.deepcopy(source.state_dict())
    damage(checkpoint)
    _, opt = trained(amsgrad=True, **FLAGS[variant])
    with refused(opt, words):
        opt.load_state_dict(checkpoint)


@pytest.mark.parametrize("shape", [(2,), (1,)])
@unlike_torch(theirs="loaded", ours=Raises(ValueError, "max_exp_avg_sq has shape"))
def test_torch_loads_moments_of_a_wrong_shape(library, shape):
    """It fails later, far from the cause, or a moment of shape (1,) broadcasts and nobody notices."""
    _, opt = trained(library.Adam, amsgrad=True)
    checkpoint = opt.state_dict()
    checkpoint["state"][1]["max_exp_avg_sq"] = torch.ones(shape)
    opt.load_state_dict(checkpoint)
    return "loaded"
