"""The text encoder of Microsoft's CLAP, which Lumina-T2Audio uses, read from its published checkpoint.

In: a folder that holds CLAP_weights_*.pth together with the config.json and tokenizer of BERT base uncased; token ids
[b t] and a mask [b t], which is true at real tokens. Out: features [b t m] in float32.
Elizalde et al., arXiv 2206.04769, put a projection after BERT: LayerNorm(y + GELU(y) W2) with y = x W1. The authors of
CLAP project the first token only, whereas Lumina-T2Audio projects every token. The audio encoder is not read.
"""

import dataclasses
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.bert import BERT_RULES, Bert, BertConfig, bert_config, bert_name
from lumina_jax.encoders.published import DEFAULT_OPTIONS, LoadOptions, load_network
from lumina_jax.models.layers import LayerNorm, Linear, ParameterKeys
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import Rule, linear, norm

WEIGHTS_PATTERN = "CLAP_weights_*.pth"
_TEXT, _BASE, _PROJECTION = "caption_encoder.", "base.", "projection."


class ClapText(nnx.Module):
    """BERT followed by a projection of each token."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig, width: int):
        self.bert = Bert(rngs, config)
        self.first = Linear(rngs, config.width, width, axes=("embed", None))
        self.second = Linear(rngs, width, width, axes=("embed", None))
        self.norm = LayerNorm(rngs, width)
        self.config = dataclasses.replace(config, width=width)

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """Return the projected hidden state of each token. Every token attends to the real tokens only."""
        with jax.default_matmul_precision("highest"):
            y = self.first(self.bert(token_ids, mask))
            return self.norm(y + self.second(jax.nn.gelu(y, approximate=False)))


def clap_file(folder: Path) -> Path | None:
    """Return the CLAP checkpoint in a folder, or None if there is none.

    Raises:
      ValueError: the folder holds more than one.
    """
    found = sorted(folder.glob(WEIGHTS_PATTERN))
    if len(found) > 1:
        raise ValueError(
            f"{folder} must hold one {WEIGHTS_PATTERN}, but holds {', '.join(f.name for f in found)}; keep one"
        )
    return found[0] if found else None


def load_clap(folder: Path, options: LoadOptions = DEFAULT_OPTIONS) -> ClapText:
    """Read the text encoder of the CLAP in `folder`. It only has the last state.

    Raises:
      ValueError: a file is missing or unreadable, config.json does not describe its BERT, or tensors are missing.
    """
    file = clap_file(folder)
    if file is None or options.state not in (None, "last"):
        raise ValueError(f"{folder} must hold {WEIGHTS_PATTERN}, and CLAP only has the last state; leave out the state")
    config, tensors = bert_config(folder, options), PickledTensors(file, within="model")
    first = f"{_TEXT}{_PROJECTION}linear1.weight"
    if first not in tensors:
        raise ValueError(f"{file} must hold {first}, but does not; use the checkpoint of 2022")
    width = tensors.shape(first)[0]

    def rename(stored: str) -> str | None:
        name = stored.removeprefix(_TEXT)
        if name == stored:
            return None
        inner = bert_name(name.removeprefix(_BASE), config) if name.startswith(_BASE) else name
        return f"{_BASE}{inner}" if name.startswith(_BASE) and inner is not None else inner

    return load_network(
        lambda: ClapText(ParameterKeys(0), config, width), _RULES, rename, folder,
        config=config, options=options, stored=tensors,
    )  # fmt: skip


_RULES = (
    *(Rule(f"{_BASE}{rule.theirs}", f"bert.{rule.ours}", rule.axes) for rule in BERT_RULES),
    *linear(f"{_PROJECTION}linear1", "first", bias=False),
    *linear(f"{_PROJECTION}linear2", "second", bias=False),
    *norm(f"{_PROJECTION}layer_norm", "norm", bias=True),
)
