"""lumina evaluate-images REAL DRAWN: how near a folder of drawn pictures is to a folder of real ones.

Prints the Frechet distance, the kernel distance (KID), precision and recall, density and coverage of features of the
pictures by a network. REAL is the reference: precision is about drawn pictures that look real, recall about real
pictures that are also drawn. Pictures may have any sizes and formats; those that cannot be read are named and left out.

The networks: efficientnet (EfficientNet-lite0; pip install 'lumina_jax[eval]'), inception (Inception-v3 with --weights
pt_inception-2015-12-05-6726825d.pth, for numbers to compare with published ones), clip (--weights FOLDER of a CLIP; if
DRAWN is a folder of `lumina sample`, how well its pictures fit their prompts is printed too).
With --features both arguments are .npz files with an array "features", or with one array only, [samples width].
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lumina_jax.failures import reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.parts import check_writable, prepare_folder, write_file

if TYPE_CHECKING:
    import numpy as np

    from lumina_jax.evaluation.features import FeatureNetwork
    from lumina_jax.picture_sets import PictureSet

MOST_NAMED = 20
"""Pictures that cannot be read are named one by one up to this number."""


@dataclass(frozen=True)
class Arguments:
    real: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of real pictures, the reference."""
    drawn: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of drawn pictures."""
    features: tuple[Path, Path] | None = None
    """Compare two files of features instead: of the real set, then of the drawn set."""
    network: Literal["efficientnet", "inception", "clip"] = "efficientnet"
    """The network that the features are of."""
    weights: Path | None = None
    """The weights of the network; efficientnet has them in its package."""
    json: Path | None = None
    """Write all numbers into this file."""
    save_features: Path | None = None
    """Write the features of the drawn pictures into this .npz file."""
    save_real_features: Path | None = None
    """Write the features of the real pictures into this .npz file."""
    cache: Path | None = None
    """Folder that keeps the features of real pictures; default: ~/.cache/lumina_jax/picture-features."""
    no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute the features of real pictures even if they are in the cache, and do not keep them."""
    batch: int = 64
    """Pictures that the network sees at once."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina evaluate-images", description=__doc__)
    keep_memory_on_cpu()
    with reported():
        evaluate_images(arguments)
    return 0


def evaluate_images(arguments: Arguments) -> None:
    """The whole command."""
    check(arguments)
    about: dict[str, Any]
    if arguments.features is not None:
        from lumina_jax.picture_sets import read_features

        real, drawn = (read_features(file) for file in arguments.features)
        about = {"network": None, "left_out": []}
        print(f"real: {arguments.features[0]}, drawn: {arguments.features[1]}", flush=True)
    else:
        real, drawn, about = features_of_folders(arguments)
    from lumina_jax.evaluation.set_comparison import compare_sets

    distances = compare_sets(real, drawn)
    if "alignment" in about:
        error = about["alignment_standard_error"]
        said = "" if error is None else f" (standard error {error:.2g})"
        print(f"drawn pictures fit their prompts by {about['alignment']:.2f} of 100{said}")
    print(f"{distances.real} real and {distances.drawn} drawn, {distances.dimensions} features each")
    for line in distances.lines():
        print(line)
    if arguments.json is not None:
        text = json.dumps({**distances.as_json(), **about}, indent=2) + "\n"
        write_file(arguments.json.parent, arguments.json.name, text.encode())


def check(arguments: Arguments) -> None:
    """Refuse arguments that contradict each other."""
    folders = [folder for folder in (arguments.real, arguments.drawn) if folder is not None]
    if arguments.features is not None:
        if folders or arguments.save_features or arguments.save_real_features:
            raise ValueError("--features compares two files; leave out the folders and --save-features")
    elif len(folders) != 2:
        raise ValueError(
            f"two folders must be compared, the real pictures and the drawn ones, but {len(folders)} are named; write "
            "lumina evaluate-images REAL DRAWN, or --features REAL.npz DRAWN.npz"
        )
    if arguments.batch < 1:
        raise ValueError(f"batch={arguments.batch} must be at least 1")
    for file in filter(None, (arguments.json, arguments.save_features, arguments.save_real_features)):
        prepare_folder(file.parent)
        check_writable(file.parent)


def features_of_folders(arguments: Arguments) -> "tuple[np.ndarray, np.ndarray, dict[str, Any]]":
    """The features of real and drawn pictures, and what the JSON says about them."""
    from lumina_jax.evaluation.features import feature_network
    from lumina_jax.picture_sets import default_cache, picture_files, write_features

    assert arguments.real is not None
    assert arguments.drawn is not None
    for folder in (arguments.real, arguments.drawn):
        if folder.suffix in (".npz", ".npy"):
            raise ValueError(
                f"{folder} is no folder of pictures; to compare features write --features REAL.npz DRAWN.npz"
            )
        if len(picture_files(folder)) < 2:  # errors before weights are read
            raise ValueError(f"{folder} must hold at least 2 pictures, but has one; distances are those of sets")
    network = feature_network(arguments.network, arguments.weights)
    cache = None if arguments.no_cache else arguments.cache or default_cache()
    real = features_of(network, "real", arguments.real, arguments.batch, cache)
    drawn = features_of(network, "drawn", arguments.drawn, arguments.batch, None)
    for file, found in ((arguments.save_real_features, real), (arguments.save_features, drawn)):
        if file is not None:
            write_features(file, found.features)
    about = {
        "network": network.name,
        "fingerprint": network.fingerprint,
        "left_out": [*real.left_out, *drawn.left_out],
        **(alignment_of(arguments.weights, drawn) if network.name == "clip" and arguments.weights else {}),
    }
    return real.features, drawn.features, about


def alignment_of(clip: Path, drawn: "PictureSet") -> dict[str, float | None]:
    """How well drawn pictures fit the prompts in their files; nothing if a file has none."""
    from lumina_jax.evaluation.alignment import caption_features, mean_alignment
    from lumina_jax.picture_sets import prompts_of

    prompts = prompts_of(drawn.files)
    if prompts is None:
        return {}
    mean, error = mean_alignment(drawn.features, caption_features(clip, prompts))
    return {"alignment": mean, "alignment_standard_error": error}


def features_of(network: "FeatureNetwork", name: str, folder: Path, batch: int, cache: Path | None) -> "PictureSet":
    """The features of the pictures of a folder; those that were left out are named on standard error."""
    from lumina_jax.picture_sets import folder_features

    found = folder_features(network, folder, cache=cache, batch=batch)
    source = ", from the cache" if found.is_from_cache else ""
    print(f"{name}: {len(found.features)} pictures of {folder}{source}", flush=True)
    for file, reason in list(found.left_out.items())[:MOST_NAMED]:
        print(f"warning: {file} is left out: {reason}", file=sys.stderr)
    if len(found.left_out) > MOST_NAMED:
        print(f"warning: {len(found.left_out) - MOST_NAMED} more are left out", file=sys.stderr)
    if found.not_kept:
        print(f"warning: features are not kept for the next time: {found.not_kept}", file=sys.stderr, flush=True)
    return found
