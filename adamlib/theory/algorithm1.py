"""The paper's Algorithm 1 in float64 NumPy: the oracle that every Adam in this package is tested against.

Kingma & Ba, "Adam: A Method for Stochastic Optimization" (arXiv 1412.6980v9), Algorithm 1, with the
options that torch.optim.Adam adds, each defined as torch defines it (torch/optim/adam.py of PyTorch 2.13):

    g ← −g                              maximize: before the decay, so that decay still shrinks the weights
    g ← g + λθ                          weight decay as an L2 penalty (Adam)
    θ ← θ(1 − αλ)                       decoupled weight decay (AdamW; its paper has λ here, torch αλ)
    m ← β₁m + (1−β₁)g                   v ← β₂v + (1−β₂)g²
    v_max ← max(v_max, v)               amsgrad: the maximum of the *uncorrected* v …
    m̂ = m/(1−β₁ᵗ)                       v̂ = v/(1−β₂ᵗ), with amsgrad v_max/(1−β₂ᵗ): … corrected afterwards
    Δ = α·m̂/(√v̂ + ε)                    θ ← θ − Δ

A complex number is a pair of real coordinates: real and imaginary parts are stepped separately.

>>> first = adam_step(theta=0.0, grad=123.0)
>>> float(first.theta).__round__(9)        # the size of the first gradient does not matter
-0.001
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["State", "Step", "Trajectory", "adam_step", "algorithm1", "initial_state"]


class State(NamedTuple):
    """What Adam remembers between two steps. Arrays have the parameter's shape, float64 or complex128."""

    step: int  # t, the number of steps taken
    m: np.ndarray  # first moment, not corrected          (torch: exp_avg)
    v: np.ndarray  # second raw moment, not corrected     (torch: exp_avg_sq; complex: part by part)
    v_max: np.ndarray | None  # largest v so far, amsgrad only       (torch: max_exp_avg_sq)


class Step(NamedTuple):
    """One step and everything it was made of."""

    theta: np.ndarray  # the new parameter
    state: State
    m_hat: np.ndarray
    v_hat: np.ndarray  # what the root was taken of: with amsgrad the corrected maximum
    delta: np.ndarray  # Δ, what was subtracted; decoupled decay is not part of it


class Trajectory(NamedTuple):
    """A run of T steps: arrays of shape (T, *parameter shape), `theta` one longer (it starts with theta0)."""

    theta: np.ndarray
    delta: np.ndarray
    m: np.ndarray
    v: np.ndarray
    m_hat: np.ndarray
    v_hat: np.ndarray
    state: State  # after the last step: hand it to `algorithm1` again to go on


def initial_state(theta, *, amsgrad: bool = False) -> State:
    """The state before the first step: t = 0 and zeros of the parameter's shape."""
    zeros = np.zeros_like(_double(theta, "theta"))
    return State(0, zeros, zeros.copy(), zeros.copy() if amsgrad else None)


def adam_step(
    theta,
    grad,
    state: State | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Step:
    """One step of Algorithm 1. Nothing is changed in place.

    Args:
        theta, grad: numbers or arrays of one shape, real or complex; computed in float64 / complex128.
        state: what the step before returned, None at the first step.
        lr, betas, eps, ...: α, (β₁, β₂), ε and the options of torch.optim.Adam under torch's names.

    With eps=0 and a gradient that was zero from the start the step is 0/0 = NaN, in torch as here.

    Raises:
        ValueError: a hyperparameter out of range, shapes that differ, amsgrad switched on in mid-run.
    """
    theta, grad = _double(theta, "theta"), _double(grad, "grad")
    _validate(lr, betas, eps, weight_decay)
    if np.iscomplexobj(grad) and not np.iscomplexobj(theta):
        raise ValueError("grad is complex but theta is real: give theta as a complex number too")
    if theta.shape != grad.shape:
        raise ValueError(f"grad must have theta's shape {theta.shape}, got {grad.shape}")
    if state is None:
        state = initial_state(theta, amsgrad=amsgrad)
    if amsgrad and state.v_max is None:
        raise ValueError("amsgrad needs v_max in the state: begin the run with amsgrad=True")
    if state.m.shape != theta.shape:
        raise ValueError(f"the state is of a parameter of shape {state.m.shape}, theta has {theta.shape}")

    is_complex = np.iscomplexobj(theta)
    split, join = (_to_pairs, _from_pairs) if is_complex else (lambda x: x, lambda x: x)
    θ, g, m, v = split(theta), split(grad.astype(theta.dtype)), split(state.m), split(state.v)
    (β1, β2), t = betas, state.step + 1

    if maximize:
        g = -g
    if decoupled_weight_decay:
        θ = θ * (1 - lr * weight_decay)
    elif weight_decay:
        g = g + weight_decay * θ

    m = β1 * m + (1 - β1) * g
    v = β2 * v + (1 - β2) * g**2
    v_max = np.maximum(split(state.v_max), v) if amsgrad else None
    m_hat = m / (1 - β1**t)
    v_hat = (v_max if amsgrad else v) / (1 - β2**t)
    with np.errstate(divide="ignore", invalid="ignore"):  # ε = 0: 0/0 is NaN without a warning, as in torch
        delta = lr * m_hat / (np.sqrt(v_hat) + eps)
    θ = θ - delta

    new_state = State(t, join(m), join(v), None if v_max is None else join(v_max))
    return Step(join(θ), new_state, join(m_hat), join(v_hat), join(delta))


def algorithm1(
    theta0,
    grads: Sequence | np.ndarray | Callable,
    lr: float | Sequence[float] = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    steps: int | None = None,
    state: State | None = None,
    **options,
) -> Trajectory:
    """Run Algorithm 1 from theta0 and keep everything.

    Args:
        theta0: number or array, the starting point.
        grads: the gradients, shape (T, *theta0.shape); or a function (theta, t) -> gradient with t = 1, 2, …,
            and then `steps` says for how long.
        lr: α, or one α per step (a schedule).
        betas, eps: (β₁, β₂) and ε.
        state: to go on where an earlier trajectory ended.
        options: weight_decay, decoupled_weight_decay, amsgrad, maximize, as in `adam_step`.

    Raises ValueError as `adam_step` does, for too few gradients or rates, and where the number of steps is not known.

    >>> run = algorithm1(0.0, np.ones(3), lr=0.5, eps=0)
    >>> run.theta.round(12).tolist()
    [0.0, -0.5, -1.0, -1.5]
    """
    if callable(grads):
        if steps is None:
            raise ValueError("grads is a function: say how many steps to take, e.g. steps=100")
        gradient, total = grads, steps
    else:
        grads = _double(grads, "grads")
        if grads.ndim == 0:
            raise ValueError("grads must hold one gradient per step: a sequence, or a function with steps=")
        total = len(grads) if steps is None else steps
        if total > len(grads):
            raise ValueError(f"steps={steps}, but only {len(grads)} gradients were given")
        gradient = lambda θ, t: grads[t - 1]  # noqa: E731
    if total < 1:
        raise ValueError("a trajectory needs at least one step")
    if np.ndim(lr) and len(lr) < total:
        raise ValueError(f"lr is a schedule of {len(lr)} values for {total} steps")

    θ, taken = _double(theta0, "theta0"), []
    for t in range(1, total + 1):
        α = lr[t - 1] if np.ndim(lr) else lr
        step = adam_step(θ, gradient(θ, t), state, lr=α, betas=betas, eps=eps, **options)
        θ, state = step.theta, step.state
        taken.append(step)

    return Trajectory(
        theta=np.stack([_double(theta0, "theta0")] + [s.theta for s in taken]),
        delta=np.stack([s.delta for s in taken]),
        m=np.stack([s.state.m for s in taken]),
        v=np.stack([s.state.v for s in taken]),
        m_hat=np.stack([s.m_hat for s in taken]),
        v_hat=np.stack([s.v_hat for s in taken]),
        state=state,
    )


def _double(x, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "biufc":
        raise ValueError(f"{name} must hold numbers, got dtype {x.dtype}")
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _to_pairs(z: np.ndarray) -> np.ndarray:
    """complex128 (…) -> float64 (…, 2), as torch.view_as_real does."""
    return np.stack([z.real, z.imag], axis=-1)


def _from_pairs(pairs: np.ndarray) -> np.ndarray:
    """float64 (…, 2) -> complex128 (…). A view, because x + 1j·NaN would spoil the real part too."""
    return np.ascontiguousarray(pairs).view(np.complex128)[..., 0]


def _validate(lr, betas, eps, weight_decay) -> None:
    for name, β in zip(("beta1", "beta2"), betas, strict=True):
        if not 0 <= β < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {β}")
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
