"""Adapters in files with kohya's names: what is written is read again, bit for bit, and says what PEFT's files say."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumina_jax.interop.kohya import kohya_file, read_kohya, write_kohya
from lumina_jax.interop.peft import read_peft, write_peft
from lumina_jax.models.adapters import Factors
from lumina_jax.trained import open_adapter
from tests.interop.test_peft import FINAL, MODEL, NAMES, adapter_of

RELEASED = MODEL.replace(own_text_query=False)
"""A model of the authors' code and of diffusers."""
FLAG = RELEASED.replace(block="flag", rope_axes=1, final_shift=True, nextline=True)
"""One of the authors' code alone."""


@pytest.fixture
def file(tmp_path):
    write_kohya(adapter_of(NAMES), RELEASED, tmp_path / "adapter")
    return tmp_path / "adapter/lora.safetensors"


def test_an_adapter_has_kohyas_names_and_the_matrices_of_torch(file):
    tensors, adapter = load_file(file), adapter_of(NAMES)
    first = "lora_unet_layers_1_attention_wq"
    assert {name.split(".", 1)[0] for name in tensors} == {
        f"lora_unet_layers_{layer}_{name}"
        for layer in (0, 1)
        for name in ("attention_wq", "attention_wk_y", "feed_forward_w2")
    }
    a, b = adapter.factors[NAMES[0]]
    np.testing.assert_array_equal(tensors[f"{first}.lora_down.weight"], a[1].T)
    np.testing.assert_array_equal(tensors[f"{first}.lora_up.weight"], b[1].T)
    assert tensors[f"{first}.alpha"] == 5.0
    # the change of a linear layer [out, in] is up down alpha / rank
    change = tensors[f"{first}.lora_up.weight"] @ tensors[f"{first}.lora_down.weight"] * (5.0 / 3)
    scaled = adapter.scaled()[NAMES[0]]
    np.testing.assert_allclose(change, (scaled.a[1] @ scaled.b[1]).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_rslora", [False, True])
def test_an_adapter_is_the_same_after_writing_and_reading_it(tmp_path, is_rslora):
    model, names = (RELEASED, (*NAMES, FINAL)) if is_rslora else (FLAG, NAMES)
    adapter = adapter_of(names, is_rslora=is_rslora)
    write_kohya(adapter, model, tmp_path / "adapter")
    again = open_adapter(tmp_path / "adapter", model)
    assert again.base == adapter.base
    assert again.factors.keys() == adapter.factors.keys()
    for name, factors in adapter.factors.items():
        assert again.scale(name) == pytest.approx(adapter.scale(name), rel=1e-7)
        for ours, theirs in zip(again.factors[name], factors, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_kohyas_names_and_those_of_peft_say_the_same(tmp_path, file):
    adapter = read_kohya(file, RELEASED)
    write_peft(adapter, RELEASED, tmp_path / "peft")
    again = read_peft(tmp_path / "peft", RELEASED)
    assert again.alphas == adapter.alphas
    for name, factors in adapter.factors.items():
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(again.factors[name], factors, strict=True))


def test_a_file_without_alphas_or_some_layers_has_scale_1_and_zeros(file):
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "alpha" not in name and "layers_0" not in name}, file)
    adapter = read_kohya(file, RELEASED)
    assert {adapter.scale(name) for name in adapter.factors} == {1.0}
    for name, (a, b) in adapter.factors.items():
        expected = adapter_of(NAMES).factors[name]
        assert not a[0].any()
        assert not b[0].any()
        np.testing.assert_array_equal(a[1], expected.a[1])


def test_half_precision_is_read_as_it_is(file):
    save_file({name: value.astype(np.float16) for name, value in load_file(file).items()}, file)
    found, expected = read_kohya(file, RELEASED).factors[NAMES[1]], adapter_of(NAMES).factors[NAMES[1]]
    np.testing.assert_array_equal(found.a, expected.a.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, value: (name.replace("wq", "qkv"), value), "it has lora_unet_layers_0_attention_qkv"),
        (
            lambda name, value: (name.replace("lora_unet", "lora_te"), value),
            "but the modules of this model are such as",
        ),
        (lambda name, value: (name.replace(".lora_down.", ".hada_w1_a."), value), "is no adapter of this model in"),
        (lambda name, value: (name, value[:2] if "1_attention_wq.lora_down" in name else value), "one rank and alpha"),
        (lambda name, value: (name, value[..., :2] if "up" in name else value), "does not fit this model at rank 3"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_first_names(file, change, message):
    save_file({k: np.ascontiguousarray(v) for k, v in (change(*item) for item in load_file(file).items())}, file)
    with pytest.raises(ValueError, match=message):
        read_kohya(file, RELEASED)


def test_models_and_matrices_that_the_authors_code_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="for models of the authors' code: the released text-cond"):
        write_kohya(adapter_of(NAMES), MODEL, tmp_path / "adapter")
    other = adapter_of(NAMES)._replace(factors={"blocks.other.kernel": Factors(np.ones((2, 3, 1)), np.ones((2, 1, 3)))})
    with pytest.raises(ValueError, match=r"no matrix for the adapters of blocks.other.kernel"):
        write_kohya(other, RELEASED, tmp_path / "adapter")
    assert kohya_file(tmp_path) is None
    with pytest.raises(ValueError, match="holds no adapter; name a run that trained one, a folder with"):
        open_adapter(tmp_path, RELEASED)
