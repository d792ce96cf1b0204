"""A folder of pictures and an autoencoder for the tests of their latents."""

import json

import numpy as np
import pytest

from lumina_jax.data.file_sources import FolderSource
from lumina_jax.encoders.image_vae import load_image_vae
from lumina_jax.modalities import picture
from tests.data.cached_pictures import GOLDEN, PICTURES, SIDE, CountingVae, write_picture


@pytest.fixture
def few_samples_in_a_part(monkeypatch):
    monkeypatch.setattr(picture, "PART_SAMPLES", 3)
    monkeypatch.setattr(picture, "BATCH_PIXELS", 2 * SIDE**2)


@pytest.fixture(scope="session")
def vae():
    return CountingVae(load_image_vae(GOLDEN))


@pytest.fixture
def source(tmp_path):
    """Seven pictures of which the fifth is broken."""
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for index in range(PICTURES):
        write_picture(folder / f"{index}.png", random)
        lines.append(json.dumps({"image": f"{index}.png", "caption": f"picture {index}", "label": index}))
    (folder / "4.png").write_bytes(b"nothing")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return FolderSource(folder)
