"""One file per way of computing the same step. All variants share one signature:

    variant(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, *,
            lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, amsgrad, maximize,
            grad_scale=None, found_inf=None) -> None

Six lists with one entry per tensor (`max_exp_avg_sqs` is empty without amsgrad), updated in place:
`params[i]`, its gradient, its moments m and v, the running maximum of v, all of one shape; and
`state_steps[i]`, a 0-dim float tensor that counts the steps. `grads` are only read. lr, beta1, beta2 are
floats or, where a variant says so, 1-element tensors. Only the fused variants take `grad_scale`, by which
they divide `grads` in place, and `found_inf` (1-element float32 tensors from a GradScaler); the others
refuse them.
"""
