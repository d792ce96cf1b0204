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
    "an edit with a negative on fsdp, sequence and tensor",
    "three captions with a negative on fsdp, sequence and tensor",
    "three labels by stochastic steps, on data and sequence",
    "styles on fsdp, sequence and tensor",
    "styles of labels by stochastic steps, on a ring",
    "merged patches on fsdp, sequence and tensor",
    "scenes in windows of merged patches, on fsdp and tensor",
    "an edit by stochastic steps, on data and sequence",
    "heads without text, ring and heads exchanged",
    "backwards by corrected steps, on data and sequence",
    "density by adaptive steps, on fsdp, sequence and tensor",
)


def drawn_on_meshes(cases, **mesh):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, ROOT / "tests" / "generation" / "drawn_on_meshes.py", json.dumps(mesh), *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    return drawn_on_meshes(CASES)


def test_samples_drawn_on_meshes_are_those_of_one_device(found):
    """Those of a sheet are bytes, which rounding may move by one."""
    assert (
        "a multiple of the 8 devices along data and fsdp, but there are 3; fill the batch up to 8" in found["refusal"]
    )
    differences = dict(found["differences"])
    assert differences.pop("a sheet on fsdp") < 1.1 / 255
    assert max(differences.values()) < 1e-5, differences


def test_a_model_is_opened_on_all_devices_which_draw_what_one_draws(found):
    """Latents of eight pictures, one on each device, and the bytes of one picture, for which the batch is filled up."""
    opened = found["opened"]
    assert opened["said"].startswith("on 8 cpu (data 8), weights float32, 0.")
    assert opened["difference"] < 1e-6
    assert opened["first"] <= 1


def test_kernels_would_serve_an_opened_model_on_all_devices_and_on_one_of_them(found):
    assert found["opened"]["refusals"] == found["opened"]["refusals of one of many"] == [None]


@pytest.mark.slow
def test_edits_noise_and_density_found_on_meshes_are_those_of_one_device():
    found = drawn_on_meshes(MORE_CASES, fsdp=2, sequence=2, ring=2, tensor=2)
    assert max(found["differences"].values()) < 1e-5, found
    assert found["opened"]["said"].startswith("on 8 cpu (fsdp 2, sequence_ring 2, tensor 2), weights float32, 0.")
    assert found["opened"]["difference"] < 1e-5
