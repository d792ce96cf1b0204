"""The model card of an export: README.md, which describes the files and how to open them."""

from collections.abc import Sequence
from pathlib import Path

from lumina_jax import __version__
from lumina_jax.config import ModelConfig
from lumina_jax.interop.sources import WeightSource
from lumina_jax.weights.writer import Planned, WrittenFile, total_bytes

USE = {
    "jax": """\
Layers are stacked along the first axis of each block parameter; matrices are [in, out].

```python
from lumina_jax.interop.converted import load_parameters, read_model

config = read_model("{folder}")
parameters = load_parameters("{folder}", config)
```
""",
    "lumina": """\
The tensors are named as in the repository Alpha-VLLM/Lumina-T2X, and config.json contains the arguments of the
constructor there: {call}. The sample.py of that repository reads consolidated.00-of-01.safetensors and, from the same
folder, model_args.pth with the arguments of the training script, which PyTorch writes:

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

To load the whole pipeline with `LuminaPipeline.from_pretrained("{folder}")`, the folders vae/ (AutoencoderKL),
text_encoder/ (GemmaModel) and tokenizer/ are also needed, such as those of Alpha-VLLM/Lumina-Next-SFT-diffusers. If
they are missing, copy them next to transformer/, or pass the three components to `from_pretrained`.
""",
}
LIBRARIES = {"jax": "lumina_jax", "lumina": "pytorch", "diffusers": "diffusers"}


def model_card(
    source: WeightSource, layout: str, plan: Sequence[Planned], written: Sequence[WrittenFile], folder: Path
) -> str:
    """Return the text of README.md.

    Args:
      folder: the folder that contains the written files.
    """
    config = source.config
    kind = {"flag": "Flag-DiT", "next": "Next-DiT", "dit": "DiT"}[config.block]
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
Values are unchanged{_rounding(source, plan)}. The license is that of the original weights.

{notes}\
| | |
|---|---|
{_sizes(config)}| parameters | {count:,} in {len(plan)} tensors, {types}, {total_bytes(plan):,} bytes |

## How to open it

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
        **({} if config.text_heads is None else {"heads that attend to the text": config.text_heads}),
        "width": config.width,
        "condition": captions if config.conditioning == "text" else labels,
        "latent": f"{config.channels} channels in patches of {config.patch_size}",
        "QK-norm": "yes" if config.qk_norm else "no",
    }
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def _rounding(source: WeightSource, plan: Sequence[Planned]) -> str:
    before = {source.ours.dtype(name) for name in source.ours}
    after = {tensor.dtype for tensor in plan}
    return "" if before == after else f", except that they are rounded to {', '.join(sorted(map(str, after)))}"
