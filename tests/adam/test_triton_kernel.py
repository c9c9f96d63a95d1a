"""The Triton kernel: in Triton's interpreter on the CPU, and compiled where there is a GPU.

The same checks serve both. What is refused stands in test_pointer_table and test_contract, that a refused step changes
nothing in test_contract, how near the kernel is to torch's fused one in appendix D, whose outputs are compared.
"""

import itertools
import os

import pytest
import torch
from parameter_zoo import six_lists
from torch.optim.adam import adam as torch_adam

pytest.importorskip("triton")

import adamlib
from adamlib.variants import pointer_table, triton_kernel
from adamlib.variants.triton_kernel import FusedTriton, GroupLists

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if GPU else "cpu"
CHUNK, BLOCK = 64, 32  # small, so that small tensors have several chunks, whole blocks and a ragged end
RAGGED = [(), (BLOCK,), (CHUNK,), (CHUNK + 1,), (BLOCK + 1,), (3, 33), (0,)]
PAD, POISON = 16, 512.0  # elements on either side of a tensor that nobody may touch
TOLERANCE = 4e-7 if INTERPRETED else 2e-6  # a GPU's exp is right to a few units in the last place
OPTIONS = dict(lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.0, decoupled_weight_decay=False, amsgrad=False,
               maximize=False)
L2, DECOUPLED = dict(weight_decay=0.1), dict(weight_decay=0.1, decoupled_weight_decay=True)
INF, NAN = float("inf"), float("nan")


def on_gpu(test):
    skip = pytest.mark.skipif(not GPU, reason="needs a GPU (on the CPU: test_in_the_interpreter)")
    return pytest.mark.cuda(skip(test))


def on_device(test):
    """Run in the interpreter, or on a GPU; skipped where there is neither."""
    return test if INTERPRETED else on_gpu(test)


def test_in_the_interpreter(passed_in_the_interpreter):
    assert passed_in_the_interpreter >= 60


def small_kernel():
    return FusedTriton(CHUNK, BLOCK)


def on_device_tensor(value):
    return torch.tensor(value, device=DEVICE)


def misses(ours, truth, relative, absolute):
    """How many elements are further from the truth than a share of its size and a constant; NaN is."""
    ours, truth = (x.detach().double().cpu() for x in (ours, truth))
    return int((~((ours - truth).abs() <= relative * truth.abs() + absolute)).sum())


class Run:
    """One group on the kernel, and the same in float64 by torch's for-loop on the CPU, which is the truth.

    The group's tensors have poisoned memory on both sides, and lie `shifts` elements off their 16-byte boundary.
    """

    def __init__(self, shapes, *, dtype=torch.float32, state_dtype=None, shifts=None, seed=0, **options):
        self.random = torch.Generator().manual_seed(seed)
        self.memory, self.dtype, self.shifts = [], dtype, shifts or [0] * len(shapes)
        self.options, state_dtype = OPTIONS | options, state_dtype or dtype
        start = [self._values(shape) for shape in shapes]
        zeros = [torch.zeros(shape) for shape in shapes]
        tops = zeros if self.options["amsgrad"] else []
        moments = [self._guarded(values, state_dtype) for values in (zeros, zeros, tops)]
        self.columns = [self._guarded(start, dtype), [], *moments]
        self.steps = self._guarded([torch.zeros(())] * len(shapes), torch.float32, shifted=False)
        self.truth = [[t.double().cpu() for t in column] for column in self.columns]
        self.true_steps = [torch.zeros(()) for _ in shapes]

    def _guarded(self, column, dtype, shifted=True):
        tensors = []
        for values, shift in zip(column, self.shifts):
            memory = torch.full((values.numel() + 2 * PAD,), POISON, dtype=dtype, device=DEVICE)
            start = PAD + shift * shifted
            inside = memory[start:start + values.numel()]
            self.memory.append((memory[:start], memory[start + values.numel():]))
            tensors.append(inside.copy_(values.reshape(-1)).view(values.shape))
        return tensors

    def untouched(self):
        return all(bool((part == POISON).all()) for around in self.memory for part in around)

    def _values(self, shape):
        return torch.randn(shape, generator=self.random).to(self.dtype).float()

    def lists(self, scale=1.0):
        """The group with new gradients, multiplied by `scale`; the truth gets them as they are."""
        drawn = [self._values(p.shape) for p in self.columns[0]]
        self.truth[1] = [g.double() for g in drawn]
        self.columns[1] = self._guarded([g * scale for g in drawn], self.dtype)
        return GroupLists(*self.columns, self.steps, **self.options)

    def step_truth(self):
        numbers = self.options | dict(lr=float(self.options["lr"]))
        torch_adam(*self.truth, self.true_steps, foreach=False, **numbers)

    def step(self, kernel, lists=None, tolerance=1e-5):
        """A step on the kernel and a step in truth, compared; with new gradients if there are no lists."""
        take_step(kernel, self.lists() if lists is None else lists)
        self.step_truth()
        self.check(tolerance=tolerance)

    def check(self, what="", tolerance=TOLERANCE):
        """All within `tolerance` of the truth, relative to its size or to a step; nothing else touched."""
        assert [t.item() for t in self.steps] == [t.item() for t in self.true_steps], what
        scales = (float(self.options["lr"]), 1.0, 1.0, 1.0, 1.0)
        for name, ours, truth, scale in zip(GroupLists._fields, self.columns, self.truth, scales):
            for i, (a, b) in enumerate(zip(ours, truth)):
                assert misses(a, b, tolerance, tolerance * scale) == 0, (what, name, i)
        assert self.untouched(), what


def take_step(kernel, *groups, scale=None, found_inf=None):
    kernel.prepare([*groups], scale, found_inf)()


# --- what is computed

@on_device
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("decay, overflow", [({}, 1.0), (L2, 2.0), (DECOUPLED, NAN)], ids=["none", "l2", "decoupled"])
def test_every_combination_of_flags(amsgrad, decay, overflow):
    """Ragged shapes, half of them unaligned; scaled gradients; a step that the scaler calls off.

    A GradScaler hands on the sum over devices: two of them that saw an overflow make found_inf 2.
    """
    for maximize, scaled, skips in itertools.product((False, True), repeat=3):
        run = Run(RAGGED, shifts=[0, 0, 0, 0, 1, 3, 0], amsgrad=amsgrad, maximize=maximize, **decay)
        kernel, scale = small_kernel(), on_device_tensor(8.0) if scaled else None
        for t in range(3 if skips else 2):
            lists = run.lists(8.0 if scaled else 1.0)
            called_off = skips and t == 1
            found_inf = on_device_tensor([overflow if called_off else 0.0]) if skips else None
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
    shapes, shifts = [(3, 100), (7,)], [shift, shift]
    run = Run(shapes, dtype=dtype, state_dtype=state_dtype, shifts=shifts, amsgrad=True, lr=0.25)
    for column, truth in zip(run.columns[2:5], run.truth[2:5]):  # as after six steps
        for ours, true in zip(column, truth):
            ours.copy_(torch.rand(ours.shape, generator=run.random))
            true.copy_(ours)
    for step, true in zip(run.steps, run.true_steps):
        step.fill_(6.0), true.fill_(6.0)
    lists = run.lists(4.0)
    take_step(small_kernel(), lists, scale=on_device_tensor(4.0))
    run.step_truth()
    for name, ours, truth in zip(GroupLists._fields, run.columns, run.truth):
        for a, b in zip(ours, truth):
            units = 1.0 if INTERPRETED and a.dtype == torch.bfloat16 else 0.5
            assert misses(a, b, units * torch.finfo(a.dtype).eps * 1.01 + 1e-6, 1e-6) == 0, name
    assert run.untouched() and [t.item() for t in run.steps] == [7.0, 7.0]
    sleeping = Run(shapes, dtype=dtype, state_dtype=state_dtype, shifts=shifts, eps=1e-8)
    before = [p.clone() for p in sleeping.columns[0]]
    take_step(small_kernel(), sleeping.lists(0.0))
    assert all(map(torch.equal, sleeping.columns[0], before)), "an ε that underflows would make 0/0"


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
    take_step(small_kernel(), lists)
    moved = torch.stack([p[0] for p in run.columns[0]]).cpu()
    assert torch.allclose(moved, -torch.ones(len(ages)), rtol=1e-6 if INTERPRETED else 2e-6, atol=0), moved
    assert [t.item() for t in run.steps] == ages


STRANGE = torch.tensor([*itertools.product([1.0, -2.0, 0.0, INF, -INF, NAN, 3e38, 1e-42], repeat=2)])


@on_device
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, for the arithmetic that is meant here
@pytest.mark.parametrize("options", [
    {}, L2, DECOUPLED, dict(amsgrad=True), dict(maximize=True, weight_decay=0.5), dict(lr=0.0),
    dict(beta1=0.5, beta2=0.5), dict(beta1=0.0, beta2=0.0),
    DECOUPLED | dict(lr=25.0),  # 1 − αλ is −1.5: the sign turns over
    DECOUPLED | dict(lr=10.0),  # 1 − αλ is 0
], ids=str)
def test_infinities_and_nan_are_where_the_for_loop_has_them(options):
    """Every pair of strange weight and strange gradient, for three steps, so that m and v are strange as well."""
    options = OPTIONS | dict(lr=0.1, beta1=0.9, eps=1e-8) | options
    p, gradient = STRANGE.t().to(DEVICE).contiguous()
    ours, loops = (six_lists([p.clone()], [gradient.clone()], amsgrad=options["amsgrad"]) for _ in range(2))
    kernel = small_kernel()
    for t in range(3):
        if t == 2:  # something ordinary after all that
            ours[1][0].fill_(1.0), loops[1][0].fill_(1.0)
        take_step(kernel, GroupLists(*ours, **options))
        torch_adam(*loops, foreach=False, **options)
        for name, column, others in zip(GroupLists._fields, ours, loops):
            for a, b in zip(column, others):
                close = torch.isclose(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-6, equal_nan=True)
                assert close.all(), (name, t, STRANGE[~close], a[~close.to(DEVICE)], b[~close.to(DEVICE)])


@on_device
def test_groups_of_all_options_in_one_launch():
    """Learning rates (as numbers and in memory), betas, decays and directions differ."""
    runs = [
        Run([(70,), (5,)], seed=1),
        Run([(129,)], seed=2, lr=on_device_tensor(0.3), beta1=0.5, **L2),
        Run([(3, 100)], seed=3, lr=0.1, beta2=0.9, **DECOUPLED),
        Run([(33,)], seed=4, eps=1e-2, maximize=True),
    ]
    kernel = small_kernel()
    for _ in range(3):
        take_step(kernel, *(run.lists() for run in runs))
        for run in runs:
            run.step_truth()
            run.check()


@on_device
@pytest.mark.parametrize("lay", [
    lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.permute(3, 0, 2, 1),
], ids=["channels_last", "permuted"])
def test_any_order_of_dimensions(lay):
    values, stepped = torch.randn((2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(2)).to(DEVICE), []
    for layout in (torch.clone, lay):
        p, g = map(layout, values.clone())
        take_step(FusedTriton(), GroupLists(*six_lists([p], [g]), **OPTIONS | L2))
        stepped.append(p)
    assert torch.equal(stepped[1], lay(stepped[0])) and not stepped[1].is_contiguous()


@on_device
def test_empty_tensors():
    kernel = FusedTriton()
    take_step(kernel)  # of no group
    empty = Run([(0,)] * 300)  # more counts than one program advances
    take_step(kernel, empty.lists(), Run([]).lists())
    empty.step_truth()
    empty.check()  # the step of an empty tensor counts, as it does in torch


@on_device
def test_a_gradient_of_two_parameters_is_not_unscaled_twice():
    run, kernel = Run([(5,), (5,), (0,), (0,)]), small_kernel()
    lists = run.lists()
    lists.grads[1], run.truth[1][1] = lists.grads[0], run.truth[1][0]
    with pytest.raises(RuntimeError, match="unscale a gradient twice"):
        kernel.prepare([lists], torch.ones((), device=DEVICE))
    run.step(kernel, lists, TOLERANCE)


# --- the tables, from step to step

@pytest.fixture
def made(monkeypatch):
    """The names of what is made anew, in the order in which it is."""
    made, build, upload = [], triton_kernel.build, triton_kernel.upload
    monkeypatch.setattr(triton_kernel, "build", lambda *args: made.append("plans") or build(*args))
    monkeypatch.setattr(triton_kernel, "upload", lambda table, dtype, device: made.append(
        {torch.float32: "numbers", torch.int64: "gradients"}[dtype]) or upload(table, dtype, device))
    return made


def moved(column, through_data=False):
    """A change: the first tensor of the column, or its memory, is another one with the same values."""
    def change(lists):
        tensors = getattr(lists, column)
        if through_data:
            tensors[0].data = tensors[0].clone()
        else:
            tensors[0] = tensors[0].clone()

    return change


CHANGES = {  # what -> (change of the lists, what is made anew before the next step); more in test_pointer_table
    "nothing": (lambda lists: None, []),
    "another lr": (lambda lists: lists._replace(lr=0.5), ["numbers"]),
    "lr in a tensor": (lambda lists: lists._replace(lr=on_device_tensor(0.25)), ["numbers"]),
    "another decay": (lambda lists: lists._replace(weight_decay=0.5), ["numbers"]),
    "another gradient": (moved("grads"), []),  # as every backward makes it: only addresses are sent
    "a moved gradient": (moved("grads", through_data=True), []),
    "another parameter": (moved("params"), ["plans", "numbers"]),
    "a moved maximum": (moved("max_exp_avg_sqs", through_data=True), ["plans", "numbers"]),
}


@on_device
@pytest.mark.parametrize("change, expected", CHANGES.values(), ids=CHANGES)
def test_what_moved_between_two_steps_is_stepped_where_it_is(change, expected, made):
    """And what was there before is not written."""
    run, kernel = Run([(70,), (5,)], amsgrad=True, **L2), small_kernel()
    lists = run.lists()
    old = [t.detach() for column in lists[:6] for t in column]  # the memory as it is now, whatever moves
    run.step(kernel, lists)
    assert made == ["plans", "numbers", "gradients"]
    lists = change(lists) or lists
    run.options |= {name: float(getattr(lists, name)) for name in ("lr", "weight_decay")}
    now = {tensor.data_ptr() for column in lists[:6] for tensor in column}
    left = [(tensor, tensor.clone()) for tensor in old if tensor.data_ptr() not in now]
    run.step(kernel, lists)
    assert made[3:] == [*expected, "gradients"]
    assert all(torch.equal(tensor, before) for tensor, before in left)


@on_device
@pytest.mark.parametrize("dtype, shape", [(torch.float32, ()), (torch.float64, (1,))], ids=str)
def test_a_learning_rate_in_a_tensor_is_read_at_every_step(dtype, shape, made):
    run, kernel = Run([(5,)], lr=torch.full(shape, 0.5, dtype=dtype, device=DEVICE)), small_kernel()
    lists = run.lists()
    for _ in range(3):
        run.step(kernel, lists)
        run.options["lr"].mul_(0.5)
    assert made == ["plans", "numbers", *["gradients"] * 3]
    run.options["lr"] = 0.0  # a number again, not what the table still holds
    run.step(kernel, lists._replace(lr=0.0))


# --- captured in a CUDA graph, as far as a CPU shows it

@pytest.fixture
def captured(monkeypatch):
    """Say that a CUDA graph is captured; the function that a captured step returns is then its replay."""
    state = dict(now=False)
    monkeypatch.setattr(triton_kernel, "_capturing", lambda: state["now"])
    return lambda now: state.update(now=now)


@on_device
def test_captured_steps_replay_on_their_own_gradients_between_ordinary_steps(captured, monkeypatch):
    """Each keeps the addresses of its gradients and reads a tensor lr anew, whatever other steps do meanwhile.

    When there is no room left for addresses, that is said, and a step outside of a capture makes new room. Tables
    made in inference mode serve outside.
    """
    monkeypatch.setattr(pointer_table, "CAPTURES", 2)
    run, kernel = Run([(70,), (0,), (5,)], lr=on_device_tensor(0.5)), small_kernel()
    for inference in (True, False):
        with torch.inference_mode(inference):
            run.step(kernel)
        captured(True)
        replays = []
        for _ in range(2):
            lists = run.lists()
            replays.append((kernel.prepare([lists]), lists.grads, run.truth[1]))
            kernel.prepare([lists])  # the same gradients take no room
        with pytest.raises(RuntimeError, match="outside of a capture"):
            kernel.prepare([run.lists()])
        captured(False)
        run.check("capturing runs nothing", tolerance=1e-4)
        for replay, *gradients in replays * 2:
            run.step(kernel, tolerance=1e-4)
            run.options["lr"].mul_(0.8)
            run.columns[1], run.truth[1] = gradients
            replay()
            run.step_truth()
            run.check(tolerance=1e-4)


@on_device
def test_what_a_capture_may_not_change(captured):
    """A number would be frozen, a table or a kernel would have to be made."""
    run, kernel = Run([(70,)], lr=on_device_tensor(0.5)), small_kernel()
    lists = run.lists()
    (p,), (g,), (m,) = lists[:3]
    changed = [dict(weight_decay=0.5), dict(lr=0.5), dict(params=[p.clone()]), dict(exp_avgs=[m.clone()]),
               dict(grads=[g.double()])]
    refused = pytest.raises(RuntimeError, match="Take one step just like it before the capture.*beside the parameters")
    captured(True)
    with refused:
        kernel.prepare([lists])  # there was no step before
    captured(False)
    run.step(kernel, lists)
    captured(True)
    for change in changed:
        with refused:
            kernel.prepare([lists._replace(**change)])
    for scaler in dict(found_inf=on_device_tensor(0.0)), dict(grad_scale=on_device_tensor(1.0)):
        with refused:
            kernel.prepare([lists], **scaler)
    run.check()


# --- as a variant of adamlib.Adam

@on_device
@pytest.mark.filterwarnings("ignore")
def test_the_step_of_AdamW_stays_out_of_a_compiled_graph():
    results = []
    for library, fused in (torch.optim, None), (adamlib, "triton"):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 70, device=DEVICE))
        opt = library.AdamW([p], lr=0.1, fused=fused)
        step = torch.compile(opt.step, backend="aot_eager") if fused else opt.step
        for t in range(3):
            p.grad = torch.full_like(p, float(t))
            step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@on_device
def test_grad_scaler_drives_it():
    """A GradScaler leaves unscaling to the kernel, and calling off the step with an overflow."""
    p = torch.nn.Parameter(torch.ones(70, device=DEVICE))
    opt, scaler = adamlib.Adam([p], fused="triton", lr=0.1), torch.amp.GradScaler(DEVICE, init_scale=8.0)
    for factor, expected in (1.0, 0.9), (INF, 0.9), (1.0, 0.8):
        opt.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(opt)
        scaler.update()
        torch.testing.assert_close(p.detach(), torch.full_like(p, expected))


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
def test_a_bad_group_among_good_ones_stops_all_of_them():
    """Also those of another variant. The message has the group's own numbers."""
    looped, first, without, bad = params = [torch.nn.Parameter(torch.ones(4, 4, device=DEVICE)) for _ in range(4)]
    groups = dict(params=[looped], foreach=False), dict(params=[first]), dict(params=[without, bad])
    opt = adamlib.Adam(groups, lr=0.1, fused="triton")
    looped.grad, first.grad, bad.grad = torch.ones_like(looped), torch.ones_like(first), torch.ones_like(bad).t()
    message = '="triton" cannot step parameter 1 of group 2: the gradient has strides'
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert not opt.state and all(bool((p == 1).all()) for p in params)
    bad.grad = torch.ones_like(bad)
    opt.step()
    assert [round(p.mean().item(), 6) for p in params] == [0.9, 0.9, 1.0, 0.9]


def test_where_the_kernel_cannot_run():
    """CPU tensors without the interpreter, GPU tensors within it."""
    wrong = "cuda" if INTERPRETED else "cpu"
    with pytest.raises(RuntimeError, match=f"needs a GPU.* on {wrong}.*fused=True"):
        triton_kernel._refuse_device(torch.device(wrong))
    if not INTERPRETED:
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="needs a GPU"):
            adamlib.Adam([p], fused="triton").step()
        assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("sizes", [
    dict(chunk=100, block=64), dict(chunk=0), dict(chunk=-1024), dict(chunk=96, block=48), dict(chunk=64, block=8),
    dict(chunk=2**20, block=2**20), dict(block=0), dict(num_warps=3), dict(num_warps=64),
], ids=str)
def test_sizes_of_blocks_are_checked(sizes):
    with pytest.raises(ValueError, match="block must be a power of 2 from 16 to 65536, chunk a multiple of block"):
        FusedTriton(**sizes)


# --- in real CUDA graphs

def on_a_side_stream(function):
    """What PyTorch asks for before a capture: here it compiles, and makes the tables."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        function()
    torch.cuda.current_stream().wait_stream(aside)


@on_gpu
def test_in_a_cuda_graph():
    """Counts and a tensor lr move on with every replay; one replay is called off by found_inf.

    The graph outlives eager steps with other tables, and whatever lands where tables were let go.
    """
    run = Run([(70,), (5000,), (3, 100)], lr=on_device_tensor(0.5), amsgrad=True, **L2)
    kernel, lists, other = FusedTriton(), run.lists(4.0), Run([(5000,)], seed=2)
    source = [g.clone() for g in lists.grads]  # scaled, as a backward leaves them
    scale, found_inf = on_device_tensor(4.0), on_device_tensor(0.0)
    on_a_side_stream(lambda: take_step(kernel, lists, scale=scale, found_inf=found_inf))
    run.step_truth()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for g, its in zip(lists.grads, source):
            g.copy_(its)
        take_step(kernel, lists, scale=scale, found_inf=found_inf)
    for replay in range(6):
        other.step(kernel)
        clutter = [torch.full((64,), -1, device="cuda") for _ in range(50)]
        pinned = [torch.full((64,), -1).pin_memory() for _ in range(50)]
        lists.lr.mul_(0.7)
        found_inf.fill_(2.0 if replay == 3 else 0.0)
        graph.replay()
        torch.cuda.synchronize()
        del clutter, pinned
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

        on_a_side_stream(lambda: [training_step() for _ in range(3)])
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
