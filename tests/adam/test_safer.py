"""Where torch hurts its users: what torch 2.13 does, after which a test is named, and what adamlib does instead.

Tests that show torch writing foreign memory do so inside one allocation of their own: the parameter and the memory
around it are views of one poisoned buffer. Checkpoints (test_checkpoints.py) and options of a group (test_bad_input.py)
have such cases, too. That a step which is refused changes nothing stands in test_contract.py.
"""

import ast
import copy
import inspect
import math
import pathlib
import pickle

import pytest
import torch
from parameter_zoo import (
    FLAGS, SETTINGS, Raises, each_capturable, operations, six_lists, trained, unlike_torch, weights,
)

import adamlib

POISON = 77.0

# --- fused and memory that is not its own

@unlike_torch(theirs="the neighbours", ours=Raises(RuntimeError, "does not fill its memory without gaps"))
def test_fused_writes_between_the_elements_of_a_slice(library):
    buffer = torch.full((6, 5), POISON)
    library.adam(*six_lists([buffer[:, ::2]]), fused=True, **SETTINGS)  # the odd columns belong to somebody else
    changed = buffer != POISON
    assert not changed[:, ::2].all(), "and leaves part of the parameter unstepped"
    return "the neighbours" if changed[:, 1::2].any() else "nothing"


@unlike_torch(theirs="behind its end", ours=Raises(RuntimeError, "exp_avg has shape (2,)"))
def test_fused_writes_behind_the_end_of_a_state_that_is_too_small(library):
    memory = torch.full((16,), POISON)
    lists = six_lists([torch.ones(3)])
    lists[2] = [memory[:2].zero_()]
    library.adam(*lists, fused=True, **SETTINGS)
    return "behind its end" if memory[2] != POISON else "nothing"


@unlike_torch(theirs="the wrong weights", ours=Raises(RuntimeError, "the gradient has strides"))
def test_fused_adds_the_wrong_gradients_where_they_lie_in_another_order(library):
    gradient, p = torch.arange(12.0).reshape(4, 3) - 5.5, torch.zeros(3, 4).t()
    library.adam(*six_lists([p], [gradient]), fused=True, **SETTINGS)  # row by row; p lies column by column
    return "the right weights" if torch.equal(p.sign(), -gradient.sign()) else "the wrong weights"


# --- mixed precision

def amp_step(params, opt):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    opt.zero_grad()
    scaler.scale(sum((p * p).sum() for p in params)).backward()
    scaler.step(opt)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
@unlike_torch(theirs=False, ours=True)
def test_a_copy_forgets_that_it_supports_amp(library, make):
    return getattr(make(library.Adam(weights(), fused=True)), "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("saved", ["single_tensor", "foreach"])
@unlike_torch(theirs=Raises(AssertionError), ours=3.0)
def test_amp_does_not_follow_loaded_flags(library, saved):
    params, opt = trained(library.Adam, steps=0, fused=True)
    opt.load_state_dict(trained(steps=2, **FLAGS[saved])[1].state_dict())
    amp_step(params, opt)
    return float(opt.state[params[0]]["step"])


@pytest.mark.parametrize("flags", [("fused", "foreach"), ("foreach", "fused")])
@unlike_torch(theirs=Raises(AssertionError), ours=True)
def test_a_fused_group_beside_another_one_dies_of_a_gradient_scaler(library, flags):
    def groups():
        params = weights()
        each = [dict(foreach=flag == "foreach", fused=flag == "fused") for flag in flags]
        return params, library.Adam([dict(params=[p], **one) for p, one in zip(params, each)], fused=True)

    (params, opt), (plain, unscaled) = groups(), groups()
    amp_step(params, opt)
    sum((p * p).sum() for p in plain).backward()
    unscaled.step()
    return all(map(torch.allclose, params, plain))


def test_a_group_switched_to_fused_by_hand_takes_the_scale():
    params, opt = trained(adamlib.Adam)
    opt.param_groups[0]["fused"] = True
    amp_step(params, opt)
    assert opt._step_supports_amp_scaling and float(opt.state[params[0]]["step"]) == 3.0


@pytest.mark.parametrize("overflows", [2.0, 3.0])
@unlike_torch(theirs="stepped", ours="called off")
def test_overflows_on_several_devices_do_not_call_the_step_off(library, overflows):
    """GradScaler.step hands on the sum over devices. torch's kernel compares with 1 and takes the step with the inf."""
    params, opt = trained(library.Adam, fused=True)
    before = params[0].detach().clone()
    params[0].grad[0] = math.inf
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(overflows)
    opt.step()
    off = torch.equal(params[0], before) and float(opt.state[params[0]]["step"]) == 2.0
    return "called off" if off else "stepped"


# --- capturable

@each_capturable
@unlike_torch(theirs=Raises(AssertionError, "capturable=True"), ours=0.9)
def test_capturable_is_refused_on_a_cpu(library, variant):
    p = torch.ones((), requires_grad=True)
    opt = library.Adam([p], lr=0.1, **FLAGS[variant])
    p.grad = torch.ones(())
    opt.step()
    return round(float(p.detach()), 6)


@unlike_torch(theirs=True, ours=False)
def test_capturable_with_a_learning_rate_of_zero_writes_nan(library, torch_capturable_on_cpu):
    p = torch.ones(3, requires_grad=True)
    opt = library.Adam([p], lr=0.0, capturable=True, foreach=False)
    p.grad = torch.tensor([1.0, 0.0, -1.0])
    opt.step()
    return bool(p.isnan().any())


@each_capturable
def test_a_capturable_step_reads_nothing_back_to_python(variant):
    """`.item()` on a tensor would stop a capture: none may happen, also not hidden in a comparison."""
    tensors = dict(lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.99)))
    _, opt = trained(weight_decay=0.1, amsgrad=True, **tensors, **FLAGS[variant])
    assert not [name for name in operations(opt.step) if "local_scalar" in name or "nonzero" in name]


@pytest.mark.cuda
@each_capturable
def test_a_captured_step_replays_to_the_bits_of_an_uncaptured_one(variant):
    runs = []
    for captured in (False, True):
        p = torch.ones(33, device="cuda", requires_grad=True)
        p.grad = torch.linspace(-1, 1, 33, device="cuda")
        opt = adamlib.Adam([p], lr=torch.tensor(0.01, device="cuda"), **FLAGS[variant])
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                opt.step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                opt.step()
        for _ in range(5):
            graph.replay() if captured else opt.step()
        runs.append(p.detach().clone())
    assert torch.equal(*runs)


@pytest.mark.cuda
def test_capture_without_the_flag_is_refused():
    p = torch.ones(3, device="cuda", requires_grad=True)
    p.grad = torch.ones(3, device="cuda")
    opt = adamlib.Adam([p])
    opt.step()
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        opt.step()


# --- differentiable

@pytest.mark.parametrize("steps", [3, 30])
@unlike_torch(theirs=Raises(RuntimeError, "modified by an inplace operation"), ours=True)
def test_amsgrad_cannot_be_differentiated_over_many_steps(library, steps):
    leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
    p = leaf.clone()
    opt = library.Adam([p], lr=0.1, amsgrad=True, differentiable=True)
    for t in range(steps):
        p.grad = p.clone().square() * math.cos(t) + 0.1
        opt.step()
    p.sum().backward()
    return bool(leaf.grad.isfinite().all() and leaf.grad.any())


@pytest.mark.parametrize("amsgrad", [False, True])
@unlike_torch(theirs=False, ours=True)
def test_gradients_are_finite_where_v_is_zero(library, amsgrad):
    g = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    p = torch.ones(2, dtype=torch.float64, requires_grad=True).clone()
    opt = library.Adam([p], lr=0.1, eps=1e-3, amsgrad=amsgrad, differentiable=True)
    p.grad = g
    opt.step()
    p.sum().backward()
    return bool(g.grad.isfinite().all())


# --- errors that say what to do

FILES = sorted(pathlib.Path(inspect.getfile(adamlib)).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_package_has_no_assert_and_no_error_without_a_message(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    errors = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    assert not {getattr(error.func, "id", "") for error in errors} & {"AssertionError", "Exception"}
    assert all(error.args or error.keywords for error in errors)
