"""Checks for the exercises of chapter 03. Each takes what the reader wrote and returns a Report."""

import copy

import torch

from . import check, expect, expect_that, not_written


@check(start="the rest points above: at which θ does one step of the optimizer leave θ where it is?")
def rest_point(reader):
    """``rest_point(g, weight_decay, eps, decoupled) -> float``: where θ rests when every gradient is g."""
    cases = [
        (0.02, 0.1, 1e-8, False, "the L2 half: the total gradient g + λθ has to vanish, whatever ε is"),
        (-3.0, 0.25, 1e-8, False, "the sign: θ moves against the gradient"),
        (0.02, 0.1, 1e-8, True, "the decoupled half: the Adam step of a constant g is α·g/(|g| + ε)"),
        (-3.0, 0.25, 1e-8, True, "the sign, and which of g and λ is left when |g| is large against ε"),
        (1e-8, 0.1, 1e-8, True, "ε: here it is as large as the gradient, and it is added after the root"),
        (1e-8, 0.1, 1e-8, False, "L2 does not feel ε: where the total gradient is 0, the step is 0"),
        (0.0, 0.5, 1e-8, True, "no gradient: only the decay is left"),
        (0.0, 0.5, 1e-8, False, "no gradient: only the decay is left"),
        (0.2, 0.1, 0.3, True, "eps: take the one you are given, here 0.3"),
        (0.2, 0.1, 0.3, False, "L2 does not feel ε: where the total gradient is 0, the step is 0, however large ε is"),
    ]
    for g, lam, eps, decoupled, look in cases:
        want = -g / (abs(g) + eps) / lam if decoupled else -g / lam
        yours = reader(g, lam, eps, decoupled)
        tried = f"rest_point({g}, {lam}, {eps}, {decoupled})"
        expect(yours, want, rtol=1e-6, atol=1e-15, tried=tried, look=look)
    return "agrees for 10 gradients and decays, one of them as small as ε, one of them 0"


@check(start="the loop above: L2's line, then m and v as they are; only the denominator changes")
def corrected_max_step(reader):
    """``corrected_max_step(param, grad, m, v, top, t, *, lr, beta1, beta2, eps, weight_decay)``, in place.

    The AMSGrad whose running maximum ``top`` is taken over the bias-corrected v̂, with L2 decay.
    """
    options = dict(lr=0.01, beta1=0.9, beta2=0.99, eps=1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(3)
    grads = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    grads[0] *= 10  # a large first gradient: the three AMSGrads part at the second step
    grads[:, 4] *= 1e-3  # as small as ε: its place can be seen
    names = ("param", "m", "v", "top")
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)
    yours = [start.clone()] + [torch.zeros_like(start) for _ in range(3)]
    want = [tensor.clone() for tensor in yours]
    looks = {
        "m": "m ← β₁m + (1−β₁)g, where g is the gradient plus λθ",
        "v": "v ← β₂v + (1−β₂)g², where g is the gradient plus λθ; v itself is never corrected in place",
        "top": "the order: first v̂ = v/(1−β₂ᵗ), then the maximum over all v̂ so far, kept in `top`",
        "param": "m̂ = m/(1−β₁ᵗ) above, √top + ε below, with ε outside the root",
    }
    for t, grad in enumerate(grads, 1):
        given = grad.clone()
        reader(*yours[:1], given, *yours[1:], t, **options)
        changed = not all(tensor.equal(before) for tensor, before in zip(yours, want))
        expect_that(
            t > 1 or changed, tried="one step", yours="param, m, v and top as they were",
            expected="all four changed in place",
            look="methods that end in _ write into the tensor; `m = ...` only gives a new tensor the name m",
        )  # fmt: skip
        expect(
            given, grad, tried=f"step {t}", look="the caller's gradient: use add, not add_"
        )
        _corrected_max(*want[:1], grad, *want[1:], t, **options)
        for name in ("m", "v", "top", "param"):
            i = names.index(name)
            expect(yours[i], want[i], rtol=1e-9, atol=1e-15, tried=f"{name} after step {t}", look=looks[name])
    return "agrees with the formula for 60 steps, and leaves the gradient alone"


@check(start="LoopAdam above: what changes when the decay does not pass through the gradient?")
def adamw(reader):
    """A class ``AdamW(params, lr, betas, eps, weight_decay)``, an Optimizer, compared with torch's."""
    expect_that(
        isinstance(reader, type) and issubclass(reader, torch.optim.Optimizer), tried="the class itself",
        yours=getattr(reader, "__name__", repr(reader)), expected="a subclass of torch.optim.Optimizer",
        look="the first line of LoopAdam",
    )  # fmt: skip
    plain = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.3)

    yours, want = _pair(reader, plain, shapes=[(6,)])
    _run(yours, want, 1, "one step", "L2 or decoupled? θ ← (1 − αλ)θ first, then Adam's step without any λ")
    _run(yours, want, 40, "41 steps", "the bias corrections, which change with t, and ε outside the root")

    yours, want = _pair(reader, {}, shapes=[(6,)])
    _run(yours, want, 3, "no options, 3 steps", "the defaults: torch's lr, betas, eps and weight_decay of AdamW")

    yours, want = _pair(reader, plain, shapes=[(6,), (2, 3)], groups=({"lr": 0.1}, {"weight_decay": 0.0}))
    _run(yours, want, 5, "two groups, the first with lr 0.1, the second with weight_decay 0",
         "group[...]: a group has its own options; self.defaults fills in what it leaves out")  # fmt: skip

    yours, want = _pair(reader, plain, shapes=[(6,), (2, 3)])
    look = "param.grad is None: skip that tensor, and let every tensor have its own state['step']"
    _run(yours, want, 3, "the second tensor without a gradient for 3 steps", look, without=1)
    expect(
        len(yours[0].state), 1, tried="len(optimizer.state) when one of two tensors never had a gradient",
        look="lazy state: it is made at the first step that has a gradient",
    )  # fmt: skip
    _run(yours, want, 5, "then 5 steps with both gradients", look)
    counts = [yours[0].state[p]["step"] for p in yours[1]]
    expect_that(
        all(isinstance(c, torch.Tensor) and c.shape == () and c.dtype == torch.float32 for c in counts),
        tried="state[param]['step']", yours=f"{type(counts[0]).__name__} {counts[0]!r}",
        expected="a 0-dim float32 tensor", look="torch.tensor(0.0, dtype=torch.float32), then add_(1)",
    )  # fmt: skip

    for group in (yours[0].param_groups[0], want[0].param_groups[0]):
        group["lr"] = 0.001  # what a scheduler does
    _run(yours, want, 5, "5 steps after a scheduler set lr to 0.001", "lr: read it from the group each time")

    groups = [{"params": [p]} for p in yours[1]]
    resumed = reader(groups, **plain)
    resumed.load_state_dict(copy.deepcopy(yours[0].state_dict()))
    _run((resumed, yours[1]), want, 5, "5 steps of a new optimizer that loaded the old one's state_dict",
         "self.state[param]: only what is kept there is saved and loaded")  # fmt: skip

    look = "the names 'step', 'exp_avg', 'exp_avg_sq': torch's checkpoints use them"
    names = {name for entry in resumed.state.values() for name in entry}
    expect_that(
        {"step", "exp_avg", "exp_avg_sq"} <= names, tried="the names in state[param]", yours=", ".join(sorted(names)),
        expected="step, exp_avg, exp_avg_sq", look=look,
    )  # fmt: skip
    torchs = torch.optim.AdamW(groups, **plain, foreach=False)
    torchs.load_state_dict(copy.deepcopy(resumed.state_dict()))
    _run((torchs, yours[1]), want, 5, "5 steps of torch.optim.AdamW after loading your state_dict", look)

    resumed = reader(groups, **plain)
    resumed.load_state_dict(copy.deepcopy(want[0].state_dict()))  # loading alone would share torch's tensors
    _run((resumed, yours[1]), want, 5, "5 steps after loading a state_dict of torch.optim.AdamW", look)
    return "agrees with torch.optim.AdamW: groups, missing gradients, a scheduler, checkpoints both ways"


def _corrected_max(param, grad, m, v, top, t, *, lr, beta1, beta2, eps, weight_decay):
    grad = grad.add(param, alpha=weight_decay)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    torch.maximum(top, v / (1 - beta2**t), out=top)
    param.addcdiv_(m, top.sqrt().add_(eps), value=-lr / (1 - beta1**t))


_DIGITS = (
    "digits: the rule is right, but 1 − βᵗ loses some where t is a float32 tensor; take the number out, "
    "t = state['step'].item()"
)


def _pair(cls, options, shapes, groups=({}, {})):
    """(optimizer, parameters) of the reader and of torch, from equal weights."""
    made = []
    for kind, extra in ((cls, {}), (torch.optim.AdamW, {"foreach": False})):
        generator = torch.Generator().manual_seed(3)
        params = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
        own = [{"params": [p], **group} for p, group in zip(params, groups)]
        made.append((kind(own, **options, **extra), params))
    return made


def _run(yours, want, steps, tried, look, without=None):
    """Some steps of both optimizers on the same gradients, then a comparison of the weights."""
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for i, (mine, theirs) in enumerate(zip(yours[1], want[1])):
            grad = torch.randn(mine.shape, generator=generator, dtype=torch.float64) * (1e-4 if i == 0 else 1)
            mine.grad, theirs.grad = (None, None) if i == without else (grad.clone(), grad.clone())
        before = [p.detach().clone() for p in yours[1]]
        yours[0].step()
        want[0].step()
        if all(p.equal(b) for p, b in zip(yours[1], before)) and not yours[0].state:
            not_written()
        for mine, theirs in zip(yours[1], want[1]):
            if theirs.grad is not None:
                expect(mine.grad, theirs.grad, tried="param.grad after step()",
                       look="the gradient belongs to the caller: step() only reads it")  # fmt: skip
    for rtol, hint in ((1e-5, look), (1e-9, _DIGITS)):
        for i, (mine, theirs) in enumerate(zip(yours[1], want[1])):
            expect(mine, theirs, rtol=rtol, atol=rtol / 1000, tried=f"{tried}: tensor {i}", look=hint)
