"""The authors' Flag-DiT checkpoints: their configuration, their tensors, and our model made of them.

Layouts: `lumina_t2i` (text-conditional) and `Flag-DiT-ImageNet` (label-conditional), model-parallel size 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.weights.modules import fill, named_parameters
from lumina_jax.weights.rules import Named, Rule, linear, norm, to_theirs


def model_config(theirs: Mapping[str, Any], parameters: Mapping[str, np.ndarray], **changes: Any) -> ModelConfig:
    """Our configuration of a model built with their constructor arguments (theirs default as in their code).

    Whether it is conditioned by text or labels, and how many labels, is read off the parameters: a table of labels
    without a row for 'no label' gives its last row that meaning.
    """
    text = "eol_token" in parameters
    labels = parameters.get("y_embedder.embedding_table.weight")
    settings = {
        "layers": theirs.get("n_layers", 32),
        "heads": theirs.get("n_heads", 32),
        "width": theirs.get("dim", 4096),
        "kv_heads": theirs.get("n_kv_heads"),
        "patch_size": theirs.get("patch_size", 2),
        "channels": theirs.get("in_channels", 4),
        "conditioning": "text" if text else "label",
        "qk_norm": theirs.get("qk_norm", False),
        "mlp_multiple_of": theirs.get("multiple_of", 256),
        "mlp_multiplier": theirs.get("ffn_dim_multiplier"),
        "norm_eps": theirs.get("norm_eps", 1e-5),
        "predict_sigma": theirs.get("learn_sigma", True),
        "nextline": text,
        "nextframe": False,
        "pad_token": text,
        "text_width": theirs.get("cap_feat_dim", 5120) if text else 4096,
        "classes": 1000 if labels is None else max(1, labels.shape[0] - 1),
    }
    return ModelConfig(**(settings | changes))


def flag_dit_rules(config: ModelConfig) -> list[Rule]:
    """The rules for a Flag-DiT of this configuration."""
    text = config.conditioning == "text"
    layer, attention = "layers.{layer}", "layers.{layer}.attention"
    rules = [
        *linear("x_embedder", "patch_embedding", bias=True),
        *linear("t_embedder.mlp.0", "time_embedding.inner", bias=True),
        *linear("t_embedder.mlp.2", "time_embedding.outer", bias=True),
        *linear(f"{layer}.adaLN_modulation.1", "blocks.modulation.linear", bias=True),
        *norm(f"{layer}.attention_norm", "blocks.attention_norm", bias=False),
        *norm(f"{layer}.ffn_norm", "blocks.mlp_norm", bias=False),
        *linear(f"{layer}.feed_forward.w1", "blocks.mlp.gate", bias=False),
        *linear(f"{layer}.feed_forward.w2", "blocks.mlp.down", bias=False),
        *linear(f"{layer}.feed_forward.w3", "blocks.mlp.up", bias=False),
        *linear(f"{attention}.wq", "blocks.attention.query", bias=False),
        *linear(f"{attention}.wk", "blocks.attention.key", bias=False),
        *linear(f"{attention}.wv", "blocks.attention.value", bias=False),
        *linear(f"{attention}.wo", "blocks.attention.out", bias=False),
        *linear("final_layer.adaLN_modulation.1", "final_layer.modulation.linear", bias=True),
        *linear("final_layer.linear", "final_layer.linear", bias=True),
    ]
    if config.qk_norm:
        rules += norm(f"{attention}.q_norm", "blocks.attention.query_norm", bias=True)
        rules += norm(f"{attention}.k_norm", "blocks.attention.key_norm", bias=True)
    if not text:
        return [*rules, Rule("y_embedder.embedding_table.weight", "label_embedding.table")]
    rules += [
        Rule("eol_token", "nextline_token"),
        Rule("pad_token", "pad_token"),
        *norm("cap_embedder.0", "caption_pooling.norm", bias=True),
        *linear("cap_embedder.1", "caption_pooling.linear", bias=True),
        *norm(f"{layer}.attention_y_norm", "blocks.text.norm", bias=False),
        *linear(f"{attention}.wk_y", "blocks.text.key", bias=False),
        *linear(f"{attention}.wv_y", "blocks.text.value", bias=False),
        Rule(f"{attention}.gate", "blocks.text.gate"),
    ]
    if config.qk_norm:
        rules += norm(f"{attention}.ky_norm", "blocks.text.key_norm", bias=True)
    return rules


def from_lumina(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> FlagDiT:
    """Our model with their weights.

    Raises:
      ValueError: tensors are missing, unknown or of the wrong shape; the message names them.
    """
    return fill(lambda: FlagDiT(config, rngs=nnx.Rngs(0)), tensors, flag_dit_rules(config), layers=config.layers)


def to_lumina(model: FlagDiT) -> Named:
    """Their tensors of our model: the inverse of `from_lumina`, bit for bit."""
    return lumina_tensors(model.config, nnx.to_pure_dict(nnx.state(model)))


def lumina_tensors(config: ModelConfig, parameters: dict[str, Any]) -> Named:
    """A tree of our parameters, or of anything of their shape such as gradients, under their names."""
    ours = {name: np.asarray(value) for name, value in named_parameters(parameters).items()}
    return to_theirs(ours, flag_dit_rules(config), layers=config.layers)
