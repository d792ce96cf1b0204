"""Long work says how far it is."""

from lumina_jax.progress import counted


def test_without_a_terminal_a_line_appears_now_and_then(capsys):
    now = 0.0
    with counted("encoding", 100, clock=lambda: now) as show:
        for done in range(100):
            now = done
            show(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding: 10 of 100"
    assert len(lines) == 9


def test_processes_that_are_not_the_first_say_nothing(capsys):
    with counted("encoding", 2, is_shown=False, clock=iter([0.0, 99.0]).__next__) as show:
        show(1)
    assert capsys.readouterr() == ("", "")
