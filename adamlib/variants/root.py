"""√v for autograd: where v = 0 its slope is 0, as there the chain rule would multiply ∞ by 0 and give nan."""
import inspect

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.func import debug_unwrap


def root_with_slope(v: Tensor) -> Tensor:
    """√v, which can be differentiated any number of times, forwards, backwards, and by torch.func's transforms."""
    if not torch.compiler.is_compiling() and debug_unwrap(v) is v and unpack_dual(v).tangent is None:
        return Root.apply(v)
    zero = v == 0
    return v.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


class Root(torch.autograd.Function):
    """√v with the slope 0 at v = 0, for backward alone: one pass, of which the graph keeps only the result."""
    generate_vmap_rule = True

    @staticmethod
    def forward(v):
        return v.sqrt()

    @staticmethod
    def setup_context(ctx, inputs, root):
        ctx.save_for_backward(root)

    @staticmethod
    def backward(ctx, grad):
        root, = ctx.saved_tensors
        return grad / (2 * root).masked_fill(root == 0, torch.inf)


Root.forward.__signature__ = inspect.signature(Root.forward)  # torch asks for it at every call, which takes long
