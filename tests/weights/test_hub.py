"""Folders of published models: what is found locally, and what is said about what is not."""

import pytest
from huggingface_hub import constants

from lumina_jax.weights.hub import local_folder, published_name


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A repository downloaded before, with one file of two."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--owner--name", "0123456789" * 4
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_downloaded_repository_is_its_newest_snapshot(snapshot):
    assert local_folder("owner/name", files=["config.json"]) == snapshot


def test_a_repository_without_a_wanted_file_is_answered_with_the_command(snapshot):
    with pytest.raises(ValueError, match=r"missing \*\.bin; .*owner/name --include config.json --include '"):
        local_folder("owner/name", files=["config.json", "*.bin"])


def test_a_repository_that_was_never_downloaded_is_answered_with_the_command(snapshot):
    with pytest.raises(
        ValueError, match=r"'other/name' is neither a folder .* download it first with: hf download other/name$"
    ):
        local_folder("other/name", what="encoder")


def test_a_folder_is_itself_and_missing_files_are_named(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.json").write_text("{}")
    assert local_folder(str(tmp_path), files=["part/*.json"]) == tmp_path
    with pytest.raises(ValueError, match=r"the encoder in .* lacks b\.json; copy them there"):
        local_folder(tmp_path, files=["part/a.json", "b.json"], what="encoder")


def test_a_name_that_is_neither_is_refused(tmp_path):
    for name in ("nowhere", tmp_path / "nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="there is no folder"):
            local_folder(name)


def other_revision(snapshot, commit):
    folder = snapshot.parent / commit
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.bin").write_text("")
    return folder


def test_a_repository_downloaded_at_a_revision_is_found_without_a_branch(snapshot):
    (snapshot.parents[1] / "refs" / "main").unlink()
    (snapshot.parents[1] / "refs").rmdir()
    assert local_folder("owner/name", files=["config.json"]) == snapshot


def test_the_branch_main_is_preferred_and_another_revision_taken_when_main_lacks_files(snapshot):
    other = other_revision(snapshot, "f" * 40)
    assert local_folder("owner/name", files=["config.json"]) == snapshot
    assert local_folder("owner/name", files=["*.bin"]) == other


def test_revisions_of_which_none_is_the_branch_are_listed(snapshot):
    (snapshot.parents[1] / "refs" / "main").unlink()
    other = other_revision(snapshot, "f" * 40)
    with pytest.raises(ValueError, match="2 revisions of 'owner/name' are downloaded") as error:
        local_folder("owner/name", files=["config.json"])
    assert str(snapshot) in str(error.value)
    assert str(other) in str(error.value)
    assert local_folder("owner/name", files=["*.bin"]) == other


def test_a_path_in_the_cache_is_called_as_on_the_hub(snapshot, tmp_path):
    assert published_name(snapshot / "transformer") == "owner/name at revision 012345678901"
    assert published_name(tmp_path / "mine") is None
