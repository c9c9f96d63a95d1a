"""adamlib.variants.root: √v has the slopes of torch.sqrt where v > 0, and slope 0 at 0, in every order and mode."""
import itertools

import pytest
import torch
from parameter_zoo import same_bits
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vmap

from adamlib.variants.root import root_with_slope

MODES = {
    "backward": grad,
    "forward": lambda f: lambda v: jvp(f, (v,), (torch.ones_like(v),))[1],
}
# √v at 4 and its first three derivatives
EXACT = [2.0, 1 / 4, -1 / 32, 3 / 256]


EVERY_ORDER = [modes for n in (1, 2, 3) for modes in itertools.product(MODES, repeat=n)]


@pytest.mark.parametrize("modes", EVERY_ORDER, ids="-".join)
def test_every_order_in_every_mode(modes):
    derivative = root_with_slope
    for mode in modes:
        derivative = MODES[mode](derivative)
    for v, exact in (4.0, EXACT[len(modes)]), (0.0, 0.0):
        at = torch.tensor(v, dtype=torch.float64)
        assert derivative(at).item() == pytest.approx(exact)
        assert vmap(derivative)(at.expand(2)).tolist() == pytest.approx([exact, exact])


@pytest.mark.parametrize("second", [hessian, lambda f: jacfwd(jacfwd(f))], ids=["hessian", "forward twice"])
def test_second_derivatives_of_a_vector(second):
    found = second(lambda v: root_with_slope(v).sum())(torch.tensor([0.0, 4.0]))
    assert torch.equal(found, torch.tensor([[0.0, 0.0], [0.0, -1 / 32]]))


def test_plain_autograd_has_the_bits_of_torchs_root_and_its_slope():
    random = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    v = torch.cat([random, torch.tensor([torch.inf, torch.nan])]).requires_grad_()
    ours, theirs = root_with_slope(v), v.sqrt()
    assert same_bits(ours, theirs)
    assert same_bits(*(torch.autograd.grad(root.sum(), v)[0] for root in (ours, theirs)))


def test_dual_numbers_without_torch_func():
    with forward_ad.dual_level():
        root = root_with_slope(forward_ad.make_dual(torch.tensor([0.0, 4.0]), torch.ones(2)))
        assert forward_ad.unpack_dual(root).tangent.tolist() == [0.0, 0.25]


def test_a_root_that_the_transform_does_not_follow():
    """v is no variable of vmap here, but of the autograd around it."""
    v = torch.tensor([0.0, 4.0], requires_grad=True)
    total = vmap(lambda scale: (scale * root_with_slope(v)).sum())(torch.tensor([1.0, 3.0])).sum()
    assert torch.autograd.grad(total, v)[0].tolist() == [0.0, 1.0]


def test_compiled_without_break():
    compiled = torch.compile(lambda v: root_with_slope(v).sum(), backend="aot_eager", fullgraph=True)
    v = torch.tensor([0.0, 4.0], requires_grad=True)
    compiled(v).backward()
    assert v.grad.tolist() == [0.0, 0.25]
