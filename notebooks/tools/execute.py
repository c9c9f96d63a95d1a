"""Execute notebooks in place, so that two runs store the same bytes.

    python notebooks/tools/execute.py notebooks/00_start_here.ipynb [more.ipynb ...]

No times, versions of tools or random ids are stored. A notebook in which a cell raises is left as it was (cells tagged
"raises-exception" may raise). Cells tagged "skip-execution" keep what is stored. What the hygiene tests would refuse is
printed at the end; only a failed execution sets the exit status.
"""

import argparse
import os
import sys
import time
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from series import EXAMPLE, ROOT, TOOLS, chapter_path

# What a kernel runs under, here and in the tests (notebooks/conftest.py): a reader's environment, where torch, MKL and
# NumPy pick their code paths by the processor. What is stored must hold on all of them.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "notebooks")]),
    "PYTHONHASHSEED": "0",  # sets of strings keep their order from run to run
    "OMP_NUM_THREADS": "1",  # on shared cores two threads can be thirty times slower than one
    "CUDA_VISIBLE_DEVICES": "",  # stored outputs are those of a machine without a GPU
    "PYTHONWARNINGS": "ignore::FutureWarning:torch.jit._script",  # forward mode in torch 2.14 warns of its own code
}
# Variables that choose a code path. A reader's environment sets none of them, so the tests take them away;
# tools/paths.py sets them, to see whether an output holds on other processors than this one.
CHOOSE_A_PATH = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE",
                 "OPENBLAS_NUM_THREADS", "NPY_DISABLE_CPU_FEATURES")
PATHS = {
    "as-it-is": {},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},  # roots from the processor's own estimate
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "mkl-avx512": {"MKL_CBWR": "AVX512"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AVX2"},  # no fused multiply-add in torch
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-avx512": {"ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX2"},
    "numpy-baseline": {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
                       "OPENBLAS_CORETYPE": "Nehalem"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
}


def environment(path="as-it-is"):
    """The environment of a kernel: this one, without what chooses a code path, with that of `path` (of PATHS)."""
    ours = {name: value for name, value in os.environ.items() if name not in CHOOSE_A_PATH}
    return ours | ENVIRONMENT | PATHS[path]
# "speaker" is a remark to the lecturer, for decks and the lecturer's copy.
SETUP_CELL = TOOLS / "setup_cell.py"
CELL_METADATA = ("tags", "speaker", "jupyter", "cellView", "_kg_hide-input", "_kg_hide-output")
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path):
    """Run all cells of the notebook at ``path`` in a new kernel and write it back. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):  # the same in all notebooks
            cell.source = SETUP_CELL.read_text(encoding="utf-8").strip()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]

    def progress(cell, cell_index):
        if sys.stderr.isatty() and cell in cells:
            print(f"\r{path.name}: cell {cells.index(cell) + 1} of {len(cells)} ", end="", file=sys.stderr)

    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}}, on_cell_start=progress,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own warnings say nothing about a chapter
    )  # fmt: skip
    with mock.patch.dict(os.environ, environment(), clear=True):
        client.execute()
    normalise(notebook)
    draft = path.with_suffix(".tmp")
    nbformat.write(notebook, draft)
    draft.replace(path)


def normalise(notebook):
    """Cell ids and prompt numbers count from 1, metadata is what the series uses and nothing else."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5  # the first format with cell ids
    prompt = 0
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in CELL_METADATA if k in cell.metadata})
        if cell.cell_type == "code":
            prompt += 1
            cell.execution_count = prompt
            fold(cell)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = prompt


def fold(cell):
    """Hide the source of a cell that draws, one click away, so that a reader meets the picture and not matplotlib.

    JupyterLab reads jupyter.source_hidden, Colab cellView, Kaggle _kg_hide-input. A cell tagged "show-source" stays open.
    """
    draws = any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {}))
    if draws and "show-source" not in cell.metadata.get("tags", []):
        cell.metadata.update({"jupyter": {"source_hidden": True}, "cellView": "form", "_kg_hide-input": True})


def main(arguments=None):
    from hygiene import problems

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=chapter_path, metavar="NOTEBOOK", help=f"such as {EXAMPLE}")
    failed = []
    for path in parser.parse_args(arguments).notebooks:
        start = time.perf_counter()
        try:
            execute(path)
        except CellExecutionError as error:
            print(f"\n{path}: left as it was, because a cell raised:\n{error}", file=sys.stderr)
            failed.append(str(path))
            continue
        print(f"{path}: executed in {time.perf_counter() - start:.0f} s")
        for problem in problems(path):
            print(f"  {problem}")
    if failed:
        sys.exit("not executed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
