"""What the compiled step of the 7B model sends between chips: real FSDP, on topologies that are not here.

python -m pytest -m aot -n 0 -s tests/aot/test_fsdp_traffic.py     (needs the extra 'aot'; minutes for each topology)
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHOLE_BYTES = 4 * (1001 + 256 + 1024) * 1024
"""Of what is whole everywhere, in float32: the table of labels and the embedding of time."""
PARAMETERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 1024 * 6 * 4096)
"""Of the layers' matrices: attention, feed-forward, adaLN."""


@pytest.mark.aot
@pytest.mark.parametrize(("topology", "chips"), [("v6e:16x16", 256), ("v5p:4x4x4", 64), ("v5e:16x16", 256)])
def test_weights_are_gathered_in_bfloat16_and_gradients_scattered(topology, chips, tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "lumina_jax", "aot", "configs/imagenet_7b.py", "--topology", topology]
    command += ["--mesh.fsdp", str(chips), "--rows", "256", "--model.attention", "xla", "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    print("\n".join(line for line in done.stdout.splitlines() if "GB" in line or "FSDP" in line))
    found = json.loads(file.read_text())["collectives"]

    gathered = [one for one in found if one["kind"] == "all-gather" and one["dtype"] == "bf16"]
    scattered = [one for one in found if one["kind"] == "reduce-scatter"]
    ideal = 2 * PARAMETERS * (chips - 1) / chips
    assert sum(one["sent_bytes"] for one in gathered) > 1.9 * ideal
    assert sum(one["sent_bytes"] for one in scattered) > 0.9 * ideal
    reduced = [one for one in found if one["kind"] == "all-reduce"]
    assert max(one["operand_bytes"] for one in reduced) < 1.1 * WHOLE_BYTES
    assert sum(one["sent_bytes"] for one in reduced if one["dtype"] == "bf16") < 0.015 * ideal
    assert sum(one["sent_bytes"] for one in found) < 1.3 * 3 * ideal
