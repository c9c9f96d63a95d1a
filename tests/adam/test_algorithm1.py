"""The oracle itself: against torch.optim.Adam in float64, and against what can be worked out by hand."""

import math

import numpy as np
import pytest
import torch

from adamlib.theory.algorithm1 import State, adam_step, algorithm1, initial_state

L2, DECOUPLED = dict(weight_decay=0.3), dict(weight_decay=0.3, decoupled_weight_decay=True)
OPTIONS = [
    {}, dict(betas=(0.0, 0.99)), dict(betas=(0.95, 0.9), eps=1e-3), dict(amsgrad=True),
    L2, DECOUPLED, L2 | dict(maximize=True), DECOUPLED | dict(maximize=True, amsgrad=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_agrees_with_torch_in_every_option(options, is_complex):
    rng = np.random.default_rng(0)
    θ0, grads = rng.normal(size=(3, 2)), rng.standard_t(2, size=(60, 3, 2))
    if is_complex:
        θ0, grads = θ0 + 1j * rng.normal(size=(3, 2)), grads + 1j * rng.standard_t(2, size=(60, 3, 2))
    ours = algorithm1(θ0, grads, 0.05, **options)

    θ = torch.tensor(θ0, requires_grad=True)
    opt, path = torch.optim.Adam([θ], lr=0.05, foreach=False, **options), [θ0]
    for g in grads:
        θ.grad = torch.tensor(g)
        opt.step()
        path.append(θ.detach().numpy().copy())
    state = {key: value.numpy() for key, value in opt.state[θ].items()}
    near = dict(rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours.theta, path, **near)
    for key, value in zip(state, ours.state):  # step, m, v, and v_max with amsgrad
        np.testing.assert_allclose(value, state[key], **near)
    assert (ours.state.v_max is None) == ("amsgrad" not in options)


# --- by hand

def test_first_steps():
    """g = 2 then −1 with α = 1, β = (½, ¾), ε = 0; then one of |g| = ε."""
    run = algorithm1(10.0, [2.0, -1.0], lr=1.0, betas=(0.5, 0.75), eps=0.0)
    assert (run.m.tolist(), run.v.tolist(), run.m_hat.tolist()) == ([1.0, 0.0], [1.0, 1.0], [2.0, 0.0])
    np.testing.assert_allclose(run.v_hat, [4.0, 1 / (1 - 0.5625)], rtol=1e-15)
    assert (run.theta.tolist(), run.delta.tolist()) == ([10.0, 9.0, 9.0], [1.0, 0.0])
    assert adam_step(0.0, 1e-8, lr=1.0, eps=1e-8).theta == pytest.approx(-0.5, rel=1e-12)


def test_nan_in_one_part_of_a_complex_number_leaves_the_other():
    lonely = adam_step(0j, 1 + 0j, lr=1.0, eps=0.0).theta  # the imaginary part is 0/0
    assert lonely.real == pytest.approx(-1) and np.isnan(lonely.imag)


# --- what one may give it

def test_functions_schedules_and_going_on():
    def slope(θ, t):
        return θ

    whole = algorithm1(np.ones(2), slope, 0.1, steps=40)
    first = algorithm1(np.ones(2), slope, 0.1, steps=15)
    rest = algorithm1(first.theta[-1], slope, 0.1, steps=25, state=first.state)
    assert np.array_equal(whole.theta, algorithm1(np.ones(2), whole.theta[:-1], 0.1).theta)
    assert np.array_equal(whole.theta[15:], rest.theta)
    schedule = algorithm1(0.0, np.ones(4), [0.1, 0.2, 0.3, 0.4], eps=0.0)
    np.testing.assert_allclose(schedule.delta, [0.1, 0.2, 0.3, 0.4], rtol=1e-13)


def test_nothing_the_caller_owns_is_written():
    θ, g = np.ones(3), np.full(3, 2.0)
    state = initial_state(θ, amsgrad=True)
    step = adam_step(θ, g, state, weight_decay=0.1, amsgrad=True)
    adam_step(step.theta, g, step.state, amsgrad=True)
    assert np.array_equal(θ, np.ones(3)) and np.array_equal(g, np.full(3, 2.0))
    assert state.step == 0 and not state.m.any() and not state.v.any() and not state.v_max.any()
    assert isinstance(step.state, State) and step.state.step == 1


def test_an_overflown_parameter_is_not_spoiled_by_a_decay_of_zero():
    assert adam_step(np.inf, 1.0, weight_decay=0.0).delta == pytest.approx(1e-3)


@pytest.mark.parametrize("call, message", [
    (lambda: adam_step(0.0, 1.0, betas=(1.0, 0.9)), r"beta1 must lie in \[0, 1\), got 1.0"),
    (lambda: adam_step(0.0, 1.0, betas=(0.9, -0.1)), r"beta2 must lie in \[0, 1\), got -0.1"),
    (lambda: adam_step(0.0, 1.0, lr=-1.0), "lr must not be negative"),
    (lambda: adam_step(0.0, 1.0, eps=math.nan), "eps must not be negative, got nan"),
    (lambda: adam_step(0.0, 1.0, weight_decay=-1), "weight_decay must not be negative"),
    (lambda: adam_step(np.zeros(2), np.zeros(3)), r"theta's shape \(2,\), got \(3,\)"),
    (lambda: adam_step(0.0, 1j), "grad is complex but theta is real"),
    (lambda: adam_step("0", 1.0), "theta must hold numbers"),
    (lambda: adam_step(0.0, 1.0, initial_state(0.0), amsgrad=True), "begin the run with amsgrad=True"),
    (lambda: adam_step(0.0, 1.0, initial_state(np.zeros(2))), r"state is of a parameter of shape \(2,\)"),
    (lambda: algorithm1(0.0, lambda θ, t: θ), "say how many steps"),
    (lambda: algorithm1(0.0, 1.0), "one gradient per step"),
    (lambda: algorithm1(0.0, []), "at least one step"),
    (lambda: algorithm1(0.0, [1.0], steps=2), "only 1 gradients were given"),
    (lambda: algorithm1(0.0, [1.0, 1.0], [0.1]), "schedule of 1 values for 2 steps"),
])
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
