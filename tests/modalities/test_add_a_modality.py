"""docs/add-a-modality.md as a user follows it: its modality is registered from outside, trained, resumed and drawn."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.commands import sample, train
from lumina_jax.config import (
    Config,
    DataConfig,
    MediaConfig,
    ModelConfig,
    PreparedConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)
from lumina_jax.data.prepared import Card, PreparedSample, write_prepared
from lumina_jax.documents import forget_types
from lumina_jax.modalities import MODALITY_OF_MEDIA, modality_of
from lumina_jax.modalities.decoding.media import Sound
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.run import read_run
from lumina_jax.training.jsonl import read_metrics

ROOT = Path(__file__).parents[2]
MODULE, _, SCRIPT = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-modality.md").read_text(), re.DOTALL)


@pytest.fixture
def signals(tmp_path):
    """The module of the page, imported; what it registers is gone afterwards."""
    (tmp_path / "signals.py").write_text(MODULE)
    spec = importlib.util.spec_from_file_location("signals", tmp_path / "signals.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["signals"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["signals"], MODALITY_OF_MEDIA[module.SignalConfig], MediaConfig.kinds["signals"]
    forget_types()


def configured(signals, root, **run):
    waves = [(9000 * np.sin(np.arange(48 + 8 * index) / (2 + index))).astype(np.int16) for index in range(3)]
    if not (root / "waves").exists():
        card = Card(name="waves", about="", origin="", licence="", attribution="", settings={})
        samples = [PreparedSample(f"{index}", f"wave {index}", Sound(wave, 1000)) for index, wave in enumerate(waves)]
        write_prepared(root / "waves", samples, card)
    return Config(
        model=ModelConfig(
            layers=1, heads=2, width=16, patch_size=1, channels=8, modality="signal", text_width=24, mlp_multiple_of=8,
            compute_dtype="float32", remat="none",
        ),
        text=TextConfig(encoder=str(ROOT / "tests" / "golden" / "t5_tiny"), max_tokens=8, cache=str(root / "text")),
        data=DataConfig(
            source=PreparedConfig(path=str(root / "waves")), media=signals.SignalConfig(length=64), batch_rows=2,
            prefetch=2,
        ),
        sample=SampleConfig(solver="euler", steps=1),
        run=RunConfig(name="tiny", root=str(root), log_every=1, checkpoint_every=2, **run),
    )  # fmt: skip


def test_a_modality_from_outside_the_package_trains_resumes_and_draws(signals, tmp_path, capsys, monkeypatch):
    shown = {"sample_every": 2, "sample_prompts": ("wave 1",)}
    assert train.run(configured(signals, tmp_path, steps=2, **shown))
    assert (tmp_path / "tiny" / "samples" / "step_0000002.png").is_file()
    config = configured(signals, tmp_path, steps=3, **shown)
    assert train.run(config)
    assert read_run(tmp_path / "tiny") == config
    losses = [line["loss"] for line in read_metrics(tmp_path / "tiny")]
    assert len(losses) == 3
    assert np.isfinite(losses).all()

    sample.draw_samples(sample.Arguments(run=tmp_path / "tiny", prompts=("wave 1", "wave 2"), sample=config.sample))
    said = capsys.readouterr().out
    assert "batch    2 rows of 9 tokens" in said  # 64 samples in eights, and the token that ends a line
    assert "2 signals and" in said
    folder = tmp_path / "tiny" / "samples" / "3" / "seed-0"
    assert read_png_metadata(folder / "001-wave-2.png")["width"] == 64
    with pytest.raises(ValueError, match="--views cannot be asked for, because this draws signals"):
        sample.draw_samples(sample.Arguments(run=tmp_path / "tiny", prompts=("wave 1",), views=2, sample=config.sample))
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")  # Python is not started again
    monkeypatch.setattr("sys.argv", ["draw.py", str(tmp_path / "tiny"), "wave 1", "--out", str(tmp_path / "drawn")])
    with pytest.raises(SystemExit) as ended:
        exec(SCRIPT, {})
    assert ended.value.code == 0
    assert (tmp_path / "drawn" / "000-wave-1.png").is_file()


def test_the_modality_of_the_page_is_the_inverse_of_itself(signals, tmp_path):
    it = modality_of(configured(signals, tmp_path, steps=1))
    wave = np.linspace(-1, 1, 50) * 32767
    decoded = it.decode(Sound(wave.astype(np.int16), 1000), None)
    assert decoded.shape == (64,)
    np.testing.assert_array_equal(it.shown(it.from_latents(it.to_latents(decoded)[None], None))[0], decoded)
    assert it.preview(decoded).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="no score is known for signals"):
        it.judge(list, it.files(8.0))
    with pytest.raises(ValueError, match="no autoencoder is known for signals"):
        modality_of(configured(signals, tmp_path, steps=1).replace(vae={"path": "somewhere"}))
