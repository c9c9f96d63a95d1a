"""The referee of chapters 03 and 04 lets nothing pass that is only near. (What passes stands in their outputs.)"""

import pytest
import torch

from adamlib.variants.foreach import adam_foreach
from course.referee import same_as_torch, same_bits, same_in_lists

OPTIONS = dict(amsgrad=True, weight_decay=0.1, maximize=True)
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


class OtherState(torch.optim.Adam):
    """The same weights, and another state after the last step."""

    @torch.no_grad()
    def step(self):
        super().step()
        for state in self.state.values():
            state["exp_avg"].mul_(1 + (state["step"] == 20))


WRONG = {"no ε": torch_with(eps=0.0), "uphill": torch_with(maximize=True)}
NEAR = {"other roundings": OtherRoundings, "another state": OtherState}


def test_bits_are_more_than_numbers():
    zero = torch.zeros(3)
    assert same_bits(zero, torch.zeros(3)) and not same_bits(zero, -zero)
    assert same_bits(torch.full((2,), torch.nan), torch.full((2,), torch.nan))
    assert same_bits(torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64))
    assert not same_bits(torch.ones(2), torch.ones(2).nextafter(torch.zeros(2)))


@pytest.mark.parametrize("what", WRONG | NEAR)
def test_what_is_only_near_does_not_pass_unless_atol_asks_for_it(what):
    optimizer = (WRONG | NEAR)[what]
    assert not same_as_torch(optimizer)
    assert same_as_torch(optimizer, atol=1e-5) is (what in NEAR)


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
def test_one_number_changed_in_the_weights_or_in_the_state_alone_does_not_pass(options):
    """And one count for all tensors neither: the second one misses steps, so its count is its own."""

    def step(*lists, change=(), **given):
        adam_foreach(*lists, **PLAIN | given | dict(change))

    def other_state(*lists, **given):
        step(*lists, **given)
        _, _, ms, *_, ts = lists
        ms[0].mul_(1 + (max(ts) == 20))

    def counts_together(*lists, **given):
        *tensors, ts = lists
        step(*tensors, [max(ts)] * len(ts), **given)

    assert same_in_lists(step, torch.bfloat16, **options)
    assert not same_in_lists(other_state, **options)
    assert not same_in_lists(counts_together, **options)
    for change in (dict(beta1=0.8), dict(beta2=0.9), dict(lr=2e-3), dict(weight_decay=0.5)):
        assert not same_in_lists(lambda *lists, **given: step(*lists, change=change, **given), **options)
