"""One model of all modalities against one for each, at equal tokens: python benchmarks/joint_training.py

Trains configs/any_modality.py, and for each modality the same network on that modality alone, with as many tokens of it
as the joint run saw: its steps are the joint ones, times the modality's share of all tokens. Prints the mean loss of
each over the last tenth of its steps, joint and alone, and their ratio. Runs that are finished are not repeated.
"""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.data.batches import Stream
from lumina_jax.data.sources import open_source
from lumina_jax.run import run_folder
from lumina_jax.training.jsonl import read_metrics

TRAIN = Path(__file__).parents[1] / "train.py"
COUNTED = 50
"""Batches in which tokens are counted."""


@dataclass(frozen=True)
class Arguments:
    config: Path = Path("configs/any_modality.py")
    names: tuple[str, ...] = ()
    """Modalities to compare; default: all."""


def main(arguments: Arguments) -> None:
    joint = load_config(arguments.config)
    tokens = tokens_of_modalities(joint)
    print(f"tokens of a step: {', '.join(f'{name} {count:.0f}' for name, count in tokens.items())}", flush=True)
    rows = []
    for name in arguments.names or tokens:
        single = alone(joint, name)
        steps = round(joint.run.steps * tokens[name] / tokens_of_modalities(single)[name])
        rows.append((name, single.replace(run={"steps": steps})))
    for config in (joint, *(config for _, config in rows)):
        train(config)
    print(f"{'':10}{'steps alone':>12}{'loss alone':>12}{'joint':>10}{'ratio':>8}")
    for name, single in rows:
        own, shared = (last_loss(config, name) for config in (single, joint))
        print(f"{name:10}{single.run.steps:12}{own:12.4f}{shared:10.4f}{shared / own:8.3f}")


def alone(joint: Config, name: str) -> Config:
    """The same network, trained on one modality."""
    index = joint.model.modality_index(name)
    parts = tuple(part for part in joint.data.mixture if joint.model.modality_index(part.modality) == index)
    return joint.replace(data={"mixture": parts}, run={"name": f"{joint.run.name}-{name}"})


def tokens_of_modalities(config: Config) -> dict[str, float]:
    """Mean tokens of each modality in a batch."""
    found = np.zeros(len(config.model.modalities))
    with Stream(open_source(config.data, config.model), config.data, config.model, seed=config.run.seed) as stream:
        for _ in range(COUNTED):
            batch = next(stream)
            own = batch.tokens.modalities[batch.tokens.segment_ids > 0]
            found += np.bincount(own, minlength=len(found))
    named = zip(config.model.modalities, found / COUNTED, strict=True)
    return {modality.name: float(count) for modality, count in named if count}


def train(config: Config) -> None:
    """In a process of its own, as a user would; a finished run stays as it is."""
    folder = run_folder(config)
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and (lines := read_metrics(folder)) and lines[-1]["step"] >= config.run.steps:
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    settings.write_text(json.dumps(dataclasses.asdict(config)))
    subprocess.run([sys.executable, str(TRAIN), str(settings)], check=True)


def last_loss(config: Config, name: str) -> float:
    """Mean over the last tenth of the steps."""
    lines = [line for line in read_metrics(run_folder(config)) if line["step"] > 0.9 * config.run.steps]
    return float(np.mean([line[f"loss/{name}"] for line in lines]))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
