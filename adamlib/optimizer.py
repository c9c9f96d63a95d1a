"""class Adam, class AdamW: options, validation, state, checkpoints. The arithmetic is in `adamlib.variants`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .functional import prepare, refuse_combinations, to_scalar
from .variants.layout import refuse_unfusable

# Options that checkpoints of older torch versions lack, and what they meant then.
FORMER_DEFAULTS = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
    "differentiable": False, "decoupled_weight_decay": False, "fused": None,
}


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, Algorithm 1), a drop-in for torch.optim.Adam of torch 2.13.

    Args:
        params: tensors, (name, tensor) pairs, or dicts with "params" and options of that group.
        lr: α, the step size in units of the parameter. A 1-element tensor is read at every step; with
            foreach=True it needs capturable=True.
        betas: decay rates (β₁, β₂) of the two averages, in [0, 1): two floats or two 1-element tensors.
        eps: ε, added to √v̂, in units of the gradient.
        weight_decay: λ. Added to the gradient as λθ (L2), or, decoupled, multiplied in: θ ← (1 − αλ)θ.
        amsgrad: divide by the running maximum of v (as torch does: the maximum before bias correction).
        foreach, fused: which implementation. Neither: foreach on an accelerator, the for-loop elsewhere.
            fused="triton" is adamlib's own kernel.
        maximize: step up the gradient instead of down.
        capturable: nothing is read on the host, so that a CUDA graph can replay the step. Every device.
        differentiable: autograd goes through the step; parameters may be non-leaf tensors.
        decoupled_weight_decay: decay as in AdamW (Loshchilov & Hutter 2019), with λ multiplied by α.

    Raises ValueError, TypeError or RuntimeError, as torch does. A step refuses before anything is changed what can
    be seen by looking at the groups; where the arithmetic itself fails, the tensors before that are stepped.
    """

    @torch.compiler.disable(reason="an optimizer is made by Python; what is compiled is its step")
    def __init__(
        self, params, lr: float | Tensor = 1e-3, betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | str | None = None, decoupled_weight_decay: bool = False,
    ):
        defaults = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
            foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        defaults["betas"] = validated(defaults)
        self._triton = None  # our own kernel with its tables, which belong to no state
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's, missing ones are the defaults."""
        if isinstance(param_group, dict):  # anything else: the base class says what is wrong
            betas = validated({**self.defaults, **param_group})
            if "betas" in param_group:
                param_group["betas"] = betas
        super().add_param_group(param_group)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What a GradScaler asks: may it leave unscaling and skipping to the step? Only if all groups are fused."""
        return all(group["fused"] for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None):
        """Take one step; with a closure, evaluate it first (with gradients on) and return its value.

        Every group is looked at before one is stepped. Under torch.compile the step is one graph, in the capturable
        form; fused and differentiable steps stay outside of it and run as always.
        """
        if not torch.compiler.is_compiling():
            self._refuse_capture_without_the_flag()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        if torch.compiler.is_compiling() and any(g["fused"] or g["differentiable"] for g in self.param_groups):
            self._step_outside_the_graph()
        else:
            self._step()
        return loss

    @torch.compiler.disable(reason="a fused step is one call already; a differentiable one is for autograd's graph")
    def _step_outside_the_graph(self) -> None:
        self._step()

    def _step(self) -> None:
        scaler = dict(grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None))
        prepared, one_launch = [], []  # one_launch: the groups of our own kernel, which steps all of them together
        known = len(self.state)
        try:
            for group in self.param_groups:
                lists = [], [], [], [], [], []
                self._init_group(group, *lists)
                beta1, beta2 = group["betas"]
                options = dict(beta1=beta1, beta2=beta2, **{name: group[name] for name in ARITHMETIC})
                if group["fused"] == "triton":
                    one_launch.append((lists, options))
                else:
                    flags = {name: group[name] for name in CHOICE}
                    prepared.append((prepare(*lists, flags, scaler, **options), group["differentiable"]))
        except Exception:
            while len(self.state) > known:  # no state is kept for a step that is refused
                self.state.popitem()
            raise
        for take_step, differentiable in prepared:
            with torch.set_grad_enabled(differentiable):
                take_step()
        if one_launch:
            self._step_with_triton(one_launch, **scaler)

    def _step_with_triton(self, groups: list[tuple], **scaler) -> None:
        from .variants.triton_kernel import FusedTriton, GroupLists  # late: Triton is optional

        self._triton = self._triton or FusedTriton()
        self._triton.step([GroupLists(*lists, **options) for lists, options in groups], **scaler)

    def _init_group(self, group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps) -> bool:
        """Fill the lists with the parameters that have a gradient, and their state, created where there is none yet.

        State: `step`, a 0-dim count; `exp_avg` m and `exp_avg_sq` v, zeros like the parameter; with amsgrad
        `max_exp_avg_sq`, zeros (also where amsgrad was switched on later: the maximum is taken from then on).
        The name and the form are those that torch.compile runs outside its graph (torch/_dynamo/variables/
        optimizer.py). Returns whether a parameter is complex.
        """
        amsgrad, fused, on_host = group["amsgrad"], group["fused"], not (group["capturable"] or group["fused"])
        with_grad = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.layout != torch.strided for p in with_grad):
            raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam instead")
        for p in with_grad:
            state = self.state[p]
            if not state:
                if fused:
                    refuse_unfusable(p)
                state["step"] = torch.zeros((), dtype=step_dtype(group), device="cpu" if on_host else p.device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if amsgrad and "max_exp_avg_sq" not in state:
                state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if state["step"].is_cpu != (on_host or p.is_cpu) or fused:
                place_step(group, p, state)
            params.append(p)
            grads.append(p.grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            if amsgrad:
                max_exp_avg_sqs.append(state["max_exp_avg_sq"])
            state_steps.append(state["step"])
        return any(map(torch.is_complex, params))

    def _refuse_capture_without_the_flag(self) -> None:
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError(
                f"Attempting CUDA graph capture of step() for an instance of {type(self).__name__} but "
                "param_groups' capturable is False: its count would be frozen. Construct it with capturable=True"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint or a pickle: complete it, check it, and only then make it our own."""
        loading = "defaults" not in state  # from load_state_dict: the tensors may still be the caller's
        for i, group in enumerate(state["param_groups"]):
            for option, former in FORMER_DEFAULTS.items():
                group.setdefault(option, former)
            try:
                group["betas"] = validated(group, loaded=True)
            except KeyError as missing:
                raise ValueError(f"loaded state dict: param group {i} has no {missing}") from None
            for j, param in enumerate(group["params"]):
                if state["state"].get(param):
                    state["state"][param] = _own_entry(state["state"][param], param, group, f"{j} of group {i}", loading)
        super().__setstate__(state)
        self._triton = None


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), a drop-in for torch.optim.AdamW."""

    def __init__(
        self, params, lr: float | Tensor = 1e-3, betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
        fused: bool | str | None = None,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            group["decoupled_weight_decay"] = True
        super().__setstate__(state)


ARITHMETIC = ("lr", "eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize")
CHOICE = ("foreach", "capturable", "differentiable", "fused")


def validated(group: dict[str, Any], loaded: bool = False) -> tuple[float | Tensor, float | Tensor]:
    """Check the options of a group, in torch's order and with its exception types; return the betas, 0-dim.

    loaded: from a checkpoint, where betas may differ in type: older torch took (0, 0.99), and a schedule that
    cycles β₁ leaves a float beside a tensor.
    """
    lr, betas, eps, weight_decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    foreach, capturable = group["foreach"], group["capturable"]
    if isinstance(lr, Tensor):
        if foreach and not capturable:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    if not 0.0 <= lr:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not 0.0 <= eps:
        raise ValueError(f"Invalid epsilon value: {eps}")
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, (beta1, beta2), but got {len(betas)}: {betas}")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not 0.0 <= weight_decay:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
    if not (loaded or all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
        raise ValueError("betas must be either both floats or both Tensors")
    if isinstance(betas[0], Tensor) and foreach and not capturable:
        raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")
    if group["fused"] not in (None, True, False, "triton"):
        raise ValueError(f"Invalid fused value: {group['fused']!r}. Use True, False, None or 'triton'")
    refuse_combinations(foreach=foreach, differentiable=group["differentiable"], fused=group["fused"])
    return tuple(map(to_scalar, betas))


def step_dtype(group: dict[str, Any]) -> torch.dtype:
    """float32 (the kernels read a float), float64 where that is the default dtype; exact to 2²⁴ steps."""
    wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
    return torch.float64 if wide else torch.float32


def place_step(group: dict[str, Any], param: Tensor, entry: dict[str, Any]) -> None:
    """Bring a count to where the group's flags want it now; a checkpoint or a flag may have moved it."""
    step = entry["step"]
    device = param.device if group["capturable"] or group["fused"] else torch.device("cpu")
    dtype = torch.float32 if group["fused"] else step.dtype
    if step.device != device or step.dtype != dtype or step.dim():
        entry["step"] = step.detach().reshape(()).to(device=device, dtype=dtype, copy=True)


def _own_entry(entry, param: Tensor, group: dict[str, Any], where: str, copy: bool) -> dict[str, Any]:
    """A parameter's loaded state, checked, its count where the group's flags want it, its tensors our own."""
    if not isinstance(entry, dict):
        raise ValueError(f"loaded state dict: the state of parameter {where} is {type(entry).__name__}, not a dict")
    own = dict(entry)
    for key in ("step", "exp_avg", "exp_avg_sq"):
        if key not in own:
            raise ValueError(
                f"loaded state dict: the state of parameter {where} has no {key!r} (it has {sorted(own)}); "
                "was it saved by another optimizer?"
            )
    for key, value in own.items():
        if key.endswith(("exp_avg", "exp_avg_sq")) and (
            not isinstance(value, Tensor) or value.shape != param.shape
        ):
            raise ValueError(
                f"loaded state dict: {key} of parameter {where} has shape "
                f"{tuple(getattr(value, 'shape', ()))}, the parameter {tuple(param.shape)}; "
                "load it into the model it was saved from"
            )
        if copy and isinstance(value, Tensor):
            own[key] = value.clone(memory_format=torch.preserve_format)
    step = own["step"]
    if not (step.numel() == 1 if isinstance(step, Tensor) else isinstance(step, (int, float))):
        raise ValueError(
            f"loaded state dict: step of parameter {where} must be one number, but it is {step!r}"
        )
    if not isinstance(step, Tensor):
        own["step"] = torch.tensor(float(step), dtype=step_dtype(group))
    place_step(group, param, own)
    return own
