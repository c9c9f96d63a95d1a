"""What to run on the day a GPU is there: ``python -m course.gpu``, in eight minutes, unattended.

``run``       the parts one after the other, each in processes that may die, under a budget, resumable
``checks``    the tests that need a GPU, and the cells of chapters 05 and 06
``blocks``    a table of small pieces of code, in a CUDA graph and on the tape of chapter 06
``parity``    every variant beside torch's same variant, on the device
``race``      the time of a step, predicted first and then measured
``record``    reads what such runs have stored, and draws it
"""
