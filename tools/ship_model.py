"""Put a trained model into the package: python tools/ship_model.py runs/emoji_64 emoji

In: the folder of a run. Out: lumina_jax/shipped/NAME with config.json and model.safetensors, the averaged weights in
bfloat16, which replace those of an earlier model. Whatever trained it, it draws in float32, which is fast on CPUs. The
card, README.md, is written by hand, from what `lumina evaluate NAME` says.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from lumina_jax.commands import convert
from lumina_jax.run import CONFIG_FILE, SHIPPED, read_run

LARGEST = 25e6
"""Bytes of the weights of a model in the package."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("name", help="of the model in the package")
    parser.add_argument("--data", default="data/emoji", help="where a user of the model has its data")
    arguments = parser.parse_args()
    config = read_run(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "model"
        convert.main([f"{arguments.run}", f"{to}", "--from", "jax", "--to", "jax", "--dtype", "bfloat16"])
        [weights] = to.glob("*.safetensors")
        if (size := weights.stat().st_size) > LARGEST:
            raise ValueError(f"the weights must take at most {LARGEST / 1e6:g} MB, but take {size / 1e6:.3g}")
        shipped = SHIPPED / arguments.name
        shipped.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, shipped / "model.safetensors")
    run = {"name": arguments.name, "root": "runs", "checkpoints": "", "init_from": ""}
    data = {"path": arguments.data, "workers": 0, "prefetch": 16}
    cpu = config.replace(run=run, data=data, model={"compute_dtype": "float32"})
    (shipped / CONFIG_FILE).write_text(cpu.to_json())
    print(f"{shipped}: {size / 1e6:.3g} MB of weights")


if __name__ == "__main__":
    main()
