"""A command that fails says why in one line."""

import jax
import pytest

from lumina_jax.failures import message, reported


@pytest.mark.parametrize("error", [ValueError("size=0 must be positive"), FileNotFoundError(2, "missing", "a.png")])
def test_foreseen_errors_are_one_line_and_status_1(error, capsys):
    with pytest.raises(SystemExit) as end, reported():
        raise error
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


@pytest.mark.parametrize("error", [OverflowError("too large"), TypeError("no len"), KeyError("x"), IndexError("i")])
def test_errors_that_nothing_foresaw_are_called_faults_of_the_program(error, capsys):
    with pytest.raises(SystemExit), reported():
        raise error
    shown = capsys.readouterr().err
    assert type(error).__name__ in shown
    assert "fault of lumina_jax" in shown
    assert "Traceback" not in shown


def test_exhausted_memory_is_named_with_a_remedy():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")
    assert message(error).startswith("memory is exhausted (RESOURCE_EXHAUSTED")
    assert "smaller batch" in message(error)
    assert message(MemoryError()).startswith("memory is exhausted (MemoryError")


def test_ctrl_c_ends_with_the_usual_status():
    with pytest.raises(SystemExit) as end, reported():
        raise KeyboardInterrupt
    assert end.value.code == 130


def test_ctrl_c_is_no_fault_of_the_program():
    assert message(KeyboardInterrupt()) == "stopped by Ctrl-C"


def test_a_traceback_is_shown_when_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("LUMINA_TRACEBACK", "1")
    with pytest.raises(SystemExit), reported():
        raise ValueError("no")
    assert "Traceback" in capsys.readouterr().err
