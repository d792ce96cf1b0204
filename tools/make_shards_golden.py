"""Run the authors' models on two ranks of tensor parallelism: the golden data of merging their checkpoints.

    git clone https://github.com/Alpha-VLLM/Lumina-T2X
    pip install torch==2.13.0 fairscale safetensors
    python tools/make_shards_golden.py Lumina-T2X tests/golden/shards

Writes t2i.safetensors and imagenet.safetensors, files like those of one rank except that parameters are
`rank/<rank>/<name>`, as each rank saves them: random, and equal on both ranks where a model without parallelism has
the same shape.
"""

import importlib.util
import json
import os
import sys
import types
import zlib
from pathlib import Path

import fairscale.nn.model_parallel.initialize as parallel
import torch
from safetensors.torch import save_file

RANKS = 2
SIZES = {"patch_size": 2, "in_channels": 4, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16}
MODELS = {
    "t2i": ("lumina_t2i/models/model.py", SIZES | {"qk_norm": False, "cap_feat_dim": 24}),
    "imagenet": ("Flag-DiT-ImageNet/models/model.py", SIZES | {"qk_norm": False, "num_classes": 6, "input_size": 8}),
}


def main(checkout: Path, folder: Path) -> None:
    """Write one file for each of `MODELS`."""
    torch.multiprocessing.spawn(run_rank, (checkout, folder), RANKS)
    for name, (source, config) in MODELS.items():
        parts = [folder / f"{name}.{rank}.pt" for rank in range(RANKS)]
        states, inputs, outputs = zip(*map(torch.load, parts))
        tensors = {f"rank/{rank}/{key}": value for rank, state in enumerate(states) for key, value in state.items()}
        tensors |= {f"in/fwd/{key}": value for key, value in inputs[0].items()} | {"out/fwd/y": outputs[0]}
        meta = {"cls": f"{source}:DiT_Llama", "config": config, "calls": {"fwd": {"desc": "forward", "kwargs": {}}}}
        save_file(
            {key: value.contiguous() for key, value in tensors.items()},
            folder / f"{name}.safetensors",
            {"meta": json.dumps(meta | {"torch": torch.__version__, "ranks": RANKS})},
        )
        for part in parts:
            part.unlink()


def run_rank(rank: int, checkout: Path, folder: Path) -> None:
    """One process: its parameters, the inputs and what the ranks compute together."""
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # their rotary tables ask for a GPU
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    for name, (source, config) in MODELS.items():
        parallel.initialize_model_parallel(1)
        build = authors_module(checkout / source, name).DiT_Llama
        whole = {key: value.shape for key, value in build(**config).state_dict().items()}
        parallel.destroy_model_parallel()
        parallel.initialize_model_parallel(RANKS)
        model = build(**config).eval()
        for key, value in model.state_dict().items():
            words = key if value.shape == whole[key] else f"{key} of {rank}"
            generator = torch.Generator().manual_seed(zlib.crc32(words.encode()))
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (1.0 if "norm" in key else 0.0))
        inputs = inputs_of(config)
        with torch.no_grad():
            output = model(**inputs)
        torch.save((model.state_dict(), inputs, output), folder / f"{name}.{rank}.pt")
        parallel.destroy_model_parallel()
        torch.distributed.barrier()


def inputs_of(config: dict) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(2, 4, 8, 8, generator=generator), "t": torch.tensor([0.3, 0.8])}
    if "num_classes" in config:
        return inputs | {"y": torch.tensor([1, 5], dtype=torch.int32)}
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.int32)
    return inputs | {"cap_feats": torch.randn(2, 5, config["cap_feat_dim"], generator=generator), "cap_mask": mask}


def authors_module(file: Path, name: str) -> types.ModuleType:
    """Their module, without the attention kernels that only run on GPUs."""
    kernels = types.ModuleType("flash_attn")
    padding = types.ModuleType("flash_attn.bert_padding")
    kernels.flash_attn_func = kernels.flash_attn_varlen_func = None
    padding.index_first_axis = padding.pad_input = padding.unpad_input = None
    sys.modules |= {"flash_attn": kernels, "flash_attn.bert_padding": padding}
    package = types.ModuleType(f"authors_{name}")
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
