"""class Adam, class AdamW: options, validation, state, checkpoints. The arithmetic is in `adamlib.variants`."""
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .functional import FLAGS, Step, choose, count, look, refuse_combinations, take, to_scalar, to_scaler

# Options that checkpoints of older torch versions lack, and what they meant then.
FORMER_DEFAULTS = dict(amsgrad=False, maximize=False, foreach=None, capturable=False, differentiable=False,
                       decoupled_weight_decay=False, fused=None)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # what of an entry must be like its parameter


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, Algorithm 1), a drop-in for torch.optim.Adam of torch 2.13.

    Args:
        params: tensors, (name, tensor) pairs, or dicts with "params" and options of that group.
        lr: α, the step size in units of θ. A 1-element tensor is read at every step (foreach: only if capturable).
        betas: decay rates (β₁, β₂) of the two averages, in [0, 1): two floats or two 1-element tensors.
        eps: ε, added to √v̂, in units of the gradient.
        weight_decay: λ. Added to the gradient as λθ (L2) or, with decoupled_weight_decay, as in AdamW: θ ← (1 − αλ)θ.
        amsgrad: v̂ from the running maximum of v (as torch does: the maximum before bias correction).
        foreach, fused: which way; fused="triton" is our kernel. Neither: torch's choice, on a CPU the for-loop.
        maximize: step up the gradient instead of down.
        capturable: nothing is read on the host, so that a CUDA graph can replay the step. Every device.
        differentiable: autograd goes through the step, to tensor options too; a leaf that requires one is refused.

    Raises ValueError, TypeError, RuntimeError or KeyError, in torch's words where it has some. A step of all groups is
    the for-loop's, to rounding, or it raises before a parameter, a moment or a count has changed.
    """

    _triton = None  # our own kernel with its tables, which belong to no state

    def __init__(self, params, lr: float | Tensor = 1e-3, betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
                 maximize: bool = False, capturable: bool = False, differentiable: bool = False,
                 fused: bool | str | None = None, decoupled_weight_decay: bool = False):
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
                        foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused,
                        decoupled_weight_decay=decoupled_weight_decay)
        defaults["betas"] = validated(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the options it brings are checked like the constructor's, missing ones are the defaults."""
        if isinstance(param_group, dict) and any(option in self.defaults for option in param_group):
            betas = validated({**self.defaults, **param_group})
            if "betas" in param_group:
                param_group["betas"] = betas
        super().add_param_group(param_group)

    # What a GradScaler asks: may it leave unscaling and skipping to the step? Yes, if all groups are fused, and nobody
    # has set another answer, as can be done with torch's optimizers; deleting it is answering no.
    _step_supports_amp_scaling = property(
        lambda self: vars(self).get("_amp_answer", all(group["fused"] for group in self.param_groups)),
        lambda self, answer: vars(self).update(_amp_answer=answer),
        lambda self: vars(self).update(_amp_answer=False),
    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None):
        """Take one step; with a closure, evaluate it first (with gradients on) and return its value.
        Under torch.compile the step is one graph, in the capturable form; fused and differentiable steps stay outside.
        """
        compiling = torch.compiler.is_compiling()
        capturing = not compiling and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] and not group["differentiable"] for group in self.param_groups):
            raise RuntimeError(f"Attempting CUDA graph capture of step() for an instance of {type(self).__name__} but "
                               "param_groups' capturable is False: set it, without differentiable, or t is frozen")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        outside = compiling and any(group["fused"] or group["differentiable"] for group in self.param_groups)
        (torch.compiler.disable(self._take_step) if outside else self._take_step)()
        return loss

    def _take_step(self) -> None:
        scaler = to_scaler(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        if torch.compiler.is_compiling():
            steps = self._choose(scaler)
            return take(steps, count(steps, self._name))
        before = self.state.copy()  # entries are made and exchanged, never changed, so this is all of it
        try:
            steps = self._choose(scaler)
            plain, ours = [s for s in steps if s[0] in FLAGS], [s for s in steps if s[0] not in FLAGS]
            launch = self._prepare_triton(ours, scaler) if ours else lambda: None
            ts = count(plain, self._name)
        except Exception:
            self.state.clear()
            self.state.update(before)
            raise
        take(plain, ts, follow=True)
        launch()

    def _choose(self, scaler: dict[str, Tensor]) -> list[Step]:
        """The steps of all groups, looked at, and anew where a count is elsewhere than its group's flags want it."""
        steps = []
        for group in self.param_groups:
            lists = [], [], [], [], [], []
            self._init_group(group, *lists)
            steps += choose(lists, group, scaler, self._name)
        try:
            look(steps, self._name)
        except RuntimeError:
            placed = {p: complete(self.state[p], p, group) for group in self.param_groups for p in group["params"]
                      if self.state.get(p)}
            if all(entry["step"] is self.state[p]["step"] for p, entry in placed.items()):
                raise
            self.state.update(placed)
            return self._choose(scaler)
        return steps

    def _prepare_triton(self, steps: list[Step], scaler: dict[str, Tensor]) -> Callable[[], None]:
        from .variants.triton_kernel import FusedTriton, GroupLists  # late: Triton is optional
        self._triton = self._triton or FusedTriton()
        return self._triton.prepare([GroupLists(*lists, **options) for _, lists, options in steps], **scaler)

    def _name(self, param: Tensor) -> str:
        """What messages call a parameter: its place in its group, its name and its group where there are such."""
        for index, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p is param:
                    named = f" ({group['param_names'][place]})" if place < len(group.get("param_names", ())) else ""
                    return f"parameter {place}{named}" + f" of group {index}" * (len(self.param_groups) > 1)
        return "a parameter that is in no group"

    def _init_group(self, group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps) -> bool:
        """Fill the lists with the parameters that have a gradient, and their state; is one of them complex? (Form and
        name are torch's: its compiler runs this outside the graph, torch/_dynamo/variables/optimizer.py.)"""
        state, amsgrad = self.state, group["amsgrad"]
        for p in group["params"]:
            if (grad := p.grad) is not None:
                entry = state[p]
                if not entry or amsgrad and "max_exp_avg_sq" not in entry:
                    entry = state[p] = complete(entry, p, group)
                params.append(p)
                grads.append(grad)
                exp_avgs.append(entry["exp_avg"])
                exp_avg_sqs.append(entry["exp_avg_sq"])
                if amsgrad:
                    max_exp_avg_sqs.append(entry["max_exp_avg_sq"])
                state_steps.append(entry["step"])
        return any(map(Tensor.is_complex, params))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint, a pickle, or a part of one: complete it, check it, and only then make it our own."""
        loaded = state.keys() == {"state", "param_groups"}  # by load_state_dict: tensors may still be the caller's
        state = {**vars(self), **state}
        groups, entries = state["param_groups"], state["state"].copy()
        for i, group in enumerate(groups):
            for option, former in FORMER_DEFAULTS.items():
                group.setdefault(option, former)
            try:
                group["betas"] = validated(group, loaded=True)
            except KeyError as missing:
                raise ValueError(f"loaded state dict: param group {i} has no {missing}") from None
            for j, param in enumerate(group["params"]):
                if entries.get(param):
                    entries[param] = own_entry(entries[param], param, group, f"{j} of group {i}", copy=loaded)
        super().__setstate__({**state, "state": entries})
        self._triton = None


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), a drop-in for torch.optim.AdamW. Args as in Adam."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, *,
                 maximize=False, foreach=None, capturable=False, differentiable=False, fused=None):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
                         capturable=capturable, differentiable=differentiable, fused=fused, decoupled_weight_decay=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def validated(group: dict[str, Any], loaded: bool = False) -> tuple[float | Tensor, float | Tensor]:
    """Check the options of a group, with torch's words and exception types; return the betas, 0-dim.

    In what is `loaded`, betas may differ in type: older torch took (0, 0.99), a cycled β₁ is a float beside a tensor.
    """
    betas, fused = group["betas"], group["fused"]
    refuse_combinations(group)
    for option, name in ("lr", "learning rate"), ("eps", "epsilon value"):
        if not 0.0 <= to_scalar(group[option], option):
            raise ValueError(f"Invalid {name}: {group[option]}")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, (beta1, beta2), but got {len(betas)}: {betas}")
    betas = tuple(to_scalar(beta, f"betas[{i}]") for i, beta in enumerate(betas))
    for i, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not 0.0 <= to_scalar(group["weight_decay"], "weight_decay"):
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
    if not (loaded or all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
        raise ValueError("betas must be either both floats or both Tensors")
    if fused not in (None, True, False, "triton"):
        raise ValueError(f"Invalid fused value: {fused!r}. Use True, False, None or 'triton'")
    return betas


def complete(entry: dict[str, Any], param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """A new entry of the state from what there is of one: an empty one is filled, a missing maximum made, the count put
    where the group's flags, which may change, want it: in float32, exact to 2²⁴ steps, or float64 where that is the
    default. Made outside of inference mode: what is made inside could never be written outside again."""
    with torch.inference_mode(False):
        zeros = partial(torch.zeros_like, param)
        entry = dict(entry) or dict(step=0.0, exp_avg=zeros(), exp_avg_sq=zeros())
        if group["amsgrad"] and "max_exp_avg_sq" not in entry:
            entry["max_exp_avg_sq"] = zeros()
        step, beside = entry["step"], group["fused"] or group["capturable"] and not group["differentiable"]
        device = param.device if beside else torch.device("cpu")
        if not isinstance(step, Tensor):  # made where it belongs: a copy to a GPU could not be captured
            make = partial(torch.full, (), device=device) if beside else partial(torch.tensor, device="cpu")
            step = make(float(step), dtype=torch.promote_types(torch.get_default_dtype(), torch.float32))
        dtype = torch.float64 if step.dtype == torch.float64 and not group["fused"] else torch.float32
        if step.numel() == 1 and not step.is_meta and (step.device, step.dtype, step.dim()) != (device, dtype, 0):
            step = step.detach().reshape(()).to(device=device, dtype=dtype, copy=True)
        return {**entry, "step": step}


def own_entry(entry, param: Tensor, group: dict[str, Any], where: str, copy: bool) -> dict[str, Any]:
    """A parameter's loaded state, checked and completed, with `copy` its tensors our own."""
    at = f"loaded state dict: the state of parameter {where}"
    if not isinstance(entry, dict):
        raise ValueError(f"{at} is {type(entry).__name__}, not a dict")
    if missing := {"step", "exp_avg", "exp_avg_sq"} - entry.keys():
        raise ValueError(f"{at} has no {sorted(missing)} (it has {sorted(entry)}); was it saved by another optimizer?")
    for key, value in entry.items():
        shape = getattr(value, "shape", ())
        if key in MOMENTS and (not isinstance(value, Tensor) or shape != param.shape):
            raise ValueError(f"{at}: {key} has shape {tuple(shape)}, the parameter {tuple(param.shape)}; "
                             "load it into the model it was saved from")
    step = entry["step"]
    if not (step.numel() == 1 if isinstance(step, Tensor) else isinstance(step, Real)) or not step >= 0:
        raise ValueError(f"{at}: step must be one number, 0 or more, but it is {step!r}")
    if copy:
        entry = {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}
    return complete(entry, param, group)
