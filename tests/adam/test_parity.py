"""The same bits as torch's same variant, and the distance of every variant from Algorithm 1 in float64."""

import itertools
import math
import platform

import numpy as np
import pytest
import torch
from parameter_zoo import FLAGS, SAME_BITS, awkward_parameters, differences, same_bits, set_gradients
from torch.optim.adam import adam as torch_adam

import adamlib
from adamlib.theory.algorithm1 import algorithm1

DTYPES = (torch.float32, torch.float64)
STEPS = 10

DECAYS = {
    "no decay": {},
    "L2": dict(weight_decay=0.1),
    "decoupled": dict(weight_decay=0.1, decoupled_weight_decay=True),
}


def compare(tally, variant, dtype, *, ours=adamlib.Adam, theirs=torch.optim.Adam, steps=STEPS, lr_at=None, **options):
    """Run both on the same awkward set; count it; return what differs after the first step that differs."""
    flags = FLAGS[variant]
    p, q = (awkward_parameters(dtype, fused=variant == "fused") for _ in range(2))
    a, b = ours(p.values(), **flags, **options), theirs(q.values(), **flags, **options)
    found = []
    for step in range(1, steps + 1):
        for opt, params in ((a, p), (b, q)):
            set_gradients(params, step)
            if lr_at is not None:
                opt.param_groups[0]["lr"] = lr_at(step)
            opt.step()
        if step in (1, 2, steps):
            found = differences(a, b, p, q)
        if found:
            break
    assert a.state and any(bool(s["step"] == steps) for s in b.state.values()) or found
    tally.add(variant, not found)
    return [f"step {step}: {what}" for what in found]


def both(tally, variant, scenario):
    """Run scenario(cls) -> (params, optimizer) with either library, count it, and assert that nothing differs."""
    (p, a), (q, b) = (scenario(cls) for cls in (adamlib.Adam, torch.optim.Adam))
    found = differences(a, b, p, q)
    tally.add(variant, not found)
    assert not found


def steps_of(opt, params, steps=range(1, STEPS + 1)):
    for step in steps:
        set_gradients(params, step)
        opt.step()
    return params, opt


def every_option(variant):
    """All combinations of options that torch allows for this variant."""
    lrs = [1e-3, lambda: torch.tensor(3e-3)]
    betas = [(0.9, 0.999), (0.0, 0.5), lambda: (torch.tensor(0.8), torch.tensor(0.95))]
    if variant == "foreach":  # torch refuses tensors here
        lrs, betas = [1e-3, 0.5], betas[:2] + [(0.99, 0.0)]
    return itertools.product(lrs, betas, [1e-8, 1e-2, 0.0], DECAYS, [False, True], [False, True])


def made(value):
    return value() if callable(value) else value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", SAME_BITS)
@pytest.mark.parametrize("lr_kind", range(2))
def test_every_combination_of_options_gives_torchs_bits(variant, dtype, lr_kind, tally):
    options = list(every_option(variant))
    lrs = list(dict.fromkeys(lr for lr, *_ in options))
    failures = []
    for lr, betas, eps, decay, amsgrad, maximize in options:
        if lr is not lrs[lr_kind]:
            continue
        given = dict(lr=made(lr), betas=made(betas), eps=eps, amsgrad=amsgrad, maximize=maximize) | DECAYS[decay]
        if found := compare(tally, variant, dtype, **given):
            failures.append((given, found[:3]))
    assert not failures, f"{len(failures)} configurations differ, e.g. {failures[:3]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", SAME_BITS)
def test_adamw_gives_torchs_bits(variant, dtype, tally):
    for amsgrad, maximize, weight_decay in itertools.product([False, True], [False, True], [0.01, 0.0, 0.3]):
        options = dict(amsgrad=amsgrad, maximize=maximize, weight_decay=weight_decay)
        assert not compare(tally, variant, dtype, ours=adamlib.AdamW, theirs=torch.optim.AdamW, **options), options


@pytest.mark.parametrize("variant", SAME_BITS)
def test_a_changing_learning_rate_gives_torchs_bits(variant, tally):
    for decay in DECAYS.values():
        assert not compare(tally, variant, torch.float32, lr_at=lambda t: 1e-2 / t, **decay)


@pytest.mark.parametrize("variant", SAME_BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_hundred_steps_give_torchs_bits(variant, dtype, tally):
    assert not compare(tally, variant, dtype, steps=200, amsgrad=True, weight_decay=0.01)


@pytest.mark.parametrize("pieces", [1, 7, 16])
@pytest.mark.parametrize("variant", ["single_tensor", "foreach"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cutting_tensors_into_pieces_changes_no_bit(variant, pieces, dtype, tally, monkeypatch):
    """On a CPU the arithmetic goes over pieces that stay in cache; here over pieces of a few elements."""
    monkeypatch.setattr("adamlib.functional.CPU_PART", pieces)
    for decay, amsgrad in itertools.product(DECAYS.values(), [False, True]):
        assert not compare(tally, variant, dtype, amsgrad=amsgrad, **decay), (decay, amsgrad)


@pytest.mark.parametrize("variant", SAME_BITS)
def test_large_tensors_give_torchs_bits(variant, tally):
    def scenario(cls):
        generator = torch.Generator().manual_seed(0)
        shapes = [(300_001,), (700, 801), (5,), (2**18,), (0,)]
        params = {str(s): torch.randn(s, generator=generator) for s in shapes}
        params["transposed"] = torch.randn(600, 500, generator=generator).t()
        tensors = [p.requires_grad_() for p in params.values()]
        return steps_of(cls(tensors, amsgrad=True, weight_decay=0.1, **FLAGS[variant]), params, range(1, 4))

    both(tally, variant, scenario)


@pytest.mark.parametrize("variant", FLAGS)
def test_a_model_of_empty_tensors_alone_steps(variant):
    p = torch.zeros(3, 0, requires_grad=True)
    opt = adamlib.Adam([p], **FLAGS[variant])
    p.grad = torch.zeros(3, 0)
    opt.step()
    assert float(opt.state[p]["step"]) == 1.0


@pytest.mark.parametrize("variant", SAME_BITS)
def test_state_exchanged_between_steps_is_used_at_the_next(variant, tally):
    def scenario(cls):
        params = awkward_parameters(torch.float32, fused=variant == "fused")
        opt, vector = cls(params.values(), amsgrad=True, **FLAGS[variant]), params["vector"]
        changes = {
            3: lambda: opt.state[vector].update(step=torch.tensor(40.0)),
            4: lambda: opt.state[vector]["step"].fill_(7.0),
            5: lambda: opt.state[vector].update(exp_avg=torch.ones_like(vector, requires_grad=False)),
            6: lambda: opt.state.update({vector: {k: v.clone() for k, v in opt.state[vector].items()}}),
            7: lambda: opt.param_groups[0].update(amsgrad=False),
            8: lambda: opt.state.pop(params["matrix"]),
            9: lambda: opt.param_groups[0]["params"].reverse(),
        }
        for step in range(1, 11):
            set_gradients(params, step)
            changes.get(step, int)()
            opt.step()
        return params, opt

    both(tally, variant, scenario)


@pytest.mark.parametrize("variant", SAME_BITS)
def test_integer_and_tensor_options_give_torchs_bits(variant, tally):
    for options in (
        dict(lr=1, eps=1),
        dict(eps=0),
        dict(lr=0.0),
        dict(lr=0.0, weight_decay=0.1, decoupled_weight_decay=True),
        dict(lr=torch.tensor([3e-3])),
        dict(weight_decay=1),
        dict(weight_decay=1, decoupled_weight_decay=True),
        dict(lr=math.inf),
        dict(lr=torch.tensor(2e-3, dtype=torch.float64)),
        dict(betas=(torch.tensor([0.8]), torch.tensor([0.95]))),
        dict(betas=(torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64))),
        dict(lr=torch.tensor(2e-3), betas=(torch.tensor(0.8), torch.tensor(0.95)), weight_decay=0.1),
    ):
        if variant == "foreach" and any(torch.is_tensor(v) or isinstance(v, tuple) for v in options.values()):
            continue
        assert not compare(tally, variant, torch.float32, **options), options


@pytest.mark.parametrize("variant", ["single_tensor", "foreach"])
def test_a_default_dtype_of_float64_changes_the_step_as_in_torch(variant, tally):
    torch.set_default_dtype(torch.float64)
    try:
        assert not compare(tally, variant, torch.float32, amsgrad=True)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", SAME_BITS)
def test_sixteen_bit_parameters_give_torchs_bits(variant, dtype, tally):
    def scenario(cls):
        params = {"vector": torch.linspace(-2, 2, 37).to(dtype), "scalar": torch.ones((), dtype=dtype)}
        return steps_of(cls([t.requires_grad_() for t in params.values()], **FLAGS[variant], **options), params)

    for decay, amsgrad in itertools.product(DECAYS.values(), [False, True]):
        options = dict(lr=0.01, eps=1e-4, amsgrad=amsgrad) | decay
        both(tally, variant, scenario)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("eps", [1e-7, 5e-7])
def test_capturable_in_float16_survives_an_epsilon_that_underflows(foreach, eps):
    """ε√c₂ is below the smallest float16; 0 / 0 would be NaN where the for-loop, like torch, stays put."""
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    opt = adamlib.Adam([p], lr=0.01, eps=eps, capturable=True, foreach=foreach)
    for gradient in (0.0, 1.0):
        p.grad = torch.full_like(p, gradient)
        opt.step()
        assert p.isfinite().all() and (p == 1).all() == (gradient == 0)


@pytest.mark.parametrize("variant", SAME_BITS)
def test_infinite_and_nan_gradients_spread_as_in_torch(variant, tally):
    def scenario(cls):
        vector = torch.linspace(-2, 2, 9).requires_grad_()
        opt = cls([vector], **FLAGS[variant], amsgrad=True)
        for step in range(1, 11):
            set_gradients({"vector": vector}, step)
            if step == 4:
                vector.grad[:3] = torch.tensor([math.inf, -math.inf, math.nan])
            opt.step()
        assert vector[:3].isnan().all() and vector[3:].isfinite().all()
        return {"vector": vector}, opt

    both(tally, variant, scenario)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_one_optimizer_may_use_different_variants_and_options(dtype, tally):
    sets = [[awkward_parameters(dtype, fused=True, seed=s) for s in range(4)] for _ in "ab"]
    optimizers = []
    for groups, cls in zip(sets, (adamlib.Adam, torch.optim.Adam)):
        flags = (
            dict(foreach=False, lr=0.01),
            dict(foreach=True, amsgrad=True, betas=(0.5, 0.9)),
            dict(fused=True, weight_decay=0.1, eps=1e-3),
            dict(maximize=True, weight_decay=0.1, decoupled_weight_decay=True),
        )
        optimizers.append(cls([dict(params=list(g.values()), **f) for g, f in zip(groups, flags)]))
    for step in range(1, STEPS + 1):
        for groups, opt in zip(sets, optimizers):
            for seed, params in enumerate(groups):
                set_gradients(params, step, seed)
            opt.step()
    found = [d for p, q in zip(*sets) for d in differences(*optimizers, p, q)]
    tally.add("mixed groups", not found)
    assert not found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 1024.0, 3.0])
@pytest.mark.parametrize("infinite", [None, 0.0, 1.0])
def test_fused_with_grad_scale_and_found_inf_gives_torchs_bits(dtype, scale, infinite, tally):
    for decay, amsgrad, maximize in itertools.product(DECAYS.values(), [False, True], [False, True]):
        p, q = (awkward_parameters(dtype, fused=True) for _ in "ab")
        a, b = (
            cls(params.values(), fused=True, amsgrad=amsgrad, maximize=maximize, **decay)
            for cls, params in ((adamlib.Adam, p), (torch.optim.Adam, q))
        )
        for step in range(1, 11):
            for params, opt in ((p, a), (q, b)):
                set_gradients(params, step)
                opt.grad_scale = None if scale is None else torch.tensor(scale)
                opt.found_inf = None if infinite is None else torch.tensor(infinite if step % 3 == 1 else 0.0)
                opt.step()
            for name in p:  # the kernel writes the unscaled gradient back
                if p[name].grad is not None:
                    assert same_bits(p[name].grad, q[name].grad), name
        found = differences(a, b, p, q)
        tally.add("fused", not found)
        assert not found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_capturable_does_not_change_the_fused_kernel(dtype, tally):
    def scenario(cls):
        params = awkward_parameters(dtype, fused=True)
        return steps_of(cls(params.values(), fused=True, capturable=True), params)

    both(tally, "fused", scenario)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", SAME_BITS)
def test_the_function_gives_the_bits_of_torchs_function(variant, dtype, tally):
    def scenario(function):
        params = list(awkward_parameters(dtype, fused=variant == "fused").values())
        zeros = lambda: [torch.zeros_like(p, requires_grad=False) for p in params]
        moments, counts = [zeros(), zeros(), zeros() if amsgrad else []], [torch.tensor(0.0) for _ in params]
        for step in range(1, 11):
            grads = [torch.empty_like(p, requires_grad=False).fill_(math.sin(step + i)) for i, p in enumerate(params)]
            with torch.no_grad():
                function(params, grads, *moments, counts, has_complex=variant != "fused", **FLAGS[variant], **options)
        return [*params, *itertools.chain(*moments), *counts]

    for decay, amsgrad, maximize in itertools.product(DECAYS.values(), [False, True], [False, True]):
        options = dict(amsgrad=amsgrad, maximize=maximize, beta1=0.9, beta2=0.99, lr=0.01, eps=1e-8, weight_decay=0.0)
        options |= decay
        equal = all(map(same_bits, scenario(adamlib.adam), scenario(torch_adam)))
        tally.add(f"{variant} (function)", equal)
        assert equal, (decay, amsgrad, maximize)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [*SAME_BITS, "default"])
def test_the_same_bits_on_a_cuda_device(variant, dtype, tally):
    def scenario(cls):
        params = awkward_parameters(dtype, fused=variant == "fused", device="cuda")
        return steps_of(cls(params.values(), **options), params)

    for decay, amsgrad, maximize in itertools.product(DECAYS.values(), [False, True], [False, True]):
        options = dict(amsgrad=amsgrad, maximize=maximize) | decay | FLAGS.get(variant, {})
        both(tally, f"{variant} (cuda)", scenario)


# --- variants that agree bitwise


def run(variant, dtype, params=None, flags=None, **options):
    params = params or awkward_parameters(dtype, fused=True)
    return steps_of(adamlib.Adam(params.values(), **(FLAGS[variant] if flags is None else flags), **options), params)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_foreach_and_differentiable_have_the_bits_of_single_tensor_on_a_cpu(dtype, decay, amsgrad):
    options = dict(lr=0.01, amsgrad=amsgrad) | DECAYS[decay]
    single, _ = run("single_tensor", dtype, **options)
    foreach, _ = run("foreach", dtype, **options)
    # The differentiable variant refuses leaves that require a gradient: it gets tensors that need none.
    bare = {name: p.detach().requires_grad_(False) for name, p in awkward_parameters(dtype, fused=True).items()}
    unrolled, _ = run(None, dtype, params=bare, flags=dict(differentiable=True), **options)
    for name in single:
        assert same_bits(single[name], foreach[name]), name
        assert same_bits(single[name], unrolled[name]), name


def test_the_fused_kernel_rounds_differently_from_single_tensor():
    options = dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True)
    single, _ = run("single_tensor", torch.float32, **options)
    fused, _ = run("fused", torch.float32, **options)
    assert not all(same_bits(single[name], fused[name]) for name in single)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another compiler may round a·b + c once")
@pytest.mark.parametrize("tail", [0, 7])
def test_the_fused_kernel_differs_from_the_loop_by_its_root_alone(tail):
    """Where it fills whole vector registers (of 8 or 16 numbers); the `tail` behind them it may round otherwise."""
    whole = 10_000
    gradients = torch.randn(20, whole + tail, generator=torch.Generator().manual_seed(0))
    w = torch.zeros(whole + tail, requires_grad=True)
    opt = adamlib.Adam([w], lr=1e-3, fused=True)
    p, m, v = torch.zeros(3, whole + tail)
    for t, g in enumerate(gradients, 1):
        w.grad = g
        opt.step()
        m.lerp_(g, 1 - 0.9)
        v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
        exact = torch.from_numpy(np.sqrt(v.numpy()))  # torch.sqrt is off by one in the last digit now and then
        p.addcdiv_(m, (exact / (1 - 0.999**t) ** 0.5).add_(1e-8), value=-1e-3 / (1 - 0.9**t))
    for fused, by_hand in ((w.detach(), p), (opt.state[w]["exp_avg"], m), (opt.state[w]["exp_avg_sq"], v)):
        assert same_bits(fused[:whole], by_hand[:whole])


# --- distance from Algorithm 1 in float64


def ulps(value, exact):
    """Largest |value − exact| in units in the last place of value's dtype at `exact`."""
    value = value.detach().numpy()
    spacing = np.spacing(np.abs(exact).astype(value.dtype)).astype(np.float64)
    return float(np.max(np.abs(value.astype(np.float64) - exact) / spacing))


def against_the_oracle(dtype, steps, flags, **options):
    """Largest error in ulp of the parameters and of v: 64 weights in [1, 2], gradients of all sizes."""
    generator = torch.Generator().manual_seed(3)
    theta0 = (1 + torch.rand(64, generator=generator, dtype=torch.float64)).to(dtype)
    grads = (
        torch.randn(steps, 64, generator=generator, dtype=torch.float64)
        * torch.logspace(-6, 3, 64, dtype=torch.float64)
    ).to(dtype)
    p = theta0.clone().requires_grad_(not flags.get("differentiable", False))
    opt = adamlib.Adam([p], **flags, **options)
    for g in grads:
        p.grad = g.clone()
        opt.step()
    exact = algorithm1(theta0.numpy(), grads.numpy(), **options)
    l2 = options.get("weight_decay") and not options.get("decoupled_weight_decay")
    # g + λθ may cancel, and then v has no digits to compare.
    return ulps(p, exact.theta[-1]), 0.0 if l2 else ulps(opt.state[p]["exp_avg_sq"], exact.v[-1])


def updates_against_the_oracle(dtype, steps, flags, cls=adamlib.Adam, **options):
    """Largest error in ulp of the update itself: every step starts at θ = 0, so that θ becomes −Δ.

    Gradients of one sign, so that m does not cancel. The corrections 1 − βᵗ are taken as −expm1(t log β): as
    they stand they cancel in float64 too, in the oracle as in all variants that read t on the host.
    """
    generator = torch.Generator().manual_seed(4)
    grads = torch.rand(steps, 64, generator=generator, dtype=torch.float64) + 0.01
    grads = (grads * torch.logspace(-6, 3, 64, dtype=torch.float64)).to(dtype)
    p = torch.zeros(64, dtype=dtype, requires_grad=not flags.get("differentiable", False))
    opt = cls([p], **flags, **options)
    exact = algorithm1(np.zeros(64), grads.numpy(), **options)
    v = np.maximum.accumulate(exact.v) if options.get("amsgrad") else exact.v
    with np.errstate(divide="ignore"):  # log 0, for β₁ = 0
        c1, c2 = (-np.expm1(np.arange(1, steps + 1)[:, None] * np.log(beta)) for beta in options["betas"])
    worst = 0.0
    for g, delta in zip(grads, 1e-3 * (exact.m / c1) / (np.sqrt(v / c2) + 1e-8)):
        with torch.no_grad():
            p.zero_()
        p.grad = g.clone()
        opt.step()
        worst = max(worst, ulps(p, -delta))
    return worst


ALL = FLAGS | {"differentiable": dict(differentiable=True)}
# One ulp of θ per rounded line of the step (two where θ crosses a power of two), times the steps.
# float64 against float64: the oracle rounds as well.
STEPS_AND_BOUNDS = ((1, 2.0), (10, 12.0))


@pytest.mark.parametrize("variant", ALL)
def test_distance_from_algorithm_1(variant, tally):
    for dtype in DTYPES:
        worst = []
        for steps, bound in STEPS_AND_BOUNDS:
            theta = v = 0.0
            for decay, amsgrad, maximize in itertools.product(DECAYS.values(), [False, True], [False, True]):
                options = dict(lr=1e-3, amsgrad=amsgrad, maximize=maximize) | decay
                of_theta, of_v = against_the_oracle(dtype, steps, ALL[variant], **options)
                theta, v = max(theta, of_theta), max(v, of_v)
            assert theta <= bound and v <= bound, (dtype, steps, theta, v)
            worst += [theta, v]
        update = max(
            updates_against_the_oracle(dtype, 40, ALL[variant], amsgrad=amsgrad, maximize=maximize, betas=betas)
            for amsgrad, maximize in itertools.product([False, True], [False, True])
            for betas in [(0.9, 0.999), (0.9, 0.9999), (0.0, 0.5)]
        )
        tally.figure(
            f"ulp from Algorithm 1, {variant}, {str(dtype)[6:]}",
            "θ {:.2f} and v {:.2f} after 1 step, θ {:.2f} and v {:.2f} after 10".format(*worst)
            + f", update {update:.2f} over 40",
        )
        naive = dtype == torch.float64 and not variant.startswith("capturable")  # 1 − 0.9999ᵗ as it stands
        assert update <= (4096.0 if naive else 16.0), (dtype, update)


def test_torchs_capturable_form_is_farther_from_algorithm_1(torch_capturable_on_cpu):
    for variant in ("capturable_single", "capturable_foreach"):
        ours, theirs = (
            updates_against_the_oracle(torch.float32, 3, FLAGS[variant], cls, betas=(0.9, 0.9999))
            for cls in (adamlib.Adam, torch.optim.Adam)
        )
        assert theirs > 100.0 > 16.0 >= ours, (ours, theirs)


# --- capturable on a CPU


@pytest.mark.parametrize("variant", ["capturable_single", "capturable_foreach"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_capturable_stays_within_rounding_of_single_tensor(variant, dtype):
    for decay, amsgrad, maximize in itertools.product(DECAYS.values(), [False, True], [False, True]):
        for betas in [(0.9, 0.999), (0.0, 0.5), (0.99, 0.9999)]:
            options = dict(lr=0.01, betas=betas, amsgrad=amsgrad, maximize=maximize) | decay
            exact, _ = run("single_tensor", dtype, params=awkward_parameters(dtype), **options)
            got, opt = run(variant, dtype, params=awkward_parameters(dtype), **options)
            for name, p in got.items():
                error = (p - exact[name]).abs().max().item() if p.numel() else 0.0
                assert error <= STEPS * 16 * torch.finfo(p.dtype).eps, (name, options, error)  # |θ| < 4
            assert all(s["step"].dtype == torch.float32 for s in opt.state.values())


@pytest.mark.parametrize("variant", ["capturable_single", "capturable_foreach"])
def test_capturable_takes_tensors_as_lr_and_betas(variant):
    numbers, _ = run("single_tensor", torch.float64, params=awkward_parameters(torch.float64), lr=0.01)
    lr, betas = (torch.tensor(0.01, dtype=torch.float64), [torch.tensor(b, dtype=torch.float64) for b in (0.9, 0.999)])
    tensors, _ = run(variant, torch.float64, params=awkward_parameters(torch.float64), lr=lr, betas=betas)
    for name in numbers:
        error = (tensors[name] - numbers[name]).abs().max().item() if numbers[name].numel() else 0.0
        assert error <= STEPS * 16 * torch.finfo(tensors[name].dtype).eps, name


@pytest.mark.parametrize("variant", ["capturable_single", "capturable_foreach"])
def test_capturable_with_lr_zero_moves_nothing_where_torch_may_write_nan(variant, torch_capturable_on_cpu):
    outcome = {}
    for cls in (torch.optim.Adam, adamlib.Adam):
        p = torch.ones(3, requires_grad=True)
        opt = cls([p], lr=0.0, **FLAGS[variant])
        p.grad = torch.tensor([1.0, 0.0, -1.0])
        opt.step()
        outcome[cls] = p.detach().clone()
    assert torch.equal(outcome[adamlib.Adam], torch.ones(3))
    assert bool(outcome[torch.optim.Adam].isnan().any()) == (variant == "capturable_single")
