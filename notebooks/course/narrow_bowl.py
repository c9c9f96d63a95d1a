"""A bowl that is κ times steeper along y than along x, and how many steps a rule needs in it (chapter 01)."""

import itertools

import numpy as np

RATES = np.logspace(-5, 1, 61)[:, None, None]
STARTS = np.random.default_rng(0).standard_normal((5, 2))


def steps_needed(rule, κ, **tries):
    """Steps until all five starts are within 0.01 of the minimum of ½(x² + κy²) and stay there, at the best rate.

    rule(gradient, memory, **options) returns the step in units of the rate; memory is a dict that it may write into.
    tries: lists of options, such as β=(0.5, 0.9); the best of them counts.
    """
    choices = itertools.product(*tries.values())
    return min(_at_the_best_rate(rule, κ, dict(zip(tries, options))) for options in choices)


def _at_the_best_rate(rule, κ, options):
    θ, memory, last_far = STARTS + 0 * RATES, {}, np.zeros(len(RATES), int)
    with np.errstate(over="ignore", invalid="ignore"):  # too large a rate overflows
        for t in range(1, 4 * κ + 400):
            θ = θ - RATES * rule(θ * [1, κ], memory, **options)  # the gradient is (x, κy)
            last_far[~(abs(θ) < 0.01).all(axis=(1, 2))] = t  # a nan is far, too
    return int(last_far.min()) + 1
