"""The Triton kernels as machine code for A100 and H100, made on any machine: they compile, keep to their registers, and
read every input and write every output once, 16 bytes at a time. What they compute is tested in test_triton_step.py."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")
BYTES = {"bf16": 2, "fp32": 4}


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_memory_is_passed_over_once(capability: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.sampler.compile_kernels", capability]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"] for row in rows} >= {"_step_kernel", "_density_backward_kernel", "_match_backward_kernel"}
    for row in rows:
        each = row["block"] * BYTES[row["dtype"]] // row["threads"] // 16
        wanted = {"ld.global.v4": row["reads"] * each, "st.global.v4": row["writes"] * each}
        assert row["accesses"] == {name: count for name, count in wanted.items() if count}, row
        assert row["LOCAL"] == 0, row  # nothing spilled
        assert row["REG"] <= 64, row  # at least 1,024 threads a multiprocessor
