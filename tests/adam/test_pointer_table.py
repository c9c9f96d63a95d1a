"""The tables of the Triton kernel: how the work is cut, what is refused, what makes them stale."""

import sys

import pytest
import torch
from parameter_zoo import six_lists

import adamlib
from adamlib.variants.pointer_table import CAPTURES, Addresses, GroupLists, build, chunk_map, number_rows, places

FP32, BF16 = torch.float32, torch.bfloat16
ORDINARY = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, decoupled_weight_decay=False,
                maximize=False)


def group(params, *, amsgrad=False, **replaced):
    """Lists for these parameters, some of it replaced."""
    made = dict(zip(GroupLists._fields, six_lists(params, amsgrad=amsgrad)), amsgrad=amsgrad)
    return GroupLists(**ORDINARY | made | replaced)


def test_no_chunk_is_without_work():
    owner, first = chunk_map(torch.tensor([0, 1, 15, 16, 0, 17, 32, 33, 0]), 16)
    assert owner.tolist() == [1, 2, 3, 5, 5, 6, 6, 7, 7, 7] and first.tolist() == [0, 0, 1, 2, 3, 3, 5, 7, 10]


def test_chunks_of_tensors_beyond_32_bits():
    """Only the map: 2³³ + 1 elements in chunks of 2¹³ are 2²⁰ + 1 chunks, the last of one element."""
    owner, first = chunk_map(torch.tensor([7, 2**33 + 1, 7]), 2**13)
    assert (owner.dtype, first.dtype) == (torch.int32, torch.int64) and first.tolist() == [0, 1, 2**20 + 2]
    assert owner.bincount().tolist() == [1, 2**20 + 1, 1]


def test_rows_are_of_one_kind_after_another_and_no_table_follows_the_default_device():
    sets = [torch.ones(40), torch.ones(0), torch.ones(8, dtype=BF16)], [torch.ones(300)]
    groups = [group(params, amsgrad=True) for params in sets]
    with torch.device("meta"):
        [plan] = build(groups, 256)
        sent = plan.column([10, 11, 12, 13], captured=True)
    assert plan.entries == [0, 1, 3, 2] and sent.tolist() == [10, 11, 13, 12]
    assert [Addresses(*row).numel for row in plan.addresses.tolist()] == [40, 0, 300, 8]
    kinds = {kind.param_dtype: owner.tolist() for kind, owner in plan.launches}
    assert kinds == {FP32: [0, 2, 2], BF16: [3]}  # the empty tensor counts its steps, too, in row 1


@pytest.mark.parametrize("name, number", [("beta1", 0), ("beta2", 1)])
def test_betas_elsewhere_are_refused(name, number):
    with pytest.raises(RuntimeError, match=rf"betas\[{number}\] is a tensor on meta.*float\(beta\)"):
        number_rows([group([torch.ones(1)], **{name: torch.ones((), device="meta")})])


def test_tensors_of_one_kind_share_a_launch():
    """Groups and options do not part tensors; dtypes, amsgrad and alignment do, the gradient's included."""
    half = torch.ones(8, dtype=BF16)
    [plan] = build([
        group([torch.ones(8), half]),
        group([torch.ones(8), torch.ones(9)[1:], half.clone()], lr=torch.tensor(0.1), decoupled_weight_decay=True),
        group([half.clone()], exp_avgs=[torch.zeros(8)], exp_avg_sqs=[torch.zeros(8)]),
        group([torch.ones(8)], amsgrad=True), group([torch.ones(8)], grads=[torch.ones(9)[1:]]),
    ], 256)
    found = {tuple(kind): len(owner) for kind, owner in plan.launches}
    assert found == {
        (FP32, FP32, False, 4): 2, (BF16, BF16, False, 8): 2, (FP32, FP32, False, 1): 2, (BF16, FP32, False, 4): 1,
        (FP32, FP32, True, 4): 1,
    }


def negated(shape):
    """Strides with gaps; those of one element say nothing."""
    return torch.zeros(shape, dtype=torch.complex64).conj().imag


FLAT, WEIGHT, GRADIENT = torch.ones(8), torch.ones(8, 4, 1, 1), torch.ones(4)
TAKEN = {
    "transposed": group([torch.ones(6, 4).t()]),
    "1x1 convolution": group([WEIGHT], grads=[torch.ones(32).as_strided(WEIGHT.shape, (4, 1, 4, 4))]),  # channels_last
    "neighbours in one buffer, one gradient": group([FLAT[:4], FLAT[4:]], grads=[GRADIENT, GRADIENT]),
}


@pytest.mark.parametrize("lists", TAKEN.values(), ids=TAKEN)
def test_every_dense_layout_is_taken(lists):
    [plan] = build([lists], 256)
    assert len(plan.launches) == 1


def one(n=3, **replaced):
    return [group([torch.ones(n)], **replaced)]


THREE, COUNT, META, FREED = torch.ones(3), torch.zeros(()), torch.ones(3, device="meta"), torch.ones(3)
FREED.untyped_storage().resize_(0)  # as FSDP frees the gathered parameters
DOUBLE, HALF, NAMED = [THREE.double()], [THREE.half()], dict(name=["parameter 7 of group 2"].__getitem__)
MISFITS = [  # groups, what the message says; more in test_contract
    ([group([torch.ones(4).expand(3, 4)], **NAMED)], "parameter 7 of group 2: .*contiguous"),
    ([group(DOUBLE)], "parameter 0.*float64.*fused=True"),
    ([group([THREE.cfloat()])], "parameter 0.*complex64.*foreach=True"),
    ([group([negated(1)])], "the parameter .*negated"),
    (one(grads=[META]), "the gradient .*meta"),
    (one(grads=[FREED]), "no memory.*to_local"),
    (one(1, exp_avgs=[negated(1)]), "exp_avg .*negated"),
    (one(exp_avg_sqs=HALF), "moments differ in dtype"),
    (one(exp_avgs=DOUBLE, exp_avg_sqs=DOUBLE), "exp_avg .*float64"),
    (one(amsgrad=True, max_exp_avg_sqs=HALF), "moments differ in dtype"),
    (one(state_steps=[torch.tensor(1)]), "its count is torch.int64.*float32"),
    ([group([THREE, THREE + 1], state_steps=[COUNT, COUNT])], "parameter 0 and parameter 1: .*share memory.*clone"),
    (one(exp_avgs=[THREE], exp_avg_sqs=[THREE]), "parameter 0 and parameter 0: .*share memory"),
    ([group([THREE]), group([THREE[2:]])], "share memory"),
]


@pytest.mark.parametrize("groups, message", MISFITS, ids=[message for _, message in MISFITS])
def test_what_the_kernel_would_update_wrongly_is_refused(groups, message):
    with pytest.raises(RuntimeError, match='fused="triton" cannot step .*' + message):
        build(groups, 256)


# --- what makes the tables stale

WAYS = {  # to change a 4 x 4 tensor, most of them in the same memory
    "moved": torch.clone,
    "transposed": torch.t,
    "shrunk": lambda t: t[:2],
    "another shape": lambda t: t.view(2, 8),
    "strides alone": lambda t: t.as_strided((4, 4), (4, 0)),
    "another dtype": lambda t: t.view(torch.int32),
    "another device": lambda t: t.to("meta"),
}
WAYS_OF_A_COUNT = {how: WAYS[how] for how in ("moved", "another dtype")} | {"two elements": lambda t: t.expand(2)}


@pytest.mark.parametrize("column", GroupLists._fields[:6])
@pytest.mark.parametrize("through_data", [False, True])
def test_a_change_of_place_is_noticed(column, through_data):
    """Put into the list, or through `.data` into the tensor that is in the list already."""
    for how, change in (WAYS_OF_A_COUNT if column == "state_steps" else WAYS).items():
        if through_data and how == "another device":
            continue  # .data does not take it
        lists = group([torch.ones(4, 4), THREE], amsgrad=True)
        (before, _), tensors = places([lists]), getattr(lists, column)
        assert places([lists])[0] == before
        if through_data:
            tensors[0].data = change(tensors[0])
        else:
            tensors[0] = change(tensors[0])
        noticed = places([lists])[0] != before
        assert noticed != (column == "grads" and how == "moved"), how  # these have a column of their own


@pytest.mark.parametrize("column", GroupLists._fields[:5])
def test_negation_in_the_same_memory_is_noticed(column):
    lists, numbers = group([torch.ones(1)], amsgrad=True), torch.zeros(1, dtype=torch.complex64)
    getattr(lists, column)[0] = numbers.imag
    before, _ = places([lists])
    getattr(lists, column)[0].data = numbers.conj().imag
    after, _ = places([lists])
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("change", [
    lambda a, b: [a, b._replace(amsgrad=True)],
    lambda a, b: [a],
    lambda a, b: [b, a],
    lambda a, b: [a._replace(grads=[torch.ones(17)[1:].view(4, 4)]), b],  # out of step with 16 bytes
    lambda a, b: [a, b._replace(**{name: getattr(b, name)[1:] for name in b._fields[:6]})],
], ids=["amsgrad", "a group less", "order", "alignment", "a parameter without gradient"])
def test_a_change_of_the_groups_is_noticed(change):
    a, b = group([torch.ones(4, 4)]), group([torch.ones(4), torch.ones(3)])
    assert places(change(a, b))[0] != places([a, b])[0]


def test_a_captured_column_is_never_written_again():
    """A slot per set of addresses, used again for the same; refused when there is none left."""
    [plan] = build([group([torch.ones(3), torch.ones(4)])], 256)
    slots = [plan.column([i, -i], captured=True) for i in range(CAPTURES)]
    assert plan.column([3, -3], captured=True).data_ptr() == slots[3].data_ptr()
    assert plan.column([99, 100], captured=False) == (99, 100)
    assert [slot.tolist() for slot in slots] == [[i, -i] for i in range(CAPTURES)]
    assert plan.full()
    with pytest.raises(RuntimeError, match="outside of a capture"):
        plan.column([99, 100], captured=True)


def test_without_triton_an_error_says_what_is_missing_and_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "adamlib.variants.triton_kernel", raising=False)
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="not installed.*fused=True or foreach=True"):
        adamlib.Adam([p], fused="triton").step()
