"""Lists of tensor shapes to measure an optimizer on.

An optimizer step sees a model as a list of tensors and nothing more, so a list of shapes is all that a
measurement needs; ``resnet18_loss`` is for one that trains between the steps. The sets differ in what they make expensive:

====================  =======  ===========  ==================================================
name                  tensors   parameters  what a step on it spends its time on
====================  =======  ===========  ==================================================
``digits_mlp``              4        2,410  calls; small enough to print whole
``tiny_200x64``           200       12,800  calls, nothing else
``small_200x1k``          200      204,800  calls, with tensors that still fit every cache
``gpt2_mini``              76    3,505,152  half calls, half memory
``resnet18``               62   11,689,512  a few large tensors among many small ones
``gpt2_small``            148  124,439,808  memory, with one tensor of 38.6 M elements
``large_8x8m``              8   67,108,864  memory, nothing else
====================  =======  ===========  ==================================================

>>> tensors = [torch.randn(shape) for shape in SETS["resnet18"]()]
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

Shapes = list[tuple[int, ...]]


def digits_mlp() -> Shapes:
    """A 64-32-10 perceptron for 8×8 images of digits: two weights, two biases."""
    return [(32, 64), (32,), (10, 32), (10,)]


def tiny_200x64() -> Shapes:
    """200 vectors of 64 elements."""
    return [(64,)] * 200


def small_200x1k() -> Shapes:
    """200 vectors of 1024 elements."""
    return [(1024,)] * 200


def large_8x8m() -> Shapes:
    """8 vectors of 8 Mi (8,388,608) elements."""
    return [(8 * 2**20,)] * 8


def resnet18() -> Shapes:
    """The 62 tensors of ResNet-18 for 1000 classes (He et al., 2015, table 1), in torchvision's order.

    A convolution has no bias; the batch norm after it has a weight and a bias.
    """

    def conv_and_norm(c_out: int, c_in: int, kernel: int) -> Shapes:
        return [(c_out, c_in, kernel, kernel), (c_out,), (c_out,)]

    shapes = conv_and_norm(64, 3, 7)
    channels = 64
    for stage_channels in (64, 128, 256, 512):
        for _ in range(2):
            shapes += conv_and_norm(stage_channels, channels, 3)
            shapes += conv_and_norm(stage_channels, stage_channels, 3)
            if channels != stage_channels:  # the shortcut changes the width, so it needs a 1×1 convolution
                shapes += conv_and_norm(stage_channels, channels, 1)
            channels = stage_channels
    return shapes + [(1000, 512), (1000,)]


def resnet18_loss(tensors: list[Tensor]) -> Tensor:
    """The loss of the network that has these 62 tensors, on eight images of noise, 3×64×64, with labels 0 to 7."""
    rest, device = iter(tensors), tensors[0].device

    def conv_and_norm(x: Tensor, stride: int = 1) -> Tensor:
        kernel, weight, bias = next(rest), next(rest), next(rest)
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return functional.batch_norm(x, None, None, weight, bias, training=True)

    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    x = functional.max_pool2d(conv_and_norm(x, 2).relu(), 3, 2, 1)
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        y = conv_and_norm(conv_and_norm(x, stride).relu())
        x = (y + (x if stride == 1 else conv_and_norm(x, stride))).relu()
    logits = functional.linear(x.mean((2, 3)), next(rest), next(rest))
    return functional.cross_entropy(logits, torch.arange(8, device=device))


def gpt2_small() -> Shapes:
    """The 148 tensors of GPT-2 small (Radford et al., 2019, table 2: 12 layers, width 768), output tied."""
    return _gpt2(layers=12, width=768, vocabulary=50257, context=1024)


def gpt2_mini() -> Shapes:
    """GPT-2's structure at 6 layers and width 192, vocabulary 4096: 76 tensors."""
    return _gpt2(layers=6, width=192, vocabulary=4096, context=256)


def _gpt2(layers: int, width: int, vocabulary: int, context: int) -> Shapes:
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    perceptron = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    block = norm + attention + norm + perceptron
    return [(vocabulary, width), (context, width)] + block * layers + norm


SETS = {
    function.__name__: function
    for function in (digits_mlp, tiny_200x64, small_200x1k, gpt2_mini, resnet18, gpt2_small, large_8x8m)
}


def count_parameters(shapes: Shapes) -> int:
    """Number of elements in all tensors of these shapes together; a 0-dim tensor counts 1."""
    return sum(math.prod(shape) for shape in shapes)
