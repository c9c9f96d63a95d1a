"""Mistakes that have a name: what a check says to those that the lecturer's guide and its own hints speak of.

WRONG has a row for each: what is wrong, the texts to exchange in the notebook's solution (or an answer of its own), and
words of the reply. Hundreds of nameless ones are made in test_mutants.py. The kernel is in test_exercise_kernel.py.
"""

import copy

import pytest
from exercise_reports import CHECKS, caught, reply_to


def flags_put_back_afterwards(optimizer, checkpoint):
    own = [{flag: group[flag] for flag in ("foreach", "fused", "capturable")} for group in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(checkpoint))
    for group, flags in zip(optimizer.param_groups, own):
        group.update(flags)


WRONG = {
    "first_step": [
        ("keeps the gradient's size", {" / (abs(g) + eps)": ""}, "what is left of g"),
        ("no bias correction", {"/ (abs(g) + eps)": "* 0.1 / (0.001**0.5 * abs(g) + eps)"}, "-0.00316228"),
        ("ε inside the root", {"(abs(g) + eps)": "(g * g + eps) ** 0.5"}, "outside the root"),
    ],
    "for_summed_loss": [
        ("lr divided, as for gradient descent", {"lr, eps * batch": "lr / batch, eps"}, "which ε gives the old Δ back"),
        ("the one batch of the text", {"eps * batch": "eps * 256"}, "for_summed_loss(0.001, 1e-08, 32)"),
        ("negative", {"eps * batch": "-eps * batch"}, "Adam refuses a negative lr or ε"),
    ],
    "step_without_epsilon": [
        ("a smaller ε", lambda m, v: m / (v**0.5 + 1e-12), "gradients × 1e-10"),
        ("the sign", {"4 / np.pi * np.arctan2(m_hat, np.sqrt(v_hat))": "np.sign(m_hat)"}, "partly cancel"),
        ("not bounded", lambda m, v: m / (v**0.5 + (v == 0)), "at most 2"),
    ],
    "longest_memory": [
        ("slower than the gradients fall", lambda n, factor: 2 ** (-0.5 / n), "a ratio that grows for ever"),
        ("a memory of n steps", lambda n, factor: 1 - 1 / n, "over all ages k"),
        ("rounded to two digits", lambda n, factor: round((factor - 1) / (factor * 2 ** (1 / n) - 1), 2),
         "more digits"),
    ],
    "corrected_average": [
        ("today's β to the power t", {"unseen * β": "β ** (len(averages) + 1)"}, "the sum of the weights"),
        ("no correction", {"m / (1 - unseen)": "m"}, "the sum of the weights"),
        ("only the last one", {"return averages": "return averages[-1]"}, "shape [4]"),
    ],
    "adam_in_basis": [
        ("does not come back", {"steps @ Q.T": "steps"}, "a turn by 30°"),
        ("turns the step only", {"gradients @ Q": "gradients"}, "coordinates along Q's columns are Qᵀg"),
        ("goes the wrong way round", {"@ Q\n": "@ Q.T\n", "steps @ Q.T": "steps @ Q"}, "a vector returns by Q"),
    ],
    "settings": [
        ("the correction left in", {"α / np.sqrt(1 - 0.99**t)": "α"}, "the root of that divisor"),
        ("momentum as an average", {" * 10 * (1 - 0.9**t)": ""}, "b is 10·m"),
        ("the limit itself", {"1 - 1e-9": "1"}, "come near it"),
    ],
    "zeros_to_exceed": [
        ("only the first step after", {"np.arange(1, 1001)": "np.ones(1)"}, "the largest of *all* later steps"),
        ("counts the first gradient too", {"return z": "return z + 1"}, "86"),
        ("the defaults", {"    while": "    β1, β2 = 0.9, 0.999\n    while"}, "nothing may stay at the defaults"),
    ],
    "worst_wake_up": [
        ("newest first", {"(β2 / β1)": "(β1 / β2)"}, "k = 0 is the newest gradient"),
        ("with the silence", {"np.arange(n)": "np.arange(-100, n)"}, "2 finite numbers"),
        ("all zero", {"(β2 / β1)": "0 * (β2 / β1)"}, "not all zero"),
    ],
    "runaway_loss": [
        ("a high power", lambda x: -((1 + x) ** 8), "how fast |gradient| grows"),
        ("another one at every call", {"torch.exp(k * x)": "torch.exp(k * x) * (1 + 1e-6 * torch.rand(()))"},
         "a function of x alone"),
        ("cut from the graph", {"k * x": "k * x.detach()"}, ".detach() cut it"),
    ],
    "first_response": [
        ("half a percent off", {"β2 / (1 - β2)": "1.005 * β2 / (1 - β2)"}, "the two roots"),
        ("the absolute value", lambda β1, β2: abs(β2 / (1 - β2) - β1 / (1 - β1)), "the sign"),
        ("the number at the defaults", lambda β1, β2: 990.0, "nothing may stay at the defaults"),
    ],
    "worst_without_correction": [
        ("with the correction", {"np.sum(a**2 / b)": "np.sum(a**2 / b) * (1 - β2**t)"}, "t = 1"),
        ("the limit", {"np.arange(t)": "np.arange(20_000)"}, "3.16228"),
        ("divides by zero", {"np.sum(a**2 / b))": "np.sum(a**2 / b)) / (β2 != 0.81)"}, "β1² = β2"),
    ],
    "rest_point": [
        ("ε beside the decay of L2", {"-g / weight_decay": "-g / (weight_decay + eps)"}, "L2 does not feel ε"),
        ("an ε of its own", {"(abs(g) + eps)": "(abs(g) + 1e-8)"}, "take the one you are given"),
        ("divides 0 by 0", {"(abs(g) + eps)": "abs(g)"}, "ε: here it is as large as the gradient"),
    ],
    "corrected_max_step": [
        ("torch's maximum, of the raw v", {"v / (1 - beta2**t), out": "v, out"}, "top after step 1"),
        ("out of place", {"    grad = ": "    param, m, v, top = param + 0, m + 0, v + 0, top + 0\n    grad = "},
         "gives a new"),
        ("decay into the caller's gradient", {"grad.add(": "grad.add_("}, "use add, not add_"),
    ],
    "adamw": [
        ("L2 into the gradient",
         {'p.mul_(1 - group["lr"] * group["weight_decay"])': "p.grad.add_(p, alpha=group['weight_decay'])"},
         "step() only reads it"),
        ("a count that stays a tensor", {"t.item()": "t"}, "step'].item()"),
        ("one count for all tensors", {"t.item()": "max(s['step'].item() for s in self.state.values())"},
         "its own state['step']"),
        ("reads defaults, not groups", {'1 - group["lr"]': "1 - self.defaults['lr']"}, "a group has its own options"),
        ("an int count",
         {"torch.tensor(0.0, dtype=torch.float32)": "0", "t += 1": "t = state['step'] = t + 1", "t.item()": "t"},
         "a 0-dim float32 tensor"),
        ("state for a tensor without a gradient",
         {" if p.grad is not None": "",
          "t += 1": "if p.grad is None:\n                    continue\n                t += 1"}, "lazy state"),
        ("names of its own in the state", {"AVERAGES[:2]": "'mv'"}, "torch's checkpoints use them"),
        ("without no_grad", {"@torch.no_grad()": ""}, "raised RuntimeError"),
    ],
    "bytes_per_weight": [
        ("L2 in place", {"else 3": "else 2"}, "L2: add reads g and p"),
        ("a decay of 0 costs", {"weight_decay != 0": "weight_decay != 0 or decoupled_weight_decay"}, "the flag alone"),
        ("always float32", {"itemsize * passes": "4 * passes"}, "a float64 has 8 bytes"),
    ],
    "clip_in_lists": [
        ("each tensor by itself",
         {"(max_norm / (total + 1e-6)).clamp(max=1.0)":
              "[(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms]"}, "the norm of all gradients together"),
        ("asks the norm with if", {".clamp(max=1.0)": " if total > max_norm else 1.0"}, ".item(), float() or `if`"),
        ("asks the norm with tolist",
         {"(max_norm / (total + 1e-6)).clamp(max=1.0)": "min(1.0, max_norm / (total.tolist() + 1e-6))"}, "meta"),
        ("a loop over the tensors", {"torch._foreach_mul_(grads, scale)": "[grad.mul_(scale) for grad in grads]"},
         "take all of them at once"),
    ],
    "cut": [
        ("copies", {"tensor.view(-1)": "tensor.clone().view(-1)"}, "views, not copies"),
        ("whole tensors only", {"[tensor] if whole else tensor.view(-1).split(room)": "[tensor]"}, "the next piece"),
        ("one piece in each bucket", {"bucket for bucket, in buckets(room, pieces)": "[piece] for piece in pieces"},
         "while there is room"),
        ("every other element", {"tensor.view(-1).split(room)": "[tensor.view(-1)[::2], tensor.view(-1)[1::2]]"},
         "a run of neighbours in memory"),
        ("sorted by size", {"buckets(room, pieces)": "buckets(room, sorted(pieces, key=torch.Tensor.numel))"},
         "cut alike and must match"),
    ],
    "step_bytes": [
        ("all of one size", {"2 * states * state": "2 * states * param"}, "in their own size"),
        ("never writes g", {"(grad if scaled else 0)": "0"}, "writes the unscaled gradient back"),
        ("the seven operations", lambda *sizes: 76, "four numbers in, three out"),
    ],
    "reorder": [
        ("the largest first", {"left.pop() if behind else left.pop(0)": "left.pop()"}, "has blocks left"),
        ("drops the empty tensors", {"return order": "return [i for i in order if numels[i]]"}, "has one, too"),
        ("sorts the caller's list", {"return order": "numels.sort()\n    return order"}, "take sorted(...)"),
    ],
    "scaled_step": [
        ("counts the step that was called off", {"torch._foreach_sub_(steps, [found_inf] * len(steps))": ""},
         "and t, which it takes back"),
        ("looks at the sum",
         {"torch.stack([gradient.isfinite().all() for gradient in grads]).all()":
              "sum(gradient.sum() for gradient in grads).isfinite()"}, "huge but finite"),
        ("sees inf, not nan", {"gradient.isfinite()": "gradient.isinf().logical_not()"}, "a nan in"),
        ("unscales itself, also when called off",
         {"torch._fused_adam_(": "torch._foreach_div_(grads, scale)\n    torch._fused_adam_(",
          "grad_scale=scale, ": ""}, "nothing in a step called off"),
        ("asks the host", {"finite.logical_not().float()": "torch.tensor(float(not finite))"}, "asked a tensor"),
    ],
    "clip_": [
        ("each tensor for itself", {"mul_(factor)": "mul_((max_norm / grad.norm()).clamp(max=1.0))"}, "long gradients"),
        ("divides 0 by 0",
         {"grad.mul_(factor)": "grad.copy_(torch.where(norm > max_norm, grad * factor, grad / norm * norm))"},
         "NaN on its way"),
        ("asks the host", {".clamp(max=1.0)": " if norm > max_norm else 1.0"}, "(torch.where)"),
        ("copies from the host", {"max_norm / norm": "torch.tensor(max_norm).to(norm.device) / norm"}, "torch.full"),
    ],
    "safe_capture": [
        ("a look ahead of 1000 steps", {"size[s:]": "size[s : s + 1000]"}, "as far as t → ∞"),
        ("v alone", {"(1 - beta1**t) / (": "1 / ("}, "betas for which m is the slower one"),
        ("counts from 0", {"return s + 1": "return s"}, "as far as t → ∞"),
    ],
    "schedule_": [
        ("replaces lr", {"lr.copy_(": "lr = ("}, "in the same tensor"),
        ("by if", {"torch.where(t < warmup, t / warmup, falling)": "(t / warmup if t < warmup else falling)"},
         "not permitted when stream is capturing"),
        ("by masked_fill",
         {"torch.where(t < warmup, t / warmup, falling)": "falling.masked_fill(t < warmup, t / warmup)"},
         "masked_fill"),
        ("a tensor of the host, moved", {"t / warmup": "t / torch.tensor(float(warmup)).to(lr)"}, "torch.full"),
        ("counts as well", {"lr.copy_(": "t.add_(1)\n    lr.copy_("}, "the count is the optimizer's"),
    ],
    "load_in_place": [
        ("load_state_dict", lambda optimizer, saved: optimizer.load_state_dict(saved), "load_state_dict puts new ones"),
        ("other tensors in the optimizer than in the graph",
         {"index][name])": "index][name])\n                optimizer.state[param][name] = tensor.clone()"},
         "the same tensors"),
        ("the checkpoint changed", {"index][name])": "index][name].neg_().neg())"}, "belongs to the caller"),
        ("without the maximum", {"tensor.copy_(": "name == 'max_exp_avg_sq' or tensor.copy_("}, "not only the three"),
    ],
    "lr_slope": [
        ("no decay", {" + weight_decay * param": ""}, "α multiplies the decay, too"),
        ("L2", {"push = m": "push = (m + weight_decay * param)", " (push + weight_decay * param)": " push"},
         "α multiplies the decay, too"),
        ("changes m", {"m / (1 - beta1**t)": "m.div_(1 - beta1**t)"}, "it is the caller's"),
    ],
    "push_slopes": [
        ("a mask that comes too late", {"a / eps for": "math.nan for"}, "only ∂m̂/∂g_i divided by ε is left"),
        ("newest first", {"beta1 ** (t - 1 - i)": "beta1**i"}, "the weight (1−β₁)β₁ᵗ⁻ⁱ"),
        ("the last gradient only", {"zip(in_m, in_v, gradients)]": "zip(in_m, in_v, gradients)][-1]"}, "shape [1]"),
    ],
    "forward_hypergradient": [
        ("an extra run", {"g, dg = grad(theta)": "g, dg = (grad(theta) + grad(theta)) / 2"}, "one run will do"),
        ("writes into the given θ", {"theta = theta - lr * m / c1 / below": "theta -= lr * m / c1 / below"},
         "writes into it"),
        ("nan where no gradient comes", {"2 * root, 1.0": "2 * root, np.nan"}, "any finite d√v̂ will do"),
    ],
    "smallest_step": [
        ("the whole gap", {" / 2": ""}, "half way"),
        ("the gap on the other side", {"torch.zeros_like(w)": "w * torch.inf"}, "a power of two"),
        ("eps times the weight", {"(w.float() - neighbour.float())": "(w.float() * 2**-7)"}, "the gap between"),
    ],
    "resume_with": [
        ("plain load", lambda optimizer, saved: optimizer.load_state_dict(copy.deepcopy(saved)), "`fused` is to"),
        ("flags put back afterwards", flags_put_back_afterwards, "change them before"),
        ("the first group only", {"zip(optimizer.param_groups,": "zip(optimizer.param_groups[:1],"}, "has its own"),
        ("keeps its ε, too", {'"capturable")': '"capturable", "eps")'}, "all but the three flags"),
    ],
    "as_keras": [
        ("counts from here",
         {"    def convert": "    counted = iter(range(1000))\n\n    def convert",
          "max(counts, default=0)": "next(counted)"}, "may have taken steps before"),
        ("once", {"optimizer.register_step_pre_hook(convert)": "convert(optimizer, (), {})"}, "after step 2"),
        ("a fixed β₂", {'group["betas"][1]': "0.999"}, "every group has its own"),
    ],
    "round_randomly_": [
        ("to the nearest", {"target.copy_((noisy & -65536).view(torch.float32))": "target.copy_(exact)"},
         "the chance is"),
        ("one draw for all", {"exact.shape": "(1,)"}, "the chance is the distance"),
        ("rounds once more", {"(noisy & -65536)": "noisy"}, "nothing random about them"),
        ("another generator", {"generator=generator": "generator=torch.Generator().manual_seed(0)"}, "once for each"),
    ],
    "epsilon_hat": [
        ("without the root", {"math.sqrt(1 - beta2**t)": "(1 - beta2**t)"}, "it is √v, not v"),
        ("of the first step", {"beta2**t": "beta2"}, "ε̂ changes with t"),
        ("the default β₂", {"beta2**t": "0.999**t"}, "which multiple depends on β2"),
    ],
    "frozen_clock": [
        ("a clock that runs", lambda β1, β2, t: 1.0, "m_t = 1 − β1ᵗ"),
        ("no correction", {" / (1 - beta1)": "", " / (1 - beta2)": ""}, "at step 1 the clock is still right"),
        ("the defaults", {"    return": "    beta1, beta2 = 0.9, 0.999\n    return"},
         "nothing may stay at the defaults"),
    ],
    "counter_limit": [
        ("the largest number", {"int(n)": "torch.finfo(dtype).max"}, "2049 rounds to even"),
        ("one bit less", {"int(n)": "int(n / 2)"}, "2049 rounds to even"),
        ("float16's", lambda dtype: 2048, "fewer bits of significand"),
    ],
    "is_adam": [
        ("one step, gradient 1", {"[3.0, -0.5, 0.2, 0.21, 0.0, 0.02, 0.3, -1.0]": "[1.0]"}, "a gradient of 1 hides it"),
        ("a small ε", {"(0.7, 0.95), 0.1": "(0.7, 0.95), 1e-8"}, "the test may choose its own ε"),
        ("the first step only", {"[3.0, -0.5, 0.2, 0.21, 0.0, 0.02, 0.3, -1.0]": "[0.3]"}, "the steps after the first"),
        ("wants equality", {"rtol=1e-4": "rtol=0"}, "it rounds in its last digits"),
        ("too strict", {"rtol=1e-4": "rtol=1e-9"}, "an honest float32 is right to about six digits"),
        ("too lenient", {"rtol=1e-4, atol=0": "rtol=0, atol=0.05"}, "accepted"),
    ],
    "which_amsgrad": [
        ("does not look", lambda run, beta1, beta2: "torch", "it is the only way to learn what is inside"),
        ("looks at the first step", {"[0.1] * 50": "[]"}, "expected"),
        ("for the default betas", {"seen = run": "beta1, beta2 = 0.9, 0.999\n    seen = run"},
         "for these betas it is 1"),
        ("one spike, then zeros", {"[0.1] * 50": "[0.0] * 50"}, "zeros teach nothing"),
    ],
    "shares_in_the_end": [
        ("forgets with its own rate", {"kept * lr": "(1 - lr * weight_decay) ** len(shares) * lr"}, "all LATER steps"),
        ("without the start", {"[kept, *": "[*"}, "θ₀ has a share, too"),
        ("newest first", {"*reversed(shares)": "*shares"}, "equal rates"),
    ],
}


@pytest.mark.parametrize(
    "check, change, words",
    [pytest.param(check, *row[1:], id=f"{check}: {row[0]}") for check, rows in WRONG.items() for row in rows],
)
def test_a_mistake_is_told_what_is_wrong(check, change, words):
    reply = reply_to(check, change)
    caught(reply)
    assert words in " ".join(repr(reply).split()), reply


def test_every_check_has_its_mistakes():
    assert set(WRONG) == set(CHECKS) - {"momentum"}  # a kernel: test_exercise_kernel.py
    assert all(len(rows) >= 3 for rows in WRONG.values())
