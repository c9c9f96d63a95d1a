"""The ten networks of chapter 02 whose labels change: handed out as copies, and nothing is shared."""

import torch

from course import changed_task


def test_every_call_hands_out_the_same_networks_and_what_is_done_to_them_stays_there():
    (spoilt, opt), (kept, its) = changed_task.learned(), changed_task.learned()
    with torch.no_grad():
        for w in spoilt:
            w.zero_()
            opt.state[w]["exp_avg_sq"].zero_()
    for w, later in zip(kept, changed_task.learned()[0]):
        assert torch.equal(w, later) and w.any()
        assert its.state[w]["exp_avg_sq"].any() and its.state[w]["step"] == 400


def test_networks_share_nothing():
    layers, _ = changed_task.learned()
    next(changed_task.losses(layers, permuted=True))[3].backward()
    for w in layers:
        assert w.grad[3].any() and not w.grad[[k for k in range(10) if k != 3]].any()


def test_the_new_labels_make_every_loss_jump():
    layers, _ = changed_task.learned()
    old, new = (next(changed_task.losses(layers, permuted)) for permuted in (False, True))
    assert (new > 2 * old).all() and len(list(changed_task.losses(layers, permuted=True))) == 100
