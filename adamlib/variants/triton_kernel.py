"""adamlib's own fused kernel: one Triton launch steps all tensors of one kind, whatever their param group.

It moves the bytes that a fused step must move and no others (in float32 it reads p, g, m, v and writes
p, m, v: 28 bytes per parameter) and finds its tensors through the tables of `pointer_table`. Counts, tensor
learning rates, grad_scale and found_inf are read from memory while it runs, so a CUDA graph can replay it.

Importing this file needs Triton; importing adamlib does not. With TRITON_INTERPRET=1 in the environment
before Triton is first imported, the same kernel runs on CPU tensors: slowly, for tests and to look inside.
"""
import contextlib

import torch
from torch import Tensor

from .pointer_table import Addresses, GroupLists, Numbers, Plan, build, number_table, places, rates, upload

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise RuntimeError(
        'fused="triton" needs Triton, which is not installed. CUDA builds of PyTorch bring it; elsewhere '
        "`pip install triton`, or use fused=True or foreach=True"
    ) from missing

__all__ = ["FusedTriton", "GroupLists", "fused_triton"]

PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, STEP, LR_ADDRESS, GROUP, NUMEL, FIRST_CHUNK = map(
    tl.constexpr, range(len(Addresses._fields))
)
LR, BETA1, KEEP1, LOG_BETA1, BETA2, KEEP2, LOG_BETA2, EPS, L2, DECOUPLED, SIGN = map(
    tl.constexpr, range(len(Numbers._fields))
)
ADDRESSES, NUMBERS = tl.constexpr(len(Addresses._fields)), tl.constexpr(len(Numbers._fields))
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
COUNTERS = 128  # that one program of _advance counts up: one per thread


@triton.jit
def _advance(counters, n, found_inf, BLOCK: tl.constexpr):
    """t ← t + 1 for every counter; t ← t in a step that the gradient scaler calls off."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counter = tl.load(counters + i, mask=i < n, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(counter, mask=i < n) + 1.0
    if found_inf is not None:
        t -= tl.load(found_inf)
    tl.store(counter, t, mask=i < n)


@triton.jit
def _one_minus_power(t, log_beta):
    """1 − βᵗ = 1 − eˣ with x = t·log β, to a few units in the last place of float32.

    Near x = 0 the subtraction would cancel (it loses 1.3e-5 of 1 − 0.999¹); there it is summed as a series.
    """
    x = tl.maximum(t * log_beta, -104.0)  # e⁻¹⁰⁴ is 0 in float32; and β = 0 has log β = −∞
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(x > -0.35, -series, 1 - tl.exp(x))


@triton.jit
def _elements(address, TYPE: tl.constexpr, start, VECTOR: tl.constexpr):
    """Pointer to element `start` of the tensor whose address stands at `address`.

    The compiler knows nothing of an address that is read from memory and would move elements one by one. Told
    that VECTOR of them begin at a multiple of their joint size, it moves them in one instruction.
    """
    pointer = tl.load(address).to(tl.pointer_type(TYPE)) + start
    return tl.multiple_of(pointer, VECTOR * TYPE.primitive_bitwidth // 8)


@triton.jit
def _step_block(pointers, offsets, inside, unscale, numbers, AMSGRAD: tl.constexpr):
    """One step of one block of elements, or of those that are `inside`, where that is not None."""
    p_ptr, g_ptr, m_ptr, v_ptr, top_ptr = pointers
    lr_c1, root_c2, beta1, keep1, beta2, keep2, eps, l2, lr_decoupled, sign = numbers
    p = tl.load(p_ptr + offsets, mask=inside).to(tl.float32)
    g = tl.load(g_ptr + offsets, mask=inside).to(tl.float32)
    m = tl.load(m_ptr + offsets, mask=inside).to(tl.float32)
    v = tl.load(v_ptr + offsets, mask=inside).to(tl.float32)
    if AMSGRAD:
        top = tl.load(top_ptr + offsets, mask=inside).to(tl.float32)
    if unscale is not None:
        g = unscale * g  # and stored, for whoever reads the gradient next
        tl.store(g_ptr + offsets, g.to(g_ptr.dtype.element_ty), mask=inside)

    g = sign * g + l2 * p                               # g ← ±g + λθ       (λ = 0 in AdamW)
    p = p - lr_decoupled * p                            # θ ← (1 − αλ)θ     (λ = 0 in Adam)
    m = beta1 * m + keep1 * g                           # m ← β₁m + (1−β₁)g
    v = beta2 * v + keep2 * g * g                       # v ← β₂v + (1−β₂)g²
    tl.store(m_ptr + offsets, m.to(m_ptr.dtype.element_ty), mask=inside)
    tl.store(v_ptr + offsets, v.to(v_ptr.dtype.element_ty), mask=inside)
    if AMSGRAD:
        v = tl.maximum(top, v)                          # v_max ← max(v_max, v)
        tl.store(top_ptr + offsets, v.to(top_ptr.dtype.element_ty), mask=inside)
    denom = tl.div_rn(tl.sqrt_rn(v), root_c2) + eps     # √v̂ + ε            (v̂ = v/c₂)
    p = p - tl.div_rn(lr_c1 * m, denom)                 # θ ← θ − (α/c₁)m / (√v̂ + ε)
    tl.store(p_ptr + offsets, p.to(p_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _step(
    addresses, numbers, owner, grad_scale, found_inf, PARAM_TYPE: tl.constexpr, STATE_TYPE: tl.constexpr,
    AMSGRAD: tl.constexpr, VECTOR: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):
    """Program c steps chunk c: CHUNK elements of one tensor, or what is left of it, block by block."""
    if found_inf is not None:
        if tl.load(found_inf) == 1.0:
            return  # the gradient scaler saw an overflow: this step does not happen
    unscale = None if grad_scale is None else tl.div_rn(1.0, tl.load(grad_scale))

    chunk = tl.program_id(0)
    row = addresses + tl.load(owner + chunk) * ADDRESSES
    start = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK  # int64: a tensor may have more than 2³¹ elements
    n = tl.minimum(tl.load(row + NUMEL) - start, CHUNK).to(tl.int32)
    pointers = (
        _elements(row + PARAM, PARAM_TYPE, start, VECTOR),
        _elements(row + GRAD, PARAM_TYPE, start, VECTOR),
        _elements(row + EXP_AVG, STATE_TYPE, start, VECTOR),
        _elements(row + EXP_AVG_SQ, STATE_TYPE, start, VECTOR),
        _elements(row + MAX_EXP_AVG_SQ, STATE_TYPE, start, VECTOR),
    )
    group = numbers + tl.load(row + GROUP) * NUMBERS
    in_memory = tl.load(row + LR_ADDRESS) != 0
    lr = tl.load(_elements(row + LR_ADDRESS, tl.float32, 0, 1), mask=in_memory, other=tl.load(group + LR))
    t = tl.load(_elements(row + STEP, tl.float32, 0, 1))
    c1 = _one_minus_power(t, tl.load(group + LOG_BETA1))  # c₁ = 1 − β₁ᵗ
    c2 = _one_minus_power(t, tl.load(group + LOG_BETA2))  # c₂ = 1 − β₂ᵗ
    values = (
        tl.div_rn(lr, c1), tl.sqrt_rn(c2),
        tl.load(group + BETA1), tl.load(group + KEEP1), tl.load(group + BETA2), tl.load(group + KEEP2),
        tl.load(group + EPS), tl.load(group + L2), lr * tl.load(group + DECOUPLED), tl.load(group + SIGN),
    )

    block = tl.arange(0, BLOCK)
    i = 0
    while i + BLOCK <= n:  # whole blocks: the wide instructions work only where nothing is masked
        _step_block(pointers, i + block, None, unscale, values, AMSGRAD)
        i += BLOCK
    if i < n:
        _step_block(pointers, i + block, i + block < n, unscale, values, AMSGRAD)


class FusedTriton:
    """The kernel with its tables, which are kept between the steps of an optimizer. Not to be pickled.

    chunk: elements that one program steps; block: how many of them at a time, a power of two; num_warps: how
    many threads share a block, in units of 32.
    """

    def __init__(self, chunk: int = 8192, block: int = 1024, num_warps: int = 4):
        if chunk % block or block % 16:
            raise ValueError(f"chunk must be a multiple of block, block one of 16; got {chunk} and {block}")
        self.chunk, self.block, self.num_warps = chunk, block, num_warps
        self._plans: list[Plan] = []
        self._numbers: list[Tensor] = []  # one table per plan
        self._streams: list[int] = []  # one per plan
        self._places: list | None = None  # what the plans were made for
        self._rates: list | None = None  # what the numbers were made from
        self._captured: list[tuple] = []

    def step(
        self, groups: list[GroupLists], grad_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> None:
        """One Adam step of all groups, in place: a launch for the counters, then one per kind of tensor.

        Parameters and moments: float32, float16 or bfloat16, dense, in any order of dimensions that p, g, m
        and v share; the arithmetic is float32. Counters: one float32 each, beside their parameter. A tensor
        lr has to be float32 and is read by the kernel, unless it is on the CPU and the parameters are not.
        With grad_scale (1 element) gradients are divided by it, in place; where found_inf (1 element) is 1,
        nothing changes and the count stays. Conventions of torch/optim/adam.py, `_fused_adam` (torch 2.13).

        Agrees with torch's fused op to rounding, not to the bit. Raises RuntimeError before anything is
        changed for tensors that the kernel would not update rightly, and, while a CUDA graph is captured,
        for tensors or numbers that are not those of the step before.
        """
        self._make_tables(groups)
        for plan, numbers in zip(self._plans, self._numbers):
            device, n = plan.device, plan.counters.numel()
            scale, overflow = (
                None if x is None else x.to(device, torch.float32, non_blocking=True)
                for x in (grad_scale, found_inf)
            )
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                _advance[(triton.cdiv(n, COUNTERS),)](plan.counters, n, overflow, BLOCK=COUNTERS)
                for kind, addresses, owner in plan.launches:
                    _step[(owner.numel(),)](
                        addresses, numbers, owner, scale, overflow,
                        PARAM_TYPE=TYPES[kind.param_dtype], STATE_TYPE=TYPES[kind.state_dtype],
                        AMSGRAD=kind.amsgrad, VECTOR=kind.vector, CHUNK=self.chunk, BLOCK=self.block,
                        num_warps=self.num_warps,
                        enable_fp_fusion=True,  # a·b + c in one rounding; Triton 3.10 changes its default
                    )
        for group in groups:  # PyTorch saw none of these writes; autograd must, to refuse a stale backward
            torch.autograd.graph.increment_version(group.params)
            if grad_scale is not None:
                torch.autograd.graph.increment_version(group.grads)

    def _make_tables(self, groups: list[GroupLists]) -> None:
        """Make the tables that these tensors and numbers need, where those at hand are not they."""
        new_places, new_rates = places(groups), rates(groups)
        if _capturing():
            if (new_places, new_rates) != (self._places, self._rates):
                raise RuntimeError(
                    'While a CUDA graph is captured, Adam(fused="triton") steps only the tensors of the step '
                    "before, at their addresses, with its numbers. Take one step just like it before the "
                    "capture; zero_grad(set_to_none=False) keeps the gradients where they are; an lr that is "
                    "to change must be a tensor"
                )
            self._captured.append((self._plans, self._numbers))  # replays read them: they must not go
            return
        # Tables belong to a stream: another one might still read them when their memory is given back.
        if new_places != self._places or self._streams != [_stream(plan.device) for plan in self._plans]:
            for group in groups:
                for p in group.params:
                    _refuse_device(p.device)
            self._plans = build(groups, self.chunk)
            self._streams = [_stream(plan.device) for plan in self._plans]
            self._places, self._rates = new_places, None
        if new_rates != self._rates:
            table = number_table(groups)
            self._numbers = [upload(table, plan.device) for plan in self._plans]
            self._rates = new_rates


def fused_triton(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, eps: float, weight_decay: float,
    decoupled_weight_decay: bool, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:
    """`FusedTriton.step` for one group, with tables of its own, so that no CUDA graph can hold it."""
    if _capturing():
        raise RuntimeError(
            'adam(..., fused="triton") makes its tables at each call, keeping none for a CUDA graph to read. '
            'Capture the step of adamlib.Adam(..., fused="triton", capturable=True) instead'
        )
    FusedTriton().step([GroupLists(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, lr, beta1, beta2, eps,
        weight_decay, decoupled_weight_decay, amsgrad, maximize,
    )], grad_scale, found_inf)


def _refuse_device(device: torch.device) -> None:
    interpreted = not isinstance(_step, triton.JITFunction)
    if interpreted and device.type != "cpu":
        raise RuntimeError(
            "Triton is in its interpreter (TRITON_INTERPRET is set), which reads the memory of the CPU only, "
            f"and a parameter is on {device}. Unset it before Python starts, or use fused=True"
        )
    if not interpreted and device.type != "cuda":
        raise RuntimeError(
            f'fused="triton" needs a GPU with the parameters on it; one is on {device}. Use fused=True or '
            "foreach=True there. (For tests: TRITON_INTERPRET=1, set before Triton is imported, runs the "
            "kernel on the CPU, slowly)"
        )


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
