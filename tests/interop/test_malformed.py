"""Whatever is wrong with a checkpoint, a folder or a disk: one line that says so, and nothing half-written."""

import contextlib
import ctypes
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from lumina_jax.commands.convert import main as command
from lumina_jax.interop.export import plan_export, write_export
from lumina_jax.interop.sources import open_weights
from tests.interop.checkpoints import GOLDEN, WEIGHTS, checkpoint, run, tensors_of

FILE = WEIGHTS["lumina"]


class Code:
    def __reduce__(self):
        return os.system, ("touch called",)


def changed(**changes):
    """A way to spoil a folder: tensors by name, None: without it."""

    def spoil(folder):
        tensors = tensors_of(folder, "lumina")
        for name, change in changes.items():
            name = name.replace("__", ".")
            value = tensors.pop(name, None)
            if change is not None:
                tensors[name] = change(value)
        save_file(tensors, folder / FILE)

    return spoil


def cut_off(folder):
    os.truncate(folder / FILE, 5000)


def cut_in_the_header(folder):
    os.truncate(folder / FILE, 100)


def a_folder_in_the_place_of_the_file(folder):
    (folder / FILE).unlink()
    (folder / FILE).mkdir()


def nothing_inside(folder):
    (folder / FILE).unlink()


def a_pickle_with_code(folder):
    (folder / FILE).unlink()
    with zipfile.ZipFile(folder / FILE.replace("safetensors", "pth"), "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": Code()}))


def arguments_with_code(folder):
    (folder / "config.json").unlink()
    with zipfile.ZipFile(folder / "model_args.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(SimpleNamespace(a=Code())))


def no_arguments(folder):
    (folder / "config.json").unlink()


def arguments_that_are_no_json(folder):
    (folder / "config.json").write_text("{'n_heads': 4}")


def arguments_of_other_sizes(folder):
    (folder / "config.json").write_text(json.dumps({"n_heads": 4, "n_layers": 2, "multiple_of": 128}))


def a_rank_missing(folder):
    (folder / FILE).rename(folder / "consolidated.01-of-02.safetensors")


def nan(value):
    value[-1, -1] = np.nan
    return value


CASES = {
    "a tensor is missing": (
        "nextdit",
        changed(layers__1__attention__gate=None),
        r"missing layers\.1\.attention\.gate, unknown none",
    ),
    "a tensor too many": ("nextdit", changed(surprise=lambda _: np.ones(3, np.float32)), "unknown surprise"),
    "the first layer": ("nextdit", changed(x_embedder__weight=None), r"does not have the tensors.*x_embedder"),
    "a wrong shape": ("nextdit", changed(pad_token=lambda value: value[:-1]), r"pad_token.*\(63,\).*\(64,\)"),
    "layers that differ": (
        *("nextdit", changed(layers__1__attention__wo__weight=lambda value: value[:-1])),
        r"the same shape and type, but layers\.\{layer\}\.attention\.wo\.weight",
    ),
    "axes too many": (
        *("nextdit", changed(cap_embedder__1__weight=lambda value: value[None])),
        r"cap_embedder\.1\.weight must have 2 axes",
    ),
    "another entry": (
        *("nextdit", changed(x_embedder__weight=lambda value: value[None])),
        r"source .*do not describe a valid model.*model\.kv_heads",
    ),
    "integers": ("nextdit", changed(pad_token=lambda value: value.astype(np.int32)), "pad_token is stored as I32"),
    "not a number": ("nextdit", changed(layers__1__attention__wo__weight=nan), r"attention\.out\.kernel.*not finite"),
    "truncated": ("nextdit", cut_off, "not a readable safetensors file"),
    "truncated early": ("nextdit", cut_in_the_header, "not a readable safetensors file"),
    "a folder as file": ("nextdit", a_folder_in_the_place_of_the_file, "is a folder"),
    "no tensors": ("nextdit", nothing_inside, "contains no .safetensors file"),
    "code": ("nextdit", a_pickle_with_code, r"contains code.*system"),
    "code in arguments": ("nextdit", arguments_with_code, r"contains code"),
    "no heads": ("flagdit_imagenet", no_arguments, "number of heads of a label-conditional model"),
    "no json": ("flagdit_imagenet", arguments_that_are_no_json, "config.json must be JSON, but is not"),
    "other sizes": ("nextdit", arguments_of_other_sizes, r"mlp\.gate\.kernel the shape"),
    "a rank missing": ("nextdit", a_rank_missing, r"lacks the shards of ranks \[0\] out of 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_checkpoint_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch, case):
    name, spoil, message = CASES[case]
    monkeypatch.chdir(tmp_path)
    spoil(checkpoint(tmp_path / "source", name))
    expect_error(["source", "out", "--from", "lumina", "--to", "jax"], message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def expect_error(words, message):
    """The command ends with a line that says what is wrong, the way to see more, and status 1."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        command(words)
    text = said.getvalue()
    assert end.value.code == 1
    assert text.startswith("error: ")
    assert text.endswith("\n(set LUMINA_TRACEBACK=1 for a traceback)\n")
    assert text.count("\n") == 2
    assert "bug in lumina_jax" not in text
    with pytest.raises(ValueError, match=message):
        raise ValueError(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out", "--from", "jax", "--to", "lumina"], "there is no file or folder nowhere"),
        (["source", "source/inner", "--from", "lumina", "--to", "jax"], "must not contain each other"),
        (["source", ".", "--from", "lumina", "--to", "jax", "--overwrite"], "must not contain each other"),
        (["source", "file", "--from", "lumina", "--to", "jax"], "file must be a new folder"),
        (["source", "full", "--from", "lumina", "--to", "jax"], "exists and is not empty"),
        (
            ["source", "full", "--from", "lumina", "--to", "jax", "--overwrite"],
            "if lumina_jax wrote it, but it has no .lumina_jax.json",
        ),
        (
            ["source", "out", "--from", "jax", "--to", "lumina"],
            "source holds weights of the lumina layout; convert them first",
        ),
        (["source", "out", "--from", "diffusers", "--to", "lumina"], "does not have the tensors|do not match"),
        (["full", "out", "--from", "jax", "--to", "lumina"], "full has no config.json of a model of ours; name"),
        (["full", "out", "--from", "diffusers", "--to", "lumina"], r"config\.json is missing"),
        (["source", "out", "--from", "lumina", "--to", "jax", "--step", "3"], "--step 3 needs the folder of a run"),
        (
            ["source", "out", "--from", "lumina", "--to", "jax", "--weights", "ema"],
            "must contain one set of consolidated_",
        ),
        (["source", "out", "--from", "lumina", "--to", "jax", "--shard-gb", "0"], "--shard-gb 0.0 must be a positive"),
        (
            ["source", "out", "--from", "lumina", "--to", "jax", "--components", "full"],
            "--components needs --to",
        ),
        (
            ["source", "full/vae/out", "--from", "lumina", "--to", "diffusers", "--components", "full"],
            "must not be in",
        ),
        (["source", "out", "--from", "lumina", "--to", "diffusers", "--components", "gone"], "no file or folder gone"),
        (["source", "out", "--from", "lumina", "--to", "jax", "--shard-gb", "nan"], "must be a positive number"),
        (["source", "out", "--from", "lumina", "--to", "jax", "--shard-gb", "inf"], "must be a positive number"),
        (["source", "out", "--from", "lumina", "--to", "diffusers", "--sample-size", "0"], "must be from 1 to"),
        (["source", "out", "--from", "jax", "--to", "jax", "--step", "-1"], "--step -1 needs the folder of a run"),
        (["source", "out", "--from", "lumina", "--to", "diffusers", "--components", "full"], "lacks vae"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "source", "nextdit")
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/precious.txt").write_text("mine")
    before = everything(tmp_path)
    expect_error(words, message)
    assert everything(tmp_path) == before


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_the_layout_cannot_hold_is_refused(tmp_path):
    source = checkpoint(tmp_path / "source", "lumina_t2i")
    expect_error(
        [f"{source}", f"{tmp_path}/out", "--from", "lumina", "--to", "diffusers"],
        r"LuminaNextDiT2DModel.* needs block='next', but the model has 'flag'.*; choose --to lumina",
    )
    theirs = checkpoint(tmp_path / "theirs", "diffusers_luminanext", layout="diffusers")
    expect_error([f"{theirs}", f"{tmp_path}/out", "--from", "diffusers", "--to", "lumina"], "own_text_query")
    config = theirs / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Lumina2Transformer2DModel"}))
    expect_error([f"{theirs}", f"{tmp_path}/out", "--from", "diffusers", "--to", "jax"], "Lumina2Transformer2DModel")


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source", "nextdit")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    expect_error([f"{source}", f"{tmp_path}/new/out", "--from", "lumina", "--to", "jax"], "must be free on the disk")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path, monkeypatch):
    source, real = checkpoint(tmp_path / "source", "nextdit"), Path.open

    def into_a_full_device(path, mode="r", *arguments, **options):
        return real(Path("/dev/full") if mode == "wb" else path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", into_a_full_device)
    expect_error([f"{source}", f"{tmp_path}/out", "--from", "lumina", "--to", "jax"], "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_small_disk_that_is_really_full_leaves_nothing(tmp_path, monkeypatch):
    source, disk = checkpoint(tmp_path / "source", "nextdit"), tmp_path / "disk"
    disk.mkdir()
    system = ctypes.CDLL(None, use_errno=True)
    if system.mount(b"none", bytes(disk), b"tmpfs", 0, b"size=400k"):
        pytest.skip("mounting a small disk needs root")
    try:
        words = [f"{source}", f"{disk}/out", "--from", "lumina", "--to", "jax"]
        expect_error(words, "must be free on the disk")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
        expect_error(words, "No space left on device")
        assert list(disk.iterdir()) == []
    finally:
        system.umount(bytes(disk))


@pytest.mark.parametrize("event", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_new_and_keeps_what_was_there(tmp_path, event):
    source = checkpoint(tmp_path / "source", "nextdit")
    folder = run(source, tmp_path / "out", "lumina", "jax")
    before = everything(tmp_path)

    def interrupt(count):
        raise event

    export = plan_export(open_weights(source, "lumina"), "jax")
    with pytest.raises(event):
        write_export(export, folder, shard_bytes=None, overwrite=True, progress=interrupt)
    assert everything(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_an_earlier_export_is_replaced_when_that_is_asked_for(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    folder = run(source, tmp_path / "out", "lumina", "jax")
    run(source, folder, "lumina", "diffusers", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".lumina_jax.json", "README.md", "model_index.json", "scheduler", "transformer"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_an_empty_folder_may_be_the_destination(tmp_path):
    (tmp_path / "out").mkdir()
    folder = run(checkpoint(tmp_path / "source", "nextdit"), tmp_path / "out", "lumina", "jax")
    assert (folder / "model.safetensors").is_file()


def test_weights_that_are_not_finite_are_not_loaded(tmp_path):
    from lumina_jax.interop.converted import load_parameters, read_model

    folder = run(checkpoint(tmp_path / "source", "nextdit"), tmp_path / "out", "lumina", "jax")
    tensors = tensors_of(folder, "jax")
    tensors["pad_token"][3] = np.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="pad_token contains values that are not finite"):
        load_parameters(folder, read_model(folder))


def test_the_sizes_of_a_preset_that_the_tensors_do_not_have_are_an_error(tmp_path):
    source = checkpoint(tmp_path / "source", "nextdit")
    (source / "config.json").unlink()
    shutil.copy(GOLDEN / "pickled/model_args.pth", source)
    expect_error([f"{source}", f"{tmp_path}/out", "--from", "lumina", "--to", "jax"], r"missing layers\.10\.")
