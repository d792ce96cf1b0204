"""convert, given anything, writes a whole export or says what is wrong and writes nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_jax.commands.convert import main as convert
from tests.fuzz.mutations import bytes_of, expect_no_traceback, fuzzed, snapshot, texts_of
from tests.interop.checkpoints import WEIGHTS, checkpoint

pytestmark = pytest.mark.slow
NAMES = {"nextdit": "lumina", "flagdit_imagenet": "lumina", "diffusers_luminanext": "diffusers"}
INDEX = {"metadata": {"total_size": 10}, "weight_map": {"x": "model.safetensors", "y": "../../other.safetensors"}}


@pytest.fixture
def converted(tmp_path, capsys):
    """Converts a folder and checks that the destination is whole or not there."""

    def run(source, layout, *, to="jax"):
        before, out = snapshot(source), tmp_path / "out"
        status = expect_no_traceback(
            lambda: convert([str(source), str(out), "--from", layout, "--to", to, "--overwrite"]), capsys
        )
        assert snapshot(source) == before
        assert out.exists() or status not in (0, None)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) in ([], ["out"])
        return status

    return run


def source_of(tmp_path, name):
    """The checkpoint as it was recorded, made anew."""
    return checkpoint(tmp_path / "source", name, layout=NAMES[name])


@fuzzed(0.1)
@given(data=st.data())
def test_any_configuration(tmp_path, converted, data):
    name = data.draw(st.sampled_from([*NAMES]))
    source = source_of(tmp_path / name, name)
    file = (source / WEIGHTS[NAMES[name]]).with_name("config.json")
    file.write_bytes(data.draw(texts_of(json.loads(file.read_text()))))
    converted(source, NAMES[name])


@fuzzed(0.1)
@given(data=st.data())
def test_any_weights(tmp_path, converted, data):
    source = source_of(tmp_path / "nextdit", "nextdit")
    file = source / WEIGHTS["lumina"]
    file.write_bytes(data.draw(bytes_of(file.read_bytes(), header=6000)))
    converted(source, "lumina")


@fuzzed(0.05)
@given(data=st.data(), layout=st.sampled_from(["jax", "lumina", "diffusers"]))
def test_any_index_and_any_card_of_a_pipeline(tmp_path, converted, data, layout):
    source = source_of(tmp_path / "next", "diffusers_luminanext")
    weights = source / WEIGHTS["diffusers"]
    index = dict(INDEX, weight_map={"x_embedder.proj.weight": weights.name})
    weights.with_name(f"{weights.name}.index.json").write_bytes(data.draw(texts_of(index)))
    (source / "model_index.json").write_bytes(data.draw(texts_of({"_class_name": "LuminaPipeline", "vae": ["a", "b"]})))
    converted(source, layout)


@fuzzed(0.05)
@given(content=st.binary(max_size=300), ending=st.sampled_from(["safetensors", "pth", "bin", "gguf", "ckpt", "json"]))
def test_any_file(tmp_path, converted, content, ending):
    source = tmp_path / "loose"
    source.mkdir(exist_ok=True)
    for old in source.iterdir():
        old.unlink()
    (source / f"model.{ending}").write_bytes(content)
    converted(source, "lumina")
