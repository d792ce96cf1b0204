"""The configuration of a command line: a configuration file, and flags that change single settings.

In: `emoji --optimizer.learning-rate 1e-4`. Out: one `Config`.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from lumina_jax.config import Config, ModelConfig
from lumina_jax.config.command_line import with_flags
from lumina_jax.config_files import config_names, depends_on_device, load_config
from lumina_jax.launch import runs_on_cpu
from lumina_jax.run import CONFIG_FILE, read_model, run_folder


def parse_config(
    arguments: Sequence[str], description: str, *, command: str = "train", on_cpu: bool | None = None
) -> Config:
    """The configuration that is named first, changed by the flags that follow it; --help and bad flags exit.

    A warmup that a short run has no room for is shortened, unless a flag asks for it. Of a configuration with settings
    for CPUs and others for GPUs and TPUs, those of this machine are taken, or those with which the run in the folder
    was begun.

    Args:
      command: of `lumina`, for --help.
      on_cpu: as for `load_config`; not None: whatever run there is.

    Raises:
      ValueError: there is no such configuration, or the settings cannot work together.
    """
    words, program = list(arguments), f"lumina {command} CONFIG"
    if not words or words[0].startswith("-"):
        if "-h" not in words and "--help" not in words:
            names = f"folder for your own pictures, emoji for the demo. All: {', '.join(config_names())}"
            print(f"{description}\nName a configuration first: {names}", file=sys.stderr)
            raise SystemExit(2)
        return with_flags(
            Config(model=ModelConfig(layers=4, heads=8, width=768)), words, description, f"lumina {command} CONFIG"
        )
    name, *words = words
    config = with_flags(load_config(name, on_cpu), words, description, program)
    if on_cpu is None and depends_on_device(name):
        here, why = runs_on_cpu(), ""
        other = with_flags(load_config(name, not here), words, description, program)
        if _is_begun_otherwise(config, other):
            config, here, why = other, not here, f", with which {run_folder(config)} was begun"
        print(f"{name}: the settings for {'CPUs' if here else 'GPUs and TPUs'}{why}", flush=True)
    return _with_fitting_warmup(config, words)


def _is_begun_otherwise(config: Config, other: Config) -> bool:
    """Whether the run of `config` was begun with the model of `other`."""
    file = run_folder(config) / CONFIG_FILE
    if config.model == other.model or not file.is_file():
        return False
    try:
        return read_model(file.parent) == other.model
    except ValueError:  # a damaged file tells nothing; it will be written anew
        return False


def _with_fitting_warmup(config: Config, words: Sequence[str]) -> Config:
    """The configuration with a warmup that leaves steps for a schedule that decays: a tenth of a run that is too short.

    Raises:
      ValueError: a flag asks for a warmup that does not.
    """
    warmup, steps = config.optimizer.warmup_steps, config.run.steps
    if config.optimizer.schedule == "constant" or warmup < steps:
        return config
    if any(re.match(r"--optimizer\.warmup[-_]steps(=|$)", word) for word in words):
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must be less than run.steps={steps} when the schedule is "
            f"{config.optimizer.schedule!r}; shorten the warmup or lengthen the run"
        )
    print(f"optimizer.warmup_steps is {steps // 10} instead of {warmup}, because run.steps is {steps}", flush=True)
    return config.replace(optimizer={"warmup_steps": steps // 10})


def flat_settings(config: Config) -> dict[str, Any]:
    """Each setting under the name of its flag, such as "optimizer.learning_rate"."""
    sections = {name: section.settings() for name, section in config.settings().items()}
    plain = json.loads(json.dumps(sections, default=dataclasses.asdict))
    return {f"{section}.{name}": value for section, fields in plain.items() for name, value in fields.items()}
