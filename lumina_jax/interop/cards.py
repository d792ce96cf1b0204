"""The model card of an export: README.md, which says what lies beside it and how it is opened."""

from collections.abc import Sequence
from pathlib import Path

from lumina_jax import __version__
from lumina_jax.config import ModelConfig
from lumina_jax.interop.sources import Source
from lumina_jax.weights.writer import Planned, Written, total_bytes

USE = {
    "jax": """\
The layers of a block are stacked along the first axis; matrices are [in, out].

```python
from lumina_jax.interop.converted import load_parameters, read_model

config = read_model("{folder}")
parameters = load_parameters("{folder}", config)
```
""",
    "lumina": """\
The tensors are named as in the authors' repository (Alpha-VLLM/Lumina-T2X), and config.json holds the arguments of
their constructor: {call}. Their sample.py reads consolidated.00-of-01.safetensors, and beside it model_args.pth with
the arguments of their training script, which PyTorch writes:

```python
import argparse, torch

torch.save(argparse.Namespace(model="...", qk_norm={qk_norm}, model_parallel_size=1, vae="sdxl"), "model_args.pth")
```
""",
    "diffusers": """\
```python
from diffusers import LuminaNextDiT2DModel

transformer = LuminaNextDiT2DModel.from_pretrained("{folder}", subfolder="transformer")
```

A whole `LuminaPipeline.from_pretrained("{folder}")` also needs the folders vae/ (AutoencoderKL), text_encoder/
(GemmaModel) and tokenizer/ beside transformer/, such as those of Alpha-VLLM/Lumina-Next-SFT-diffusers. Where they are
missing, copy them there, or give these three to `from_pretrained` as arguments.
""",
}
LIBRARIES = {"jax": "lumina_jax", "lumina": "pytorch", "diffusers": "diffusers"}


def model_card(source: Source, layout: str, plan: Sequence[Planned], written: Sequence[Written], folder: Path) -> str:
    """The text of README.md.

    Args:
      folder: where the written files lie.
    """
    config = source.config
    kind = {"flag": "Flag-DiT", "next": "Next-DiT"}[config.block]
    count = sum(tensor.size for tensor in plan)
    notes = "".join(f"* {note}\n" for note in source.notes) + ("\n" if source.notes else "")
    files = "".join(f"| {file.path.relative_to(folder)} | `{file.sha256}` |\n" for file in written)
    call = "NextDiT" if config.block == "next" and config.conditioning == "text" else "DiT_Llama"
    call = "FlagDiT" if config.condition_limit is None else call
    use = USE[layout].format(folder="FOLDER", qk_norm=config.qk_norm, call=f"{call}(**config)")
    types = ", ".join(sorted({str(tensor.dtype) for tensor in plan}))
    return f"""\
---
library_name: {LIBRARIES[layout]}
tags: [lumina, {config.conditioning}-conditional]
---

# {kind}, {_short(count)} parameters, {layout} layout

Converted by lumina_jax {__version__} from {source.origin}.
Values are unchanged{_but(source, plan)}. The license is that of the original weights.

{notes}\
| | |
|---|---|
{_sizes(config)}| parameters | {count:,} in {len(plan)} tensors, {types}, {total_bytes(plan):,} bytes |

## Opening it

{use}
## Files

| weights | SHA-256 |
|---|---|
{files}"""


def _sizes(config: ModelConfig) -> str:
    captions, labels = f"captions of width {config.text_width}", f"{config.classes} labels"
    rows = {
        "layers": config.layers,
        "heads": f"{config.heads} for queries, {config.key_heads} for keys, each {config.head_width} wide",
        "width": config.width,
        "condition": captions if config.conditioning == "text" else labels,
        "latent": f"{config.channels} channels in patches of {config.patch_size}",
        "QK-norm": "yes" if config.qk_norm else "no",
    }
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def _but(source: Source, plan: Sequence[Planned]) -> str:
    before = {source.ours.dtype(name) for name in source.ours}
    after = {tensor.dtype for tensor in plan}
    return "" if before == after else f", but rounded to {', '.join(sorted(map(str, after)))}"
