"""Gradients through the step: checked against finite differences, with respect to everything that goes in."""

import math

import pytest
import torch
from parameter_zoo import same_bits

import adamlib

F64 = dict(dtype=torch.float64)
START = dict(
    p0=torch.tensor([0.7, -1.2, 0.3], **F64),
    g=torch.tensor([[0.3, -0.8, 0.5], [-0.2, 0.4, 0.9], [0.6, 0.1, -0.7], [0.2, -0.3, 0.1]], **F64),
    lr=torch.tensor(0.1, **F64),
    beta1=torch.tensor(0.8, **F64),
    beta2=torch.tensor(0.95, **F64),
    eps=torch.tensor(1e-3, **F64),
    weight_decay=torch.tensor(0.1, **F64),
)


def unroll(p0, g, lr, beta1, beta2, eps, weight_decay, *, cls=adamlib.Adam, **options):
    """The parameter after len(g) steps; the gradients depend on the parameter as well, as in training."""
    p = p0.clone()
    opt = cls([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, differentiable=True, **options)
    for row in g:
        p.grad = row + 0.3 * p.clone().sin()  # a copy: the step writes p, and sin has saved what it read
        opt.step()
    return p


def arguments(*names, **changed):
    values = START | changed
    return {name: value.clone().requires_grad_(name in names) for name, value in values.items()}


@pytest.mark.parametrize("wrt", list(START))
@pytest.mark.parametrize(
    "options", [{}, dict(amsgrad=True), dict(maximize=True), dict(decoupled_weight_decay=True)], ids=str
)
def test_gradcheck(wrt, options):
    given = arguments(wrt)

    def run(x):
        return unroll(**given | {wrt: x}, **options)

    assert torch.autograd.gradcheck(run, (given[wrt],), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_gradcheck_with_respect_to_everything_at_once(amsgrad, decoupled):
    given = arguments(*START)

    def run(*values):
        return unroll(*values, amsgrad=amsgrad, decoupled_weight_decay=decoupled)

    assert torch.autograd.gradcheck(run, tuple(given.values()), atol=1e-6, rtol=1e-4)


def test_second_derivatives_pass_gradgradcheck():
    given = arguments("p0", "lr", "weight_decay")

    def run(p0, lr, weight_decay):
        return unroll(**given | dict(p0=p0, lr=lr, weight_decay=weight_decay, g=given["g"][:2]))

    assert torch.autograd.gradgradcheck(run, (given["p0"], given["lr"], given["weight_decay"]), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("wrt", ["p0", "lr", "beta1", "beta2", "weight_decay"])
def test_gradients_are_torchs_where_torch_has_them(wrt):
    grads = []
    for cls in (adamlib.Adam, torch.optim.Adam):
        given = arguments(wrt)
        if wrt in ("p0", "lr", "weight_decay"):
            given["beta1"], given["beta2"] = 0.8, 0.95
        if wrt != "weight_decay":
            given["weight_decay"] = 0.1
        given["eps"] = 1e-3
        unroll(**given, cls=cls).sum().backward()
        grads.append(given[wrt].grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [3, 8])
def test_amsgrad_over_unrolled_steps_passes_gradcheck(steps):
    """Gradients that fall, so that the maximum is an old one, and others that grow."""
    fading = torch.stack([torch.tensor([0.9**t, -(1.1**t), math.cos(t)], **F64) for t in range(steps)])
    given = arguments("p0", "lr", "beta1", "beta2", g=fading)

    def run(p0, lr, beta1, beta2):
        return unroll(**given | dict(p0=p0, lr=lr, beta1=beta1, beta2=beta2), amsgrad=True)

    inputs = tuple(given[n] for n in ("p0", "lr", "beta1", "beta2"))
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-4)


def test_amsgrad_over_two_hundred_steps_is_finite():
    given = arguments("lr", "p0", g=torch.stack([torch.full((3,), math.sin(t), **F64) for t in range(200)]))
    unroll(**given, amsgrad=True).sum().backward()
    assert given["lr"].grad.isfinite() and given["p0"].grad.isfinite().all()
    assert float(given["lr"].grad) != 0.0


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    "decay", [{}, dict(weight_decay=0.1), dict(weight_decay=0.1, decoupled_weight_decay=True)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_are_those_of_single_tensor(amsgrad, decay, dtype):
    ends = []
    for flags in (dict(foreach=False), dict(differentiable=True)):
        leaf = torch.linspace(-1, 1, 7, dtype=dtype).requires_grad_()
        p = leaf.clone() if "differentiable" in flags else leaf
        opt = adamlib.Adam([p], lr=0.01, amsgrad=amsgrad, **decay, **flags)
        for t in range(12):
            p.grad = torch.sin(torch.arange(7, dtype=dtype) + t)
            opt.step()
        ends.append((p.detach(), *(v.detach() for v in opt.state[p].values())))
    assert all(same_bits(a, b) for a, b in zip(*ends, strict=True))


# --- at v = 0


def zero_gradient_step(amsgrad=False, eps=1e-8, lr=0.1, steps=1):
    g = torch.zeros(3, **F64, requires_grad=True)
    p0 = torch.ones(3, **F64, requires_grad=True)
    p = p0.clone()
    opt = adamlib.Adam([p], lr=lr, eps=eps, amsgrad=amsgrad, differentiable=True)
    for _ in range(steps):
        p.grad = g * 1.0
        opt.step()
    return g, p0, p


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_gradients_are_finite_at_v_zero(amsgrad, steps):
    g, p0, p = zero_gradient_step(amsgrad, steps=steps)
    p.sum().backward()
    assert torch.equal(p.detach(), torch.ones(3, **F64))
    assert torch.equal(p0.grad, torch.ones(3, **F64))
    assert g.grad.isfinite().all()
    # Every step is Δ = −lr·g/(|g| + ε) here, for a constant gradient: slope −lr/ε at g = 0.
    torch.testing.assert_close(g.grad, torch.full((3,), -steps * 0.1 / 1e-8, **F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_gradcheck_passes_at_v_zero(amsgrad):
    """With ε = 1 the step −lr·g/(|g| + 1) is smooth at zero, so finite differences can judge."""

    def run(g):
        p = torch.ones(3, **F64)
        opt = adamlib.Adam([p], lr=0.1, eps=1.0, amsgrad=amsgrad, differentiable=True)
        p.grad = g * 1.0
        opt.step()
        return p

    g = torch.tensor([0.0, 0.5, 0.0], **F64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (g,), eps=1e-7, atol=1e-5)


def test_hyperparameters_have_finite_gradients_at_v_zero():
    given = arguments(
        *START, g=torch.zeros(2, 3, **F64), p0=torch.zeros(3, **F64), weight_decay=torch.tensor(0.0, **F64)
    )
    unroll(**given).sum().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in given.values())
    assert given["p0"].grad is not None


def test_a_parameter_that_wakes_up_after_zero_gradients_has_finite_gradients():
    g = torch.zeros(4, 3, **F64)
    g[2:] = 1.0
    given = arguments("lr", "g", "beta1", "beta2", g=g)
    unroll(**given | dict(p0=torch.zeros(3, **F64), weight_decay=0.0)).sum().backward()
    assert all(given[n].grad.isfinite().all() for n in ("lr", "g", "beta1", "beta2"))


# --- what belongs to the caller


@pytest.mark.parametrize(
    "options", [{}, dict(maximize=True), dict(decoupled_weight_decay=True), dict(amsgrad=True)], ids=str
)
@pytest.mark.parametrize(
    "weight_decay", [0.5, torch.tensor(0.5, **F64), torch.tensor(0.5, **F64).requires_grad_()], ids=str
)
def test_the_callers_gradient_is_never_written(options, weight_decay):
    p = torch.ones(2, **F64).requires_grad_().clone()
    opt = adamlib.Adam([p], lr=0.1, weight_decay=weight_decay, differentiable=True, **options)
    given = torch.tensor([3.0, -2.0], **F64)
    version = given._version
    for _ in range(3):
        p.grad = given
        opt.step()
        assert p.grad is given and given.tolist() == [3.0, -2.0] and given._version == version


def test_the_fused_and_foreach_variants_refuse():
    for flag in ("fused", "foreach"):
        with pytest.raises((RuntimeError, ValueError), match=flag):
            p = torch.ones(2)
            opt = adamlib.Adam([p], differentiable=True, **{flag: True})
            p.grad = torch.ones(2)
            opt.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_complex_parameters_can_be_differentiated_over_several_steps(amsgrad):
    def run(z0, lr):
        z = z0.clone()
        opt = adamlib.Adam([z], lr=lr, eps=1e-2, amsgrad=amsgrad, weight_decay=0.1, differentiable=True)
        for t in range(3):
            z.grad = (z.clone().square() * math.cos(t)).conj() + 0.3
            opt.step()
        return torch.view_as_real(z)

    z0 = torch.tensor([0.3 + 0.7j, -0.9 + 0.2j], dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(run, (z0, torch.tensor(0.1, **F64, requires_grad=True)), atol=1e-6, rtol=1e-4)


def test_each_group_follows_its_own_flag():
    """torch takes the gradient mode of the whole step from the defaults."""
    inner, leaf = torch.ones(2, **F64, requires_grad=True), torch.ones(2, **F64, requires_grad=True)
    p = inner.clone()
    opt = adamlib.Adam([dict(params=[p]), dict(params=[leaf], differentiable=False)], lr=0.1, differentiable=True)
    for _ in range(2):
        p.grad, leaf.grad = p.clone() * 2, leaf.detach() * 2
        opt.step()
    assert leaf.is_leaf and p.requires_grad and not opt.state[leaf]["exp_avg"].requires_grad
    p.sum().backward()
    assert inner.grad.isfinite().all()
    torch.testing.assert_close(p.detach(), leaf.detach())


def test_a_learning_rate_can_be_learned():
    """Five outer steps of gradient descent on log lr lower the loss that ten inner steps of Adam reach."""
    log_lr, losses = torch.tensor(math.log(1e-3), **F64, requires_grad=True), []
    for _ in range(5):
        p = torch.ones(3, **F64, requires_grad=True).clone()
        opt = adamlib.Adam([p], lr=log_lr.exp(), differentiable=True)
        for _ in range(10):
            p.grad = 2 * p.clone()  # the gradient of |p|²
            opt.step()
        loss = p.square().sum()
        (slope,) = torch.autograd.grad(loss, log_lr)
        losses.append(loss.item())
        with torch.no_grad():
            log_lr -= 5.0 * slope
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
