"""The text half of CLAP as Microsoft published it, read from its checkpoint: one of the encoders of Lumina-T2Audio.

In: a folder with CLAP_weights_*.pth and, beside it, config.json and the tokenizer of BERT base uncased; token ids [b t]
and a mask [b t] of the real tokens. Out: features [b t m], in float32.
Elizalde et al., arXiv 2206.04769: BERT and a projection, x W1 and a residual branch of GELU and W2 under one LayerNorm.
The authors of CLAP project the first token alone, Lumina-T2Audio every one. The half for sounds is left alone.
"""

import dataclasses
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.bert import BERT_RULES, Bert, BertConfig, bert_config, bert_name
from lumina_jax.encoders.published import AS_USUAL, Loading, load
from lumina_jax.models.layers import LayerNorm, Linear
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import Rule, linear, norm

WEIGHTS = "CLAP_weights_*.pth"
_TEXT, _BASE, _PROJECTION = "caption_encoder.", "base.", "projection."


class ClapText(nnx.Module):
    """BERT and the projection of each token."""

    def __init__(self, rngs: nnx.Rngs, config: BertConfig, width: int):
        self.bert = Bert(rngs, config)
        self.first = Linear(rngs, config.width, width, axes=("embed", None))
        self.second = Linear(rngs, width, width, axes=("embed", None))
        self.norm = LayerNorm(rngs, width)
        self.config = dataclasses.replace(config, width=width)

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b t m"]:
        """The projected hidden state of each token; real tokens see only real tokens."""
        with jax.default_matmul_precision("highest"):
            y = self.first(self.bert(token_ids, mask))
            return self.norm(y + self.second(jax.nn.gelu(y, approximate=False)))


def clap_file(folder: Path) -> Path | None:
    """The checkpoint of CLAP in a folder, if it holds one.

    Raises:
      ValueError: it holds several.
    """
    found = sorted(folder.glob(WEIGHTS))
    if len(found) > 1:
        raise ValueError(f"{folder} must hold one {WEIGHTS}, but holds {', '.join(f.name for f in found)}; keep one")
    return found[0] if found else None


def load_clap(folder: Path, loading: Loading = AS_USUAL) -> ClapText:
    """The text encoder of the CLAP in `folder`; there is no other state than the last.

    Raises:
      ValueError: a file is missing or unreadable; config.json is not that of its BERT; tensors are missing.
    """
    file = clap_file(folder)
    if file is None or loading.state not in (None, "last"):
        raise ValueError(f"{folder} must hold {WEIGHTS}, of which only the last state can be had; leave out the state")
    config, tensors = bert_config(folder, loading), PickledTensors(file, within="model")
    first = f"{_TEXT}{_PROJECTION}linear1.weight"
    if first not in tensors:
        raise ValueError(f"{file} must hold {first}, but does not; take the checkpoint of 2022 that the authors use")
    width = tensors.shape(first)[0]

    def rename(stored: str) -> str | None:
        name = stored.removeprefix(_TEXT)
        if name == stored:
            return None
        inner = bert_name(name.removeprefix(_BASE), config) if name.startswith(_BASE) else name
        return f"{_BASE}{inner}" if name.startswith(_BASE) and inner is not None else inner

    return load(
        lambda: ClapText(nnx.Rngs(0), config, width), _RULES, rename, folder,
        config=config, loading=loading, stored=tensors,
    )  # fmt: skip


_RULES = (
    *(Rule(f"{_BASE}{rule.theirs}", f"bert.{rule.ours}", rule.axes) for rule in BERT_RULES),
    *linear(f"{_PROJECTION}linear1", "first", bias=False),
    *linear(f"{_PROJECTION}linear2", "second", bias=False),
    *norm(f"{_PROJECTION}layer_norm", "norm", bias=True),
)
