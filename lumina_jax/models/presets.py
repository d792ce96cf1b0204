"""The published sizes, as changes to a `ModelConfig`.

S to XL: Lumina-T2X report (arXiv 2405.05945), table of text-to-speech models; 600M, 3B, 7B: label-conditional
ImageNet; 2B: text to video and multi-view; 5B: text to image. "3B" and "5B" differ in their text attention.
Next-2B and Next-2B-GQA: text-conditional Next-DiT (arXiv 2406.18583); Next-600M to Next-7B: label-conditional ones.
Audio: text to audio and to music, from the released code (`lumina_audio`, `lumina_music`).
DiT-S to DiT-XL: DiT (arXiv 2212.09748, table 1), label-conditional ImageNet; SiT (arXiv 2401.08740) has these networks.
The published widths of L and XL are not multiples of their numbers of heads; here each head has 42 values.
"""

from typing import Any

from lumina_jax.config import ModelConfig

NEXT: dict[str, Any] = {"block": "next", "rope_axes": 2, "nextline": False, "nextframe": False}
NEXT_TEXT = NEXT | {"final_shift": False, "text_width": 2048}
NEXT_LABEL = NEXT | {"norm_weights": False, "conditioning": "label"}

AUDIO: dict[str, Any] = {"layers": 16, "heads": 32, "width": 768, "patch_size": 1, "channels": 20, "text_width": 1024}
AUDIO |= {"modality": "sound", "qk_norm": False, "nextline": False, "nextframe": False}
AUDIO |= {"condition_limit": None, "time_scale": 1000.0}

DIT: dict[str, Any] = {"block": "dit", "qk_norm": False, "norm_eps": 1e-6, "condition_limit": None}
DIT |= {"nextline": False, "nextframe": False, "conditioning": "label"}

SIZES: dict[str, dict[str, Any]] = {
    "S": {"layers": 4, "heads": 8, "width": 768},
    "B": {"layers": 8, "heads": 12, "width": 768},
    "L": {"layers": 12, "heads": 24, "width": 1024, "attention_width": 24 * 42},
    "XL": {"layers": 20, "heads": 28, "width": 1152, "attention_width": 28 * 42},
    "600M": {"layers": 16, "heads": 32, "width": 1536},
    "2B": {"layers": 24, "heads": 32, "width": 2304},
    "3B": {"layers": 32, "heads": 32, "width": 3072},
    "5B": {"layers": 32, "heads": 32, "width": 3072},
    "7B": {"layers": 32, "heads": 32, "width": 4096},
    "Audio": AUDIO,
    "Next-2B": NEXT_TEXT | {"layers": 24, "heads": 32, "width": 2304},
    "Next-2B-GQA": NEXT_TEXT | {"layers": 24, "heads": 32, "width": 2304, "kv_heads": 8},
    "Next-600M": NEXT_LABEL | {"layers": 16, "heads": 32, "width": 1536},
    "Next-3B": NEXT_LABEL | {"layers": 32, "heads": 32, "width": 3072},
    "Next-7B": NEXT_LABEL | {"layers": 32, "heads": 32, "width": 4096},
    "DiT-S": DIT | {"layers": 12, "heads": 6, "width": 384},
    "DiT-B": DIT | {"layers": 12, "heads": 12, "width": 768},
    "DiT-L": DIT | {"layers": 24, "heads": 16, "width": 1024},
    "DiT-XL": DIT | {"layers": 28, "heads": 16, "width": 1152},
}


def preset(size: str, **changes: Any) -> ModelConfig:
    """The configuration of a published size, with changes: `preset("5B", text_width=4096)`.

    Raises:
      ValueError: no size of that name.
    """
    if size not in SIZES:
        raise ValueError(f"{size=} is not a published size; choose one of {', '.join(SIZES)}")
    return ModelConfig(**(SIZES[size] | changes))
