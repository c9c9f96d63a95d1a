"""What an optimizer remembers of each parameter, and how a step finds it.

`gather` makes the six lists that a variant takes, creating or repairing the state of a parameter on the way.
On many small tensors that takes longer than the arithmetic. So `Gathered` remembers what `gather` found, and the
next step takes its lists from there, as long as nothing has changed that asks for more.
"""
from __future__ import annotations

from itertools import repeat
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .variants.layout import Fitting, Kept, refuse_misfits, refuse_sparse, refuse_unfusable
from .variants.steps import SharedSteps


class Lists(NamedTuple):
    """The lists of one group, as in `adamlib.variants`: one entry per parameter that has a gradient."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    state_steps: list[Tensor]


def gather(group: dict[str, Any], state: dict[Tensor, dict[str, Any]]) -> Lists:
    """The lists of a group. Creates the state of parameters that have a gradient for the first time.

    Keys: `step`, a 0-dim count; `exp_avg` m and `exp_avg_sq` v, like the parameter, zeros; with amsgrad
    `max_exp_avg_sq`, zeros (also where amsgrad was switched on later: the maximum is taken from then on).
    Raises RuntimeError before anything is created: for a sparse gradient, or fused on tensors it cannot take.
    """
    params = [p for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in params]
    refuse_sparse(grads)
    if group["fused"]:
        for p in params:
            refuse_unfusable(p)
    new = [p for p in params if not state.get(p)]
    for p, step in zip(new, new_steps(group, new)):
        state[p].update(
            step=step,
            exp_avg=torch.zeros_like(p, memory_format=torch.preserve_format),
            exp_avg_sq=torch.zeros_like(p, memory_format=torch.preserve_format),
        )
    for p in params:
        if group["amsgrad"] and "max_exp_avg_sq" not in state[p]:
            state[p]["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        place_step(group, p, state[p])
    states = [state[p] for p in params]
    return Lists(
        params, grads, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states],
        [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [], [s["step"] for s in states],
    )


def new_steps(group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
    """Counts at zero for parameters that start now, as elements of one tensor per device."""
    steps: dict[Tensor, Tensor] = {}
    by_place: dict[torch.device, list[Tensor]] = {}
    for p in params:
        by_place.setdefault(step_device(group, p), []).append(p)
    for device, those in by_place.items():
        counter = torch.zeros(len(those), dtype=step_dtype(group), device=device)
        steps.update(zip(those, counter.unbind()))
    return [steps[p] for p in params]


def step_device(group: dict[str, Any], param: Tensor) -> torch.device:
    """Where a count lives: beside its parameter where the device reads it, else on the host."""
    return param.device if group["capturable"] or group["fused"] else torch.device("cpu")


def step_dtype(group: dict[str, Any]) -> torch.dtype:
    """float32 (the kernels read a float), float64 where that is the default dtype; exact to 2²⁴ steps."""
    wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
    return torch.float64 if wide else torch.float32


def place_step(group: dict[str, Any], param: Tensor, entry: dict[str, Any]) -> None:
    """Bring a count to where the group's flags want it now; a checkpoint or a flag may have moved it."""
    step, device = entry["step"], step_device(group, param)
    dtype = torch.float32 if group["fused"] else step.dtype
    if step.device != device or step.dtype != dtype or step.dim():
        entry["step"] = step.detach().reshape(()).to(device=device, dtype=dtype, copy=True)


class Entries:
    """Who has state, and which: what an optimizer's `state` must still hold for any list to be used again.

    Looked at in order and by identity, once a step: looking up a tensor in a dict is ten times slower.
    """

    def __init__(self, state: dict[Tensor, dict[str, Any]]):
        self.params, self.entries = [*state], [*state.values()]

    def are_those_of(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        return (
            len(state) == len(self.params)
            and all(map(is_, state, self.params))
            and all(map(is_, state.values(), self.entries))
        )


class Gathered:
    """What `gather` found for one group, kept from step to step, and what has to hold for using it again.

    Gradients and moments are looked up in every step: who clears the gradients, or moves the moments in their
    entries to another device between two steps, gets their memory back at once. (An entry that is itself
    replaced or dropped is let go at the next step.)
    """

    def __init__(self, group: dict[str, Any], state: dict[Tensor, dict[str, Any]]):
        lists = gather(group, state)
        self.flags = self._flags(group)
        self.group_params = list(group["params"])
        self.without_grad = [p for p in group["params"] if p.grad is None]
        self.entries = [state[p] for p in lists.params]
        if not group["capturable"]:  # a graph may hold the addresses of the counts
            join_steps(self.entries)
        self.steps = shared(self._column("step"))
        self.params = lists.params
        self.layout_matters = group["fused"] and group["fused"] != "triton"  # our own kernel looks for itself
        if self.layout_matters:
            refuse_misfits(*lists[:5])
        if group["fused"]:
            self.params = Kept(*lists[:5])

    @staticmethod
    def _flags(group: dict[str, Any]) -> tuple:
        return group["amsgrad"], group["fused"], group["capturable"]

    def _column(self, key: str) -> list[Tensor]:
        return [*map(itemgetter(key), self.entries)]

    def lists(self) -> Lists:
        """The lists as the parameters and entries are now; whether that will do is for `again` to say."""
        grads = [p.grad for p in self.params]
        return Lists(
            self.params, Fitting(self.params, grads) if self.layout_matters else grads,
            self._column("exp_avg"), self._column("exp_avg_sq"),
            self._column("max_exp_avg_sq") if self.flags[0] else [], self.steps,
        )

    def again(self, group: dict[str, Any]) -> Lists | None:
        """The lists for today's step, or None where something has changed that only `gather` can deal with.

        Whether the optimizer's state still holds these entries is for `Entries` to say.
        """
        params = group["params"]
        if not (
            self.flags == self._flags(group)
            and len(params) == len(self.group_params)
            and all(map(is_, params, self.group_params))
            and all(p.grad is None for p in self.without_grad)
        ):
            return None
        try:
            lists = self.lists()
            if not all(map(is_, self._column("step"), self.steps)) or any(map(is_, lists.grads, repeat(None))):
                return None
        except KeyError:  # an entry has lost something
            return None
        if group["fused"]:
            return lists if self.params.lie_as_before(*lists[1:5]) else None
        refuse_sparse(lists.grads)
        return lists


def join_steps(states: list[dict[str, Any]]) -> None:
    """Make the counts of these parameters the elements of one tensor, if they are not and can be."""
    if torch.is_inference_mode_enabled():  # what is made there could not be written outside
        return
    steps = [entry["step"] for entry in states]
    if len({(step.device, step.dtype) for step in steps}) == 1 and shared(steps) is steps:
        for entry, step in zip(states, torch.stack(steps).unbind()):
            entry["step"] = step


def shared(steps: list[Tensor]) -> list[Tensor]:
    """The counts as SharedSteps where they are the elements of one tensor, in order; else as they are."""
    if not steps:
        return steps
    first = steps[0]
    base = first.untyped_storage()
    size = first.element_size()
    if base.nbytes() != size * len(steps) or any(
        step.untyped_storage().data_ptr() != base.data_ptr() or step.storage_offset() != i or step.dim()
        for i, step in enumerate(steps)
    ):
        return steps
    together = SharedSteps(first.as_strided((len(steps),), (1,), 0))
    together[:] = steps  # the very tensors that the state holds
    return together
