"""Compile the Triton kernels for GPUs that need not be there; run by test_triton_compiled.py in a process of its own,
since a process whose Triton interprets cannot compile. Prints one JSON object a kernel."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.sampler import triton_step

FLOATS = ("a", "b", "c", "d", "scale", "guidance", "target_guidance")
SUMS = ("velocity", "squares", "upstream")
STEP = {"MULTISTEP": False, "KEEP": False, "READ": False, "DRAW": False}
VARIANTS = {
    "_step_kernel": [
        (3, 1, STEP | {"GUIDED": True}),
        (2, 1, STEP | {"GUIDED": False}),
        (4, 1, STEP | {"GUIDED": True, "READ": True}),
        (3, 1, STEP | {"GUIDED": True, "DRAW": True}),
        (4, 1, STEP | {"GUIDED": True, "MULTISTEP": True}),
    ],
    "_density_kernel": [(4, 0, {"GUIDED": True}), (3, 0, {"GUIDED": False})],
    "_density_backward_kernel": [(4, 2, {"GUIDED": True}), (3, 1, {"GUIDED": False})],
    "_match_kernel": [
        (4, 0, {"GUIDED": True, "TARGET_GUIDED": True}),
        (2, 0, {"GUIDED": False, "TARGET_GUIDED": False}),
    ],
    "_match_backward_kernel": [
        (4, 2, {"GUIDED": True, "TARGET_GUIDED": True}),
        (2, 1, {"GUIDED": False, "TARGET_GUIDED": False}),
    ],
}
"""name -> (inputs read, outputs written, switches); sums and upstream gradients, one number a block, come on top."""


def compiled(name: str, dtype: str, switches: dict, capability: int):
    kernel, constants = getattr(triton_step, name), switches | {"BLOCK": triton_step.BLOCK}
    signature, hints = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in FLOATS:
            signature[argument] = "fp32"
        elif argument in ("size", "seed"):
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp32" if argument in SUMS else f"*{dtype}"
        if signature[argument].startswith("*") or argument == "size":
            hints[(i,)] = [["tt.divisibility", 16]]  # as for a latent of 16 x 64 x 64
    return triton.compile(ASTSource(kernel, signature, constants, hints), target=GPUTarget("cuda", capability, 32))


def resources(machine_code: bytes) -> dict[str, int]:
    """Registers and bytes of local memory of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in re.findall(r"\b(REG|LOCAL):(\d+)", told.stdout)}


def main(capability: int) -> None:
    for name, variants in VARIANTS.items():
        for (reads, writes, switches), dtype in product(variants, ("bf16", "fp32")):
            made = compiled(name, dtype, switches, capability)
            accesses = Counter(re.findall(r"\b((?:ld|st)\.global\.v4)\.b32", made.asm["ptx"]))
            row = {"kernel": name, "dtype": dtype, "switches": switches, "reads": reads, "writes": writes}
            row |= {"threads": made.metadata.num_warps * 32, "block": triton_step.BLOCK, "accesses": accesses}
            print(json.dumps(row | resources(made.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
