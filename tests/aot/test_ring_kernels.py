"""A step whose rows lie on a ring of chips, compiled for chips that are not here: our kernels compute its attention.

python -m pytest -m aot -n 0 tests/aot/test_ring_kernels.py     (needs the extra 'aot'; half a minute)
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.aot
@pytest.mark.parametrize("ring", [4, 2], ids=["ring", "ring of groups that exchange heads"])
def test_kernels_attend_round_a_ring_forward_and_backward(ring, tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "lumina_jax", "aot", "configs/imagenet_600m.py", "--topology", "v5p:2x2x1"]
    command += ["--tokens", "16384", "--rows", "1", "--mesh.fsdp", "1", "--mesh.sequence", "4"]
    command += ["--mesh.ring", str(ring), "--model.layers", "4", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(file.read_text())
    work = found["work"]
    # Two products forward, again with what is computed again, and five backward, of 16384 tokens with each other.
    products = 9 * 2 * 16384**2 * 1536 * 4 / 4
    assert work["kernel_flops"] >= products
    assert work["batched_flops"] < 0.01 * products
    assert [one for one in found["collectives"] if one["kind"] == "collective-permute"]
