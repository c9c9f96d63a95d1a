"""The referee of chapters 03 and 04: does an optimizer, or a step in lists, compute PyTorch's Adam, in every bit?"""

import torch


def same_bits(a, b):
    """True if two tensors of one dtype hold the same bits (numbers are not enough: 0.0 == -0.0)."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a.detach(), b.detach()))
    return torch.equal(a.view(integers[a.element_size()]), b.view(integers[b.element_size()]))


def same_as_torch(cls, dtype=torch.float32, atol=None, **options):
    """20 steps of three tensors by ``cls`` and by torch.optim.Adam's for-loop. True if all bits agree.

    Gradients are given, of sizes from 1e-10 to 1e2, each weight its own, and the learning rate is halved half-way.
    Compared are the weights and every tensor of the state, in its order. With ``atol`` the weights alone, as numbers.
    """
    random = torch.Generator().manual_seed(5)
    ours = [torch.randn(n, generator=random, dtype=dtype).requires_grad_() for n in (1, 7, 1000)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    pair = cls(ours, **options), torch.optim.Adam(theirs, foreach=False, **options)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5) for optimizer in pair]
    for _ in range(20):
        for a, b in zip(ours, theirs):
            size = 10 ** (12 * torch.rand(a.shape, generator=random) - 10)
            grad = (size * torch.randn(a.shape, generator=random, dtype=dtype)).to(dtype)
            a.grad, b.grad = grad, grad.clone()
        for one in (*pair, *schedulers):
            one.step()
    if atol is not None:
        return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(ours, theirs))
    if not all(map(same_bits, ours, theirs)):
        return False
    states = [[optimizer.state[p] for p in params] for optimizer, params in zip(pair, (ours, theirs))]
    return all(list(a) == list(b) and all(map(same_bits, a.values(), b.values())) for a, b in zip(*states))


def same_in_lists(step, dtype=torch.float32, foreach=True, **options):
    """20 steps of four tensors by ``step`` and by torch.optim.Adam. True if all bits of weights and state agree.

    step: called as the variants of adamlib are, ``step(params, grads, ms, vs, v_maxs, ts, **options)``, in place.
    Gradients are of sizes from 1e-10 to 1e2. The second tensor gets none in every third step, so its count lags behind.
    """
    random = torch.Generator().manual_seed(5)
    ours = [torch.randn(shape, generator=random, dtype=dtype) for shape in ((1,), (7,), (10, 100), ())]
    theirs = [p.clone().requires_grad_() for p in ours]
    ms, vs, v_maxs = ([torch.zeros_like(p) for p in ours] for _ in range(3))
    ts = [0] * 4
    optimizer = torch.optim.Adam(theirs, foreach=foreach, **options)
    for t in range(1, 21):
        for p in theirs:
            size = 10 ** (12 * torch.rand(p.shape, generator=random) - 10)
            p.grad = (size * torch.randn(p.shape, generator=random, dtype=dtype)).to(dtype)
        if t % 3 == 0:
            theirs[1].grad = None
        optimizer.step()
        moved = [i for i, p in enumerate(theirs) if p.grad is not None]
        for i in moved:
            ts[i] += 1
        lists = ours, [p.grad for p in theirs], ms, vs, v_maxs, ts
        step(*([column[i] for i in moved] for column in lists), **options)
    columns = {"exp_avg": ms, "exp_avg_sq": vs} | ({"max_exp_avg_sq": v_maxs} if options.get("amsgrad") else {})
    pairs = list(zip(ours, theirs))
    pairs += [(a, optimizer.state[p][key]) for key, column in columns.items() for a, p in zip(column, theirs)]
    return all(same_bits(a, b) for a, b in pairs)
