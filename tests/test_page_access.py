"""The flags of `lumina demo` and `lumina watch` for who may open their pages."""

import pytest
import tyro

from lumina_jax.commands import demo, watch
from lumina_jax.page_access import PASSWORD, PageAccess, address_of


@pytest.mark.parametrize(("command", "port"), [(demo, 6008), (watch, 6007)])
def test_pages_take_an_address_a_port_and_a_password(command, port, monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    usual = tyro.cli(command.Arguments, args=["runs/emoji"]).page
    assert (usual.port, usual.access()) == (port, PageAccess("127.0.0.1", None))
    words = ["runs/emoji", "--host", "0.0.0.0", "--port", "0", "--password", "sesame"]
    given = tyro.cli(command.Arguments, args=words).page
    assert (given.port, given.access()) == (0, PageAccess("0.0.0.0", "sesame"))


def test_a_password_of_the_environment_is_that_of_the_page_unless_a_flag_says_another(monkeypatch):
    monkeypatch.setenv(PASSWORD, "hidden")
    assert demo.Arguments().page.access().password == "hidden"
    assert tyro.cli(demo.Arguments, args=["--password", "shown"]).page.access().password == "shown"


@pytest.mark.parametrize("words", [["--password", ""], []])
def test_an_empty_password_is_none(words, monkeypatch):
    monkeypatch.setenv(PASSWORD, "")
    assert tyro.cli(demo.Arguments, args=words).page.access().password is None
    with pytest.raises(ValueError, match="needs a password"):
        tyro.cli(demo.Arguments, args=["--host", "0.0.0.0", *words]).page.access()


def test_an_address_of_ipv6_is_in_brackets():
    assert address_of("::1", 6008) == "http://[::1]:6008"
    assert address_of("127.0.0.1", 6008) == "http://127.0.0.1:6008"
