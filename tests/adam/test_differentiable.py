"""Gradients through the step, checked against finite differences, with respect to everything that goes in; its root."""

import math
from itertools import product

import pytest
import torch
from parameter_zoo import same_bits
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jvp, vmap

import adamlib
from adamlib.variants.root import root_with_slope

F64 = dict(dtype=torch.float64)
START = dict(
    p0=torch.tensor([0.7, -1.2, 0.3], **F64),
    g=torch.tensor([[0.9**t, -(1.1**t), math.cos(t)] for t in range(5)], **F64),
    lr=torch.tensor(0.1, **F64),
    beta1=torch.tensor(0.8, **F64),
    beta2=torch.tensor(0.95, **F64),
    eps=torch.tensor(1e-3, **F64),
    weight_decay=torch.tensor(0.1, **F64),
)
AMSGRAD, DECOUPLED = dict(amsgrad=True), dict(decoupled_weight_decay=True)
NEAR = dict(atol=1e-6, rtol=1e-4)


def unroll(p0, g, lr, beta1, beta2, eps, weight_decay, **options):
    """The parameter after len(g) steps; the gradients depend on the parameter as well, as in training."""
    p = p0.clone()
    numbers = dict(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    opt = adamlib.Adam([p], differentiable=True, **numbers, **options)
    for row in g:
        p.grad = row + 0.3 * p.clone().sin()  # a copy: the step writes p, and sin has saved what it read
        opt.step()
    return p


def arguments(*names, **changed):
    """What `unroll` takes, fresh; those named require a gradient."""
    return {name: value.clone().requires_grad_(name in names) for name, value in (START | changed).items()}


def agrees(check, given, names, options, **tolerances):
    """Whether torch's gradcheck or gradgradcheck accepts the unrolled steps, as a function of the arguments named."""
    def function(*values):
        return unroll(**given | dict(zip(names, values)), **options)

    return check(function, tuple(given[name] for name in names), **tolerances)


@pytest.mark.parametrize("names", [*([name] for name in START), [*START]], ids=lambda names: "+".join(names))
@pytest.mark.parametrize("options", [{}, AMSGRAD, DECOUPLED | dict(maximize=True)], ids=str)
def test_gradcheck_with_respect_to_each_argument_and_to_all(names, options):
    """The gradients fade, grow and turn: with amsgrad the maximum is old, new, or now this and now that."""
    assert agrees(gradcheck, arguments(*names), names, options, **NEAR)


def test_second_derivatives_pass_gradgradcheck():
    names = "p0", "lr", "weight_decay"
    assert agrees(gradgradcheck, arguments(*names, g=START["g"][:2]), names, {}, atol=1e-5, rtol=1e-3)


# --- at v = 0

@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_slope_at_v_zero(amsgrad, steps):
    """For a constant gradient every step is Δ = −lr·g/(|g| + ε): slope −lr/ε at g = 0."""
    g, p0 = torch.zeros(3, **F64, requires_grad=True), torch.ones(3, **F64, requires_grad=True)
    p = p0.clone()
    opt = adamlib.Adam([p], lr=0.1, eps=1e-8, amsgrad=amsgrad, differentiable=True)
    for _ in range(steps):
        p.grad = g * 1.0
        opt.step()
    p.sum().backward()
    assert torch.equal(p.detach(), torch.ones(3, **F64)) and torch.equal(p0.grad, torch.ones(3, **F64))
    torch.testing.assert_close(g.grad, torch.full((3,), -steps * 0.1 / 1e-8, **F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("asleep, awake", [(2, 0), (2, 2)])
def test_hyperparameters_have_finite_gradients_while_a_weight_sleeps_and_when_it_wakes_up(asleep, awake):
    zero = torch.zeros((), **F64)  # also for the weight and its decay: nothing but g moves it
    g = torch.cat([torch.zeros(asleep, 3, **F64), torch.ones(awake, 3, **F64)])
    given = arguments(*START, g=g, p0=zero.expand(3), weight_decay=zero)
    unroll(**given).sum().backward()
    assert given["p0"].grad is not None
    assert all(value.grad is None or value.grad.isfinite().all() for value in given.values())


# --- what belongs to the caller

@pytest.mark.parametrize("options", [{}, AMSGRAD, DECOUPLED, dict(maximize=True)], ids=str)
@pytest.mark.parametrize("kind", ["number", "tensor", "tensor that requires a gradient"])
def test_the_callers_gradient_is_never_written(options, kind):
    decay = 0.5 if kind == "number" else torch.tensor(0.5, **F64, requires_grad="requires" in kind)
    p = torch.ones(2, **F64).requires_grad_().clone()
    opt = adamlib.Adam([p], lr=0.1, weight_decay=decay, differentiable=True, **options)
    given = torch.tensor([3.0, -2.0], **F64)
    version = given._version
    for _ in range(3):
        p.grad = given
        opt.step()
        assert p.grad is given and given.tolist() == [3.0, -2.0] and given._version == version


@pytest.mark.parametrize("amsgrad", [False, True])
def test_complex_parameters_can_be_differentiated_over_several_steps(amsgrad):
    def unrolled(z0, lr):
        z = z0.clone()
        opt = adamlib.Adam([z], lr=lr, eps=1e-2, amsgrad=amsgrad, weight_decay=0.1, differentiable=True)
        for t in range(3):
            z.grad = (z.clone().square() * math.cos(t)).conj() + 0.3
            opt.step()
        return torch.view_as_real(z)

    z0 = torch.tensor([0.3 + 0.7j, -0.9 + 0.2j], dtype=torch.complex128, requires_grad=True)
    assert gradcheck(unrolled, (z0, torch.tensor(0.1, **F64, requires_grad=True)), **NEAR)


def test_options_of_one_element_in_any_shape_get_their_gradients():
    slopes = []
    for shape in (), (1,), (1, 1):
        given = {name: value.reshape(shape).requires_grad_() if value.dim() == 0 else value
                 for name, value in arguments().items()}
        unroll(**given).sum().backward()
        slopes.append([value.grad.item() for value in given.values() if value.requires_grad])
    assert len(slopes[0]) == 5 and slopes[0] == slopes[1] == slopes[2]


def test_with_capturable_too_the_count_stays_on_the_host_which_reads_it():
    p = torch.ones(3, device="meta")
    opt = adamlib.Adam([p], differentiable=True, capturable=True)
    for _ in range(2):
        p.grad = torch.ones(3, device="meta")
        opt.step()
    assert opt.state[p]["step"].device.type == "cpu" and float(opt.state[p]["step"]) == 2


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


# --- the root: the slopes of torch.sqrt where v > 0, and slope 0 at 0

MODES = {
    "backward": grad,
    "forward": lambda f: lambda v: jvp(f, (v,), (torch.ones_like(v),))[1],
}
EXACT = [2.0, 1 / 4, -1 / 32, 3 / 256]  # √v at 4 and its first three derivatives
EVERY_ORDER = [modes for n in (1, 2, 3) for modes in product(MODES, repeat=n)]


@pytest.mark.parametrize("modes", EVERY_ORDER, ids="-".join)
def test_the_root_in_every_order_and_mode(modes):
    derivative = root_with_slope
    for mode in modes:
        derivative = MODES[mode](derivative)
    for v, exact in (4.0, EXACT[len(modes)]), (0.0, 0.0):
        at = torch.tensor(v, dtype=torch.float64)
        assert derivative(at).item() == pytest.approx(exact)
        assert vmap(derivative)(at.expand(2)).tolist() == pytest.approx([exact, exact])


@pytest.mark.parametrize("second", [hessian, lambda f: jacfwd(jacfwd(f))], ids=["hessian", "forward twice"])
def test_second_derivatives_of_the_root_of_a_vector(second):
    found = second(lambda v: root_with_slope(v).sum())(torch.tensor([0.0, 4.0]))
    assert torch.equal(found, torch.tensor([[0.0, 0.0], [0.0, -1 / 32]]))


def test_the_root_has_the_bits_of_torchs_and_so_has_its_slope():
    random = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    v = torch.cat([random, torch.tensor([torch.inf, torch.nan])]).requires_grad_()
    ours, theirs = root_with_slope(v), v.sqrt()
    assert same_bits(ours, theirs)
    assert same_bits(*(torch.autograd.grad(root.sum(), v)[0] for root in (ours, theirs)))


def test_the_root_of_dual_numbers_without_torch_func():
    with forward_ad.dual_level():
        root = root_with_slope(forward_ad.make_dual(torch.tensor([0.0, 4.0]), torch.ones(2)))
        assert forward_ad.unpack_dual(root).tangent.tolist() == [0.0, 0.25]


def test_a_root_that_the_transform_does_not_follow():
    """v is no variable of vmap here, but of the autograd around it."""
    v = torch.tensor([0.0, 4.0], requires_grad=True)
    total = vmap(lambda scale: (scale * root_with_slope(v)).sum())(torch.tensor([1.0, 3.0])).sum()
    assert torch.autograd.grad(total, v)[0].tolist() == [0.0, 1.0]


def test_the_root_compiles_without_break():
    compiled = torch.compile(lambda v: root_with_slope(v).sum(), backend="aot_eager", fullgraph=True)
    v = torch.tensor([0.0, 4.0], requires_grad=True)
    compiled(v).backward()
    assert v.grad.tolist() == [0.0, 0.25]
