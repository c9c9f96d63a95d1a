"""The oracle itself: against torch.optim.Adam in float64, and against what can be worked out by hand."""

import math

import numpy as np
import pytest
import torch

from adamlib.theory.algorithm1 import State, adam_step, algorithm1, initial_state

OPTIONS = [
    {},
    {"betas": (0.0, 0.99)},
    {"betas": (0.95, 0.9), "eps": 1e-3},
    {"weight_decay": 0.3},
    {"weight_decay": 0.3, "decoupled_weight_decay": True},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.3},
    {"maximize": True, "weight_decay": 0.3, "decoupled_weight_decay": True, "amsgrad": True},
]


def torch_run(theta0, grads, lr, *, betas=(0.9, 0.999), eps=1e-8, **options):
    decoupled = options.pop("decoupled_weight_decay", False)
    θ = torch.tensor(theta0, requires_grad=True)
    opt = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
        [θ], lr=lr, betas=betas, eps=eps, foreach=False, **({"weight_decay": 0.0} | options)
    )
    path = [θ.detach().numpy().copy()]
    for g in grads:
        θ.grad = torch.tensor(g)
        opt.step()
        path.append(θ.detach().numpy().copy())
    return np.stack(path), opt.state[θ]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_agrees_with_torch_in_every_option(options, is_complex):
    rng = np.random.default_rng(0)
    θ0, grads = rng.normal(size=(3, 2)), rng.standard_t(2, size=(60, 3, 2))
    if is_complex:
        θ0, grads = θ0 + 1j * rng.normal(size=(3, 2)), grads + 1j * rng.standard_t(2, size=(60, 3, 2))
    ours = algorithm1(θ0, grads, 0.05, **options)
    theirs, state = torch_run(θ0, grads, 0.05, **options)

    np.testing.assert_allclose(ours.theta, theirs, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(ours.state.m, state["exp_avg"].numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.state.v, state["exp_avg_sq"].numpy(), rtol=1e-12)
    assert ours.state.step == state["step"].item() == 60
    if options.get("amsgrad"):
        np.testing.assert_allclose(ours.state.v_max, state["max_exp_avg_sq"].numpy(), rtol=1e-12)
    else:
        assert ours.state.v_max is None


def test_first_steps_by_hand():
    # g = 2 then −1 with α = 1, β = (½, ¾), ε = 0
    run = algorithm1(10.0, [2.0, -1.0], lr=1.0, betas=(0.5, 0.75), eps=0.0)
    assert run.m.tolist() == [1.0, 0.0]
    assert run.v.tolist() == [1.0, 1.0]
    assert run.m_hat.tolist() == [2.0, 0.0]
    np.testing.assert_allclose(run.v_hat, [4.0, 1 / (1 - 0.5625)], rtol=1e-15)
    assert run.theta.tolist() == [10.0, 9.0, 9.0]
    assert run.delta.tolist() == [1.0, 0.0]


def test_epsilon_stands_outside_the_root_and_is_not_corrected():
    assert adam_step(0.0, 1e-8, lr=1.0, eps=1e-8).theta == pytest.approx(-0.5, rel=1e-12)
    assert adam_step(0.0, 1e-6, lr=1.0, eps=1e-8).theta == pytest.approx(-1e-6 / (1e-6 + 1e-8), rel=1e-12)


def test_three_forms_of_the_update_agree_and_a_constant_eps_hat_does_not():
    α, β1, β2, ε = 1e-3, 0.9, 0.999, 1e-8
    grads = np.random.default_rng(1).normal(size=500)
    paper = algorithm1(0.0, grads, α, (β1, β2), ε)
    t, m, v = np.arange(1, 501), paper.m, paper.v
    c1, c2 = 1 - β1**t, 1 - β2**t
    torch_form = α / c1 * m / (np.sqrt(v) / np.sqrt(c2) + ε)
    efficient = α * np.sqrt(c2) / c1 * m / (np.sqrt(v) + ε * np.sqrt(c2))
    keras_form = α * np.sqrt(c2) / c1 * m / (np.sqrt(v) + ε)
    assert np.abs(paper.delta - torch_form).max() < 1e-16
    assert np.abs(paper.delta - efficient).max() < 1e-16
    assert 1e-10 < np.abs(np.cumsum(paper.delta - keras_form)).max() < 1e-8  # small at g ≈ 1 …
    tiny = adam_step(0.0, 1e-6, lr=1.0)  # … and large here
    of_keras = math.sqrt(1 - β2) / (1 - β1) * tiny.state.m / (np.sqrt(tiny.state.v) + ε)
    assert of_keras == pytest.approx(0.760, abs=1e-3)
    assert tiny.delta == pytest.approx(0.990, abs=1e-3)


@pytest.mark.parametrize("power", [-40, -1, 3, 20])
def test_scaling_gradients_by_a_power_of_two_changes_no_bit_when_eps_is_zero(power):
    grads = np.random.default_rng(2).standard_t(2, size=(200, 4))
    plain = algorithm1(np.zeros(4), grads, 1e-2, eps=0.0)
    scaled = algorithm1(np.zeros(4), grads * 2.0**power, 1e-2, eps=0.0)
    assert np.array_equal(plain.theta, scaled.theta)


def test_constant_and_alternating_gradients():
    steps = algorithm1(0.0, np.full(2000, -7.3), 1e-3, eps=0.0).delta / 1e-3
    np.testing.assert_allclose(steps, -1.0, atol=1e-13)
    alternating = algorithm1(0.0, (-1.0) ** np.arange(20_000), 1.0, eps=0.0).delta
    assert abs(alternating[-1]) == pytest.approx(0.1 / 1.9, rel=1e-6)


def test_complex_numbers_are_pairs():
    step = adam_step(0j, 3 + 4j, lr=1.0, eps=0.0)
    assert step.theta == pytest.approx(-1 - 1j, rel=1e-12)
    assert step.state.v == pytest.approx((9 + 16j) * 1e-3)
    lonely = adam_step(0j, 1 + 0j, lr=1.0, eps=0.0).theta  # the imaginary part is 0/0
    assert lonely.real == pytest.approx(-1) and np.isnan(lonely.imag)


def test_maximize_is_the_negated_gradient_and_still_decays():
    grads = np.random.default_rng(3).normal(size=(50, 2))
    up = algorithm1(np.ones(2), grads, 0.01, maximize=True, weight_decay=0.1)
    down = algorithm1(np.ones(2), -grads, 0.01, weight_decay=0.1)
    assert np.array_equal(up.theta, down.theta)


def test_weight_decay_finds_its_closed_forms():
    """Linear loss g·θ, λ = 0.1: L2 settles at −g/λ, decoupled decay at −sign(g)/λ."""
    for g in (0.001, 1.0):
        grads = np.full(30_000, g)
        l2 = algorithm1(0.0, grads, 5e-3, weight_decay=0.1)
        decoupled = algorithm1(0.0, grads, 5e-3, weight_decay=0.1, decoupled_weight_decay=True)
        assert l2.theta[-1] == pytest.approx(-g / 0.1, rel=1e-3)
        assert decoupled.theta[-1] == pytest.approx(-1 / 0.1, rel=1e-3)


def test_amsgrad_takes_the_maximum_before_the_correction():
    run = algorithm1(0.0, [10.0] + [0.1] * 50, lr=1.0, eps=0.0, amsgrad=True)
    np.testing.assert_allclose(run.delta[[0, 1, 10, 50]], [1.0, 0.677, 0.200, 0.074], atol=5e-4)


def test_amsgrad_counter_example_of_reddi_kale_and_kumar():
    """Gradients 3, −1, −1, … on [−1, 1], β = (0, 0.1): optimum −1, Adam goes to +1 (ICLR 2018, theorem 1)."""

    def play(amsgrad, steps):
        x, state = 0.0, None
        for t in range(1, steps + 1):
            g = 3.0 if t % 3 == 1 else -1.0
            step = adam_step(x, g, state, lr=0.5 / math.sqrt(t), betas=(0.0, 0.1), amsgrad=amsgrad)
            x, state = min(1.0, max(-1.0, float(step.theta))), step.state
        return x

    assert play(amsgrad=False, steps=100) > 0.9
    assert play(amsgrad=True, steps=100) < -0.999


def test_functions_schedules_and_going_on():
    loss_gradient = lambda θ, t: θ  # noqa: E731
    whole = algorithm1(np.ones(2), loss_gradient, 0.1, steps=40)
    again = algorithm1(np.ones(2), whole.theta[:-1], 0.1)
    assert np.array_equal(whole.theta, again.theta)

    first = algorithm1(np.ones(2), loss_gradient, 0.1, steps=15)
    rest = algorithm1(first.theta[-1], loss_gradient, 0.1, steps=25, state=first.state)
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


@pytest.mark.parametrize(
    "call, message",
    [
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
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
