"""The ten networks of chapter 01: the same function for every shrink, nothing shared, and an honest best rate."""

import numpy as np
import pytest
import torch

from course import ten_networks


def test_shrinking_leaves_the_losses_alone_and_shrinks_the_gradients_of_the_first_weights():
    losses, gradients = {}, {}
    for shrink in (1, 16, 1 / 16):
        params = ten_networks.parameters(shrink)
        losses[shrink] = ten_networks.losses(params, shrink)
        losses[shrink].sum().backward()
        gradients[shrink] = params[0].grad
    for shrink in (16, 1 / 16):
        torch.testing.assert_close(losses[shrink], losses[1])
        torch.testing.assert_close(gradients[shrink] * shrink, gradients[1])
    assert losses[1].shape == (10,) and len(set(losses[1].tolist())) == 10


def test_networks_share_nothing():
    params = ten_networks.parameters()
    ten_networks.losses(params)[3].backward()
    for p in params:
        assert p.grad[3].abs().sum() > 0
        assert not p.grad[[k for k in range(10) if k != 3]].any()


def test_a_schedule_multiplies_the_rate_and_training_that_fails_is_infinitely_bad(monkeypatch):
    monkeypatch.setattr(ten_networks, "STEPS", 3)
    final = ten_networks.train(torch.optim.SGD, [0.01, 0.1, float("nan")])
    assert final.shape == (3, 10) and (final[1] < final[0]).all() and (final[2] == np.inf).all()
    halved = ten_networks.train(torch.optim.SGD, [0.2], schedule=lambda t: 0.5 if t >= 1 else 0)
    np.testing.assert_array_equal(halved[0], final[1])


def test_a_curve_ends_at_its_best_rate_and_a_best_rate_at_the_edge_is_refused():
    final = np.array([[2.0, 2.2, 2.1], [0.3, 0.2, 9.0], [0.03, 0.04, 0.02], [2.0, 3.0, 0.01]])
    assert ten_networks.best_rate(final) == 2
    np.testing.assert_array_equal(ten_networks.curve(final), [2.1, 0.3, 0.03, np.nan])
    for edge in (final[:3], final[2:]):
        with pytest.raises(ValueError, match="wider range"):
            ten_networks.best_rate(edge)
