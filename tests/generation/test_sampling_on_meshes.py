"""Eight devices draw what one draws, however the mesh divides the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("fsdp, sequence and tensor, stochastic", "sequence and tensor, adaptive steps", "a sheet on fsdp")
MORE_CASES = (
    "fsdp over two mesh axes, and tensor",
    "fsdp, ring and heads exchanged",
    "backwards by corrected steps, on data and sequence",
    "density by adaptive steps, on fsdp, sequence and tensor",
)


def drawn_on_meshes(cases):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, ROOT / "tests" / "generation" / "drawn_on_meshes.py", *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_samples_drawn_on_meshes_are_those_of_one_device():
    """Those of a sheet are bytes, which rounding may move by one."""
    found = drawn_on_meshes(CASES)
    assert (
        "a multiple of the 8 devices along data and fsdp, but there are 3; fill the batch up to 8" in found["refusal"]
    )
    differences = found["differences"]
    assert differences.pop("a sheet on fsdp") < 1.1 / 255
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
def test_noise_and_density_found_on_meshes_are_those_of_one_device():
    differences = drawn_on_meshes(MORE_CASES)["differences"]
    assert max(differences.values()) < 1e-5, differences
