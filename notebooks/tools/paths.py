"""Run the notebooks under the code paths that processors choose, and print which cells differ from what is stored.

    python notebooks/tools/paths.py                                  all paths, all notebooks: some 40 minutes
    python notebooks/tools/paths.py --path mkl-avx2 --path as-it-is  some of the paths
    python notebooks/tools/paths.py notebooks/07_differentiable.ipynb

torch, MKL and NumPy look at the processor and pick a code path, and last bits follow the choice. A processor can be
told to take the path of another one, so most of what would differ on a colleague's machine shows on this one. The
exit status is 1 where a cell differs; nothing is stored.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import platform
import re
import subprocess
import sys

from execute import PATHS
from series import ROOT, chapter_path, chapters

NEEDS = {"mkl-avx512": "avx512f", "aten-avx512": "avx512f"}  # a flag that /proc/cpuinfo must list


def processor():
    """(the processor's name, its flags), as far as this system tells."""
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    name, flags = (re.search(rf"^{word}\s*: (.*)$", info, re.MULTILINE) for word in ("model name", "flags"))
    return name.group(1) if name else platform.machine(), set(flags.group(1).split()) if flags else set()


def differing(what, notebooks, folder=ROOT, **environment):
    """{notebook's stem: numbers of the cells that differ} in the repository in `folder`, and how far figures that passed
    are apart. `what` is tried is said where the notebooks do not run."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "--nbval", "--nbval-current-env", "--rootdir=.",
               "--nbval-cell-timeout=600", "-p", "no:cacheprovider", *map(str, notebooks)]  # fmt: skip
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True,
                          encoding="utf-8", errors="replace")
    if not re.search(r"^\d+ of \d+ code cells compared", done.stdout, re.MULTILINE):
        sys.exit(f"{what}: the notebooks did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    apart = re.search(r"the farthest (\S+) from the stored one", done.stdout)
    cells = collections.defaultdict(list)
    for name, number in re.findall(r"^(?:FAILED|ERROR) \S*?(\w+)\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE):
        cells[name].append(int(number))
    return cells, apart.group(1) if apart else "-"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=chapter_path, metavar="NOTEBOOK", help="all of them by default")
    parser.add_argument("--path", action="append", choices=PATHS, metavar="NAME", help=f"one of {', '.join(PATHS)}")
    parser.add_argument("--jobs", type=int, default=2, help="paths that run side by side (2)")
    wanted = parser.parse_args(arguments)
    notebooks = [path.resolve() for path in wanted.notebooks] or chapters()
    name, flags = processor()
    paths = [path for path in wanted.path or PATHS if not flags or NEEDS.get(path, "") in flags | {""}]
    print(f"{name}: {len(paths)} paths, {len(notebooks)} notebooks; numbers are the cells that differ (nbval's count)")
    print("a path takes some nine minutes for all notebooks, and prints its line when it is done", flush=True)
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(wanted.jobs) as pool:
        for path, (cells, apart) in zip(paths, pool.map(lambda path: differing(path, notebooks, ADAM_PATH=path), paths)):
            bad += sum(map(len, cells.values()))
            shown = "; ".join(f"{chapter}: {', '.join(map(str, found))}" for chapter, found in sorted(cells.items()))
            print(f"{path:16} {sum(map(len, cells.values())):3} differ; figures up to {apart:8} {shown}", flush=True)
    for path in sorted(set(wanted.path or PATHS) - set(paths)):
        print(f"{path:16} not tried: this processor has no {NEEDS[path]}")
    sys.exit(f"{bad} cells differ" if bad else 0)


if __name__ == "__main__":
    main()
