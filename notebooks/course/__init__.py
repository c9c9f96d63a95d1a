"""What the chapters share and a training script never needs.

``figures``         one style for all figures, and the one way to show them
``windows``         Adam's two windows, the figure that a reader can move
``data``            the digits
``exercises``       the checks that answer like somebody looking over your shoulder
``op_meter``        counts the ATen calls of a piece of code and the bytes they move
``graph_tape``      captures and replays a step on the CPU as a CUDA graph does it
``graph_table``     what a CUDA graph permits and refuses, each verdict with its source
``roots``           square roots of torch under another setting, and of a C function
``two_processes``   trains the same model on two processes
``benchmark``       times the variants against ``torch.optim`` and the memory's speed
``gpu``             what to run on the day a GPU is there
``parameter_sets``  shapes of the models that the others measure on
"""

import pathlib

RECORDED = pathlib.Path(__file__).parents[1] / "recorded"  # runs of the benchmark and on GPUs, with the machine and the day
