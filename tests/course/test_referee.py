"""The referee of chapter 03 accepts PyTorch's Adam in every bit, and nothing that is only near it."""

import pytest
import torch

import adamlib
from course.referee import same_as_torch, same_bits


def test_bits_are_more_than_numbers():
    zero = torch.zeros(3)
    assert same_bits(zero, torch.zeros(3)) and not same_bits(zero, -zero)
    assert same_bits(torch.full((2,), torch.nan), torch.full((2,), torch.nan))
    assert same_bits(torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64))
    assert not same_bits(torch.ones(2), torch.ones(2).nextafter(torch.zeros(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("options", [{}, dict(amsgrad=True, weight_decay=0.1, maximize=True)], ids=["plain", "options"])
def test_adamlib_passes(dtype, options):
    assert same_as_torch(adamlib.Adam, dtype=dtype, **options)


class NoEpsilon(torch.optim.Adam):
    def __init__(self, params, **options):
        super().__init__(params, foreach=False, **options | {"eps": 0.0})


class OtherRoundings(torch.optim.Adam):
    """The same numbers to six digits."""

    @torch.no_grad()
    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            p.mul_(3).div_(3)


@pytest.mark.parametrize("wrong", [NoEpsilon, OtherRoundings])
def test_what_is_only_near_does_not_pass(wrong):
    assert not same_as_torch(wrong)


def test_near_is_what_atol_asks_for():
    assert same_as_torch(OtherRoundings, atol=1e-5)
    assert not same_as_torch(NoEpsilon, atol=1e-5)


def test_another_option_is_seen():
    class Uphill(torch.optim.Adam):
        def __init__(self, params, **options):
            super().__init__(params, maximize=True, **options)

    assert not same_as_torch(Uphill)
