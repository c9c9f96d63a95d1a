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
from adamlib.variants import triton_kernel
from adamlib.variants.triton_kernel import FusedTriton, GroupLists, fused_triton

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
            kernel.step([lists], scale, found_inf)
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
    FusedTriton(CHUNK, BLOCK).step([lists], torch.tensor(4.0, device=DEVICE))
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
    FusedTriton(CHUNK, BLOCK).step([run.lists(0.0)])
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
    FusedTriton(CHUNK, BLOCK).step([lists])
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
        kernel.step([run.lists() for run in runs])
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
        fused_triton([p], [g], [m], [v], [], [torch.zeros((), device=DEVICE)], lr=0.1, beta1=0.9, beta2=0.99,
                     eps=1e-8, weight_decay=0.1, decoupled_weight_decay=False, amsgrad=False, maximize=False)
        if layout is not lay:
            expected = lay(p)
    assert torch.equal(p, expected) and not p.is_contiguous()


@on_device
def test_tables_are_made_again_only_when_something_moved(monkeypatch):
    made = []
    for name in ("build", "number_table"):
        original = getattr(triton_kernel, name)
        spy = lambda *args, name=name, original=original: made.append(name) or original(*args)  # noqa: E731
        monkeypatch.setattr(triton_kernel, name, spy)
    run, kernel = Run([(70,), (5,)], weight_decay=0.1), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()

    def made_by_a_step():
        made.clear()
        run.options["lr"] = float(lists.lr)
        kernel.step([lists])
        run.step_truth()
        run.check(tolerance=1e-5)
        return made

    assert made_by_a_step() == ["build", "number_table"]
    assert made_by_a_step() == []
    for gradient in (lists.grads[1], run.truth[1][1]):
        gradient.mul_(2)
    assert made_by_a_step() == []
    lists = lists._replace(lr=0.5)
    assert made_by_a_step() == ["number_table"]
    lists = lists._replace(lr=torch.tensor(0.25, device=DEVICE))
    assert made_by_a_step() == ["build", "number_table"]
    lists.lr.fill_(0.125)
    assert made_by_a_step() == []
    lists.grads[0] = lists.grads[0].clone()
    assert made_by_a_step() == ["build", "number_table"]


@on_device
def test_learning_rate_in_a_tensor_elsewhere():
    """A tensor lr on the CPU: a number for parameters on a GPU, read from memory for those beside it."""
    run, kernel = Run([(5,)], lr=torch.tensor(0.5)), FusedTriton(CHUNK, BLOCK)
    for _ in range(2):
        kernel.step([run.lists()])
        run.step_truth()
        run.check()
        run.options["lr"].mul_(0.5)


@on_device
def test_what_a_graph_capture_may_change(monkeypatch):
    """Values may change, places and Python numbers may not; and there must have been a step before."""
    run, kernel = Run([(70,)], lr=torch.tensor(0.5, device=DEVICE)), FusedTriton(CHUNK, BLOCK)
    lists = run.lists()
    monkeypatch.setattr(triton_kernel, "_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="Take one step just like it before the capture"):
        kernel.step([lists])
    with pytest.raises(RuntimeError, match="Capture the step of adamlib.Adam"):
        fused_triton(*lists[:6], **dict(zip(lists._fields[6:], lists[6:])))
    assert lists.state_steps[0].item() == 0

    monkeypatch.setattr(triton_kernel, "_capturing", lambda: False)
    kernel.step([lists])
    run.step_truth()
    monkeypatch.setattr(triton_kernel, "_capturing", lambda: True)
    lists.lr.fill_(0.25)
    kernel.step([lists])
    run.step_truth()
    run.check()
    for changed in (lists._replace(grads=[lists.grads[0].clone()]), lists._replace(weight_decay=0.5)):
        with pytest.raises(RuntimeError, match="set_to_none=False"):
            kernel.step([changed])
    run.check()


@on_device
def test_empty_tensors():
    kernel = FusedTriton()
    kernel.step([])
    empty = Run([(0,)] * 300)  # more counters than one program advances
    kernel.step([empty.lists(), Run([]).lists()])
    empty.step_truth()
    empty.check()  # the step of an empty tensor counts, as it does in torch


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
    good, bad = Run([(5,)], seed=1), Run([(5,)], seed=2)
    lists = bad.lists()
    lists.grads[0] = lists.grads[0].double()
    kernel = FusedTriton(CHUNK, BLOCK)
    with pytest.raises(RuntimeError, match=r"grads\[0\] of group 1: dtype torch.float64"):
        kernel.step([good.lists(), lists])
    good.check()  # still at its start
    kernel.step([good.lists()])
    good.step_truth()
    good.check()


def test_where_the_kernel_cannot_run():
    """CPU tensors without the interpreter, GPU tensors within it."""
    wrong = "cuda" if INTERPRETED else "cpu"
    with pytest.raises(RuntimeError, match="use fused=True" if INTERPRETED else "needs a GPU.*fused=True"):
        triton_kernel._refuse_device(torch.device(wrong))
    if not INTERPRETED:
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="needs a GPU"):
            adamlib.Adam([p], fused="triton").step()
        assert torch.equal(p, torch.ones(3))


def test_chunks_are_whole_blocks():
    with pytest.raises(ValueError, match="multiple of block"):
        FusedTriton(chunk=100, block=64)


@on_gpu
def test_in_a_cuda_graph():
    """Counts and a tensor lr move on with every replay; one replay is called off by found_inf."""
    run = Run([(70,), (5000,), (3, 100)], lr=torch.tensor(0.5, device="cuda"), amsgrad=True, weight_decay=0.1)
    kernel, lists = FusedTriton(), run.lists(4.0)
    scaled = [g.clone() for g in lists.grads]
    scale, found_inf = torch.tensor(4.0, device="cuda"), torch.zeros((), device="cuda")

    def step():
        kernel.step([lists], scale, found_inf)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()  # compiles, and makes the tables
    torch.cuda.current_stream().wait_stream(aside)
    run.step_truth()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    run.check("capturing runs nothing")
    for replay in range(6):
        for g, fresh in zip(lists.grads, scaled):
            g.copy_(fresh)
        lists.lr.mul_(0.7)
        found_inf.fill_(float(replay == 3))
        graph.replay()
        torch.cuda.synchronize()
        if replay == 3:
            for g in lists.grads:
                g.div_(4.0)  # left scaled by the kernel
        else:
            run.step_truth()
        run.check(f"{replay=}", tolerance=1e-5)


@on_gpu
def test_a_graph_outlives_an_eager_step_with_other_tables():
    run, other = Run([(5000,)], lr=0.1, seed=1), Run([(5000,)], seed=2)
    kernel, lists = FusedTriton(), run.lists()
    kernel.step([lists])
    run.step_truth()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.step([lists])
    for _ in range(3):
        kernel.step([other.lists()])
        other.step_truth()
        other.check()
        clutter = [torch.full((64,), -1, device="cuda") for _ in range(50)]  # lands where tables were let go
        graph.replay()
        torch.cuda.synchronize()
        del clutter
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
