"""The referee of chapters 03 and 04 accepts PyTorch's Adam in every bit, and nothing that is only near it."""

import pytest
import torch

import adamlib
from adamlib.variants.foreach import adam_foreach
from course.referee import same_as_torch, same_bits, same_in_lists

OPTIONS = pytest.mark.parametrize(
    "options", [{}, dict(amsgrad=True, weight_decay=0.1, maximize=True)], ids=["plain", "options"]
)
PLAIN = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
             amsgrad=False, maximize=False)


def torch_with(**changed):
    """torch's for-loop with other options than it is given."""
    return lambda params, **options: torch.optim.Adam(params, foreach=False, **options | changed)


class OtherRoundings(torch.optim.Adam):
    """The same numbers to six digits."""

    @torch.no_grad()
    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            p.mul_(3).div_(3)


WRONG = {"no ε": torch_with(eps=0.0), "uphill": torch_with(maximize=True), "other roundings": OtherRoundings}


def test_bits_are_more_than_numbers():
    zero = torch.zeros(3)
    assert same_bits(zero, torch.zeros(3)) and not same_bits(zero, -zero)
    assert same_bits(torch.full((2,), torch.nan), torch.full((2,), torch.nan))
    assert same_bits(torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64))
    assert not same_bits(torch.ones(2), torch.ones(2).nextafter(torch.zeros(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@OPTIONS
def test_adamlib_passes(dtype, options):
    assert same_as_torch(adamlib.Adam, dtype=dtype, **options)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_only_near_does_not_pass_unless_atol_asks_for_it(what):
    assert not same_as_torch(WRONG[what])
    assert same_as_torch(WRONG[what], atol=1e-5) is (what == "other roundings")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
@OPTIONS
def test_steps_in_lists(dtype, options):
    """adamlib's foreach has torch's bits; with one number changed, in the weights or in the state alone, it has not."""

    def step(*lists, change=(), **given):
        adam_foreach(*lists, **PLAIN | given | dict(change))

    assert same_in_lists(step, dtype, **options)
    for change in (dict(beta1=0.8), dict(beta2=0.9), dict(lr=2e-3), dict(weight_decay=0.5)):
        assert not same_in_lists(lambda *lists, **given: step(*lists, change=change, **given), dtype, **options)


def test_lists_with_one_count_for_all_do_not_pass():
    """The second tensor misses steps, so its count is its own."""

    def step(*lists, **given):
        *tensors, ts = lists
        adam_foreach(*tensors, [max(ts)] * len(ts), **PLAIN | given)

    assert not same_in_lists(step)
