"""Make a tiny random BERT with transformers, and what it answers: the golden data of the text encoder's tests.

    pip install torch==2.13.0 transformers safetensors tokenizers
    python tools/make_bert_golden.py tests/golden/bert_tiny

Writes config.json, model.safetensors and tokenizer.json as published encoders have them, and expected.safetensors:
`token_ids` and `mask` [b t] of the captions in its metadata, and `features` [b t m], computed in float64. Every
parameter is random, norms and biases too, so that none can hide.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel

MAX_TOKENS = 10
CAPTIONS = ["red heart, noto style", "", "an unknown zebra", "Red reds a heart a red heart in a red heart, in style"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "an", "in", "red", "heart", "style", "noto", "circle", "blue", ",", "##s", "##ed"]


def main(folder: Path, seed: int = 0) -> None:
    """Write the four files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(seed)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    fast = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = fast(CAPTIONS, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        features = model.double()(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    expected = {
        "token_ids": inputs["input_ids"].numpy().astype(np.int32),
        "mask": inputs["attention_mask"].numpy().astype(np.int32),
        "features": features.numpy().astype(np.float32),
    }
    meta = {"captions": CAPTIONS, "max_tokens": MAX_TOKENS, "seed": seed}
    save_file(expected, folder / "expected.safetensors", metadata={"meta": json.dumps(meta)})


def random_model(seed: int) -> BertModel:
    """Three layers of width 24, whose attention and norms differ visibly from those of any other settings."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=16,
        layer_norm_eps=1e-3,
        attn_implementation="eager",
    )
    model = BertModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + centre)
    return model


def tokenizer() -> Tokenizer:
    """Lower-case WordPiece over WORDS, with [CLS] and [SEP] around each caption."""
    result = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    result.normalizer = normalizers.BertNormalizer(lowercase=True)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
    )
    result.enable_padding(pad_id=0, pad_token="[PAD]")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
