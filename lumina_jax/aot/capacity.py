"""How many rows fit a given memory, for each way to hold the base and to keep activations: an estimate.

In: a configuration and the bytes of one device, of whatever kind. Out: a table, and the settings that it recommends.
The arithmetic is that of `search.py`, so that neither a compiler nor a device is needed; a share of the memory is left
for what the arithmetic leaves out. Text encoders and autoencoders are not counted.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lumina_jax.aot.plan import batch_load
from lumina_jax.aot.search import KEPT_VALUES, MEMORY_SHARE, Held, Shares, device_bytes, held_parameters
from lumina_jax.config import Config, ModelConfig

BASES = ("float32", "bfloat16", "int8", "nf4")
"""The types of `finetune.base`, the most exact first."""
REMATS = ("none", "dots", "feed_forward", "attention", "full", "offload")
"""The policies of `model.remat`, the fastest first."""
ALONE = Shares(1, 1, 1, 1, 1)


class Capacity(NamedTuple):
    """The most rows of a batch that fit with these settings."""

    base: str | None
    """The type of the base; None: all parameters train."""
    remat: str
    rows: int

    @property
    def flags(self) -> str:
        base = "" if self.base is None else f"--finetune.base {self.base} "
        return f"{base}--model.remat {self.remat} --data.batch-rows {self.rows}"


def parsed_memory(words: str) -> float:
    """The bytes of 12GB, 12 GB or 15.75GiB.

    Raises:
      ValueError: the words are no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", words)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"memory must be a size such as 12GB or 15.75GiB, but is {words!r}")
    return float(found[1]) * (2**30 if found[2] == "GiB" else 1e9)


def capacities(config: Config, memory: float, vae_factor: int = 8) -> list[Capacity]:
    """The rows that fit `memory` bytes of one device, for each type of the base and each policy, 0 where none does."""
    load, found = batch_load(config, vae_factor), []
    for base in BASES if config.finetune.is_partial else (None,):
        changed = config if base is None else config.replace(finetune={"base": base})
        held = held_parameters(changed)
        for remat in REMATS:
            model = config.replace(model={"remat": remat}).model
            fixed, one = (needed(model, tokens, held) for tokens in (0.0, float(load.tokens)))
            room = MEMORY_SHARE * memory - fixed
            found.append(Capacity(base, remat, max(0, int(room / (one - fixed)))))
    return found


def needed(model: ModelConfig, tokens: float, held: Held) -> float:
    """Bytes of a device that does all the work alone: those of `search.device_bytes`, and what the backward pass of a
    layer computes again and holds at once."""
    width = 4 if model.compute_dtype == "float32" else 2
    again = 0.0 if model.remat == "none" else width * tokens * KEPT_VALUES["none"](model)
    return device_bytes(model, ALONE, tokens, held, 1) + again


def recommended(found: Sequence[Capacity], rows: int) -> Capacity | None:
    """The most exact base and the fastest policy with which this many rows fit; None: they fit with none."""
    return next((one for one in found if one.rows >= rows), None)


def capacity_lines(config: Config, memory: float, rows: int, vae_factor: int = 8) -> Iterator[str]:
    """The table in words."""
    found, tokens = capacities(config, memory, vae_factor), batch_load(config, vae_factor).tokens
    yield f"most rows of {tokens} tokens that fit {memory / 1e9:.4g} GB of one device, by estimate:"
    yield f"  {'base':10}" + "".join(f"{remat:>14}" for remat in REMATS)
    for base in dict.fromkeys(one.base for one in found):
        cells = "".join(f"{one.rows or '-':>14}" for one in found if one.base == base)
        yield f"  {base or 'all train':10}{cells}"
    best = recommended(found, rows)
    if best is None:
        remedy = "fewer" if config.finetune.is_partial else "adapters, --finetune.rank 16, or fewer"
        yield f"{rows} rows do not fit; train {remedy}"
    else:
        yield f"for {rows} rows: {best._replace(rows=rows).flags}"
