"""The layout of the released checkpoints: their configuration and the names of their tensors.

The models are the text-conditional Flag-DiT (`lumina_t2i`) and Next-DiT (`lumina_next_t2i`), the label-conditional ones
(`Flag-DiT-ImageNet`, `Next-DiT-ImageNet`), and the one-dimensional Flag-DiT of `lumina_audio` and `lumina_music`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from lumina_jax.config import ModelConfig
from lumina_jax.interop.limits import Factor, Size, check_fields, layer_fields
from lumina_jax.weights.rules import Rule, linear, norm


class ConstructorArguments(TypedDict, total=False):
    """The arguments of the constructors; the audio models use depth, num_heads and hidden_size."""

    patch_size: Size
    in_channels: Size
    dim: Size
    hidden_size: Size
    n_layers: Size
    depth: Size
    n_heads: Size
    num_heads: Size
    n_kv_heads: Size | None
    multiple_of: Size
    ffn_dim_multiplier: Factor | None
    norm_eps: Factor
    learn_sigma: bool
    qk_norm: bool | None


def model_config(theirs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ModelConfig:
    """Convert constructor arguments and tensors to our configuration.

    The kind of model, and each size that the arguments leave out, are inferred from the tensors. What cannot be
    inferred (the heads of a label-conditional model, the patch size, the multiple of the feed-forward width) has the
    default of the constructor. If the table of labels has no row for 'no label', its last row is used for it.
    """
    audio, text = "proj_in.bias" in tensors, "cap_embedder.1.bias" in tensors
    layer = "blocks" if audio else "layers"
    entry, final = tensors["proj_in.weight" if audio else "x_embedder.weight"], tensors["final_layer.linear.bias"]
    width, patch_size = len(entry), 1 if audio else theirs.get("patch_size", 2)
    channels = theirs.get("in_channels", entry.shape[1] // patch_size**2)
    next_dit = len(tensors[f"{layer}.0.adaLN_modulation.1.bias"]) == 4 * width
    attention = f"{layer}.0.attention"
    heads = len(tensors[f"{attention}.gate"]) if text else theirs.get("n_heads", 32)
    kv_heads = len(tensors[f"{attention}.wk.weight"]) * heads // width
    counted = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith(f"{layer}.")), default=0)
    settings: dict[str, Any] = {
        "layers": theirs.get("depth" if audio else "n_layers", counted),
        "heads": theirs.get("num_heads" if audio else "n_heads", heads),
        "width": theirs.get("hidden_size" if audio else "dim", width),
        "kv_heads": theirs.get("n_kv_heads", kv_heads if kv_heads != heads else None),
        "block": "next" if next_dit else "flag",
        "norm_weights": text or not next_dit,
        "final_shift": len(tensors["final_layer.adaLN_modulation.1.bias"]) == 2 * width,
        "condition_limit": None if audio else 1024,
        "time_scale": 1000.0 if audio else 1.0,
        "patch_size": patch_size,
        "channels": channels,
        "conditioning": "text" if text else "label",
        "qk_norm": theirs.get("qk_norm", f"{attention}.q_norm.weight" in tensors) or False,
        "mlp_multiple_of": theirs.get("multiple_of", 256),
        "mlp_multiplier": theirs.get("ffn_dim_multiplier"),
        "norm_eps": theirs.get("norm_eps", 1e-5),
        "predict_sigma": theirs.get("learn_sigma", len(final) == 2 * channels * patch_size**2) and not audio,
        "nextline": "eol_token" in tensors,
        "nextframe": False,
        "modality": "sound" if audio else "image",
        "pad_token": "pad_token" in tensors,
        "rope_axes": 2 if next_dit else 1,
    }
    if text:
        settings["text_width"] = len(tensors["cap_embedder.0.bias"])
    else:
        settings["classes"] = max(1, len(tensors["y_embedder.embedding_table.weight"]) - 1)
    return ModelConfig(**settings)


def their_config(config: ModelConfig) -> dict[str, Any]:
    """Convert our configuration to constructor arguments: the inverse of `model_config`.

    Raises:
      ValueError: none of the released models can represent it; the message gives the reason.
    """
    audio, label, next_dit = config.condition_limit is None, config.conditioning == "label", config.block == "next"
    name = f"{'label' if label else 'text'}-conditional {'Next' if next_dit else 'Flag'}-DiT"
    if audio:
        name = "one-dimensional Flag-DiT for sounds"
    expected: dict[str, Any] = {
        "attention_width": None,
        "own_text_query": False,
        "rope_theta": 10_000.0,
        "rope_axes": 2 if next_dit else 1,
        "final_shift": label or not next_dit,
        "norm_weights": not (label and next_dit),
        "nextline": not (audio or label or next_dit),
        "nextframe": False,
        "pad_token": has_pad_token(config),
        "time_scale": 1000.0 if audio else 1.0,
        "text_layers": 0,
        "others": (),
        "base_heads": None,  # queries of wider heads have a factor, which the layout has not
    }
    if audio:
        expected |= {"conditioning": "text", "patch_size": 1, "predict_sigma": False}
        next_dit = False
    check_fields(config, layer_fields(config, "next" if next_dit else "flag") | expected, f"the released {name}")
    shared = {
        "n_kv_heads": config.kv_heads,
        "multiple_of": config.mlp_multiple_of,
        "ffn_dim_multiplier": config.mlp_multiplier,
        "norm_eps": config.norm_eps,
        "qk_norm": config.qk_norm,
        "in_channels": config.channels,
    }
    if audio:
        sizes = {"hidden_size": config.width, "depth": config.layers, "num_heads": config.heads}
        return sizes | shared | {"context_dim": config.text_width}
    sizes = {"dim": config.width, "n_layers": config.layers, "n_heads": config.heads, "patch_size": config.patch_size}
    condition = {"num_classes": config.classes} if label else {"cap_feat_dim": config.text_width}
    return sizes | shared | condition | {"learn_sigma": config.predict_sigma}


def has_pad_token(config: ModelConfig) -> bool:
    """Whether the released model has an embedding of padding; the text-conditional picture models do."""
    return config.conditioning == "text" and config.condition_limit is not None


def flag_dit_rules(config: ModelConfig) -> list[Rule]:
    """Return the rules for this configuration; the audio models name layers and input projection differently."""
    audio = config.condition_limit is None
    layer, entry = ("blocks.{layer}", "proj_in") if audio else ("layers.{layer}", "x_embedder")
    attention = f"{layer}.attention"
    rules = [
        *linear(entry, "patch_embedding", bias=True),
        *linear("t_embedder.mlp.0", "time_embedding.inner", bias=True),
        *linear("t_embedder.mlp.2", "time_embedding.outer", bias=True),
        *linear(f"{layer}.adaLN_modulation.1", "blocks.modulation.linear", bias=True),
        *_norm_rules(config, layer),
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
    if config.nextline:
        rules.append(Rule("eol_token", "nextline_token"))
    if config.pad_token:
        rules.append(Rule("pad_token", "pad_token"))
    if config.conditioning == "label":
        return [*rules, Rule("y_embedder.embedding_table.weight", "label_embedding.table")]
    rules += [
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


def _norm_rules(config: ModelConfig, layer: str) -> list[Rule]:
    """Return the rules of norms before and after each branch; one model has weights only in the latter."""
    if config.block == "flag":
        names = {"attention_norm": "attention_norm", "ffn_norm": "mlp_norm"}
    elif config.norm_weights:
        names = {
            "attention_norm1": "attention_norm", "attention_norm2": "attention_out_norm",
            "ffn_norm1": "mlp_norm", "ffn_norm2": "mlp_out_norm",
        }  # fmt: skip
    else:
        names = {"attention_norm": "attention_out_norm", "ffn_norm": "mlp_out_norm"}
    return [rule for theirs, ours in names.items() for rule in norm(f"{layer}.{theirs}", f"blocks.{ours}", bias=False)]
