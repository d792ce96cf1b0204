"""Eight devices train like one, however the mesh divides the work: packed rows, texts, three steps of AdamW."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESHES = (
    "fsdp over two mesh axes, tensor",
    "heads exchanged, key heads repeated",
    "ring",
    "ring, heads exchanged, tensor",
    "two slices, fsdp, sequence, micro-batches",
)


def compared(meshes):
    """How far each mesh is from one device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, ROOT / "tests" / "parallel" / "eight_devices.py", *meshes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def differences():
    return compared(MESHES)


def check(found):
    assert found.keys() == {"metrics", "gradients", "parameters", "ema"}
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_losses_gradients_and_parameters_of_one(differences, mesh):
    check(differences[mesh])


@pytest.mark.slow
def test_eight_devices_train_a_dit_like_one():
    mesh = "dit on fsdp, sequence and tensor"
    check(compared([mesh])[mesh])
