"""Ten small networks that learn the digits side by side: what chapter 01 compares rules of learning on.

The weights of all ten are stacked in one tensor per layer, so that ten starts cost little more than one. No weight is
shared: the gradient of the *sum* of their losses gives each network its own gradient.
"""

import functools

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from course import data

STARTS = 10
LAYERS = (64, 20), (20, 20), (20, 10)  # 64 pixels, two hidden layers with tanh, 10 digits
IMAGES = 200
STEPS = 100


def parameters(shrink=1):
    """The same ten starts at every call: three weights [10, in, out] and three biases [10, 1, out].

    shrink: what the pixels will be divided by in ``losses``. The first weights are multiplied by it, so that every
    output is the same for every shrink.
    """
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(STARTS, a, b, generator=random) / a**0.5 for a, b in LAYERS]
    weights[0] *= shrink
    biases = [torch.zeros(STARTS, 1, b) for _, b in LAYERS]
    return [p.requires_grad_() for p in weights + biases]


@functools.cache
def _images():
    x, y, _, _ = data.digits()
    return x[:IMAGES], y[:IMAGES]


def losses(params, shrink=1):
    """The mean cross-entropy of each of the ten networks on the first 200 images, their pixels divided by shrink."""
    x, y = _images()
    w1, w2, w3, b1, b2, b3 = params
    hidden = torch.tanh(torch.tanh(x / shrink @ w1 + b1) @ w2 + b2)
    scores = (hidden @ w3 + b3).transpose(1, 2)  # [networks, digits, images], as cross_entropy wants it
    return cross_entropy(scores, y.expand(STARTS, -1), reduction="none").mean(1)


def train(make, rates, shrink=1, schedule=None):
    """The ten losses after 100 steps at each learning rate: a NumPy array [rates, networks], inf where training failed.

    make: ``make(parameters, lr=rate)`` is an optimizer.  schedule: step t = 1, 2, … is taken at ``rate * schedule(t)``.
    """
    final = []
    for rate in rates:
        params = parameters(shrink)
        rule = make(params, lr=rate)
        for t in range(1, STEPS + 1):
            if schedule:
                rule.param_groups[0]["lr"] = rate * schedule(t)
            rule.zero_grad()
            losses(params, shrink).sum().backward()
            rule.step()
        final.append(losses(params, shrink).detach())
    return torch.stack(final).nan_to_num(torch.inf).numpy()


def best_rate(final):
    """The number of the learning rate with the lowest median loss. final: NumPy array of losses [rates, networks].

    Raises ValueError where it is the first or the last rate: then a better one may lie outside.
    """
    best = int(np.median(final, axis=1).argmin())
    if best in (0, len(final) - 1):
        raise ValueError(f"rate number {best} of {len(final)} is the best: try a wider range of rates")
    return best


def curve(final):
    """The median losses per rate, for a figure: NaN beyond the best rate.

    Beyond it training soon fails, and what a failing run ends at is chaos: another processor rounds its last bits
    differently and ends elsewhere.
    """
    medians = np.median(final, axis=1)
    medians[best_rate(final) + 1 :] = np.nan
    return medians
