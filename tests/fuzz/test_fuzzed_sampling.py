"""sample.py, given anything, draws or says what is wrong."""

import contextlib
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_jax.commands import sample
from lumina_jax.config import (
    Config,
    DataConfig,
    EmojiConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)
from tests.fuzz.mutations import documents, expect_no_traceback, fuzzed, texts_of, words
from tests.training.processes import training

pytestmark = pytest.mark.slow
NUMBERS = ("seed", "step", "size", "height", "width", "video-frames", "views", "seconds", "frame-rate", "batch")
SETTINGS = ("steps", "guidance", "guided-channels", "time-shift", "rope-factor", "rope-watershed", "rtol", "atol")
CHOICES = {
    "solver": ["euler", "midpoint", "dopri5", "euler_maruyama", "rk5"],
    "diffusion": ["constant", "sbdm", "sigma", "decreasing"],
    "last-step": ["none", "mean", "tweedie"],
    "modality": ["image", "sound"],
}
PLAIN = {
    "size": ["8", "16"], "height": ["8", "24"], "width": ["16"], "steps": ["1", "2"], "guidance": ["0", "1", "3.5"],
    "seed": ["0", "7"], "batch": ["1", "2"], "video-frames": ["1", "2"], "guided-channels": ["1", "3"],
}  # fmt: skip


@st.composite
def flags(draw):
    """Up to four flags of sample.py, each with a usual value or with anything."""
    chosen = draw(st.lists(st.sampled_from([*NUMBERS, *SETTINGS, *CHOICES]), max_size=4, unique=True))
    spoken = []
    for name in chosen:
        usual = CHOICES.get(name) or PLAIN.get(name, ["1"])
        spoken += [f"--{name}", draw(st.sampled_from(usual) if draw(st.booleans()) else words)]
    return spoken


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on captions that needs no downloaded encoder."""
    root = tmp_path_factory.mktemp("runs")
    config = Config(
        model=ModelConfig(
            layers=1, heads=2, width=16, patch_size=8, channels=3, text_width=50, text_layers=1, mlp_multiple_of=8,
            compute_dtype="float32", remat="none",
        ),
        text=TextConfig(encoder="phonemes", max_tokens=12),
        data=DataConfig(
            source=EmojiConfig(emoji_names=4), media=PictureConfig(image_size=16), batch_rows=2, prefetch=2
        ),
        optimizer=OptimizerConfig(ema_decay=0.5),
        sample=SampleConfig(solver="euler", steps=1),
        run=RunConfig(name="tiny", root=str(root), steps=1, log_every=1, checkpoint_every=1),
    )  # fmt: skip
    done = training(config)
    assert done.returncode == 0, done.stderr
    return root / "tiny"


@pytest.fixture
def drawn(trained, capsys, monkeypatch):
    """Calls sample.py with words after the run, as a shell would."""
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")

    def draw(*arguments, run=trained):
        return expect_no_traceback(lambda: sample.main([str(run), *arguments]), capsys)

    return draw


@fuzzed(0.15)
@given(spoken=flags(), prompts=st.lists(words, min_size=1, max_size=2))
def test_any_flags_and_prompts(drawn, spoken, prompts):
    drawn(*[prompt for prompt in prompts if not prompt.startswith("-")], *spoken)


@fuzzed(0.05)
@given(content=st.binary(max_size=60) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_of_prompts(drawn, tmp_path, content):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    drawn("--prompts-file", str(file), "--steps", "1")


@fuzzed(0.15)
@given(data=st.data())
def test_any_config_beside_a_checkpoint(drawn, trained, tmp_path, data):
    run = tmp_path / "run"
    if not run.is_dir():
        shutil.copytree(trained, run)
    content = data.draw(texts_of(json.loads((trained / "config.json").read_text())))
    (run / "config.json").write_bytes(content)
    drawn("cat", "--steps", "1", run=run)


@fuzzed(0.05)
@given(settings=documents(json.loads(Config(model=ModelConfig(layers=1, heads=2, width=16)).to_json())))
def test_any_settings_are_a_configuration_or_an_error(settings):
    text = json.dumps(settings)
    with contextlib.suppress(ValueError):
        config = Config.from_json(text)
        assert Config.from_json(config.to_json()) == config
