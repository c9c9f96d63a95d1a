"""adam(): one step over lists of tensors. Picks the variant; the variants do the arithmetic."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .variants.capturable import capturable_foreach, capturable_single
from .variants.differentiable import differentiable as differentiable_
from .variants.foreach import foreach as foreach_
from .variants.fused import fused as fused_
from .variants.single_tensor import single_tensor
from .variants.steps import SharedSteps

FOREACH_BY_DEFAULT = ("cuda", "xpu", "mtia", torch.device("privateuseone").type)


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | str | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    decoupled_weight_decay: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """Take one step of Adam in place; the signature of torch.optim.adam.adam (torch 2.13).

    Lists as in `adamlib.variants`. `fused="triton"` takes adamlib's own kernel. `has_complex` is accepted for
    the signature's sake: the variants see for themselves. Raises RuntimeError for combinations that cannot
    work, before anything is changed.
    """
    if not isinstance(state_steps, SharedSteps) and not all(isinstance(step, Tensor) for step in state_steps):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors: "
            "wrap each count, torch.tensor(float(step))"
        )
    lr, beta1, beta2 = map(to_scalar, (lr, beta1, beta2))
    variant = choose_variant(
        params, foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused, lr=lr
    )
    variant(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps,
        lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay, amsgrad=amsgrad, maximize=maximize,
        grad_scale=grad_scale, found_inf=found_inf,
    )


def choose_variant(params, *, foreach, capturable, differentiable, fused, lr) -> Callable:
    """The function that takes the step, by torch's rules (torch/optim/adam.py, `adam`).

    fused wins over foreach over the for-loop. With neither given, foreach where it is fast by itself (plain
    tensors on an accelerator), else the for-loop; fused is never taken unasked.
    """
    refuse_combinations(foreach=foreach, differentiable=differentiable, fused=fused)
    if fused == "triton":
        from .variants.triton_kernel import fused_triton  # late: Triton is optional

        return fused_triton
    if fused:
        return fused_
    if differentiable:
        return differentiable_
    # under torch.compile a count read on the host would break the graph; torch does the same
    capturable = capturable or torch.compiler.is_compiling()
    if foreach is None and fused is None:
        foreach = (capturable or not isinstance(lr, Tensor)) and all(
            type(p) in (Tensor, torch.nn.Parameter) and p.device.type in FOREACH_BY_DEFAULT for p in params
        )
    if capturable:
        return capturable_foreach if foreach else capturable_single
    return foreach_ if foreach else single_tensor


def refuse_combinations(*, foreach, differentiable, fused) -> None:
    """Raise RuntimeError for flags that contradict each other."""
    if fused and differentiable:
        raise RuntimeError("`fused` does not support `differentiable`: autograd cannot see into the kernel. "
                           "Drop one of the two")
    if fused and foreach:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together. Drop one of the two")
    if foreach and differentiable:
        raise RuntimeError("_foreach ops don't support autograd: drop `foreach` or `differentiable`")


def to_scalar(x: float | Tensor) -> float | Tensor:
    """A 1-element tensor as a 0-dim one, so that it never broadcasts a shape into the parameters."""
    if isinstance(x, Tensor) and x.numel() != 1:
        raise ValueError(f"lr and betas as Tensors must be 1-element, but got one of shape {tuple(x.shape)}")
    return x.squeeze() if isinstance(x, Tensor) and x.dim() else x
