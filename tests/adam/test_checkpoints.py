"""state_dict and load_state_dict: to torch and back, from older versions, and what is refused when it is loaded."""

import copy
import io

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


def saved(cls=adamlib.Adam, **options):
    return copy.deepcopy(trained(cls, **options)[1].state_dict())


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
@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_go_both_ways(name, variant, amsgrad, weights_only):
    ours, theirs = getattr(adamlib, name), getattr(torch.optim, name)
    options = dict(lr=0.01, weight_decay=0.1, amsgrad=amsgrad, **FLAGS[variant])

    def go_on(params, opt, steps):
        for step in steps:
            set_gradients(params, step)
            opt.step()

    for source, target in ((ours, theirs), (theirs, ours), (ours, ours)):
        p, q = (awkward_parameters(torch.float32, fused=variant == "fused") for _ in "ab")
        a, b = source(p.values(), **options), target(q.values(), **options)
        go_on(p, a, range(1, 7))
        with torch.no_grad():
            for key in p:
                q[key].copy_(p[key])
        b.load_state_dict(stored(a.state_dict(), weights_only))
        assert comparable(a) == comparable(b)
        go_on(p, a, range(7, 12))
        go_on(q, b, range(7, 12))
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
def test_state_of_something_else_is_carried_along(library):
    opt = library.Adam(weights())
    opt.load_state_dict({**opt.state_dict(), "state": {"ema": {"decay": 0.9}}})
    return opt.state["ema"]


# --- amsgrad switched on later


@each_of_torchs
@unlike_torch(theirs=Raises(KeyError, "max_exp_avg_sq"), ours=0.0)
def test_amsgrad_can_be_switched_on_after_the_state_exists(library, variant):
    params, opt = trained(library.Adam, **FLAGS[variant])
    opt.param_groups[0]["amsgrad"] = True
    opt.step()
    return max(float((opt.state[p]["max_exp_avg_sq"] - opt.state[p]["exp_avg_sq"]).abs().max()) for p in params)


@each_variant
def test_a_checkpoint_without_maxima_serves_amsgrad_and_goes_back_to_torch(variant):
    checkpoint = saved(torch.optim.Adam)
    checkpoint["param_groups"][0].update(amsgrad=True, **FLAGS[variant])
    params, opt = trained(steps=0)
    opt.load_state_dict(checkpoint)
    for gradient in (1.0, 0.0):  # v rises, then falls
        for p in params:
            p.grad = torch.full_like(p, gradient)
        opt.step()
    assert all(bool((entry["max_exp_avg_sq"] > entry["exp_avg_sq"]).all()) for entry in opt.state.values())
    torch.optim.Adam(weights()).load_state_dict(stored(opt.state_dict()))


# --- from older versions, and by way of schedules

OLDER = {
    "an int, as in torch 1.11": lambda p: dict(step=3, exp_avg=p.detach() / 2, exp_avg_sq=torch.ones_like(p)),
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


@each_variant
@pytest.mark.parametrize("dtype, start", [(torch.bfloat16, 256.0), (torch.float16, 2048.0)], ids=str)
@pytest.mark.parametrize("how", ["loaded", "set"])
def test_short_counts_do_not_stand_still(variant, dtype, start, how):
    """torch's for-loop goes on with a count that no longer grows; its foreach raises for float16."""
    step = lambda: torch.tensor(start, dtype=dtype)
    entry = lambda p: dict(step=step(), exp_avg=torch.ones_like(p), exp_avg_sq=torch.ones_like(p))
    params, opt = loaded(adamlib, entry, **FLAGS[variant])
    if how == "set":
        opt.state[params[0]]["step"] = step()
    train(opt, params, 3)
    assert counts(opt) == [start + 3, start + 3]


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


def entry_with(**changes):
    return lambda checkpoint: checkpoint["state"][1].update(changes)


def entry_without(key):
    return lambda checkpoint: checkpoint["state"][1].pop(key)


def group_with(**changes):
    return lambda checkpoint: checkpoint["param_groups"][0].update(changes)


KEYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of a parameter of shape (4,)
DAMAGES = {  # what was done to a checkpoint: how, and words of the error
    **{f"{key} {s}": (entry_with(**{key: torch.ones(s)}), f"{key} has shape {s}")
       for key in KEYS for s in [(), (1,), (2,), (1, 4), (4, 1), (0,)]},
    **{f"{key} is {value}": (entry_with(**{key: value}), key)
       for key in (*KEYS, "step") for value in (None, "moment", [1.0, 2.0])},
    **{f"no {key}": (entry_without(key), key) for key in ("step", "exp_avg", "exp_avg_sq")},
    "an entry is no dict": (lambda checkpoint: checkpoint["state"].update({1: 3}), "not a dict"),
    "another optimizer's": (lambda checkpoint: checkpoint["state"].update({1: {"momentum_buffer": 0}}), "has no"),
    "a count of four": (entry_with(step=torch.ones(4)), "step must be one number"),
    "no state": (lambda checkpoint: checkpoint.pop("state"), "state"),
    "no groups": (lambda checkpoint: checkpoint.pop("param_groups"), "param_groups"),
    "another group": (
        lambda checkpoint: checkpoint["param_groups"].append(dict(checkpoint["param_groups"][0], params=[])),
        "loaded state dict has a different number of parameter groups",
    ),
    "another parameter": (group_with(params=[0, 1, 2]), "doesn't match the size of optimizer's group"),
    **{f"no {option}": (lambda checkpoint, option=option: checkpoint["param_groups"][0].pop(option), option)
       for option in ("lr", "betas", "eps", "weight_decay")},
    "lr -1": (group_with(lr=-1), "Invalid learning rate: -1"),
    "betas 1.5": (group_with(betas=(0.9, 1.5)), "Invalid beta parameter at index 1: 1.5"),
    "betas None": (group_with(betas=None), "NoneType"),
    "fused and foreach": (group_with(fused=True, foreach=True), "`fused` and `foreach`"),
}


@each_variant
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(variant, what):
    damage, words = DAMAGES[what]
    checkpoint = saved(amsgrad=True, **FLAGS[variant])
    damage(checkpoint)
    _, opt = trained(amsgrad=True, **FLAGS[variant])
    with refused(opt, words):
        opt.load_state_dict(checkpoint)


@pytest.mark.parametrize("shape", [(2,), (1,)])
@unlike_torch(theirs="loaded", ours=Raises(ValueError, "max_exp_avg_sq has shape"))
def test_torch_loads_moments_of_a_wrong_shape(library, shape):
    """It fails later, far from the cause, or a moment of shape (1,) broadcasts and nobody notices."""
    checkpoint = saved(amsgrad=True)
    checkpoint["state"][1]["max_exp_avg_sq"] = torch.ones(shape)
    trained(library.Adam, amsgrad=True)[1].load_state_dict(checkpoint)
    return "loaded"
