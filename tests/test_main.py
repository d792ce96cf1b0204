"""python -m lumina_jax finds training and sampling, or says where they are."""

import runpy

import pytest

from lumina_jax import __main__ as module


@pytest.mark.parametrize("name", ["train", "sample"])
def test_training_and_sampling_run_as_the_programs_of_the_repository(monkeypatch, name):
    started = []
    monkeypatch.setattr(runpy, "run_path", lambda file, run_name: started.append((file, run_name)))
    monkeypatch.setattr("sys.argv", ["lumina_jax", name, "one", "--two"])
    module.main()
    assert started == [(str(module.Path(module.__file__).parents[1] / f"{name}.py"), "__main__")]
    assert module.sys.argv == [started[0][0], "one", "--two"]


def test_without_the_repository_it_is_said_where_train_py_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "lumina_jax" / "__main__.py"))
    monkeypatch.setattr("sys.argv", ["lumina_jax", "train"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    assert "train.py is not part of the installed package" in capsys.readouterr().err


def test_an_unknown_command_is_named_and_all_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lumina_jax", "trian"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "'trian' is no command" in said
    assert all(command in said for command in ("python train.py", "python sample.py", *module.COMMANDS))
