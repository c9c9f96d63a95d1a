"""Roots from a fresh process with other variables, and from C where there is a compiler.

That a fresh process gives torch's roots stands in the outputs of appendix A.
"""

import numpy as np
import pytest

from course import roots

X = np.array([0.25, 1.0, 2.0, 3.0, 1e10], np.float32)
EXACT = """
#include <math.h>
void root(const float *x, float *y, int n) { for (int i = 0; i < n; i++) y[i] = sqrtf(x[i]); }
"""


def test_the_variables_reach_the_fresh_process(monkeypatch):
    monkeypatch.setattr(roots, "ASK", "import os, sys; sys.stdout.buffer.write(bytes.fromhex(os.environ['BITS']))")
    assert roots.by_torch(X, BITS="0000803f") == np.float32(1)


def test_a_c_function_computes_and_what_cannot_be_compiled_is_none(monkeypatch):
    assert roots.compiled("this is not C") is None
    program = roots.compiled(EXACT)
    monkeypatch.setattr(roots.shutil, "which", lambda name: None)
    assert roots.compiled(EXACT) is None
    if program is None:
        pytest.skip("no C compiler here")
    assert np.array_equal(roots.by_c(program.root, X), np.sqrt(X))
