"""Instruments to see inside an optimizer step, on any machine.

``op_meter``        counts the ATen calls of a piece of code and the bytes they move
``graph_tape``      captures and replays a step on the CPU as a CUDA graph does it
``benchmark``       times the variants against ``torch.optim`` and the memory's speed
``parameter_sets``  shapes of the models that the other three measure on
"""
