"""Wrong options, combinations, parameters: torch's exception and words, a sentence, and nothing has changed."""

import math

import pytest
import torch
from parameter_zoo import FLAGS, SETTINGS, Raises, as_in_torch, each_class, refused, trained, unlike_torch, weights

import adamlib

LR, BETAS = torch.tensor(0.1), (torch.tensor(0.9), torch.tensor(0.99))
PAIRS = torch.tensor([0.9, 0.9])

# --- options

REFUSED_BY_TORCH = [
    dict(lr=-1), dict(lr=-1e-9), dict(lr=math.nan), dict(lr=-math.inf), dict(lr=torch.tensor(-1.0)),
    dict(lr=PAIRS), dict(lr=torch.tensor([])), dict(lr=LR, foreach=True), dict(lr=PAIRS, foreach=True),
    dict(eps=-1), dict(eps=math.nan), dict(weight_decay=-1), dict(weight_decay=math.nan),
    dict(betas=(1.0, 0.9)), dict(betas=(0.9, 1.0)), dict(betas=(-0.1, 0.9)), dict(betas=(0.9, -0.1)),
    dict(betas=(0.9, math.nan)), dict(betas=(2, 3)), dict(betas=(0, 0.9)), dict(betas=(0.9, 0)),
    dict(betas=(0.9, BETAS[1])), dict(betas=(BETAS[0], 0.9)), dict(betas=BETAS, foreach=True),
    dict(lr=-1, eps=-1, betas=(2.0, 2.0)), dict(eps=-1, betas=(2.0, 2.0)), dict(betas=(2.0, 2.0), weight_decay=-1),
    dict(fused=True, differentiable=True), dict(fused=True, foreach=True),
    dict(fused=True, foreach=True, differentiable=True),
    # a TypeError in Python's words
    dict(lr="0.1"), dict(lr=None), dict(lr=[0.1]), dict(lr=1j), dict(eps=None), dict(eps="small"),
    dict(weight_decay=None), dict(weight_decay="L2"), dict(betas=None), dict(betas=0.9), dict(betas=("0.9", "0.99")),
]
NOTICED_LATE_BY_TORCH = [  # or in words that do not help
    dict(betas=(0.9,)), dict(betas=()), dict(betas=(0.9, 0.99, 0.999)),
    dict(betas=(PAIRS, BETAS[1])), dict(betas=(BETAS[0], PAIRS)), dict(foreach=True, differentiable=True),
]


def error_of(cls, params, **options):
    with pytest.raises((ValueError, RuntimeError, TypeError)) as raised:
        cls(params, **options)
    return raised.value


@each_class
@pytest.mark.parametrize("wrong", REFUSED_BY_TORCH, ids=str)
def test_the_constructor_refuses_in_torchs_words(name, wrong):
    ours, theirs = (error_of(getattr(library, name), weights(), **wrong) for library in (adamlib, torch.optim))
    assert type(ours) is type(theirs) and (type(theirs) is TypeError or str(theirs) in str(ours))


@pytest.mark.parametrize("wrong", NOTICED_LATE_BY_TORCH, ids=str)
def test_what_torch_notices_late_is_refused_at_once(wrong):
    assert any(option.rstrip("s") in str(error_of(adamlib.Adam, weights(), **wrong)) for option in wrong)


@pytest.mark.parametrize("wrong", REFUSED_BY_TORCH + NOTICED_LATE_BY_TORCH, ids=str)
def test_the_options_of_a_group_are_checked_like_the_constructors(wrong):
    """torch does not look at them: with lr=-1.0 in a group it runs uphill."""
    of_the_constructor = error_of(adamlib.Adam, weights(), **wrong)
    of_a_group = error_of(adamlib.Adam, [dict(params=weights()), dict(params=weights(), **wrong)])
    assert repr(of_a_group) == repr(of_the_constructor)
    opt = adamlib.Adam(weights())
    with refused(opt, str(of_the_constructor), type(of_the_constructor)):
        opt.add_param_group(dict(params=weights(), **wrong))
    opt.add_param_group(dict(params=weights()))  # after the error a right group can still be added


@unlike_torch(theirs=2.0, ours=Raises(ValueError, "Invalid learning rate: -1.0"))
def test_a_negative_learning_rate_in_a_group_runs_uphill_in_torch(library):
    p = torch.ones(1, requires_grad=True)
    opt = library.Adam([dict(params=[p], lr=-1.0)])
    p.grad = torch.ones(1)
    opt.step()
    return round(float(p.detach()), 6)


# --- parameters and steps

FUSED = "`fused=True` requires all the params to be floating point Tensors of supported devices"  # torch's words, too
NEVER = "Adam steps floating-point and complex numbers"
KINDS = [
    ("fused", torch.ones(2, dtype=torch.complex64), FUSED),
    ("fused", torch.ones(2, device="meta"), FUSED),
    ("fused", torch.ones(2, dtype=torch.int64), FUSED),
    *((variant, torch.ones(2, dtype=torch.int64), NEVER) for variant in FLAGS if variant != "fused"),
]


@pytest.mark.parametrize("variant, kind, words", KINDS)
def test_parameters_that_a_variant_cannot_take_are_refused(variant, kind, words):
    for cls in (adamlib.Adam, torch.optim.Adam) if variant == "fused" else (adamlib.Adam,):
        good, bad = torch.ones(2, requires_grad=True), kind.clone()
        opt = cls([good, bad], **FLAGS[variant])
        good.grad, bad.grad = torch.ones(2), torch.ones_like(bad)
        with refused(opt, words):
            opt.step()


@pytest.mark.parametrize("variant", sorted({*FLAGS} - {"fused"}))
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_scale_is_refused_by_the_variants_that_do_not_unscale(variant, name):
    _, opt = trained(**FLAGS[variant])
    setattr(opt, name, torch.tensor(1.0))
    with refused(opt, name):
        opt.step()
    delattr(opt, name)
    opt.step()


def test_a_parameter_appended_by_hand_to_named_ones_is_named_by_its_place():
    opt = adamlib.Adam([("weight", weights()[0])])
    appended = torch.ones(2, dtype=torch.int32)
    appended.grad = torch.ones(2, dtype=torch.int32)
    opt.param_groups[0]["params"].append(appended)
    with refused(opt, "cannot step parameter 1: the parameter is torch.int32"):
        opt.step()


@as_in_torch
def test_a_differentiable_step_of_a_leaf_is_refused(library):
    params = weights()
    params[0].grad = torch.ones(3)
    library.Adam(params, differentiable=True).step()


@as_in_torch
def test_a_differentiable_step_takes_no_count_that_requires_a_gradient(library):
    p = torch.ones(2, requires_grad=True).clone()
    opt = library.Adam([p], differentiable=True)
    p.grad = torch.ones(2)
    opt.step()
    opt.state[p]["step"] = opt.state[p]["step"].detach().clone().requires_grad_()
    opt.step()


@as_in_torch
def test_a_count_that_is_no_tensor_is_refused_by_the_function_in_torchs_words(library):
    p = torch.ones(2)
    library.adam([p], [p], [p], [p], [], [1], **SETTINGS)
