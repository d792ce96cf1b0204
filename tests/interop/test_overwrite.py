"""--overwrite replaces an export that nobody touched, and never anything else."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumina_jax.interop.export import plan_export, write_export
from lumina_jax.interop.sources import open_weights
from lumina_jax.weights import folders
from lumina_jax.weights.folders import MARKER, check_destination, foreign, new_folder, write_marker
from tests.interop.checkpoints import checkpoint, run

REFUSED = "can be overwritten only if"


def everything(folder):
    return {path: path.is_symlink() or (path.is_file() and path.read_bytes()) for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("source"), "nextdit")


@pytest.fixture
def export(tmp_path, source):
    """A small folder as `convert` leaves one."""
    with new_folder(tmp_path / "out") as folder:
        (folder / "transformer").mkdir()
        (folder / "README.md").write_text("card")
        (folder / "transformer/model.safetensors").write_bytes(b"0123")
        write_marker(folder, {})
    return tmp_path / "out"


def test_a_pipeline_of_somebody_else_is_never_replaced(tmp_path, source):
    pipe = tmp_path / "pipe"
    for name in ("vae/config.json", "text_encoder/config.json", "tokenizer/a.json", "transformer/my_training_log.txt"):
        (pipe / name).parent.mkdir(parents=True, exist_ok=True)
        (pipe / name).write_text("mine")
    (pipe / "model_index.json").write_text("{}")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=rf"{REFUSED} lumina_jax wrote it, but it has no \.lumina_jax\.json, which"):
        run(source, pipe, "lumina", "diffusers", overwrite=True)
    assert everything(tmp_path) == before


def added(path):
    def change(folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("mine")

    return change


def with_other_text(folder):
    (folder / "README.md").write_text("mine")  # as long as what was there


def with_a_link(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("transformer/model.safetensors")


def with_a_linked_folder(folder):
    (folder / "vae").symlink_to(folder.parent / "precious")


def with_a_pipe(folder):
    os.mkfifo(folder / "fifo")


def with_a_folder_for_a_file(folder):
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()


CHANGES = {
    "notes.txt": added("notes.txt"),
    "transformer/my_training_log.txt": added("transformer/my_training_log.txt"),
    "deep/er": added("deep/er/notes.txt"),
    "empty": lambda folder: (folder / "empty").mkdir(),
    "README.md": with_other_text,
    "README.md ": with_a_link,
    "README.md  ": with_a_folder_for_a_file,
    "vae": with_a_linked_folder,
    "fifo": with_a_pipe,
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_was_added_to_an_export_or_changed_in_it_is_named_and_kept(tmp_path, export, name):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    CHANGES[name](export)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=rf"{REFUSED} it contains nothing but an unchanged export.*{name.strip()}"):
        check_destination(export, overwrite=True)
    assert everything(tmp_path) == before


def test_a_file_that_the_user_removed_does_not_matter(export):
    (export / "README.md").unlink()
    check_destination(export, overwrite=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(name=st.from_regex(r"[a-zA-Z. ]{1,8}(/[a-z. ]{1,8}){0,2}", fullmatch=True), content=st.binary(max_size=6))
def test_any_file_beside_those_of_the_export_is_noticed(export, name, content):
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    path = export.joinpath(*parts)
    taken = any(parent.is_file() for parent in path.parents)
    if not parts or path.exists() or taken or not path.parent.resolve().is_relative_to(export):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        assert "/".join(parts) in foreign(export)
    finally:
        path.unlink()
        for parent in path.parents:
            if parent not in (export, export / "transformer") and parent.is_relative_to(export):
                parent.rmdir()
    assert foreign(export) == []


@pytest.mark.parametrize("layout", ["jax", "lumina", "diffusers"])
def test_every_layout_leaves_an_export_that_may_be_replaced(tmp_path, source, layout):
    parts = tmp_path / "parts"
    for name in ("vae", "text_encoder", "tokenizer"):
        (parts / name / "inner").mkdir(parents=True)
        (parts / name / "inner" / "a.json").write_text(name)
    components = {"components": parts} if layout == "diffusers" else {}
    folder = run(source, tmp_path / "out", "lumina", layout, **components)
    listed = json.loads((folder / MARKER).read_text())["files"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == listed.keys() | {MARKER}
    assert foreign(folder) == []
    run(source, folder, "lumina", layout, overwrite=True, **components)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "parts"]


def test_the_components_of_an_export_may_come_from_the_export_that_is_replaced(tmp_path, source):
    parts = tmp_path / "parts"
    for name in ("vae", "text_encoder", "tokenizer"):
        (parts / name).mkdir(parents=True)
        (parts / name / "a.json").write_text(name)
    folder = run(source, tmp_path / "out", "lumina", "diffusers", components=parts)
    run(source, folder, "lumina", "diffusers", components=folder, overwrite=True)
    assert (folder / "vae/a.json").read_text() == "vae"


def test_a_component_that_cannot_be_copied_is_named_and_nothing_is_left(tmp_path, source):
    parts = tmp_path / "parts"
    for name in ("vae", "text_encoder", "tokenizer"):
        (parts / name).mkdir(parents=True)
    (parts / "vae/dangling").symlink_to("nowhere")
    with pytest.raises(ValueError, match="vae/dangling cannot be copied"):
        run(source, tmp_path / "out", "lumina", "diffusers", components=parts)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_the_marker_cannot_make_us_delete_anything_outside(tmp_path, export):
    (tmp_path / "precious").write_text("mine")
    marker = json.loads((export / MARKER).read_text())
    marker["files"]["../precious"] = marker["files"]["/etc/hostname"] = {"size": 4, "sha256": "0"}
    (export / MARKER).write_text(json.dumps(marker))
    with new_folder(export, overwrite=True) as folder:
        (folder / "new").write_text("new")
        write_marker(folder, {})
    assert (tmp_path / "precious").read_text() == "mine"
    assert sorted(path.name for path in export.iterdir()) == [MARKER, "new"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": ["a"]}', '{"files": {"a": {"size": "1"}}}', "\x00"])
def test_a_marker_that_cannot_be_read_proves_nothing(export, content):
    (export / MARKER).write_text(content)
    with pytest.raises(ValueError, match=r"\.lumina_jax\.json (must be JSON|has wrong values)"):
        check_destination(export, overwrite=True)


def test_a_marker_that_is_a_link_proves_nothing(tmp_path, export):
    shutil.move(export / MARKER, tmp_path / "marker")
    (export / MARKER).symlink_to(tmp_path / "marker")
    with pytest.raises(ValueError, match="it has no"):
        check_destination(export, overwrite=True)


def test_a_file_that_appears_while_the_new_export_is_written_is_kept(tmp_path, source):
    folder, other = run(source, tmp_path / "out", "lumina", "jax"), tmp_path / "other"

    def add(count):
        added("precious.txt")(folder)
        added("precious.txt")(other)

    plan = plan_export(open_weights(source, "lumina"), "jax")
    with pytest.raises(ValueError, match=r"added or changed: precious\.txt"):
        write_export(plan, folder, shard_bytes=None, overwrite=True, progress=add)
    shutil.rmtree(other)
    with pytest.raises(ValueError, match="exists and is not empty"):
        write_export(
            plan, tmp_path / "other", shard_bytes=None, progress=lambda count: added("precious.txt")(tmp_path / "other")
        )
    assert (folder / "precious.txt").read_text() == (other / "precious.txt").read_text() == "mine"
    assert (folder / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize("event", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", [1, 2])
def test_a_replacement_that_fails_restores_what_was_there(tmp_path, export, monkeypatch, event, number):
    before, real, calls = everything(tmp_path), os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == number:
            raise event
        real(source, target)

    monkeypatch.setattr(folders.os, "replace", replace)
    with pytest.raises(event), new_folder(export, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert everything(tmp_path) == before


def test_what_a_killed_replacement_left_beside_is_named(tmp_path, export):
    old = export.rename(tmp_path / "out.old-abc")
    with pytest.raises(ValueError, match=r"out was interrupted, and its previous content is in .*out\.old-abc"):
        check_destination(export, overwrite=True)
    old.rename(export)
    check_destination(export, overwrite=True)


def test_what_a_killed_conversion_left_is_said(tmp_path, source, capsys):
    (tmp_path / "out[1].partial-abc").mkdir()
    run(source, tmp_path / "out[1]", "lumina", "jax")
    assert "out[1].partial-abc is left over from a conversion" in capsys.readouterr().out
    assert (tmp_path / "out[1].partial-abc").is_dir()


def test_a_destination_below_a_linked_folder_is_replaced_where_it_is(tmp_path, source):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    run(source, tmp_path / "link/out", "lumina", "jax")
    run(source, tmp_path / "link/out", "lumina", "jax", overwrite=True)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "direct").symlink_to("disk/out")
    with pytest.raises(ValueError, match="a file or a link"):
        run(source, tmp_path / "direct", "lumina", "jax", overwrite=True)


def test_a_mounted_disk_is_no_destination():
    with pytest.raises(ValueError, match="a disk is mounted there"):
        check_destination(Path("/proc"), overwrite=False)
