"""The tables of the Triton kernel: how the work is cut, what is refused, what makes them stale."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from adamlib.variants.pointer_table import (
    Addresses, GroupLists, Numbers, build, chunk_map, number_table, places,
)

ROOT = pathlib.Path(__file__).parents[2]


def group(params, *, grads=None, amsgrad=False, lr=1e-3, weight_decay=0.1, decoupled=False, **replaced):
    """Lists for these parameters; state in their layout, counters at zero."""
    lists = GroupLists(
        params, [torch.ones_like(p) for p in params] if grads is None else grads,
        *([torch.zeros_like(p) for p in params] for _ in range(2)),
        [torch.zeros_like(p) for p in params] if amsgrad else [], [torch.zeros(()) for _ in params],
        lr, 0.9, 0.999, 1e-8, weight_decay, decoupled, amsgrad, False,
    )
    return lists._replace(**replaced)


@pytest.mark.parametrize("numels", [[1], [16], [17], [1, 15, 16, 17, 31, 32, 33, 160], [5] * 40])
def test_every_element_is_in_exactly_one_chunk(numels):
    owner, first = chunk_map(torch.tensor(numels), 16)
    assert owner.dtype == torch.int32 and first.dtype == torch.int64
    times_stepped = [torch.zeros(n, dtype=torch.int64) for n in numels]
    for chunk, t in enumerate(owner.tolist()):
        start = (chunk - int(first[t])) * 16
        assert 0 <= start < numels[t]  # no chunk without work, none that begins outside
        times_stepped[t][start:start + 16] += 1
    assert all(bool((times == 1).all()) for times in times_stepped)


def test_chunks_of_tensors_beyond_32_bits():
    """Only the map: 2³³ + 1 elements in chunks of 2¹³ are 2²⁰ + 1 chunks, the last of one element."""
    owner, first = chunk_map(torch.tensor([7, 2**33 + 1, 7]), 2**13)
    assert first.tolist() == [0, 1, 2**20 + 2]
    assert owner.bincount().tolist() == [1, 2**20 + 1, 1]
    assert (int((owner == 1).nonzero()[-1]) - int(first[1])) * 2**13 == 2**33


def test_rows_hold_the_addresses_that_the_kernel_reads():
    lr = torch.tensor(1e-3)
    a = group([torch.ones(40), torch.ones(0)], amsgrad=True, lr=lr)
    b = group([torch.ones(300)], amsgrad=True, lr=0.5)
    [plan] = build([a, b], 256)
    [launch] = plan.launches
    first, second = (Addresses(*row) for row in launch.addresses.tolist())
    columns = [a.params, a.grads, a.exp_avgs, a.exp_avg_sqs, a.max_exp_avg_sqs, a.state_steps]
    assert first == Addresses(*(column[0].data_ptr() for column in columns), lr.data_ptr(), 0, 40, 0)
    assert (second.param, second.lr, second.group, second.numel, second.first_chunk) == (
        b.params[0].data_ptr(), 0, 1, 300, 1)
    assert launch.owner.tolist() == [0, 1, 1]
    steps = [*a.state_steps, *b.state_steps]  # the empty tensor counts its steps too
    assert plan.counters.tolist() == [step.data_ptr() for step in steps]


def test_numbers_are_rounded_once():
    adam, adamw = (Numbers(*row) for row in number_table([
        group([torch.ones(1)], lr=0.3)._replace(beta1=0.0, maximize=True),
        group([torch.ones(1)], decoupled=True)._replace(beta2=torch.tensor(0.9999, dtype=torch.float64)),
    ]).tolist())
    assert adam.lr == float(torch.tensor(0.3)) and adam.log_beta1 == -float("inf") and adam.sign == -1
    assert (adam.l2, adam.decoupled) == (adamw.decoupled, adamw.l2) == (float(torch.tensor(0.1)), 0)
    assert adamw.one_minus_beta2 == float(torch.tensor(1 - 0.9999))  # 1 - float32(0.9999) is 1.7e-4 off


def test_tensors_of_one_kind_share_a_launch():
    """Groups and options do not part tensors; dtypes, amsgrad and alignment do."""
    half = torch.ones(8, dtype=torch.bfloat16)
    launches = build([
        group([torch.ones(8), half]),
        group([torch.ones(8), torch.ones(9)[1:], half.clone()], lr=torch.tensor(0.1), decoupled=True),
        group([half.clone()], exp_avgs=[torch.zeros(8)], exp_avg_sqs=[torch.zeros(8)]),
        group([torch.ones(8)], amsgrad=True),
    ], 256)[0].launches
    found = {tuple(launch.kind): len(launch.addresses) for launch in launches}
    fp32, bf16 = torch.float32, torch.bfloat16
    assert found == {
        (fp32, fp32, False, 4): 2, (bf16, bf16, False, 8): 2, (fp32, fp32, False, 1): 1,
        (bf16, fp32, False, 4): 1, (fp32, fp32, True, 4): 1,
    }


def test_a_shared_counter_is_advanced_once():
    counter = torch.zeros(())
    lists = group([torch.ones(8), torch.ones(8)], state_steps=[counter, counter])
    assert build([lists], 256)[0].counters.tolist() == [counter.data_ptr()]


@pytest.mark.parametrize("params", [
    torch.ones(6, 4).t(),
    torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    torch.ones(24)[3:20],
    torch.ones(()),
    torch.ones(3, 0)[:, :],
], ids=["transposed", "channels_last", "middle_of_a_storage", "scalar", "empty"])
def test_dense_layouts_are_taken(params):
    assert len(build([group([params])], 256)) == 1


def test_strides_of_single_elements_do_not_matter():
    """A 1x1 convolution: channels_last and contiguous are the same memory with other strides written down."""
    weight, gradient = torch.ones(8, 4, 1, 1), torch.ones(32).as_strided((8, 4, 1, 1), (4, 1, 4, 4))
    assert weight.stride() != gradient.stride()
    assert build([group([weight], grads=[gradient])], 256)[0].launches


def misfits():
    """what -> (group, what the message says)"""
    three = [torch.ones(3)]
    double, half = [torch.ones(3).double()], [torch.ones(3).half()]
    meta = dict(device="meta")
    return {
        "gaps": (group([torch.ones(3), torch.ones(6, 4)[:, ::2]]), r"params\[1\] of group 0.*contiguous"),
        "overlap": (group([torch.ones(4).expand(3, 4)]), r"params\[0\] of group 0.*contiguous"),
        "float64": (group(double), r"params\[0\].*float64.*fused=True"),
        "complex": (group([torch.ones(3, dtype=torch.complex64)]), r"params\[0\].*complex64.*foreach=True"),
        "transposed gradient": (
            group([torch.ones(4, 4)], grads=[torch.ones(4, 4).t()]),
            r"grads\[0\] of group 0: strides \(1, 4\), where its parameter needs \(4, 1\).*empty_like",
        ),
        "gradient's dtype": (group(three, grads=half), r"grads\[0\].*float16"),
        "small moment": (group(three, exp_avgs=[torch.ones(2)]), r"exp_avgs\[0\].*shape"),
        "moments' dtypes": (group(three, exp_avg_sqs=half), r"exp_avg_sqs\[0\].*float16"),
        "float64 moments": (group(three, exp_avgs=double, exp_avg_sqs=double), r"exp_avgs\[0\].*float64"),
        "small v_max": (
            group(three, amsgrad=True, max_exp_avg_sqs=[torch.ones(2)]), r"max_exp_avg_sqs\[0\].*shape",
        ),
        "integer step": (group(three, state_steps=[torch.tensor(1)]), r"state_steps\[0\].*float32"),
        "float64 lr": (group(three, lr=torch.tensor(1e-3).double()), r"lr is a tensor.*lr\.float"),
        "no memory": (
            group([torch.ones(3, **meta)], state_steps=[torch.zeros((), **meta)]), r"params\[0\].*no memory",
        ),
    }


@pytest.mark.parametrize("misfit", misfits())
def test_what_the_kernel_would_update_wrongly_is_refused(misfit):
    lists, message = misfits()[misfit]
    with pytest.raises(RuntimeError, match=message):
        build([lists], 256)


def changed_places():
    """(what, change) for everything that must be noticed between two steps."""
    def put(column, change):
        return lambda lists: getattr(lists, column).__setitem__(0, change(getattr(lists, column)[0]))

    def put_data(change):
        return lambda lists: setattr(lists.params[0], "data", change(lists.params[0]))

    return {
        "gradient moved": put("grads", torch.clone),
        "gradient laid out anew": put("grads", torch.t),  # in the same memory, as a backward may leave it
        "gradient's dtype": put("grads", lambda g: g.view(torch.bfloat16)[:, :4]),
        "parameter moved": put_data(torch.clone),
        "parameter laid out anew": put_data(torch.t),
        "moment moved": put("exp_avg_sqs", torch.clone),
        "counter moved": put("state_steps", torch.clone),
        "parameter without gradient": lambda lists: [column.pop() for column in lists[:6] if column],
    }


@pytest.mark.parametrize("change", changed_places())
def test_a_change_of_place_is_noticed(change):
    lists = group([torch.ones(4, 4), torch.ones(3)])
    before = places([lists])
    assert places([lists]) == before
    changed_places()[change](lists)
    assert places([lists]) != before


def test_adamlib_without_triton():
    """Importing works; asking for the kernel says what is missing and what to use instead."""
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, adamlib
p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)
adamlib.Adam([p], fused=True).step()
try:
    adamlib.Adam([p], fused="triton").step()
except RuntimeError as error:
    assert all(words in str(error) for words in ("not installed", "fused=True", "foreach=True")), error
else:
    raise SystemExit("no error")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
