"""A command that fails says why in one line."""

import jax
import pytest

from lumina_jax.failures import message, reported


@pytest.mark.parametrize("error", [ValueError("size=0 must be positive"), FileNotFoundError(2, "missing", "a.png")])
def test_expected_errors_are_one_line_and_status_1(error, capsys):
    with pytest.raises(SystemExit) as end, reported():
        raise error
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines()[0] == f"error: {error}"


@pytest.mark.parametrize("error", [OverflowError("too large"), TypeError("no len"), KeyError("x"), IndexError("i")])
def test_unexpected_errors_are_reported_as_bugs(error, capsys):
    with pytest.raises(SystemExit), reported():
        raise error
    shown = capsys.readouterr().err
    assert type(error).__name__ in shown
    assert "bug in lumina_jax" in shown
    assert "Traceback" not in shown


def test_running_out_of_memory_is_reported_with_a_remedy():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")
    assert message(error).startswith("out of memory (RESOURCE_EXHAUSTED")
    assert "smaller batch" in message(error)
    assert message(MemoryError()).startswith("out of memory (MemoryError")


@pytest.mark.parametrize("options", [{"xla_of_tomorrow": "true"}, {"xla_llvm_disable_expensive_passes": "perhaps"}])
def test_an_option_that_the_compiler_refuses_is_reported_with_the_variable_that_replaces_it(options):
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    assert next(iter(options)) in message(refused.value)
    assert "LUMINA_TPU_OPTIONS=none" in message(refused.value)


def test_ctrl_c_ends_with_the_usual_status():
    with pytest.raises(SystemExit) as end, reported():
        raise KeyboardInterrupt
    assert end.value.code == 130


def test_ctrl_c_is_not_reported_as_a_bug():
    assert message(KeyboardInterrupt()) == "stopped by Ctrl-C"


def test_a_traceback_is_shown_when_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("LUMINA_TRACEBACK", "1")
    with pytest.raises(SystemExit), reported():
        raise ValueError("no")
    assert "Traceback" in capsys.readouterr().err
