"""Ten small networks that have learned the digits, and then find the labels permuted (chapter 02).

The weights of all ten are stacked in one tensor per layer, so that ten starts cost little more than one. No weight is
shared: the gradient of the *sum* of their losses gives each network its own gradient.
"""

import copy
import functools

import torch
from torch.nn.functional import cross_entropy

from course import data

LEARNED = 400  # steps before the labels change


@functools.cache
def _drawn():
    """Images, labels, the images of each network at each of 500 steps [500, 10, 64], starts, and the new labels."""
    x, y, _, _ = data.digits()
    draw = torch.Generator().manual_seed(0)
    starts = [torch.rand(10, 64, n, generator=draw) - 0.5 for n in (64, 10)]
    renamed = torch.rand(10, 10, generator=draw).argsort(dim=1)
    batches = torch.randint(len(x), (LEARNED + 100, 10, 64), generator=draw)
    return x.double(), y, batches, [w.double() / 4 for w in starts], renamed


def _losses(layers, batches, permuted):
    x, y, _, _, renamed = _drawn()
    for batch in batches:
        labels = renamed.gather(1, y[batch]) if permuted else y[batch]
        logits = torch.tanh(x[batch] @ layers[0]) @ layers[1]
        yield cross_entropy(logits.mT, labels, reduction="none").mean(dim=1)


def losses(layers, permuted):
    """Yields the ten losses on each of the 100 batches after the change, of the networks as they are by then.

    permuted: with the new labels; False: the same batches with the old ones.
    """
    yield from _losses(layers, _drawn()[2][LEARNED:], permuted)


@functools.cache
def _learned():
    layers = [w.clone().requires_grad_() for w in _drawn()[3]]
    opt = torch.optim.Adam(layers, lr=0.01)
    for now in _losses(layers, _drawn()[2][:LEARNED], permuted=False):
        opt.zero_grad()
        now.sum().backward()
        opt.step()
    return layers, opt


def learned():
    """The ten networks after 400 steps, layers [10, 64, 64] and [10, 64, 10], and their Adam: a fresh copy a call."""
    layers, opt = _learned()
    layers = [w.detach().clone().requires_grad_() for w in layers]
    again = torch.optim.Adam(layers)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    return layers, again
