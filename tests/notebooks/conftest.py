"""What the tests of the notebooks import: the tools, and the solutions that the tests of the course read out."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "notebooks" / "tools"), str(ROOT / "tests" / "course")]
