"""The notebooks of the series and where they are. Nothing is imported but Python itself."""

import argparse
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS, TOOLS, BUILD = ROOT / "notebooks", ROOT / "notebooks" / "tools", ROOT / "build"
MAIN_LINE = ("00_start_here", "01_the_math", "02_the_step_bound", "03_single_tensor", "04_foreach", "05_fused_cuda",
             "06_capturable", "07_differentiable", "08_in_practice", "09_errata")  # fmt: skip
APPENDICES = ("A_bits", "B_proofs", "C_libraries", "D_inside_the_kernel", "E_many_machines")
EXAMPLE = "notebooks/00_start_here.ipynb"


def chapters(folder=NOTEBOOKS, names=MAIN_LINE + APPENDICES):
    """The notebooks of the series in `folder` (paths), of those names: the main line, then the appendices."""
    return [path for name in names if (path := pathlib.Path(folder) / f"{name}.ipynb").is_file()]


def chapter_path(text):
    """A notebook's path on the command line."""
    path = pathlib.Path(text)
    if path.suffix != ".ipynb" or not path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a notebook: give the path of one, as in {EXAMPLE}")
    return path
