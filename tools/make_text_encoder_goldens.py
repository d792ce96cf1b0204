"""Make tiny random text encoders with transformers, and what they answer: golden data of the encoders' tests.

    pip install torch==2.13.0 transformers safetensors tokenizers
    python tools/make_text_encoder_goldens.py tests/golden

Writes llama_tiny, gemma_tiny, clip_tiny and t5_tiny: config.json, model.safetensors and tokenizer.json as published
encoders have them, and expected.safetensors: `token_ids` and `mask` [b t] of the captions in its metadata, and
`last` and `penultimate` [b t m], computed in float64. Where a family has two feed-forwards, `last_other` is what the
other one makes of the same weights. Every parameter is random, norms and biases too, so that none can hide.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

MAX_TOKENS = 16
CAPTIONS = ["red heart, noto style", "", "an unknown zebra", "Red reds, " * 9, "a heart in a circle, in blue, in red"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*SPECIAL, "a", "an", "in", "red", "heart", "style", "noto", "circle", "blue", ",", "reds"]
SIZES = {"vocab_size": 17, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
T5_SIZES = {"vocab_size": 17, "d_model": 24, "num_layers": 3, "num_heads": 4, "d_ff": 40, "d_kv": 8}
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 30.0}, "rms_norm_eps": 1e-3}
T5 = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "layer_norm_epsilon": 1e-3}
POSITIONS = {"max_position_embeddings": 20}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, **MARKS, **POSITIONS, **ROPE, "num_key_value_heads": 2}),
    "gemma": (
        "GemmaModel",
        "GemmaConfig",
        {**SIZES, **MARKS, **POSITIONS, **ROPE, "num_key_value_heads": 1, "head_dim": 8},
    ),
    "clip": (
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        {**SIZES, **MARKS, **POSITIONS, "layer_norm_eps": 1e-3, "projection_dim": 8},
    ),
    "t5": ("T5EncoderModel", "T5Config", {**T5_SIZES, **MARKS, **T5, "feed_forward_proj": "gated-gelu"}),
}
"""Name to the classes of model and configuration, and sizes that tell wrong settings from right ones."""
OTHER = {"clip": {"hidden_act": "gelu"}, "t5": {"feed_forward_proj": "relu"}}
"""The settings of the other feed-forward of a family."""


def main(folder: Path) -> None:
    """Write the four folders."""
    for kind in KINDS:
        write(folder / f"{kind}_tiny", kind)


def write(folder: Path, kind: str, *, seed: int = 0, model_class: str | None = None, **changes: Any) -> None:
    """Write the four files of one encoder into `folder`; `changes` are settings of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    usual, config_class, sizes = KINDS[kind]
    config = getattr(transformers, config_class)(**{**sizes, **changes}, attn_implementation="eager")
    model = random_model(getattr(transformers, model_class or usual)(config), seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer(kind, published=True).save(str(folder / "tokenizer.json"))
    token_ids, mask = tokens(kind)
    expected = {"token_ids": token_ids.astype(np.int32), "mask": mask.astype(np.int32)}
    expected |= states(model, token_ids, mask)
    if kind in OTHER and model_class is None and not changes:
        other = getattr(transformers, usual)(type(config)(**{**sizes, **OTHER[kind]}, attn_implementation="eager"))
        tensors = {name.replace("wi_0", "wi"): tensor for name, tensor in model.state_dict().items()}
        other.load_state_dict({name: tensor for name, tensor in tensors.items() if "wi_1" not in name})
        expected["last_other"] = states(other.eval(), token_ids, mask)["last"]
    meta = {"captions": CAPTIONS, "max_tokens": MAX_TOKENS, "seed": seed}
    save_file(expected, folder / "expected.safetensors", metadata={"meta": json.dumps(meta)})


def random_model(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name and name.endswith("weight") and "Gemma" not in type(model).__name__
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + is_norm)
    return model.eval()


def states(model: nn.Module, token_ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The last and the penultimate state, in float64."""
    inner = {"LlamaForCausalLM": "model", "GemmaForCausalLM": "model", "T5ForConditionalGeneration": "encoder"}
    name = {**inner, "CLIPTextModelWithProjection": "text_model"}.get(type(model).__name__)
    encoder = (model if name is None else getattr(model, name)).double()
    with torch.no_grad():
        ids, real = torch.from_numpy(token_ids), torch.from_numpy(mask)
        answer = encoder(input_ids=ids, attention_mask=real, output_hidden_states=True)
    found = {"last": answer.last_hidden_state, "penultimate": answer.hidden_states[-2]}
    return {state: value.numpy().astype(np.float32) for state, value in found.items()}


def tokens(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of CAPTIONS. LLaMA's are cut after its closing mark was put, as the authors of Lumina-T2X do."""
    words = tokenizer(kind, published=False)
    if kind != "llama":
        words.enable_truncation(MAX_TOKENS)
    rows = [words.encode(caption).ids[:MAX_TOKENS] for caption in CAPTIONS]
    token_ids = np.array([row + [0] * (MAX_TOKENS - len(row)) for row in rows], np.int64)
    return token_ids, np.array([[index < len(row) for index in range(MAX_TOKENS)] for row in rows], np.int64)


def tokenizer(kind: str, *, published: bool) -> Tokenizer:
    """Lower-case words. The published LLaMA puts an opening mark only; the authors ask for the closing one as well."""
    result = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    template = {"llama": "<s> $A" if published else "<s> $A </s>", "gemma": "<s> $A", "t5": "$A </s>"}
    result.post_processor = processors.TemplateProcessing(
        single=template.get(kind, "<s> $A </s>"), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
