"""Right answers pass, however they were found: beside each notebook's solution stands one found in another way.

Several are an oracle as well: torch's own step, a derivative by autograd or with a complex number, a simulation. Where
such an answer passes, what the check expects is right.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from exercise_reports import CHECKS, reply_to

import adamlib


def first_step_of_torch(g, lr, eps):
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor(g, dtype=torch.float64)
    torch.optim.Adam([p], lr=lr, eps=eps).step()
    return p.detach()


def longest_memory_by_simulation(n, factor):
    """40,000 steps, for one β₂ after the other."""
    ages, low, high = np.arange(40_000), 0.0, 2 ** (-1 / n)
    for _ in range(30):
        middle = (low + high) / 2
        too_large = (1 - middle) * ((middle * 2 ** (1 / n)) ** ages).sum() > factor
        low, high = (low, middle) if too_large else (middle, high)
    return middle


def average_by_weights(gradients, betas):
    """Write out every weight and divide by their sum."""
    averages = []
    for t in range(1, len(gradients) + 1):
        weights = [(1 - betas[i]) * np.prod(betas[i + 1 : t]) for i in range(t)]
        averages.append(np.dot(weights, gradients[:t]) / np.sum(weights))
    return np.array(averages)


def ancestor_by_other_limits(name, alpha, t):
    return {
        "sign": (alpha, 0.0, 0.0, 1e-12),
        "RMSprop": (alpha / math.sqrt(1 - 0.99**t), 0.0, 0.99, 0.0),
        "momentum": (alpha * 1e9 * (1 - 0.9**t) / 0.1, 0.9, 0.0, 1e9),
        "AdaGrad": (alpha / math.sqrt(t), 0.0, 1 - 1e-7, 0.0),
    }[name]


def zeros_by_recursion(level, beta1, beta2):
    for zeros in itertools.count():
        m = v = 0.0
        for t in range(zeros + 1, zeros + 301):
            m, v = beta1 * m + (1 - beta1), beta2 * v + (1 - beta2)
            if m / (1 - beta1**t) / math.sqrt(v / (1 - beta2**t)) > level:
                return zeros


def worst_in_closed_form(beta1, beta2, t):
    ratio = beta1 * beta1 / beta2
    terms = t if abs(ratio - 1) < 1e-12 else (1 - ratio**t) / (1 - ratio)
    return (1 - beta1) / math.sqrt(1 - beta2) * math.sqrt(terms)


def rest_point_by_bisection(g, weight_decay, eps, decoupled):
    """Where the direction of the step changes its sign."""
    low, high = -64.0, 64.0
    for _ in range(200):
        middle = (low + high) / 2
        pull = (g / (abs(g) + eps) if decoupled else g) + weight_decay * middle
        low, high = (low, middle) if pull > 0 else (middle, high)
    return middle if abs(middle) > 1e-15 else 0.0


def load_and_copy_back(optimizer, state_dict):
    """Let the optimizer load, then move what it loaded to where the graph reads."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    old = {param: dict(entry) for param, entry in optimizer.state.items()}
    optimizer.load_state_dict(state_dict)
    for group, lr in zip(optimizer.param_groups, lrs):
        lr.fill_(group["lr"])
        group["lr"] = lr
    for param, entry in old.items():
        for name, tensor in entry.items():
            tensor.copy_(optimizer.state[param][name])
            optimizer.state[param][name] = tensor


def lr_slope_through_adamlib(next_grad, param, m, v, t, *, beta1, beta2, eps, weight_decay):
    """By autograd, through a step with a gradient of 0, which leads from m/β₁ to m and from v/β₂ to v."""
    lr = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    weight = param.clone()
    weight.grad = torch.zeros_like(weight)
    optimizer = adamlib.AdamW([weight], lr, (beta1, beta2), eps, weight_decay, differentiable=True)
    optimizer.state[weight] = dict(step=torch.tensor(t - 1.0), exp_avg=m / beta1, exp_avg_sq=v / beta2)
    optimizer.step()
    return torch.autograd.grad(next_grad @ weight, lr)[0]


def push_slopes_by_autograd(gradients, beta1, beta2, eps):
    g = torch.tensor(gradients, dtype=torch.float64, requires_grad=True)
    m = v = torch.zeros((), dtype=torch.float64)
    for x in g:
        m, v = beta1 * m + (1 - beta1) * x, beta2 * v + (1 - beta2) * x * x
    t = len(gradients)
    root = torch.where(v == 0, 0.0, torch.where(v == 0, 1.0, v).sqrt())  # a mask before the root, too
    push = m / (1 - beta1**t) / (root / (1 - beta2**t) ** 0.5 + eps)
    return torch.autograd.grad(push, g)[0].tolist()


def slope_by_a_complex_number(grad, hvp, theta, lr, steps, *, beta1, beta2, eps):
    """A learning rate with a tiny imaginary part: θ's imaginary part, divided by it, is the slope."""
    lr, theta, m, v = lr + 1e-30j, theta + 0j, 0, 0
    for t in range(1, steps + 1):
        g = grad(theta)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        theta = theta - lr * m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return [theta.real, theta.imag / 1e-30]


def resume_with_clones(optimizer, checkpoint):
    """Without a deep copy: new dictionaries, and clones of the tensors."""
    groups = []
    for saved, group in zip(checkpoint["param_groups"], optimizer.param_groups):
        groups.append(saved | {flag: group[flag] for flag in ("foreach", "fused", "capturable")})
    state = {i: {name: tensor.clone() for name, tensor in entry.items()} for i, entry in checkpoint["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def round_by_chance_(target, exact, generator):
    low = (exact.view(torch.int32) & -65536).view(torch.float32)
    high = ((exact.view(torch.int32) & -65536) + 65536).view(torch.float32)
    share = (exact - low) / (high - low)
    target.copy_(torch.where(torch.rand(exact.shape, generator=generator) < share, high, low))


def clock_by_recursion(beta1, beta2, t):
    m = v = 0.0
    for _ in range(t):
        m, v = beta1 * m + (1 - beta1), beta2 * v + (1 - beta2)
    return m / (1 - beta1) / math.sqrt(v / (1 - beta2))


def amsgrad_beside_torch(run, beta1, beta2):
    """torch's Adam and its AMSGrad take the same steps; the paper's second step is m/√max v, without corrections."""
    gradients = [10.0] + [0.1] * 30
    seen = run(gradients)
    for kind, amsgrad in (("adam", False), ("torch", True)):
        weight, taken = torch.zeros(1, dtype=torch.float64, requires_grad=True), []
        optimizer = torch.optim.Adam([weight], lr=1.0, betas=(beta1, beta2), amsgrad=amsgrad, foreach=False)
        for g in gradients:
            before = weight.item()
            weight.grad = torch.full_like(weight, g)
            optimizer.step()
            taken.append(before - weight.item())
        if np.allclose(seen, taken, rtol=1e-6):
            return kind
    m, v = (1 - beta1) * (beta1 * 10 + 0.1), (1 - beta2) * max(100, beta2 * 100 + 0.01)
    return "paper" if math.isclose(seen[1], m / math.sqrt(v), rel_tol=1e-6) else "corrected max"


def shares_by_adamw(lrs, weight_decay):
    """A weight for each source: without a memory (β = 0) step t moves weight t alone, by its rate; the decay all."""
    weights = torch.zeros(len(lrs) + 1, dtype=torch.float64)
    weights[0] = 1.0
    optimizer = torch.optim.AdamW([weights], betas=(0.0, 0.0), eps=1e-30, weight_decay=weight_decay)
    for t, lr in enumerate(lrs, 1):
        optimizer.param_groups[0]["lr"] = lr
        weights.grad = torch.zeros_like(weights)
        weights.grad[t] = -1.0
        optimizer.step()
    return [weights[0], *(weights[1:] * weight_decay)]


# A dict stands for the notebook's solution with these texts exchanged.
RIGHT = {
    "first_step": [first_step_of_torch],
    "for_summed_loss": [lambda lr, eps, batch: [lr, batch * eps]],
    "step_without_epsilon": [lambda m, v: np.clip(m / (v + (v == 0)) ** 0.5, -2, 2)],
    "longest_memory": [longest_memory_by_simulation, lambda n, f: round((f - 1) / (f * 2 ** (1 / n) - 1), 4)],
    "corrected_average": [average_by_weights],
    "adam_in_basis": [{"gradients @ Q": "(Q.T @ gradients.T).T", "steps @ Q.T": "np.einsum('ij,tj->ti', Q, steps)"}],
    "settings": [ancestor_by_other_limits],
    "zeros_to_exceed": [zeros_by_recursion],
    "worst_wake_up": [lambda beta1, beta2, n: -5 * (beta2 / beta1) ** torch.arange(n)],
    "runaway_loss": [lambda x: -(math.e ** (18 * x)) / 18],
    "first_response": [lambda beta1, beta2: 1 / (1 - beta2) - 1 / (1 - beta1)],
    "worst_without_correction": [worst_in_closed_form],
    "rest_point": [rest_point_by_bisection],
    "corrected_max_step": [
        {"m.lerp_(grad, 1 - beta1)": "m[:] = beta1 * m + (1 - beta1) * grad", "torch.maximum(": "torch.maximum(1 * "}
    ],
    "adamw": [torch.optim.AdamW],
    "bytes_per_weight": [lambda n, decay, own, top, up: n * (19 + 2 * up + 3 * top + (decay != 0) * (3 - own))],
    "clip_in_lists": [{"(max_norm / (total + 1e-6)).clamp(max=1.0)": "max_norm / total.clamp(min=max_norm)"}],
    "cut": [{".split(room)": ".split(max(1, room // 2))"}],
    "step_bytes": [lambda p, g, s, amsgrad, scaled: sum([p, p, g, s, s, s, s] + [s, s] * amsgrad + [g] * scaled)],
    "reorder": [{"return order": "return order[::-1]"}],
    "scaled_step": [{"finite.logical_not().float()": "(sum((~g.isfinite()).sum() for g in grads) > 0).float()"}],
    "clip_": [
        {"grad.mul_(factor)": "grad.copy_(torch.where(norm > max_norm, grad * (max_norm / norm), grad))"},
        {"max_norm / norm": "torch.tensor(max_norm) / norm"},  # a 0-dim tensor of the host is a number, and frozen
    ],
    "safe_capture": [{"30_001, dtype=torch.float64": "20_001"}],
    "schedule_": [
        {"torch.where(t < warmup, t / warmup, falling)": "torch.minimum(t / warmup, falling)"},
        {"t / warmup": "t / torch.tensor(float(warmup))"},
        {"t / warmup": "t / torch.full((), warmup, device=lr.device)"},
    ],
    "load_in_place": [load_and_copy_back],
    "lr_slope": [lr_slope_through_adamlib],
    "push_slopes": [push_slopes_by_autograd],
    "forward_hypergradient": [slope_by_a_complex_number],
    "smallest_step": [lambda w: (w.float() - (w.view(torch.int16) - 1).view(torch.bfloat16).float()).abs() / 2],
    "resume_with": [resume_with_clones],
    "as_keras": [{"max(counts, default=0)": "counts[0] if counts else 0", "eps / c2**0.5": "eps * c2**-0.5"}],
    "round_randomly_": [round_by_chance_],
    "epsilon_hat": [lambda eps, beta2, t: (eps * (1 - torch.tensor(beta2) ** t).sqrt()).item()],  # in float32
    "frozen_clock": [clock_by_recursion],
    "counter_limit": [lambda dtype: 2 / torch.finfo(dtype).eps],
    "is_adam": [
        {
            "[3.0, -0.5, 0.2, 0.21, 0.0, 0.02, 0.3, -1.0]": "np.random.default_rng(0).normal(0.5, 1, 40)",
            "(0.7, 0.95), 0.1": "(0.8, 0.9), 0.5",
        }
    ],
    "which_amsgrad": [amsgrad_beside_torch],
    "shares_in_the_end": [shares_by_adamw],
}


@pytest.mark.parametrize("check, answer", [(check, answer) for check, answers in RIGHT.items() for answer in answers])
def test_a_right_answer_passes(check, answer):
    reply = reply_to(check, answer)
    assert reply.passed, reply


def test_every_check_has_a_right_answer_beside_the_solution():
    assert set(RIGHT) == set(CHECKS) - {"momentum"}  # a kernel: test_exercise_kernel.py
