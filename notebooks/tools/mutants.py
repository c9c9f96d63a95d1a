"""Change adamlib in one place after the other, and print which cells of the chapter that builds it notice.

    python notebooks/tools/mutants.py                all of them: some ten minutes
    python notebooks/tools/mutants.py foreach fused  those whose name has one of these words

Guards that let numbers differ in their last digit and figures by a little (comparison.py) must still refuse a wrong
Adam. Each mutant is run in a copy of the repository; a cell that only prints the changed source does not count. The
exit status is 1 where a mutant goes unnoticed. Nothing is stored.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

from paths import differing
from series import ROOT

COPIED = ("adamlib", "notebooks", "environment.yml", "pyproject.toml")


class Mutant(NamedTuple):
    name: str
    chapter: str  # the notebook that builds what is changed
    file: str  # below adamlib
    right: str  # stands in the file once
    wrong: str


SINGLE, FOREACH, FUSED, CAPTURABLE, DIFFERENTIABLE, TRITON = (
    f"variants/{name}.py" for name in ("single_tensor", "foreach", "fused", "capturable", "differentiable", "triton_kernel")
)
MUTANTS = [
    Mutant("single: β₂ for β₁", "03_single_tensor", SINGLE, "1 - like(beta1, p)", "1 - like(beta2, p)"),
    Mutant("single: m̂ uncorrected", "03_single_tensor", SINGLE, "-lr / (1 - beta1**t)", "-lr"),
    Mutant("single: ε inside the root", "03_single_tensor", SINGLE, "else v).sqrt()", "else v).add(eps).sqrt()"),
    Mutant("single: uphill", "03_single_tensor", SINGLE, "value=-lr /", "value=lr /"),
    Mutant("single: AMSGrad forgets", "03_single_tensor", SINGLE, "root = (v_max if amsgrad else v)", "root = v"),
    Mutant("single: weights grow", "03_single_tensor", SINGLE, "1 - lr * weight_decay", "1 + lr * weight_decay"),
    Mutant("foreach: v̂ uncorrected", "04_foreach", FOREACH, "(1 - beta2**t) ** 0.5", "1.0"),
    Mutant("foreach: β₁ for β₂", "04_foreach", FOREACH, "g, g, 1 - beta2)", "g, g, 1 - beta1)"),
    Mutant("fused: betas exchanged", "05_fused_cuda", FUSED, "beta1=beta1, beta2=beta2", "beta1=beta2, beta2=beta1"),
    Mutant("triton: ε inside the root", "05_fused_cuda", TRITON, "tl.sqrt_rn(v), root_c2) + eps", "tl.sqrt_rn(v + eps), root_c2)"),
    Mutant("capturable: ε unscaled", "06_capturable", CAPTURABLE, "root_c2 * eps", "root_c2 * 0 + eps"),
    Mutant("capturable: m̂ uncorrected", "06_capturable", CAPTURABLE, "/ _correction(beta1, t) * -lr", "* -lr"),
    Mutant("differentiable: β₂ for β₁", "07_differentiable", DIFFERENTIABLE, "1 - like(beta1, p)", "1 - like(beta2, p)"),
    Mutant("differentiable: slope ∞ at 0", "07_differentiable", "variants/root.py",
           ".masked_fill(root == 0, torch.inf)", ""),
    Mutant("functional: counts by two", "03_single_tensor", "functional.py", "torch.tensor(1.0, device", "torch.tensor(2.0, device"),
    Mutant("Algorithm 1: v̂ uncorrected", "01_the_math", "theory/algorithm1.py", "else v) / (1 - β2**t)", "else v)"),
    Mutant("the bound: window of m̂ for v̂'s", "02_the_step_bound", "theory/step_bound.py",
           "np.log(_fraction_of_window(beta2, t)) -", "np.log(_fraction_of_window(beta1, t)) -"),
]


def copy_of(names, folder):
    """Copy these files and folders of the repository to the same places in `folder`."""
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)


def changed(mutant):
    """The text of the mutant's file with the change made."""
    text = (ROOT / "adamlib" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.right) != 1:
        raise ValueError(f"{mutant.name}: adamlib/{mutant.file} has {mutant.right!r} {text.count(mutant.right)} times, "
                         "not once: name another place in MUTANTS (tools/mutants.py)")
    return text.replace(mutant.right, mutant.wrong)


def noticed(mutant, folder):
    """Numbers of the cells that differ (nbval's count) where adamlib in `folder`, a copy of ours, has the mutant."""
    path, original = folder / "adamlib" / mutant.file, ROOT / "adamlib" / mutant.file
    path.write_text(changed(mutant), encoding="utf-8")
    notebook = folder / "notebooks" / f"{mutant.chapter}.ipynb"
    cells, _ = differing(mutant.name, [notebook], folder, PYTHONPATH="")
    shutil.copy(original, path)
    code = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return [number for number in cells[mutant.chapter] if "getsource" not in "".join(code[number]["source"])]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="mutants whose name has one of them; all by default")
    words = parser.parse_args(arguments).words
    wanted = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not wanted:
        parser.error(f"no mutant's name has {' or '.join(words)}: they are {'; '.join(m.name for m in MUTANTS)}")
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copy_of(COPIED, folder)
        for mutant in wanted:
            cells = noticed(mutant, folder)
            print(f"{mutant.name:32} {mutant.chapter:20} {len(cells):3} cells: {', '.join(map(str, cells))}", flush=True)
            if not cells:
                unnoticed.append(mutant.name)
    sys.exit(f"unnoticed: {'; '.join(unnoticed)}" if unnoticed else 0)


if __name__ == "__main__":
    main()
