"""Where nothing can be compiled, roots from C are None. (The roots themselves stand in the outputs of appendix A.)"""

from course import roots

EXACT = """
#include <math.h>
void root(const float *x, float *y, int n) { for (int i = 0; i < n; i++) y[i] = sqrtf(x[i]); }
"""


def test_what_cannot_be_compiled_is_none(monkeypatch):
    assert roots.compiled("this is not C") is None
    monkeypatch.setattr(roots.shutil, "which", lambda name: None)
    assert roots.compiled(EXACT) is None
