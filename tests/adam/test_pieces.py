"""What makes a step fast on a CPU and may never change it: pieces, buckets, operands, lists that are kept."""

import weakref

import pytest
import torch

import adamlib
from adamlib.variants import layout, partition
from adamlib.variants.layout import Fitting, Kept, refuse_misfits
from adamlib.variants.operands import operand_for
from adamlib.variants.partition import buckets, by_device_and_dtype, in_cache


@pytest.fixture
def small_cache(monkeypatch):
    """Cut as if only 10 elements fitted, so that small tensors show what large ones meet."""
    monkeypatch.setattr(partition, "CACHE_ELEMENTS", 10)
    monkeypatch.setattr(partition, "WORTH_CUTTING", 4)


def visits(shapes, cut):
    """How often each element is touched when every piece of `cut` adds one to it."""
    tensors = [torch.zeros(shape) for shape in shapes]
    for piece in cut(tensors):
        piece.add_(1)
    return tensors


SHAPES = [
    [(3,)],
    [(25,)],
    [(2, 3), (25,), (), (0,), (4, 10), (1,)],
    [(5,)] * 7,
    [(10,), (11,), (1,), (9, 1)],
    [(0,), (0,)],
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_pieces_of_a_tensor_cover_it_once(shapes, small_cache):
    def cut(tensors):
        for tensor in tensors:
            pieces = [piece for piece, _ in in_cache(tensor, tensor)]
            assert all(piece.numel() <= 10 for piece in pieces)
            yield from pieces

    assert all(bool((t == 1).all()) for t in visits(shapes, cut))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_buckets_cover_every_element_once_and_know_their_tensor(shapes, small_cache):
    total = sum(torch.Size(shape).numel() for shape in shapes)
    sizes = []

    def cut(tensors):
        for names, pieces, same in buckets(list(range(len(tensors))), tensors, tensors):
            assert len(names) == len(pieces) == len(same)
            sizes.append(sum(piece.numel() for piece in pieces))
            assert sizes[-1] <= 10
            for name, piece in zip(names, pieces):
                begin = tensors[name].data_ptr()
                assert not piece.numel() or begin <= piece.data_ptr() < begin + 4 * tensors[name].numel()
            yield from pieces

    assert all(bool((t == 1).all()) for t in visits(shapes, cut))
    assert sum(sizes) == total


def test_temporaries_of_foreach_are_at_most_half_of_the_tensors():
    tensors = [torch.empty(1024)] * 200
    sizes = [sum(map(torch.Tensor.numel, pieces)) for _, pieces in buckets([0] * 200, tensors)]
    assert sizes == [100 * 1024] * 2
    few = [torch.empty(64)] * 200
    assert len(list(buckets([0] * 200, few))) == 1  # not worth seven more calls


def test_strided_tensors_are_not_cut(small_cache):
    strided = torch.zeros(6, 20)[:, ::2]
    assert [piece.shape for (piece,) in in_cache(strided)] == [(6, 10)]


def test_other_devices_take_whole_tensors_until_their_room_is_full(small_cache, monkeypatch):
    meta = [torch.empty(n, device="meta") for n in (100, 100, 100, 250, 40, 0)]
    assert [(names, len(pieces)) for names, pieces in buckets([*range(6)], meta)] == [([*range(6)], 6)]
    monkeypatch.setattr(partition, "DEVICE_ELEMENTS", 220)
    assert [names for names, _ in buckets([*range(6)], meta)] == [[0, 1], [2], [3], [4, 5]]


def test_kinds_are_kept_apart():
    kinds = [torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(4), torch.zeros(5, device="meta")]
    parts = [(list(map(len, ps)), ns, none) for ps, ns, none in by_device_and_dtype(kinds, [0, 1, 2, 3], [])]
    assert parts == [([2, 4], [0, 2], []), ([3], [1], []), ([5], [3], [])]
    assert list(by_device_and_dtype([], [])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_a_number_becomes_an_operand_of_the_real_dtype(dtype):
    operand = operand_for(torch.zeros(2, dtype=dtype))(0.1)
    assert operand.dim() == 0 and operand.dtype == dtype.to_real()
    assert operand.item() == torch.tensor(0.1, dtype=dtype.to_real()).item()


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, device="meta"), torch.zeros(2).as_subclass(Subclass)],
    ids=["bfloat16", "meta", "subclass"],
)
def test_elsewhere_a_number_stays_a_number(tensor):
    assert operand_for(tensor)(0.1) == 0.1 and isinstance(operand_for(tensor)(0.1), float)


def test_a_tensor_stays_the_tensor_it_is():
    beta = torch.tensor(0.9)
    assert operand_for(torch.zeros(2))(beta) is beta


# -- lists that a fused group keeps


def fused_after_a_step(*shapes):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    opt = adamlib.Adam(params, fused=True)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    return params, opt


def larger(p):
    p.data = torch.ones(1000)


def smaller(p):
    p.data = torch.ones(3)


def transposed(p):
    p.data = p.data.view(2, 4).t()


def doubled(p):
    p.data = p.data.double()


@pytest.mark.parametrize("change", [larger, smaller, transposed, doubled])
def test_a_parameter_given_other_memory_is_refused_before_the_step(change):
    """Its old gradient and moments do not fit it any more; the kernel would read and write beyond them."""
    (p, q), opt = fused_after_a_step((8,), (4,))
    change(p)
    before = p.detach().clone(), q.detach().clone()
    with pytest.raises(RuntimeError, match="fused=True cannot step parameter 0: the gradient has"):
        opt.step()
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])
    assert float(opt.state[q]["step"]) == 1


def test_a_parameter_given_other_memory_of_the_same_layout_is_stepped_there():
    (p,), opt = fused_after_a_step((8,))
    old = p.data
    p.data = torch.full((8,), 5.0)
    opt.step()
    assert bool((old == torch.full((8,), 1 - 1e-3)).all()) and bool((p < 5).all())


def test_a_gradient_that_does_not_fit_is_refused_after_any_number_of_steps():
    (p,), opt = fused_after_a_step((2, 4))
    opt.step()
    p.grad = torch.ones(4, 2).t()
    with pytest.raises(RuntimeError, match="the gradient has strides"):
        opt.step()


def test_a_moment_that_was_replaced_is_looked_at_again():
    (p,), opt = fused_after_a_step((8,))
    opt.state[p]["exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match="exp_avg_sq has shape"):
        opt.step()


def test_a_moment_left_on_another_device_is_refused():
    (p,), opt = fused_after_a_step((8,))
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"].to("meta")
    with pytest.raises(RuntimeError, match="exp_avg has device meta, the parameter cpu"):
        opt.step()


def test_a_sparse_gradient_is_called_sparse_after_any_number_of_steps():
    (p,), opt = fused_after_a_step((2, 4))
    p.grad = torch.ones(2, 4).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        opt.step()


def test_kept_lists_notice_every_change_of_layout():
    params = [torch.zeros(3), torch.zeros(2, 2)]
    grads = [torch.ones_like(p) for p in params]
    kept = Kept(params, grads)
    assert kept.uniform and not Kept([params[0], params[1].double()], grads).uniform
    assert kept.lie_as_before([torch.ones(3), torch.ones(2, 2)])
    for misfit in (torch.ones(2, 2).t(), torch.ones(4), torch.ones(2, 2).double(), torch.ones(2, 2).to_sparse(), None):
        assert not kept.lie_as_before([grads[0], misfit])
    params[1].data = torch.zeros(5)
    assert not kept.lie_as_before(grads)


def test_gradients_that_fit_one_list_of_parameters_are_looked_at_for_another():
    params, grads, moments = [torch.zeros(3)], [torch.ones(3)], [torch.zeros(3)]
    fitting = Fitting(params, grads)
    refuse_misfits(params, fitting, moments, moments)
    with pytest.raises(RuntimeError, match="the gradient has shape"):
        refuse_misfits([torch.zeros(5)], fitting, moments, moments)


VARIANTS = [dict(foreach=foreach, capturable=capturable) for foreach in (False, True) for capturable in (False, True)]


@pytest.mark.parametrize("variant", [*VARIANTS, dict(fused=True), dict(differentiable=True)], ids=str)
def test_memory_is_given_back_when_it_is_let_go(variant):
    """Neither cleared gradients nor moments moved elsewhere between two steps are held by what a step keeps."""
    p = torch.nn.Parameter(torch.ones(8), requires_grad="differentiable" not in variant)
    opt = adamlib.Adam([p], amsgrad=True, **variant)
    for _ in range(3):
        p.grad = torch.ones(8)
        opt.step()
        let_go = [weakref.ref(p.grad)]
        opt.zero_grad()
        for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            let_go.append(weakref.ref(opt.state[p][moment]))
            opt.state[p][moment] = opt.state[p][moment].clone()
        assert [tensor() for tensor in let_go] == [None] * 4


def test_fused_steps_the_same_without_torchs_guards(monkeypatch):
    """They are private to torch. Where they are not found, every step looks at its tensors from Python."""
    stepped = []
    for guards in (layout.TensorGuards, None):
        monkeypatch.setattr(layout, "TensorGuards", guards)
        (p,), opt = fused_after_a_step((2, 4))
        kept = opt._gathered[0]
        opt.step()
        assert opt._gathered[0] is kept
        stepped.append(p.detach().clone())
        p.grad = torch.ones(4, 2).t()
        with pytest.raises(RuntimeError, match="the gradient has strides"):
            opt.step()
    assert torch.equal(*stepped)


def test_fused_lists_are_kept_where_the_guard_says_no_for_no_reason_of_layout():
    """A gradient that requires grad, one that two parameters share, a Parameter as a gradient."""
    params, opt = fused_after_a_step((2, 4), (2, 4))
    kept = opt._gathered[0]
    shared = torch.ones(2, 4)
    for grads in ([torch.ones(2, 4, requires_grad=True), shared], [shared, shared],
                  [torch.nn.Parameter(shared), torch.ones(2, 4)]):  # fmt: skip
        for p, grad in zip(params, grads):
            p.grad = grad
        opt.step()
        assert opt._gathered[0] is kept
    assert torch.equal(*params) and float(opt.state[params[0]]["step"]) == 4


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("steps", [0, 2])
def test_fused_refuses_a_moment_of_another_shape_though_its_size_is_right(moment, steps):
    p = torch.nn.Parameter(torch.ones(2, 2))
    opt = adamlib.Adam([p], fused=True)
    p.grad = torch.ones(2, 2)
    opt.step()
    opt.load_state_dict(opt.state_dict())  # nothing is kept
    for _ in range(steps):
        opt.step()
    opt.state[p][moment] = torch.zeros(4)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=f"{moment} has shape"):
        opt.step()
    assert torch.equal(p, before)


def test_a_group_that_is_dropped_is_let_go():
    p, q = torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(8))
    opt = adamlib.Adam([dict(params=[p]), dict(params=[q])], fused=True)
    p.grad = torch.ones(8)
    opt.step()
    gone = weakref.ref(q)
    del opt.param_groups[1], q
    opt.step()
    assert gone() is None


def test_fused_lists_of_any_memory_format_are_kept():
    """A convolution's weights in channels_last are no exception that is looked at anew in every step."""
    weight = torch.nn.Parameter(torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last))
    opt = adamlib.Adam([weight], fused=True)
    kept = []
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        opt.step()
        kept.append(opt._gathered[0])
    assert kept[0] is kept[1] is kept[2]
