"""The bowl of chapter 01: steps are counted at the best rate and the best option, and only those that are needed."""

import pytest

from course.narrow_bowl import steps_needed


def gradient(g, memory):
    return g


def test_a_round_bowl_takes_one_step():
    assert steps_needed(gradient, 1) == 1


def test_a_steeper_bowl_takes_in_proportion_more():
    assert steps_needed(gradient, 100) == pytest.approx(10 * steps_needed(gradient, 10), rel=0.1)


def test_the_best_option_counts():
    def damped(g, memory, factor):
        return factor * g

    assert steps_needed(damped, 10, factor=(1e-6, 1, 1e-3)) == steps_needed(gradient, 10)
    assert steps_needed(damped, 10, factor=(0.0,)) == 440  # never: one more than all the steps that were tried


def test_the_memory_lasts_for_one_run():
    def first_only(g, memory):
        memory["t"] = memory.get("t", 0) + 1
        return g if memory["t"] == 1 else 0 * g

    assert steps_needed(first_only, 1) == 1
    assert steps_needed(first_only, 1) == 1
