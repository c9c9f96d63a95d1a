"""Wrong values, combinations, gradients, checkpoints: torch's exception type, a sentence, nothing changed."""

import copy
import math

import pytest
import torch
from parameter_zoo import FLAGS, as_in_torch, nothing_changes

import adamlib


def weights(n=2):
    return [torch.linspace(-1, 1, 3 + i).requires_grad_() for i in range(n)]


def trained(params=None, **options):
    params = params or weights()
    opt = adamlib.Adam(params, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    return params, opt


def says_something(error):
    text = str(error.value)
    assert len(text.split()) >= 3, f"too short to help: {text!r}"
    return text


# --- values of the constructor

TENSORS = (torch.tensor(0.9), torch.tensor(0.99))
# What torch 2.13 raises from its constructor, in the words its users know.
SAME_WORDS = [
    dict(lr=-1), dict(lr=-1e-9), dict(lr=math.nan), dict(lr=-math.inf), dict(lr=torch.tensor(-1.0)),
    dict(lr=torch.tensor([1e-3, 1e-3])), dict(lr=torch.tensor([])), dict(lr=torch.tensor(1e-3), foreach=True),
    dict(lr=torch.tensor([1e-3, 1e-3]), foreach=True), dict(eps=-1), dict(eps=math.nan), dict(weight_decay=-1),
    dict(weight_decay=math.nan), dict(betas=(1.0, 0.9)), dict(betas=(0.9, 1.0)), dict(betas=(-0.1, 0.9)),
    dict(betas=(0.9, math.nan)), dict(betas=(2, 3)), dict(betas=(0, 0.9)), dict(betas=(0.9, 0)),
    dict(betas=(0.9, TENSORS[1])), dict(betas=(TENSORS[0], 0.9)), dict(betas=TENSORS, foreach=True),
    dict(lr=-1, eps=-1, betas=(2.0, 2.0)), dict(eps=-1, betas=(2.0, 2.0)), dict(betas=(2.0, 2.0), weight_decay=-1),
    dict(fused=True, differentiable=True), dict(fused=True, foreach=True),
    dict(fused=True, foreach=True, differentiable=True),
]


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("wrong", SAME_WORDS, ids=str)
@as_in_torch
def test_the_constructor_refuses_in_torchs_words(library, name, wrong):
    getattr(library, name)(weights(), **wrong)


WRONG_TYPE = [
    dict(lr="0.1"), dict(lr=None), dict(eps=None), dict(eps="small"), dict(weight_decay=None), dict(weight_decay="L2"),
    dict(betas=None), dict(betas=0.9), dict(betas=("0.9", "0.99")), dict(lr=[0.1]), dict(lr=1j),
]


@pytest.mark.parametrize("wrong", WRONG_TYPE, ids=str)
def test_values_of_a_wrong_type_raise_as_in_torch(wrong):
    """The type of the error; its words are Python's."""
    with pytest.raises(Exception) as theirs:
        torch.optim.Adam(weights(), **wrong)
    with pytest.raises(type(theirs.value)) as ours:
        adamlib.Adam(weights(), **wrong)
    says_something(ours)


@pytest.mark.parametrize("wrong", WRONG_TYPE, ids=str)
def test_values_of_a_wrong_type_in_a_group_raise_too(wrong):
    opt = adamlib.Adam(weights())
    with nothing_changes(opt), pytest.raises((TypeError, ValueError)) as error:
        opt.add_param_group(dict(params=weights(), **wrong))
    says_something(error)


@pytest.mark.parametrize(
    "wrong",
    [dict(betas=(0.9,)), dict(betas=()), dict(betas=(0.9, 0.99, 0.999)),
     dict(betas=(torch.tensor([0.9, 0.9]), TENSORS[1])), dict(betas=(TENSORS[0], torch.tensor([0.9, 0.9])))],
    ids=str,
)
def test_what_torch_notices_late_or_obscurely_is_refused_at_once(wrong):
    with pytest.raises((ValueError, RuntimeError, TypeError)) as error:
        adamlib.Adam(weights(), **wrong)
    assert "beta" in says_something(error)


def test_foreach_and_differentiable_together():
    """torch constructs this and fails at the step with an AssertionError; here a sentence says why."""
    params = [torch.ones(2)]
    with pytest.raises((RuntimeError, ValueError)) as error:
        opt = adamlib.Adam(params, foreach=True, differentiable=True)
        params[0].grad = torch.ones(2)
        opt.step()
    text = says_something(error)
    assert "foreach" in text and "differentiable" in text
    assert torch.equal(params[0], torch.ones(2))


UNSUPPORTED_GROUPS = [
    dict(fused=True, foreach=True), dict(fused=True, differentiable=True), dict(foreach=True, differentiable=True),
    dict(lr=torch.tensor(0.1), foreach=True), dict(betas=TENSORS, foreach=True),
]


@pytest.mark.parametrize("wrong", UNSUPPORTED_GROUPS, ids=str)
def test_unsupported_combinations_in_a_group_are_refused_when_it_is_added(wrong):
    opt = adamlib.Adam(weights())
    with nothing_changes(opt), pytest.raises((RuntimeError, ValueError)) as error:
        opt.add_param_group(dict(params=weights(), **wrong))
    says_something(error)


@pytest.mark.parametrize("wrong", UNSUPPORTED_GROUPS, ids=str)
def test_unsupported_combinations_set_by_hand_are_refused_at_the_step(wrong):
    params, opt = trained()
    opt.param_groups[0].update(wrong)
    with nothing_changes(opt), pytest.raises((RuntimeError, ValueError)) as error:
        opt.step()
    says_something(error)


# --- parameters and gradients


@pytest.mark.parametrize("variant", FLAGS)
def test_sparse_gradients_are_refused_in_torchs_words(variant):
    first, table = torch.ones(2, requires_grad=True), torch.nn.Embedding(4, 3, sparse=True)
    opt = adamlib.Adam([dict(params=[first]), dict(params=table.parameters())], **FLAGS[variant])
    first.grad = torch.ones(2)
    table(torch.tensor([1, 2])).sum().backward()
    message = "Adam does not support sparse gradients, please consider SparseAdam instead"
    with pytest.raises(RuntimeError, match=message), nothing_changes(opt):
        opt.step()
    assert torch.equal(first.detach(), torch.ones(2)) and len(opt.state) == 0


@pytest.mark.parametrize(
    "param",
    [torch.ones(2, dtype=torch.complex64), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.int64)],
    ids=["complex", "meta", "integer"],
)
def test_fused_refuses_what_its_kernel_cannot_take_in_torchs_words(param):
    errors = []
    for cls in (torch.optim.Adam, adamlib.Adam):
        good = torch.ones(2, requires_grad=True)
        opt = cls([good, param], fused=True)
        good.grad, param.grad = torch.ones(2), torch.ones_like(param)
        with pytest.raises(RuntimeError) as error:
            opt.step()
        errors.append(str(error.value))
        if cls is adamlib.Adam:
            assert torch.equal(good.detach(), torch.ones(2)) and not any(opt.state.values())
    assert errors[0].split("[")[0] in errors[1]
    assert str(param.dtype) in errors[1] or str(param.device) in errors[1]
    param.grad = None


@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "capturable_single", "capturable_foreach"])
def test_integer_parameters(variant):
    p = torch.ones(2, dtype=torch.int64)
    p.grad = torch.ones(2, dtype=torch.int64)
    opt = adamlib.Adam([p], **FLAGS[variant])
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        opt.step()
    assert torch.equal(p, torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("variant", FLAGS)
@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
def test_a_state_with_a_missing_entry_is_refused_by_name(variant, key):
    params, opt = trained(amsgrad=True, **FLAGS[variant])
    del opt.state[params[1]][key]
    if key == "max_exp_avg_sq":
        opt.step()  # starts from zeros, as when amsgrad is switched on later
        return
    with nothing_changes(opt), pytest.raises((KeyError, RuntimeError, ValueError)) as error:
        opt.step()
    assert key in str(error.value)


@pytest.mark.parametrize("variant", ["single_tensor", "foreach", "capturable_single", "capturable_foreach"])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_a_scale_is_refused_by_the_variants_that_do_not_unscale(variant, name):
    params, opt = trained(**FLAGS[variant])
    setattr(opt, name, torch.tensor(1.0))
    with nothing_changes(opt), pytest.raises((RuntimeError, ValueError)) as error:
        opt.step()
    assert name in says_something(error)
    delattr(opt, name)
    opt.step()


def test_differentiable_on_a_leaf():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    opt = adamlib.Adam([p], differentiable=True)
    with pytest.raises(RuntimeError, match="leaf") as error:
        opt.step()
    says_something(error)
    assert torch.equal(p.detach(), torch.ones(2))


def test_step_must_not_require_a_gradient():
    p = torch.ones(2, requires_grad=True).clone()
    opt = adamlib.Adam([p], differentiable=True)
    p.grad = torch.ones(2)
    opt.step()
    opt.state[p]["step"] = opt.state[p]["step"].detach().clone().requires_grad_()
    with pytest.raises(
        RuntimeError, match="`requires_grad` is not supported for `step` in differentiable mode"
    ):
        opt.step()


@pytest.mark.parametrize("variant", FLAGS)
def test_a_closure_that_fails_changes_nothing(variant):
    _, opt = trained(**FLAGS[variant])
    with nothing_changes(opt), pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)


@pytest.mark.parametrize("variant", FLAGS)
def test_after_an_error_the_optimizer_goes_on_as_if_nothing_had_happened(variant):
    (p, a), (q, b) = (trained(**FLAGS[variant]) for _ in "ab")
    for wrong in (dict(lr=-1), dict(betas=(2.0, 2.0)), dict(foreach=True, fused=True)):
        with pytest.raises((ValueError, RuntimeError)):
            a.add_param_group(dict(params=weights(1), **wrong))
    with pytest.raises(ValueError):
        a.load_state_dict(adamlib.Adam([dict(params=weights(1)), dict(params=weights(1))]).state_dict())
    for params, opt in ((p, a), (q, b)):
        for w in params:
            w.grad = torch.full_like(w, 0.5)
        opt.step()
    assert all(torch.equal(x, y) for x, y in zip(p, q))


# --- checkpoints


def refuse(saved, error=ValueError, **flags):
    _, opt = trained(amsgrad=True, **flags)
    with nothing_changes(opt), pytest.raises(error) as info:
        opt.load_state_dict(saved)
    return says_something(info)


def checkpoint():
    return copy.deepcopy(trained(amsgrad=True)[1].state_dict())


def test_wrong_number_of_groups_and_sizes_in_torchs_words():
    saved = checkpoint()
    saved["param_groups"].append(dict(saved["param_groups"][0], params=[]))
    assert "loaded state dict has a different number of parameter groups" in refuse(saved)
    saved = checkpoint()
    saved["param_groups"][0]["params"] = [0, 1, 2]
    assert "doesn't match the size of optimizer's group" in refuse(saved)


@pytest.mark.parametrize("variant", FLAGS)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 4), (4, 1), (0,)])
def test_wrong_shapes_are_refused(variant, key, shape):
    saved = checkpoint()
    saved["state"][1][key] = torch.ones(shape)
    assert key in refuse(saved, **FLAGS[variant])


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
def test_missing_entries_of_a_state_are_refused(key):
    saved = checkpoint()
    del saved["state"][1][key]
    assert key in refuse(saved, (ValueError, KeyError))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"])
@pytest.mark.parametrize("value", [None, "moment", [1.0, 2.0]], ids=str)
def test_entries_that_are_no_tensors_are_refused(key, value):
    saved = checkpoint()
    saved["state"][1][key] = value
    assert key in refuse(saved, (ValueError, TypeError))


def test_a_state_that_is_no_dict_is_refused():
    saved = checkpoint()
    saved["state"][1] = 3
    refuse(saved, (ValueError, TypeError))


def test_a_step_of_several_elements_is_refused():
    saved = checkpoint()
    saved["state"][1]["step"] = torch.ones(4)
    assert "step" in refuse(saved)


@pytest.mark.parametrize("key", ["state", "param_groups"])
def test_a_checkpoint_without_its_parts_is_refused(key):
    saved = checkpoint()
    del saved[key]
    _, opt = trained()
    with nothing_changes(opt), pytest.raises((KeyError, ValueError)) as error:
        opt.load_state_dict(saved)
    assert key in str(error.value)


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
def test_a_group_without_an_option_that_has_no_default_is_refused(key):
    """torch loads it and dies of a KeyError at the next step."""
    saved = checkpoint()
    del saved["param_groups"][0][key]
    assert key in refuse(saved, (ValueError, KeyError))


@pytest.mark.parametrize(
    "wrong",
    [dict(lr=-1), dict(lr=math.nan), dict(eps=-1), dict(weight_decay=-1), dict(betas=(0.9, 1.5)), dict(betas=None),
     dict(lr="x"), dict(fused=True, foreach=True), dict(fused=True, differentiable=True),
     dict(foreach=True, lr=torch.tensor(0.1))],
    ids=str,
)
def test_options_of_a_checkpoint_are_validated(wrong):
    saved = checkpoint()
    saved["param_groups"][0].update(wrong)
    refuse(saved, (ValueError, TypeError, RuntimeError))


def test_a_fused_checkpoint_for_parameters_that_cannot_be_fused_says_so():
    """torch loads it, and fails (or worse, see test_safer) at the next step."""
    saved = trained([torch.ones(2, requires_grad=True)], fused=True)[1].state_dict()
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    opt = adamlib.Adam([z])
    z.grad = torch.ones(2, dtype=torch.complex64)
    opt.step()
    before = z.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match="fused"):
        opt.load_state_dict(saved)
        opt.step()
    assert torch.equal(z.detach(), before)


def test_another_optimizers_checkpoint_is_refused():
    p = weights()
    sgd = torch.optim.SGD(p, lr=0.1, momentum=0.9)
    for w in p:
        w.grad = torch.ones_like(w)
    sgd.step()
    _, opt = trained()
    with nothing_changes(opt), pytest.raises((ValueError, KeyError)):
        opt.load_state_dict(sgd.state_dict())
