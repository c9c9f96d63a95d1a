"""The Triton kernel: in Triton's interpreter on the CPU, and compiled where there is a GPU.

The same checks serve both. Triton settles whether it interprets when it is imported, so the interpreter gets
a process of its own: `test_in_the_interpreter` runs this file again with TRITON_INTERPRET=1.
"""

import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.optim.adam import adam as torch_adam

pytest.importorskip("triton")

import adamlib
from adamlib.variants import pointer_table, triton_kernel
from adamlib.variants.triton_kernel import FusedTriton, GroupLists

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
CHUNK, BLOCK = 128, 32  # small, so that small tensors have several chunks, whole blocks and a ragged end
RAGGED = [(), (BLOCK,), (CHUNK,), (CHUNK + 1,), (BLOCK + 1,), (3, 100), (0,)]
PAD, POISON = 16, 512.0  # elements on either side of a tensor that nobody may touch
TOLERANCE = 4e-7 if INTERPRETED else 2e-6  # a GPU's exp is right to a few units in the last place


def on_device(test):
    """Run in the interpreter, or on a GPU; skipped where there is neither."""
    return test if INTERPRETED else on_gpu(test)


def on_gpu(test):
    skip = pytest.mark.skipif(not GPU, reason="needs a GPU (on the CPU: test_in_the_interpreter)")
    return pytest.mark.cuda(skip(test))


def test_in_the_interpreter():
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 30, run.stdout


def take_step(kernel, *groups, scale=None, found_inf=None):
    kernel.prepare([*groups], scale, found_inf)()


def misses(ours, truth, relative, absolute):
    """How many elements are further from the truth than a share of its size and a constant; NaN is."""
    error = (ours.detach().double().cpu() - truth.detach().double().cpu()).abs()
    return int((~(error <= relative * truth.detach().double().cpu().abs() + absolute)).sum())


class Guarded:
    """Tensors with poisoned memory on both sides, `shift` elements off their 16-byte boundary."""

    def __init__(self):
        self.memory = []

    def tensor(self, values, dtype=torch.float32, shift=0):
        memory = torch.full((values.numel() + 2 * PAD,), POISON, dtype=dtype, device=DEVICE)
        inside = slice(PAD + shift, PAD + shift + values.numel())
        self.memory.append((memory, inside))
        memory[inside] = values.to(DEVICE, dtype).reshape(-1)
        return memory[inside].view(values.shape)

    def untouched(self):
        return all(
            bool((memory[:inside.start] == POISON).all() and (memory[inside.stop:] == POISON).all())
            for memory, inside in self.memory
        )


class Run:
    """One group on the kernel, and the same in float64 by torch's for-loop on the CPU, which is the truth."""

    def __init__(self, shapes, *, dtype=torch.float32, state_dtype=None, shifts=None, seed=0, **options):
        self.random = torch.Generator().manual_seed(seed)
        self.guard, self.dtype, self.shifts = Guarded(), dtype, shifts or [0] * len(shapes)
        self.options = dict(
            lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False,
            amsgrad=False, maximize=False,
        ) | options
        state_dtype = state_dtype or dtype
        start = [self._values(shape) for shape in shapes]
        zeros = [torch.zeros(shape) for shape in shapes]
        tops = zeros if self.options["amsgrad"] else []
        self.columns = [
            self._guarded(start, dtype), [],
            *(self._guarded(values, state_dtype) for values in (zeros, zeros, tops)),
        ]
        self.steps = [self.guard.tensor(torch.zeros(())) for _ in shapes]
        self.truth = [[t.double().cpu() for t in column] for column in self.columns]
        self.true_steps = [torch.zeros(()) for _ in shapes]

    def _guarded(self, values, dtype):
        return [self.guard.tensor(x, dtype, shift) for x, shift in zip(values, self.shifts)]

    def _values(self, shape):
        return torch.randn(shape, generator=self.random).to(self.dtype).float()

    def lists(self, scale=1.0):
        """The group with new gradients, multiplied by `scale`; the truth gets them as they are."""
        drawn = [self._values(p.shape) for p in self.columns[0]]
        self.truth[1] = [g.double() for g in drawn]
        self.columns[1] = self._guarded([g * scale for g in drawn], self.dtype)
        lr, *options = self.options.values()
        return GroupLists(*self.columns, self.steps, lr, *options)

    def step_truth(self):
        options = {name: value for name, value in self.options.items() if name != "decoupled_weight_decay"}
        options["lr"] = float(options["lr"])
        torch_adam(
            *self.truth, self.true_steps, foreach=False,
            decoupled_weight_decay=self.options["decoupled_weight_decay"], **options,
        )

    def check(self, what="", tolerance=TOLERANCE):
        """All within `tolerance` of the truth, relative to its size or to a step; nothing else touched."""
        assert [t.item() for t in self.steps] == [t.item() for t in self.true_steps], what
        scales = (float(self.options["lr"]), 1.0, 1.0, 1.0, 1.0)
        for name, ours, truth, scale in zip(GroupLists._fields, self.columns, self.truth, scales):
            for i, (a, b) in enumerate(zip(ours, truth)):
                assert misses(a, b, tolerance, tolerance * scale) == 0, (what, name, i)
        assert self.guard.untouched(), what


@on_device
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("decay", ["none", "l2", "decoupled"])
def test_every_combination_of_flags(amsgrad, decay):
    """Ragged shapes, half of them unaligned; scaled gradients; a step that the scaler calls off."""
    for maximize, scaled, skips in itertools.product((False, True), repeat=3):
        run = Run(
            RAGGED, shifts=[0, 0, 0, 0, 1, 3, 0], amsgrad=amsgrad, maximize=maximize,
            weight_decay=0.0 if decay == "none" else 0.1, decoupled_weight_decay=decay == "decoupled",
        )
        kernel = FusedTriton(CHUNK, BLOCK)
        scale = torch.tensor(8.0, device=DEVICE) if scaled else None
        for t in range(3 if skips else 2):
            lists = run.lists(8.0 if scaled else 1.0)
            called_off = skips and t == 1
            found_inf = torch.tensor([float(called_off)], device=DEVICE) if skips else None
            if called_off:
                run.truth[1] = [g.double().cpu() for g in lists.grads]  # left scaled
            else:
                run.step_truth()
            take_step(kernel, lists, scale=scale, found_inf=found_inf)
            run.check(f"{maximize=} {scaled=} {skips=} {t=}")


@on_device
@pytest.mark.parametrize("dtype, state_dtype", [
    (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16),
], ids=str)
@pytest.mark.parametrize("shift", [0, 1])
def test_sixteen_bits(dtype, state_dtype, shift):
    """Float32 arithmetic and one rounding at the end: within half a unit in the last place of the truth.

    In the interpreter within a whole unit for bfloat16: it cuts off the digits that a GPU rounds.
    """
    run = Run(
        [(3, 100), (7,)], dtype=dtype, state_dtype=state_dtype, shifts=[shift, shift], amsgrad=True, lr=0.25,
    )
    for column, truth in zip(run.columns[2:5], run.truth[2:5]):  # as after six steps
        for ours, true in zip(column, truth):
            ours.copy_(torch.rand(ours.shape, generator=run.random))
            true.copy_(ours)
    for step, true in zip(run.steps, run.true_steps):
        step.fill_(6.0), true.fill_(6.0)
    lists = run.lists(4.0)
    take_step(FusedTriton(CHUNK, BLOCK), lists, scale=torch.tensor(4.0, device=DEVICE))
    run.step_truth()
    for name, ours, truth in zip(GroupLists._fields, run.columns, run.truth):
        for a, b in zip(ours, truth):
            units = 1.0 if INTERPRETED and a.dtype == torch.bfloat16 else 0.5
            assert misses(a, b, units * torch.finfo(a.dtype).eps * 1.01 + 1e-6, 1e-6) == 0, name
    assert run.guard.untouched() and [t.item() for t in run.steps] == [7.0, 7.0]


@on_device
def test_zero_gradient_in_float16_is_no_nan():
    run = Run([(40,)], dtype=torch.float16, eps=1e-8)
    before = run.columns[0][0].clone()
    take_step(FusedTriton(CHUNK, BLOCK), run.lists(0.0))
    assert torch.equal(run.columns[0][0], before)


@on_device
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # 0/0 beyond the tensor's end, where ε = 0
@pytest.mark.parametrize("beta1, beta2", [(0.9, 0.999), (0.99, 0.9999), (0.0, 0.0), (0.0, 0.999), (0.5, 0.9)])
def test_bias_correction_keeps_its_digits(beta1, beta2):
    """A gradient of 1 since the start has m̂ = v̂ = 1: the step is lr at every t, each tensor at its own.

    1 − βᵗ taken in float32 as it stands would miss by 1.3e-5 at t = 1 for 0.999 and by 1.7e-4 for 0.9999.
    """
    ages = [1, 2, 3, 10, 100, 346, 347, 3500, 100_000, 10_000_000]
    run = Run([(3,)] * len(ages), lr=1.0, beta1=beta1, beta2=beta2, eps=0.0)
    for i, t in enumerate(ages):
        run.steps[i].fill_(t - 1)
        run.columns[0][i].zero_()
        run.columns[2][i].fill_(1 - beta1 ** (t - 1))
        run.columns[3][i].fill_(1 - beta2 ** (t - 1))
    lists = run.lists()
    for g in lists.grads:
        g.fill_(1.0)
    take_step(FusedTriton(CHUNK, BLOCK), lists)
    moved = torch.stack([p[0] for p in run.columns[0]]).cpu()
    assert torch.allclose(moved, -torch.ones(len(ages)), rtol=1e-6 if INTERPRETED else 2e-6, atol=0), moved
    assert [t.item() for t in run.steps] == ages


@on_device
def test_close_to_torchs_fused_op():
    """Five steps beside torch's kernel on the same device, to rounding. On CUDA torch corrects the bias less
    precisely (1 − βᵗ in float32), hence the wider bound there."""
    options = dict(lr=1e-2, weight_decay=0.1, amsgrad=True)
    random = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=random) for shape in RAGGED]
    ours, torchs = ([torch.nn.Parameter(x.clone().to(DEVICE)) for x in start] for _ in range(2))
    reference = torch.optim.AdamW(torchs, fused=True, **options)
    optimizer = adamlib.AdamW(ours, fused="triton", **options)
    for _ in range(5):
        for p, q in zip(ours, torchs):
            p.grad = torch.randn(p.shape, generator=random).to(DEVICE)
            q.grad = p.grad.clone()
        optimizer.step(), reference.step()
    for p, q in zip(ours, torchs):
        assert misses(p, q, 5e-7, 1e-2 * (5e-4 if GPU else 1e-5)) == 0
        assert optimizer.state[p]["step"] == reference.state[q]["step"] == 5


@on_device
def test_groups_of_all_options_share_one_launch(monkeypatch):
    """Learning rates (as numbers and in memory), betas, decays and directions differ; the launch is one."""
    runs = [
        Run([(70,), (5,)], seed=1),
        Run([(129,)], seed=2, lr=torch.tensor(0.3, device=DEVICE), beta1=0.5, weight_decay=0.1),
        Run([(3, 100)], seed=3, lr=0.1, beta2=0.9, weight_decay=0.1, decoupled_weight_decay=True),
        Run([(33,)], seed=4, eps=1e-2, maximize=True),
    ]
    launched = []

    def counted(kernel):
        class Kernel:
            def __getitem__(self, grid):
                launched.append(kernel)
                return kernel[grid]
        return Kernel()

    for name in ("_advance", "_step"):
        monkeypatch.setattr(triton_kernel, name, counted(getattr(triton_kernel, name)))
    monkeypatch.setattr(triton_kernel, "_refuse_device", lambda device: None)
    kernel = FusedTriton(CHUNK, BLOCK)
    for _ in range(3):
        launched.clear()
        take_step(kernel, *(run.lists() for run in runs))
        assert len(launched) == 2  # the counters, and everything else
        for run in runs:
            run.step_truth()
            run.check()


@on_device
@pytest.mark.filterwarnings("ignore")
def test_the_step_stays_out_of_a_compiled_graph():
    results = []
    for compiled in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 70, device=DEVICE))
        opt = adamlib.Adam([p], lr=0.1, fused="triton")
        step = torch.compile(opt.step, backend="aot_eager") if compiled else opt.step
        for t in range(3):
            p.grad = torch.full_like(p, float(t))
            step()
        results.append(p.detach())
    assert torch.equal(*results)


@on_device
@pytest.mark.parametrize("lay", [
    lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.permute(3, 0, 2, 1),
], ids=["channels_last", "permuted"])
def test_any_order_of_dimensions(lay):
    shape = (3, 4, 5, 6)
    for layout in (lambda x: x, lay):
        random = torch.Generator().manual_seed(2)
        p, g = (layout(torch.randn(shape, generator=random).to(DEVICE)) for _ in range(2))
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        lists = [p], [g], [m], [v], [], [torch.zeros((), device=DEVICE)]
        take_step(FusedTriton(), GroupLists(*lists, 0.1, 0.9, 0.99, 1e-8, 0.1, False, False, False))
        if layout is not lay:
            expected = lay(p)
    assert torch.equal(p, expected) and not p.is_contiguous()


INF, NAN = float("inf"), float("nan")
STRANGE = torch.tensor([*itertools.product([1.0, -2.0, 0.0, INF, -INF, NAN, 3e38, 1e-42], repeat=2)])


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the arithmetic that is meant here
@pytest.mark.parametrize("options", [
    {}, dict(weight_decay=0.1), dict(weight_decay=0.1, decoupled_weight_decay=True), dict(amsgrad=True),
    dict(maximize=True, weight_decay=0.5), dict(beta1=0.5, beta2=0.5), dict(beta1=0.0, beta2=0.0), dict(lr=0.0),
    dict(lr=25.0, weight_decay=0.1, decoupled_weight_decay=True),  # 1 − αλ is −1.5: the sign turns over
    dict(lr=10.0, weight_decay=0.1, decoupled_weight_decay=True),  # 1 − αλ is 0
], ids=str)
def test_infinities_and_nan_are_where_the_for_loop_has_them(options):
    """Every pair of strange weight and strange gradient, for three steps, so that m and v are strange as well."""
    options = dict(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
                   amsgrad=False, maximize=False) | options
    p, gradient = STRANGE.t().to(DEVICE).contiguous()
    lists = [p], [gradient], *([torch.zeros_like(p)] for _ in range(2)), [torch.zeros_like(p)] * options["amsgrad"]
    ours, loops = ([[t.clone() for t in column] for column in lists] for _ in range(2))
    kernel, counts = FusedTriton(CHUNK, BLOCK), [[torch.zeros((), device=device)] for device in (DEVICE, "cpu")]
    for t in range(3):
        if t == 2:  # something ordinary after all that
            ours[1][0].fill_(1.0), loops[1][0].fill_(1.0)
        take_step(kernel, GroupLists(*ours, counts[0], **options))
        torch_adam(*loops, counts[1], foreach=False, **options)
        for name, column, others in zip(GroupLists._fields, ours, loops):
            for a, b in zip(column, others):
                close = torch.isclose(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-6, equal_nan=True)
                assert close.all(), (name, t, STRANGE[~close], a[~close.to(DEVICE)], b[~close.to(DEVICE)])


@on_device
@pytest.mark.parametrize("found", [0.0, 1.0, 2.0, 3.0, NAN])
def test_any_found_inf_but_zero_calls_the_step_off(found):
    """A GradScaler hands on the sum over devices: two of them that saw an overflow make it 2."""
    run, kernel = Run([(70,), (0,)]), FusedTriton(CHUNK, BLOCK)
    for step_taken in (True, found == 0.0, True):
        found_inf = torch.tensor([0.0 if step_taken else found], device=DEVICE)
        lists = run.lists()
        if step_taken:
            run.step_truth()
        take_step(kernel, lists, found_inf=found_inf)
        run.check(tolerance=1e-5)


@pytest.fixture
def made(monkeypatch):
    """The names of what is made anew, in the order in which it is."""
    made, build, upload = [], triton_kernel.build, triton_kernel.upload
    monkeypatch.setattr(triton_kernel, "build", lambda *args: made.append("plans") or build(*args))
    monkeypatch.setattr(triton_kernel, "upload", lambda table, dtype, device: made.append(
        {torch.float32: "numbers", torch.int64: "gradients"}[dtype]) or upload(table, dtype, device))
    return made


@on_device
def test_an_ordinary_loop_makes_its_tables_once(made):
    """zero_grad() to None, and every backward puts the gradients somewhere else: only their addresses are sent."""
    run, kernel, clutter = Run([(70,), (5,)], weight_decay=0.1), FusedTriton(CHUNK, BLOCK), []
    for t in range(5):
        lists = run.lists()
        clutter.append(lists.grads)  # their memory is not used again
        take_step(kernel, lists)
        run.step_truth()
        run.check(tolerance=1e-5)
        assert made == (["plans", "numbers"] if t == 0 else []) + ["gradients"]
        made.clear()


def changes():
    """what -> (change of the lists, what is made anew before the next step)"""
    def through_data(column):
        return lambda lists: setattr(getattr(lists, column)[0], "data", getattr(lists, column)[0].clone())

    def in_list(column):
        return lambda lists: getattr(lists, column).__setitem__(0, getattr(lists, column)[0].clone())

    everything = ["plans", "numbers"]
    return {
        "nothing": (lambda lists: None, []),
        "another lr": (lambda lists: lists._replace(lr=0.5), ["numbers"]),
        "lr in a tensor": (lambda lists: lists._replace(lr=torch.tensor(0.25, device=DEVICE)), ["numbers"]),
        "another decay": (lambda lists: lists._replace(weight_decay=0.5), ["numbers"]),
        "gradient through data": (through_data("grads"), []),
        **{f"{column} {how.__name__}": (how(column), everything) for how in (through_data, in_list)
           for column in ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")},
    }


@on_device
@pytest.mark.parametrize("change", changes())
def test_what_moved_between_two_steps_is_stepped_where_it_is(change, made):
    """And what was there before is not written."""
    change, expected = changes()[change]
    run, kernel = Run([(70,), (5,)], weight_decay=0.1, amsgrad=True), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()
    old = [t.detach() for column in lists[:6] for t in column]  # the memory as it is now, whatever moves
    for t in range(2):
        made.clear()
        take_step(kernel, lists)
        run.options |= {name: float(getattr(lists, name)) for name in ("lr", "weight_decay")}
        run.step_truth()
        for name, ours, truth, in zip(lists._fields, lists[:6], [*run.truth, run.true_steps]):
            for i, (a, b) in enumerate(zip(ours, truth)):
                assert misses(a, b, 1e-5, 1e-5 * (run.options["lr"] if name == "params" else 1)) == 0, (name, i)
        if t == 0:
            lists = change(lists) or lists
            now = {tensor.data_ptr() for column in lists[:6] for tensor in column}
            left = [(tensor, tensor.clone()) for tensor in old if tensor.data_ptr() not in now]
    assert made == [*expected, "gradients"]
    assert all(torch.equal(tensor, before) for tensor, before in left) and run.guard.untouched()


@on_device
@pytest.mark.parametrize("dtype, shape", [(torch.float32, ()), (torch.float64, (1,))], ids=str)
def test_a_learning_rate_in_a_tensor_is_read_at_every_step(dtype, shape, made):
    run, kernel = Run([(5,)], lr=torch.full(shape, 0.5, dtype=dtype, device=DEVICE)), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()
    for t in range(3):
        take_step(kernel, lists)
        run.step_truth()
        run.check(tolerance=1e-5)
        run.options["lr"].mul_(0.5)
    assert made == ["plans", "numbers", *["gradients"] * 3]
    lists, run.options["lr"] = lists._replace(lr=0.0), 0.0  # a number again, not what the table still holds
    take_step(kernel, lists)
    run.step_truth()
    run.check(tolerance=1e-5)


@pytest.fixture
def captured(monkeypatch):
    """Say that a CUDA graph is captured; the function that a captured step returns is then its replay."""
    state = dict(now=False)
    monkeypatch.setattr(triton_kernel, "_capturing", lambda: state["now"])
    return lambda now: state.update(now=now)


@on_device
def test_a_capture_with_gradients_made_inside(captured):
    """As in chapter 06: no gradient at the start, and the graph's own ones stay where they are, replay by replay."""
    run, kernel = Run([(70,), (0,), (5,)], lr=torch.tensor(0.5, device=DEVICE)), FusedTriton(CHUNK, BLOCK)
    take_step(kernel, run.lists())
    run.step_truth()
    captured(True)
    lists = run.lists()
    replay = kernel.prepare([lists])
    captured(False)
    run.check("capturing runs nothing", tolerance=1e-5)
    for t in range(3):
        run.options["lr"].mul_(0.7)
        replay()
        run.step_truth()
        run.check(f"replay {t}", tolerance=1e-5)
        mine, truths = run.columns[1], run.truth[1]
        take_step(kernel, run.lists())  # an ordinary step between, with gradients of its own
        run.step_truth()
        run.check(f"step {t}", tolerance=1e-5)
        run.columns[1], run.truth[1] = mine, truths


@on_device
def test_captures_of_many_steps(captured, monkeypatch):
    """Each keeps its gradients' addresses; when there is no room left, that is said, and a step makes new room."""
    monkeypatch.setattr(pointer_table, "CAPTURES", 2)
    run, kernel = Run([(70,)], lr=0.1), FusedTriton(CHUNK, BLOCK)
    for graph in range(2):
        take_step(kernel, run.lists())
        run.step_truth()
        captured(True)
        replays = []
        for _ in range(2):
            lists = run.lists()
            replays += [(kernel.prepare([lists]), run.truth[1])] * 2
            kernel.prepare([lists])  # the same gradients take no room
        with pytest.raises(RuntimeError, match="outside of a capture"):
            kernel.prepare([run.lists()])
        captured(False)
        for replay, run.truth[1] in replays:
            replay()
            run.step_truth()
        run.columns[1] = lists.grads
        run.check(tolerance=1e-4)


@on_device
@pytest.mark.parametrize("change", [
    lambda run, lists: (lists._replace(weight_decay=0.5),),
    lambda run, lists: (lists._replace(lr=0.5),),
    lambda run, lists: (lists._replace(params=[lists.params[0].clone()]),),
    lambda run, lists: (lists._replace(exp_avgs=[lists.exp_avgs[0].clone()]),),
    lambda run, lists: (lists._replace(grads=[lists.grads[0].double()]),),
    lambda run, lists: (lists, None, torch.zeros((), device=DEVICE)),
    lambda run, lists: (lists, torch.ones((), device=DEVICE)),
], ids=["decay", "lr", "parameter", "moment", "gradient's dtype", "found_inf", "grad_scale"])
def test_what_a_capture_may_not_change(change, captured):
    """A number would be frozen, a table or a kernel would have to be made."""
    run, kernel = Run([(70,)], lr=torch.tensor(0.5, device=DEVICE)), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()
    captured(True)
    with pytest.raises(RuntimeError, match="Take one step just like it before the capture"):
        kernel.prepare([lists])  # there was no step before
    captured(False)
    take_step(kernel, lists)
    run.step_truth()
    captured(True)
    lists, *scaler = change(run, lists)
    with pytest.raises(RuntimeError, match="Take one step just like it before the capture.*beside the parameters"):
        kernel.prepare([lists], *scaler)
    run.check()


@on_device
def test_tables_made_in_inference_mode_serve_outside(captured):
    run, kernel = Run([(70,)], lr=torch.tensor(0.5, device=DEVICE)), FusedTriton(CHUNK, BLOCK)
    with torch.inference_mode():
        take_step(kernel, run.lists())
    run.step_truth()
    captured(True)
    lists = run.lists()
    kernel.prepare([lists])()
    run.step_truth()
    run.check(tolerance=1e-5)


@on_device
def test_empty_tensors():
    kernel = FusedTriton()
    take_step(kernel)
    empty = Run([(0,)] * 300)  # more counts than one program advances
    take_step(kernel, empty.lists(), Run([]).lists())
    empty.step_truth()
    empty.check()  # the step of an empty tensor counts, as it does in torch


@on_device
def test_a_gradient_of_two_parameters_is_not_unscaled_twice():
    run, kernel = Run([(5,), (5,), (0,), (0,)]), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()
    lists.grads[1], run.truth[1][1] = lists.grads[0], run.truth[1][0]
    with pytest.raises(RuntimeError, match="unscale a gradient twice"):
        kernel.prepare([lists], torch.ones((), device=DEVICE))
    take_step(kernel, lists)
    run.step_truth()
    run.check()


@on_device
def test_a_stale_backward_is_refused():
    """The kernel writes where PyTorch cannot see it, so autograd has to be told."""
    p = torch.nn.Parameter(torch.ones(5, device=DEVICE))
    loss = (p**2).sum()
    p.grad = torch.ones_like(p)
    adamlib.Adam([p], fused="triton").step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@on_device
def test_nothing_changes_when_a_tensor_is_refused():
    """What is refused stands in test_pointer_table. Here: it is in time, and a retry is a clean step."""
    good, bad = Run([(5,)], seed=1), Run([(5,)], seed=2)
    lists, kernel = bad.lists(), FusedTriton(CHUNK, BLOCK)
    right = lists.grads[0]
    for wrong in (right.double(), right.new_ones(()).expand(5)):
        lists.grads[0] = wrong
        with pytest.raises(RuntimeError, match="parameter 0: the gradient has (dtype|strides)"):
            kernel.prepare([good.lists(), lists])
        good.check()  # still at its start
    lists.grads[0] = right
    take_step(kernel, good.lists(), lists)
    good.step_truth(), bad.step_truth()
    good.check(), bad.check()


@on_device
def test_one_bad_group_among_good_ones():
    """The message has the group's own numbers; nothing is stepped, no state is left, and a retry is a clean step."""
    def params():
        torch.manual_seed(0)
        return [torch.nn.Parameter(torch.randn(4, 4, device=DEVICE)) for _ in range(4)]

    def optimizer(looped, first, without, bad):
        opt = adamlib.Adam([
            dict(params=[looped], foreach=False), dict(params=[first], fused="triton"),
            dict(params=[without, bad], fused="triton"),
        ], lr=0.1)
        for p in (looped, first, bad):
            p.grad = torch.ones_like(p)
        return opt

    refused, clean = params(), params()
    opt, other = optimizer(*refused), optimizer(*clean)
    refused[3].grad = torch.ones(4, 4, device=DEVICE).t()
    with pytest.raises(RuntimeError, match='="triton" cannot step parameter 1 of group 2: the gradient has strides'):
        opt.step()
    assert not opt.state and all(map(torch.equal, refused, params()))
    refused[3].grad = torch.ones_like(refused[3])
    opt.step(), other.step()
    assert all(map(torch.equal, refused, clean)) and not torch.equal(refused[0], params()[0])


@on_device
def test_an_overflow_on_two_devices_calls_the_step_off():
    p = torch.nn.Parameter(torch.ones(5, device=DEVICE))
    p.grad = torch.full_like(p, INF)
    opt = adamlib.Adam([p], fused="triton")
    opt.grad_scale, opt.found_inf = torch.ones((), device=DEVICE), torch.full((), 2.0, device=DEVICE)
    opt.step()
    assert torch.equal(p, torch.ones_like(p)) and opt.state[p]["step"] == 0


def test_where_the_kernel_cannot_run():
    """CPU tensors without the interpreter, GPU tensors within it."""
    wrong = "cuda" if INTERPRETED else "cpu"
    with pytest.raises(RuntimeError, match=f"needs a GPU.* on {wrong}.*fused=True"):
        triton_kernel._refuse_device(torch.device(wrong))
    if not INTERPRETED:
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="needs a GPU"):
            adamlib.Adam([p], fused="triton").step()
        assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("sizes, message", [
    (dict(chunk=100, block=64), "multiple of block"), (dict(chunk=0), "multiple of block"),
    (dict(chunk=-1024), "multiple of block"), (dict(chunk=96, block=48), "block must be a power of 2"),
    (dict(chunk=64, block=8), "from 16"), (dict(chunk=2**20, block=2**20), "to 65536"),
    (dict(block=0), "block must be"), (dict(num_warps=3), "num_warps"), (dict(num_warps=64), "num_warps"),
], ids=str)
def test_sizes_of_blocks_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        FusedTriton(**sizes)


@on_gpu
@pytest.mark.parametrize("fresh", [False, True], ids=["", "gradients made inside"])
def test_in_a_cuda_graph(fresh):
    """Counts and a tensor lr move on with every replay; one replay is called off by found_inf."""
    run = Run([(70,), (5000,), (3, 100)], lr=torch.tensor(0.5, device="cuda"), amsgrad=True, weight_decay=0.1)
    kernel, lists = FusedTriton(), run.lists(4.0)
    source = [g.clone() for g in lists.grads]
    scale, found_inf = torch.tensor(4.0, device="cuda"), torch.zeros((), device="cuda")

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        take_step(kernel, lists, scale=scale, found_inf=found_inf)  # compiles, and makes the tables
    torch.cuda.current_stream().wait_stream(aside)
    run.step_truth()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if fresh:
            lists = lists._replace(grads=[g * 1.0 for g in source])
        else:
            for g, its in zip(lists.grads, source):
                g.copy_(its)
        take_step(kernel, lists, scale=scale, found_inf=found_inf)
    run.columns[1] = lists.grads
    for replay in range(6):
        lists.lr.mul_(0.7)
        found_inf.fill_(2.0 if replay == 3 else 0.0)
        graph.replay()
        torch.cuda.synchronize()
        if replay == 3:
            for g in lists.grads:
                g.div_(4.0)  # left scaled by the kernel
        else:
            run.step_truth()
        run.check(f"{replay=}", tolerance=1e-5)


@on_gpu
def test_a_whole_training_step_in_a_cuda_graph():
    """Chapter 06's: gradients to None, then forward, backward and step in one graph; beside the same steps, eager."""
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).cuda()
        x, y = torch.randn(16, 64, device="cuda"), torch.randint(10, (16,), device="cuda")
        opt = adamlib.Adam(model.parameters(), lr=0.01, fused="triton", capturable=True)

        def training_step():
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            opt.step()

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                training_step()
        torch.cuda.current_stream().wait_stream(aside)
        again = training_step
        if graphed:
            opt.zero_grad()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                training_step()
            again = graph.replay
        for _ in range(10):
            again()
        torch.cuda.synchronize()
        assert {int(state["step"]) for state in opt.state.values()} == {13}
        results.append([p.detach().clone() for p in model.parameters()])
    for eager, replayed in zip(*results):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)


@on_gpu
def test_a_graph_outlives_an_eager_step_with_other_tables():
    run, other = Run([(5000,)], lr=0.1, seed=1), Run([(5000,)], seed=2)
    kernel, lists = FusedTriton(), run.lists()
    take_step(kernel, lists)
    run.step_truth()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take_step(kernel, lists)
    for _ in range(3):
        take_step(kernel, other.lists())
        other.step_truth()
        other.check()
        clutter = [torch.full((64,), -1, device="cuda") for _ in range(50)]  # lands where tables were let go
        pinned = [torch.full((64,), -1).pin_memory() for _ in range(50)]
        graph.replay()
        torch.cuda.synchronize()
        del clutter, pinned
        run.step_truth()
        run.check(tolerance=1e-5)


@on_gpu
def test_grad_scaler_drives_it():
    """A GradScaler unscales in the kernel and calls off the step with an overflow."""
    p = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = adamlib.Adam([p], fused="triton", lr=0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    for factor, expected in ((1.0, 0.9), (float("inf"), 0.9), (1.0, 0.8)):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.allclose(p, torch.full_like(p, expected), atol=1e-5)
