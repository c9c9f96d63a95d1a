"""The checks of chapter 03 accept the right answers and catch the plausible wrong ones."""

import math

import pytest
import torch
from exercise_reports import caught, unfinished

from course.exercises import ch03_single_tensor as check

# ---------------------------------------------------------------------------------------------- rest_point


def rest_point(g, weight_decay, eps, decoupled):
    return -g / (abs(g) + eps) / weight_decay if decoupled else -g / weight_decay


def sign(g):
    return (g > 0) - (g < 0)


WRONG_REST_POINTS = {
    "moves with the gradient": lambda g, w, e, d: -rest_point(g, w, e, d),
    "L2 for both": lambda g, w, e, d: rest_point(g, w, e, False),
    "decoupled for both": lambda g, w, e, d: rest_point(g, w, e, True),
    "the two swapped": lambda g, w, e, d: rest_point(g, w, e, not d),
    "no eps": lambda g, w, e, d: -sign(g) / w if d else -g / w,
    "eps inside the root": lambda g, w, e, d: -g / math.sqrt(g * g + e) / w if d else -g / w,
    "eps squared inside the root": lambda g, w, e, d: -g / math.sqrt(g * g + e * e) / w if d else -g / w,
    "eps in L2 too": lambda g, w, e, d: -g / (abs(g) + e) / w if d else -g / (w + e / (abs(g) + e)),
    "eps beside the decay": lambda g, w, e, d: -g / (abs(g) * w + e) if d else -g / w,
    "eps beside g in L2": lambda g, w, e, d: -g / (abs(g) + e) / w if d else -g / (w + e),
    "eps stretches L2": lambda g, w, e, d: -g / (abs(g) + e) / w if d else -g / (w * (1 + e)),
    "an eps of its own": lambda g, w, e, d: -g / (abs(g) + 1e-8) / w if d else -g / w,
    "no absolute value": lambda g, w, e, d: -g / (g + e) / w if d else -g / w,
    "multiplies by the decay": lambda g, w, e, d: rest_point(g, 1 / w, e, d),
    "divides 0 by 0": lambda g, w, e, d: -g / abs(g) / w if d else -g / w,
    "weight decay pulls to 1": lambda g, w, e, d: rest_point(g, w, e, d) + 1,
    "text": lambda g, w, e, d: "-g/λ",
}


def test_rest_point_right():
    assert check.rest_point(rest_point)


@pytest.mark.parametrize("name", WRONG_REST_POINTS)
def test_rest_point_wrong(name):
    caught(check.rest_point(WRONG_REST_POINTS[name]))


# -------------------------------------------------------------------------------------- corrected_max_step


def corrected_max_step(
    param, grad, m, v, top, t, *, lr, beta1, beta2, eps, weight_decay,
    correct_m=True, correct_v=True, eps_inside=False, into_grad=False, decay="L2", stop=math.inf, late=0,
    maximum="corrected", keep=True, rebind=False, square=True, sign=-1, spoil_v=False, early=False,
):  # fmt: skip
    if t > stop:
        return
    c1, c2 = (1 - beta**(t + late) for beta in (beta1, beta2))
    if decay == "decoupled":
        param.mul_(1 - lr * weight_decay)
    elif into_grad:
        grad.add_(param, alpha=weight_decay)
    elif decay == "L2":
        grad = grad.add(param, alpha=weight_decay)
    if rebind:
        m, v, top, param = m.clone(), v.clone(), top.clone(), param.clone()
    if early:  # the step from yesterday's moments
        param.addcdiv_(m, top.sqrt().add_(eps), value=sign * lr / c1)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad if square else grad.sign(), value=1 - beta2)
    v_hat = v / c2 if correct_v else v
    if spoil_v:
        v.div_(c2)
    if maximum == "corrected":
        new = torch.maximum(top, v_hat)
    elif maximum == "raw, corrected later":
        new = torch.maximum(top, v)
    elif maximum == "of the roots":
        new = torch.maximum(top, v_hat.sqrt())
    else:
        new = v_hat
    if keep:
        top.copy_(new)
    if maximum == "raw, corrected later":
        new = new / c2
    root = (new + eps).sqrt() if eps_inside else (new if maximum == "of the roots" else new.sqrt()) + eps
    if not early:
        param.addcdiv_(m, root, value=sign * lr / (c1 if correct_m else 1))


WRONG_CORRECTED_MAX = {
    "forgot both bias corrections": dict(correct_m=False, correct_v=False),
    "forgot the correction of m": dict(correct_m=False),
    "forgot the correction of v": dict(correct_v=False),
    "torch's: the maximum of the raw v": dict(maximum="raw, corrected later"),
    "no maximum": dict(maximum="none"),
    "the maximum is not kept": dict(keep=False),
    "keeps the maximum of the roots": dict(maximum="of the roots"),
    "eps inside the root": dict(eps_inside=True),
    "decay into the caller's gradient": dict(into_grad=True),
    "decoupled decay": dict(decay="decoupled"),
    "no decay": dict(decay="none"),
    "stops after a few steps": dict(stop=3),
    "stops after 50 steps": dict(stop=50),
    "t starts at 2": dict(late=1),
    "out of place": dict(rebind=True),
    "v without the square": dict(square=False),
    "uphill": dict(sign=1),
    "corrects v in place": dict(spoil_v=True),
    "steps before it has looked": dict(early=True),
}


def test_corrected_max_right():
    assert check.corrected_max_step(corrected_max_step)


@pytest.mark.parametrize("name", WRONG_CORRECTED_MAX)
def test_corrected_max_wrong(name):
    def wrong(*args, **options):
        corrected_max_step(*args, **options, **WRONG_CORRECTED_MAX[name])

    caught(check.corrected_max_step(wrong))


def test_corrected_max_names_what_is_wrong():
    def wrong(*args, **options):
        corrected_max_step(*args, **options, maximum="raw, corrected later")

    assert "top after step 1" in repr(check.corrected_max_step(wrong))


# --------------------------------------------------------------------------------------------------- adamw


class AdamW(torch.optim.Optimizer):
    """The right one; the switches make the wrong ones."""

    decay, order, lr_in_decay, into_grad = "decoupled", "before", True, False
    corrected, eps_inside, stop, defaults_only, first_group_only = True, False, math.inf, False, False
    count, home, lazy, skip_none = "own", "state", True, True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.elsewhere, self.t = {}, 0
        if not self.lazy:
            for group in self.param_groups:
                for param in group["params"]:
                    self.fresh(param)

    def fresh(self, param):
        where = self.state[param] if self.home == "state" else self.elsewhere.setdefault(param, {})
        if not where:
            where["step"] = 0 if self.count == "int" else torch.tensor(0.0, dtype=torch.float32)
            where["exp_avg"], where["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return where

    @torch.no_grad()
    def step(self):
        self.t += 1
        for group in self.param_groups[:1] if self.first_group_only else self.param_groups:
            options = self.defaults if self.defaults_only else group
            lr, (beta1, beta2), eps, decay = (options[k] for k in ("lr", "betas", "eps", "weight_decay"))
            for param in group["params"]:
                grad = param.grad
                if grad is None and self.skip_none:
                    continue
                if grad is None:
                    grad = torch.zeros_like(param)
                state = self.fresh(param)
                state["step"] += 1
                t = self.t if self.count == "global" else float(state["step"])
                if t > self.stop:
                    continue
                if self.decay == "L2":
                    grad = grad.add_(param, alpha=decay) if self.into_grad else grad.add(param, alpha=decay)
                factor = 1 - (lr if self.lr_in_decay else 1) * decay
                if self.decay == "decoupled" and self.order == "before":
                    param.mul_(factor)
                state["exp_avg"].lerp_(grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                c1, c2 = (1 - beta1**t, 1 - beta2**t) if self.corrected else (1, 1)
                v_hat = state["exp_avg_sq"] / c2
                below = (v_hat + eps).sqrt() if self.eps_inside else v_hat.sqrt() + eps
                param.addcdiv_(state["exp_avg"], below, value=-lr / c1)
                if self.decay == "decoupled" and self.order == "after":
                    param.mul_(factor)


WRONG_ADAMW = {
    "L2": dict(decay="L2"),
    "L2 into the gradient": dict(decay="L2", into_grad=True),
    "decay after the step": dict(order="after"),
    "decay without lr": dict(lr_in_decay=False),
    "no decay": dict(decay="none"),
    "forgot the bias corrections": dict(corrected=False),
    "eps inside the root": dict(eps_inside=True),
    "stops after a few steps": dict(stop=3),
    "one count for all tensors": dict(count="global"),
    "an int count": dict(count="int"),
    "state beside self.state": dict(home="elsewhere"),
    "state made in the constructor": dict(lazy=False),
    "a missing gradient taken as zero": dict(skip_none=False),
    "reads defaults, not groups": dict(defaults_only=True),
    "the first group only": dict(first_group_only=True),
}


def test_adamw_right():
    assert check.adamw(AdamW)
    assert check.adamw(torch.optim.AdamW)


@pytest.mark.parametrize("name", WRONG_ADAMW)
def test_adamw_wrong(name):
    caught(check.adamw(type("Wrong", (AdamW,), WRONG_ADAMW[name])))


def test_adamw_that_hands_on_every_key_of_a_group():
    """A scheduler and torch's checkpoints put keys of their own into a group."""

    class EveryKey(AdamW):
        def step(self):
            def options(*, lr, betas, eps, weight_decay):
                pass

            for group in self.param_groups:
                options(**{name: value for name, value in group.items() if name != "params"})
            super().step()

    report = check.adamw(EveryKey)
    caught(report)
    assert "unexpected keyword argument" in repr(report)


def test_adamw_without_no_grad():
    class Tracked(AdamW):
        def step(self):
            with torch.enable_grad():
                AdamW.step.__wrapped__.__wrapped__(self)

    caught(check.adamw(Tracked))


def test_adamw_with_a_count_that_stays_a_tensor_is_told_about_digits():
    """The right rule, but 1 − β₂ᵗ in float32: not the same mistake as L2 for decoupled."""

    class TensorCount(AdamW):
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                lr, (beta1, beta2), eps, decay = (group[k] for k in ("lr", "betas", "eps", "weight_decay"))
                for param in (p for p in group["params"] if p.grad is not None):
                    state = self.fresh(param)
                    state["step"] += 1
                    t = state["step"]
                    param.mul_(1 - lr * decay)
                    state["exp_avg"].lerp_(param.grad, 1 - beta1)
                    state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
                    below = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + eps
                    param.sub_(lr * state["exp_avg"] / (1 - beta1**t) / below)

    report = check.adamw(TensorCount)
    caught(report)
    assert ".item()" in repr(report) and "L2 or decoupled" not in repr(report)


def test_adamw_other_names_in_the_state():
    class OwnNames(AdamW):
        def fresh(self, param):
            state = self.state[param]
            names = {"step": "step", "exp_avg": "m", "exp_avg_sq": "v"}
            if not state:
                zeros = {"m": torch.zeros_like(param), "v": torch.zeros_like(param)}
                state.update({"step": torch.tensor(0.0), **zeros})
            return {long: state[short] for long, short in names.items()}

    caught(check.adamw(OwnNames))


# ------------------------------------------------------------------------------------------ all the checks


class Stub(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def step(self):
        raise NotImplementedError


class Empty(Stub):
    def step(self):
        pass


@pytest.mark.parametrize("reader", [Stub, Empty])
def test_unfinished_adamw(reader):
    unfinished(check.adamw(reader))


def test_corrected_max_that_changes_nothing_is_told_so():
    assert "in place" in repr(check.corrected_max_step(lambda *_, **__: None))
