"""Square roots from elsewhere: those of torch under another setting of the environment, and those of a C function.

Both need a process or a compiler of their own, which would be in the way in the appendix that uses them.
"""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ASK = """
import sys, torch
x = torch.frombuffer(bytearray(sys.stdin.buffer.read()), dtype=torch.float32)
sys.stdout.buffer.write(x.sqrt().numpy().tobytes())
"""


def by_torch(numbers, **environment):
    """torch's roots of the float32 array ``numbers``, from a fresh process with these variables set besides.

    A fresh one, because MKL reads its variables once, when it computes for the first time.
    """
    command, variables = [sys.executable, "-c", ASK], os.environ | environment
    done = subprocess.run(command, env=variables, input=numbers.tobytes(), stdout=subprocess.PIPE, check=True)
    return np.frombuffer(done.stdout, np.float32)


def compiled(source):
    """The functions of a C program, as attributes, or None where it cannot be compiled: no compiler, another processor.

    No product and sum are contracted to an FMA unless the program says so.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    folder = pathlib.Path(tempfile.mkdtemp())  # kept: a loaded library must not be deleted everywhere
    (folder / "roots.c").write_text(source, encoding="utf-8")
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "roots.c", "-o", "roots"]
    done = subprocess.run([compiler, *flags], cwd=folder, capture_output=True)
    return ctypes.CDLL(str(folder / "roots")) if done.returncode == 0 else None


def by_c(function, numbers):
    """What a compiled ``void function(const float *x, float *y, int n)`` makes of the float32 array ``numbers``."""
    roots, pointer = np.zeros_like(numbers), ctypes.POINTER(ctypes.c_float)
    function(numbers.ctypes.data_as(pointer), roots.ctypes.data_as(pointer), len(numbers))
    return roots
