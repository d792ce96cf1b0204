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
    "ring, heads exchanged, tensor",
    "two slices, fsdp, sequence, micro-batches",
)


def trained_on(meshes):
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
    return trained_on(MESHES)


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_give_losses_gradients_and_parameters_of_one(differences, mesh):
    found = differences[mesh]
    assert found.keys() == {"metrics", "gradients", "parameters", "ema"}
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["ring", "heads exchanged, key heads repeated", "dit on fsdp, sequence and tensor"])
def test_further_meshes_and_blocks_give_losses_gradients_and_parameters_of_one(mesh):
    found = trained_on([mesh])[mesh]
    assert max(found.values()) < 1e-5, found


def test_eight_devices_measure_the_held_out_loss_of_one(differences):
    found = differences["held-out loss"]
    assert found["loss"] < 1e-6
    assert found["curve"] < 2e-6


def test_products_with_divided_columns_and_their_gradients_are_those_of_whole_matrices(differences):
    assert differences["divided columns"] < 1e-6
