"""Who may open a page that a command serves: this computer, or whoever has its password.

In: flags with an address and perhaps a password; the headers of a request. Out: whether it is answered. Without a
password, a page from elsewhere cannot read ours in the name of a browser here: it cannot pretend to have asked for this
computer.
"""

import base64
import os
import secrets
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1", "::1")
PASSWORD = "LUMINA_PASSWORD"
GUESS_SECONDS = 0.5
"""How long a wrong password waits for its answer, which slows down guessing."""


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: HTTPStatus
    reason: str

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Basic realm="lumina"'} if self.status is HTTPStatus.UNAUTHORIZED else {}


@dataclass(frozen=True)
class PageAccess:
    """Who may open a page.

    Args:
      host: the address that the page answers to; any but this computer's own needs a password.
      password: asked for by the browser, with any name of a user; None: nobody is asked.

    Raises:
      ValueError: there is no password, but others could reach the page.
    """

    host: str
    password: str | None

    def __post_init__(self) -> None:
        if self.password is None and self.host not in LOCAL:
            raise ValueError(
                f"--host {self.host} shows the page to other computers, which needs a password; name one with "
                "--password, or leave --host out"
            )

    def refusal(self, host: str, authorization: str) -> Refusal | None:
        """Why a request with these headers (empty: it has none) is not answered; None: it is."""
        if self.password is None:
            try:
                name = urlsplit(f"//{host}").hostname
            except ValueError:
                name = None
            if name in LOCAL:
                return None
            return Refusal(HTTPStatus.FORBIDDEN, "this page is for this computer alone; open it as localhost")
        kind, _, words = authorization.partition(" ")
        try:
            given = base64.b64decode(words, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except ValueError:
            given = b""
        if secrets.compare_digest(given, self.password.encode()):
            return None
        return Refusal(HTTPStatus.UNAUTHORIZED, "the password is missing or wrong")


@dataclass(frozen=True, kw_only=True)
class PageFlags:
    """The flags of a command that serves a page."""

    host: str = "127.0.0.1"
    """Address to answer to; 0.0.0.0 is every address of this computer, and needs a password."""
    port: int
    """0: any free one."""
    password: str | None = None
    """What the browser asks for. The environment variable LUMINA_PASSWORD says it without showing it to others who list
    the processes of this computer."""

    def access(self) -> PageAccess:
        """Who may open the page; an empty password is none. Errors as `PageAccess`."""
        password = self.password if self.password is not None else os.environ.get(PASSWORD)
        return PageAccess(self.host, password or None)


def family_of(host: str) -> socket.AddressFamily:
    """Whether an address is one of IPv6."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address_of(host: str, port: int) -> str:
    """What a browser opens."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def not_served(host: str, port: int, error: OSError) -> OSError:
    """What to raise where an address cannot be answered to."""
    return OSError(
        f"the page cannot be served at {host}:{port} ({error.strerror or error}); choose another --port, or 0 for any "
        "that is free"
    )
