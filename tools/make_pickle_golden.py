"""Save tensors and arguments with PyTorch, as the authors' training does: the golden data of reading them without it.

    pip install torch==2.13.0 safetensors
    python tools/make_pickle_golden.py tests/golden/pickled

Writes state.pth, a state_dict with parameters, half and brain floats, a transposed and a strided view of one storage,
a number and an empty tensor; expected.safetensors, the same values; and model_args.pth, an argparse.Namespace.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(folder: Path) -> None:
    """Write the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state = torch.nn.Linear(4, 3).state_dict()
    shared = torch.randn(5, 6)
    state |= {
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "half": torch.randn(3, 2).half(),
        "brain": torch.randn(3, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "whole": shared,
        "transposed": shared.T,
        "strided": shared[1:4, ::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "number": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
    }
    torch.save(state, folder / "state.pth")
    save_file(
        {name: value.detach().clone().contiguous() for name, value in state.items()}, folder / "expected.safetensors"
    )
    arguments = argparse.Namespace(
        model="NextDiT_2B_GQA_patch2", qk_norm=True, vae="sdxl", lr=1e-4, image_size=1024, resume=None, sizes=[256, 512]
    )
    torch.save(arguments, folder / "model_args.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
