"""The step counters t of many tensors: advanced and read together.

The counters of tensors that start together are the elements of one tensor, so that a step over 200 tensors
advances one tensor instead of 200. Each element is still a tensor of its own for everyone who asks
(`state["step"]` is a 0-dim view), and a tensor that skips a step keeps its own count.
"""
from __future__ import annotations

import torch
from torch import Tensor


class SharedSteps(list):
    """The 0-dim views of a 1-D tensor of counts, in order, together with that tensor (`counter`)."""

    def __init__(self, counter: Tensor):
        super().__init__(counter.unbind())
        self.counter = counter


def advance(state_steps: list[Tensor]) -> None:
    """t ← t + 1 for every tensor, without reading a count on the host."""
    counter = getattr(state_steps, "counter", None)
    if counter is not None:
        counter.add_(1)
    elif state_steps:
        torch._foreach_add_(state_steps, 1)


def on_host(state_steps: list[Tensor]) -> list[float]:
    """The counts as Python floats; waits for the device where they live on one."""
    counter = getattr(state_steps, "counter", None)
    return [step.item() for step in state_steps] if counter is None else counter.tolist()


def together(state_steps: list[Tensor]) -> Tensor:
    """The counts of tensors on one device as one 1-D tensor on that device, nothing read on the host."""
    counter = getattr(state_steps, "counter", None)
    return torch.stack(state_steps) if counter is None else counter


def refuse_grad_scaler(grad_scale: Tensor | None, found_inf: Tensor | None, variant: str) -> None:
    """Only a fused kernel unscales gradients; anywhere else a scale handed in would silently be lost."""
    if grad_scale is not None or found_inf is not None:
        raise RuntimeError(
            f"{variant} does not take grad_scale or found_inf: call scaler.unscale_(optimizer) before the step, "
            "or use fused=True, which unscales inside its kernel"
        )
