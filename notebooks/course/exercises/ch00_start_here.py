"""The check of chapter 00.

    check.first_step(fn)     fn(g, lr, eps) -> how far Adam moves a weight in its very first step
"""

from course.exercises import check, expect

__all__ = ["first_step"]


@check(start="the cell 'Adam in five lines': put t = 1, m₀ = 0 and v₀ = 0 into each line")
def first_step(reader):
    """fn(g, lr, eps): the change of a weight whose first gradient is g (floats in, a float out)."""
    cases = (
        (2.0, 1e-3, 1e-8, "the sign, and what is left of g once m̂ is divided by √v̂"),
        (-250.0, 1e-3, 1e-8, "how much larger gradients matter: is m̂/√v̂ 250 here, or 1?"),
        (3.0, 0.5, 1e-8, "the step size: is lr used, or a number written down?"),
        (1e-8, 1e-3, 1e-8, "where ε stands: beside √v̂, outside the root, and it counts when g is as small as ε"),
        (0.5, 1e-3, 0.1, "where ε stands: beside √v̂, and here it is not small"),
        (0.0, 1e-3, 1e-8, "g = 0: the numerator is 0, and ε keeps the denominator from it"),
    )
    for g, lr, eps, look in cases:
        expect(
            reader(g, lr, eps), -lr * g / (abs(g) + eps), rtol=1e-6,
            tried=f"first_step({g:g}, lr={lr:g}, eps={eps:g})", look=look,
        )  # fmt: skip
    return "six gradients, from 1e-8 to 250, of both signs, and 0"
