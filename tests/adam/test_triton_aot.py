"""The Triton kernel compiled for GPUs that are not here: what the compiler made of it.

A stand-in for the GPU driver names the GPU to compile for and launches nothing, so that `FusedTriton`
itself chooses what is compiled, as it does on the real one. Triton brings NVIDIA's assembler along; its
output is read here. In a process of its own: the interpreter must be off, and a process has one driver.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
GPUS = {75: "T4", 80: "A100", 90: "H100, H200"}
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES = {  # what is stepped: (how, loads and stores of 16 bytes that each thread makes for a whole block)
    "fp32": (dict(machine_code=True), 8, 6),
    "fp32 amsgrad scaled": (dict(amsgrad=True, scaled=True), 10, 10),
    "fp16": (dict(dtype=F16, state=F16), 4, 3),
    "bf16": (dict(dtype=BF16, state=BF16), 4, 3),
    "bf16 amsgrad scaled": (dict(dtype=BF16, state=BF16, amsgrad=True, scaled=True), 5, 5),
    "bf16, fp32 moments": (dict(dtype=BF16), 4, 4),
    "fp32 unaligned": (dict(shift=1), 0, 0),
}
BLOCKS = 1024 // 128  # elements of a block that each of the 128 threads has


def compile_for(gpu, dtype=F32, state=F32, amsgrad=False, scaled=False, shift=0, machine_code=False):
    """What is compiled by one step on a GPU of this compute capability: a report per kernel."""
    import triton
    from triton.backends.compiler import GPUTarget

    from adamlib.variants import triton_kernel
    from adamlib.variants.triton_kernel import FusedTriton, GroupLists

    triton.runtime.driver.set_active(SimpleNamespace(
        get_current_device=lambda: gpu, get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", gpu, 32),
    ))
    compiled, run = {}, triton.JITFunction.run
    triton.JITFunction.run = lambda self, *args, warmup, **options: compiled.update(
        {self.__name__: run(self, *args, warmup=True, **options)}  # warm up: compile, do not launch
    )
    triton_kernel._refuse_device = lambda device: None
    p, g = (torch.zeros(2000 + shift, dtype=dtype)[shift:] for _ in range(2))
    m, v, v_max = (torch.zeros(2000 + shift, dtype=state)[shift:] for _ in range(3))
    scale = torch.ones(()) if scaled else None
    FusedTriton().prepare([GroupLists(
        [p], [g], [m], [v], [v_max] if amsgrad else [], [torch.zeros(())], 1e-3, 0.9, 0.999, 1e-8, 0.0, False,
        amsgrad, False,
    )], scale, scale)()
    triton.JITFunction.run = run
    reports = {name: report(kernel) for name, kernel in compiled.items()}
    if machine_code:
        reports["_step"]["wide machine loads"] = compiled["_step"].asm["sass"].count("LDG.E.128")
    return reports


def report(kernel):
    import triton

    ptx, metadata = kernel.asm["ptx"], kernel.metadata
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(amount) for name, amount in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    bits = {"v4.b32": 128, "v2.b64": 128, "v2.b32": 64, "b64": 64, "b32": 32, "b16": 16}
    return {
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],  # registers that did not suffice are spilled to the stack
        "shared": metadata.shared,
        "loads": [bits[kind] for kind in re.findall(r"ld\.global\.(\S+)", ptx)],
        "stores": [bits[kind] for kind in re.findall(r"st\.global\.(\S+)", ptx)],
        "fused": ptx.count("fma.rn.f32"),
        "cut off": len(re.findall(r"cvt\.rz", ptx)),
        "doubles": len(re.findall(r"\.f64", ptx)),
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gpu", GPUS)
def test_values_stay_in_registers_and_whole_blocks_move_in_the_widest_instructions(reports, gpu, case):
    """Nothing is spilled, nothing passes through shared memory, nothing is computed in float64."""
    for name, found in reports[f"{gpu} {case}"].items():
        assert found["spilled"] == found["shared"] == found["doubles"] == 0, (name, found)
        assert found["registers"] <= 128, (name, found)  # four blocks of 128 threads per SM, at least
    (_, loads, stores), found = CASES[case], reports[f"{gpu} {case}"]["_step"]
    assert (found["loads"].count(128), found["stores"].count(128)) == (loads, stores)
    assert found.get("wide machine loads", loads) == loads


@pytest.mark.parametrize("gpu", GPUS)
def test_narrower_moves_and_the_arithmetic(reports, gpu):
    of = {case: reports[f"{gpu} {case}"]["_step"] for case in CASES}
    assert of["bf16, fp32 moments"]["stores"].count(64) == BLOCKS // 4  # four 16-bit parameters at a time
    assert of["fp32 unaligned"]["stores"].count(32) == 2 * 3 * BLOCKS  # p, m, v; whole blocks and the ragged end
    assert of["fp32"]["fused"] >= 2 * 3 * BLOCKS  # a·b + c rounded once: at least in m, v and θ
    assert of["bf16"]["cut off"] == of["fp16"]["cut off"] == 0  # 16 bits are rounded


if __name__ == "__main__":
    print(json.dumps({
        f"{gpu} {case}": compile_for(gpu, **options) for gpu in GPUS for case, (options, *_) in CASES.items()
    }))
