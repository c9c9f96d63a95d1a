"""The op meter: its rules one by one, its figures for torch's step and for ours, and the parameter sets.

Calls and temporary memory of a step on ResNet-18, on a CPU, and the meter's table stand in the outputs of chapters 04
and 08, the figure in chapter 05: they are compared wherever these run.
"""

import itertools

import pytest
import torch

import adamlib
from course import parameter_sets
from course.op_meter import OpMeter
from course.parameter_sets import count_parameters

def measured(function):
    with OpMeter() as meter:
        function()
    return meter


def step_of(shapes, library, device="cpu", **options):
    """A measured step of the library's Adam, whose state exists and whose gradients are set."""
    params = [torch.ones(shape, requires_grad=True, device=device) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = library.Adam(params, **options)
    optimizer.step()
    return measured(optimizer.step)


# --- the rules

A, B, HALF = torch.ones(10, 4), torch.ones(10, 4), torch.ones(40, dtype=torch.float16)


@pytest.mark.parametrize("function, calls, read, written", [
    (lambda: A.view(-1)[3:].unsqueeze(0).t(), 0, 0, 0),  # views move nothing
    (lambda: A + B, 1, 320, 160),  # a new output is written
    (lambda: A.add_(1), 1, 160, 160),  # in place: read and written
    (lambda: torch.addcmul(A, B, B), 1, 480, 160),  # named twice, read twice
    (lambda: torch.add(A, A, out=B), 1, 320, 160),  # out= is only written
    (lambda: A.copy_(B), 1, 160, 160),  # the old value of A is not read
    (lambda: torch._foreach_copy_([A, B], [B, A]), 1, 320, 320),
    (lambda: A.zero_(), 1, 0, 160),
    (lambda: A.fill_(1.0), 1, 0, 160),
    (lambda: torch.empty(10, 4).normal_(), 2, 0, 160),  # empty writes nothing
    (lambda: torch.zeros_like(A), 1, 0, 160),  # the shape is no read
    (lambda: A.new_ones(5), 1, 0, 20),
    (lambda: torch.tensor(1.0), 1, 0, 4),
    (lambda: A[0, 0].item(), 1, 4, 0),  # one element is read
    (lambda: bool(A[0, 0] > 0), 2, 5, 1),  # the comparison, then its one byte
    (lambda: HALF.float(), 1, 80, 160),  # bytes, not elements
    (lambda: torch.ones(()).expand(40) + 0, 2, 4, 164),  # an expanded element is one element
    (lambda: torch.zeros(0, 3).add_(1), 2, 0, 0),
    (lambda: torch._foreach_sqrt([A, B]), 1, 320, 320),
    (lambda: torch.var_mean(A), 1, 160, 8),  # two outputs
])
def test_rule(function, calls, read, written):
    meter = measured(function)
    assert (meter.calls, meter.bytes_read, meter.bytes_written) == (calls, read, written)


def test_fused_writes_the_gradients_only_when_it_unscales_them():
    param, written = torch.ones(1000, requires_grad=True), []
    optimizer = torch.optim.Adam([param], fused=True)
    for scale in (None, torch.tensor(2.0)):
        param.grad, optimizer.grad_scale = torch.ones(1000), scale
        written += [row.bytes_written for row in measured(optimizer.step).rows if row.op == "_fused_adam_"]
    assert written == [12 * 1000, 16 * 1000]


@pytest.mark.parametrize("function, peak", [
    (lambda: [(A + B).numel() for _ in range(2)], 160),  # one after the other
    (lambda: (A + B) + (A + B), 480),  # three at once
    (lambda: A.add_(B), 0),
])
def test_the_peak_of_temporary_memory(function, peak):
    assert measured(function).peak_temporary_bytes == peak


def test_memory_that_outlives_the_block_is_kept_and_not_temporary():
    with OpMeter() as meter:
        kept = A * 2
        view = (A * 3).view(-1)[:1]  # a view of one element keeps all of its storage
        del kept
        gone = A.sum()  # noqa: F841
        gone = None  # noqa: F841
    assert (meter.peak_temporary_bytes, meter.kept_bytes) == (160, 160)
    del view
    assert meter.kept_bytes == 160  # what happens after the block is not counted


def test_one_meter_measures_one_block_and_meters_nest():
    with OpMeter() as outer:
        inner = measured(lambda: A + B)
        A + B  # noqa: B018
    with pytest.raises(RuntimeError, match="make a new OpMeter"), inner:
        pass
    assert (outer.calls, inner.calls) == (2, 1)


# --- one step

VARIANTS = {"for-loop": dict(foreach=False), "foreach": dict(foreach=True), "fused": dict(fused=True)}


@pytest.mark.parametrize("options, looped, fused", [  # bytes per parameter of for-loop and foreach, of the fused kernel
    ({}, 76, 28),
    (dict(weight_decay=0.1), 88, 28),
    (dict(weight_decay=0.1, decoupled_weight_decay=True), 84, 28),
    (dict(amsgrad=True), 88, 36),
    (dict(maximize=True), 84, 28),
], ids=["plain", "L2 decay", "decoupled decay", "amsgrad", "maximize"])
def test_torch_and_adamlib_move_the_same_bytes_per_parameter(options, looped, fused):
    shapes = [(300, 100), (77,), (20_000,)]
    for library, name in itertools.product((torch.optim, adamlib), VARIANTS):
        meter = step_of(shapes, library, **VARIANTS[name], **options)
        moved = (meter.bytes_read + meter.bytes_written) / count_parameters(shapes)
        expected = fused if name == "fused" else looped
        assert meter.kept_bytes == 0 and moved == pytest.approx(expected, abs=0.01)  # the rest are step counts


@pytest.mark.parametrize("name, buckets", [("resnet18", 1), ("gpt2_small", 7)])
def test_calls_without_a_cpu_cache_to_cut_for(name, buckets):
    """On the meta device nothing is computed and no tensor is cut into blocks: the calls of an accelerator."""
    shapes = parameter_sets.SETS[name]()
    for foreach, parts in ((False, len(shapes)), (True, buckets)):
        assert step_of(shapes, adamlib, "meta", foreach=foreach).calls == 7 * parts + len(shapes) + 4


@pytest.mark.parametrize("capturable, share", [(False, 1 / 2), (True, 1)])
def test_temporary_memory_of_foreach_on_an_accelerator(capturable, share, torch_capturable_on_cpu):
    """GPT-2 small on the meta device: the larger of a full bucket and the largest tensor, instead of all of it."""
    shapes, flags = parameter_sets.gpt2_small(), dict(foreach=True, capturable=capturable)
    theirs, ours = (
        step_of(shapes, library, "meta", **flags).peak_temporary_bytes for library in (torch.optim, adamlib)
    )
    assert theirs >= 4 * count_parameters(shapes)
    assert ours <= share * theirs


def test_parameter_sets_are_as_their_table_says():
    rows = [line.split() for line in parameter_sets.__doc__.splitlines() if line.startswith("``")]
    written = {row[0].strip("`"): (int(row[1]), int(row[2].replace(",", ""))) for row in rows}
    assert written == {name: (len(f()), count_parameters(f())) for name, f in parameter_sets.SETS.items()}
    assert written["resnet18"] == (62, 11_689_512)  # torchvision's resnet18
    assert written["gpt2_small"] == (148, 124_439_808)  # Hugging Face's gpt2
