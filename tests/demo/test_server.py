"""What the server of `lumina demo` answers, to browsers and to whoever else asks."""

import base64
import io
import json
import secrets
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lumina_jax.commands.demo import Arguments, opened
from lumina_jax.modalities.files.png import PARAMETERS
from lumina_jax.page_access import PageAccess, PageFlags
from tests.demo.conftest import new_form

pytest.importorskip("gradio")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'


def answer(address, content=None, **headers):
    """The status, the content and the headers of an answer."""
    request = urllib.request.Request(address, content, {name.replace("_", "-"): text for name, text in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.read(), found.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def uploaded(address, name, content):
    """The path at which the server keeps an upload."""
    line = secrets.token_hex(8)
    head = f'--{line}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + f"\r\n--{line}--\r\n".encode()
    kind = f"multipart/form-data; boundary={line}"
    status, said, _ = answer(f"{address}/gradio_api/upload", body, Content_Type=kind)
    assert status == 200, said
    return json.loads(said)[0]


class Caller:
    """A page that calls events of the server by hand."""

    def __init__(self, address):
        self.address = address
        self.config = json.loads(answer(f"{address}/config")[1])
        self.ids = {one["props"].get("elem_id"): one["id"] for one in self.config["components"]}
        self.session = secrets.token_hex(6)

    def state(self, name, event, *values):
        """What the state says after an event of a component."""
        target = [self.ids[name], event]
        [index] = [
            number
            for number, one in enumerate(self.config["dependencies"])
            if target in [list(t) for t in one["targets"]]
        ]
        content = json.dumps({"fn_index": index, "data": values, "session_hash": self.session}).encode()
        status, said, _ = answer(f"{self.address}/gradio_api/queue/join", content, Content_Type="application/json")
        assert status == 200, said
        lines = answer(f"{self.address}/gradio_api/queue/data?session_hash={self.session}")[1].decode().split("\n\n")
        [last] = [line for line in lines if '"process_completed"' in line]
        return json.dumps(json.loads(last.removeprefix("data: "))["output"])


def as_file(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def png(picture, text=None):
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_itxt(PARAMETERS, text)
    picture.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def bomb():
    """A small file of a picture of 40,000 x 40,000 pixels."""

    def chunk(name, content):
        whole = name + content
        return len(content).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

    size = (40_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([1, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(40_000 * 5001))) + chunk(b"IEND", b"")


def animated():
    buffer, frames = io.BytesIO(), [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.fixture(scope="module")
def caller(served):
    return Caller(served)


def form_values():
    return values_of(new_form())


def values_of(form):
    """What a browser sends of a form without adapters; the page of these tests offers two."""
    return [*form.values().values(), [], 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.png", lambda: b"hello", "is no picture"),
        ("empty.png", lambda: b"", "is no picture"),
        ("script.svg", lambda: SVG, "is no picture"),
        ("plain.png", lambda: png(Image.new("RGB", (8, 8))), "carries no settings"),
        ("wide.png", lambda: png(Image.new("RGB", (40_000, 2))), "carries no settings"),
        ("animated.gif", animated, "carries no settings"),
        ("bomb.png", bomb, "is no picture that can be read"),
        ("list.png", lambda: png(Image.new("L", (8, 8)), "[1, 2]"), "the settings in list.png"),
        ("types.png", lambda: png(Image.new("L", (8, 8)), '{"seed": {"a": 1}}'), "the settings in types.png"),
        ("long.png", lambda: png(Image.new("L", (8, 8)), " " * (2 << 20)), "longer|cannot be read|no picture"),
        ("<b>..%2f..&.png", lambda: b"x", "is no picture"),
    ],
)
def test_what_is_no_drawn_picture_gets_one_message(caller, served, name, content, reason):
    said = caller.state("dropped", "upload", as_file(uploaded(served, name, content())), *form_values())
    assert any(word in said for word in reason.split("|")), said
    assert "<b>.." not in said, "names are text"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.png", lambda: b"hello", "text.png: the file is not a picture"),
        ("script.svg", lambda: SVG, "script.svg: the file"),
        ("bomb.png", bomb, "more than"),
        ("deep.png", lambda: png(Image.fromarray(np.full((32, 32), 40_000, np.uint16))), "the picture is here"),
        ("wide.png", lambda: png(Image.new("RGB", (40_000, 40))), "the picture is here"),
        ("animated.gif", animated, "the picture is here"),
        ("clear.png", lambda: png(Image.new("RGBA", (32, 32))), "the picture is here"),
    ],
)
def test_what_is_to_be_edited_is_a_picture_or_gets_one_message(caller, served, name, content, reason):
    said = caller.state("edit-source", "upload", as_file(uploaded(served, name, content())), "pictures", None)
    assert any(word in said for word in reason.split("|")), said


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.png", lambda: b"hello", "text.png: the file is not a picture"),
        ("script.svg", lambda: SVG, "script.svg: the file"),
        ("bomb.png", bomb, "more than"),
        ("deep.png", lambda: png(Image.fromarray(np.full((32, 32), 40_000, np.uint16))), "the picture gives the style"),
        ("wide.png", lambda: png(Image.new("RGB", (40_000, 40))), "the picture gives the style"),
        ("animated.gif", animated, "the picture gives the style"),
    ],
)
def test_what_gives_a_style_is_a_picture_or_gets_one_message(caller, served, name, content, reason):
    said = caller.state("style-source", "upload", as_file(uploaded(served, name, content())), "pictures", None)
    assert reason in said


@pytest.mark.parametrize(
    "name", ["../../../evil.png", "/evil.png", "..\\..\\evil.png", "%2e%2e%2fevil.png", "a\0b.png"]
)
def test_the_name_of_an_upload_is_no_path(caller, served, run_folder, name):
    before = set(run_folder.parent.rglob("*evil*"))
    file = Path(uploaded(served, name, png(Image.new("RGB", (32, 32)))))
    assert file.resolve().parents[2] == run_folder / "samples", "in a folder of the folder of uploads"
    assert set(run_folder.parent.rglob("*evil*")) - before <= {file}
    assert "the picture is here" in caller.state("edit-source", "upload", as_file(str(file)), "pictures", None)


def test_paths_that_were_not_uploaded_are_not_read(caller, run_folder):
    for path in ("/etc/passwd", str(run_folder / "config.json"), f"{run_folder}/samples/../config.json"):
        try:
            said = caller.state("dropped", "upload", as_file(path), *form_values())
        except (AssertionError, TypeError, KeyError):
            continue
        assert "was not uploaded" in said or "not uploaded by a user" in said, said
        assert "root:" not in said


def test_files_outside_the_samples_of_a_run_are_not_served(served, run_folder):
    for path in ("/etc/passwd", run_folder / "config.json", f"{run_folder}/samples/../config.json", sys.executable):
        assert answer(f"{served}/gradio_api/file={path}")[0] in (403, 404), path


def test_an_uploaded_page_cannot_run_anything(served):
    path = uploaded(served, "page.svg", SVG)
    status, _, headers = answer(f"{served}/gradio_api/file={path}")
    assert status in (200, 403)
    assert "sandbox" in headers["content-security-policy"]


def test_the_page_is_for_this_computer_alone_or_behind_a_password(served, folders):
    assert answer(served)[0] == 200
    assert answer(served, Host="elsewhere.example")[0] == 403
    assert answer(f"{served}/config", Origin="http://elsewhere.example")[0] == 403
    with pytest.raises(ValueError, match="shows the page to other computers, which needs a password"):
        opened(Arguments(runs=tuple(map(str, folders)), page=PageFlags(host="0.0.0.0", port=0)))


def test_a_password_is_asked_for_every_request(monkeypatch):
    import asyncio

    from lumina_jax.demo.server import Guarded

    monkeypatch.setattr("lumina_jax.demo.server.GUESS_SECONDS", 0)
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def send(event):
        sent.append(event)

    def ask(word=None, kind="http"):
        headers = [(b"host", b"elsewhere.example")]
        if word is not None:
            headers.append((b"authorization", b"Basic " + base64.b64encode(f"me:{word}".encode())))
        scope = {"type": kind, "path": "/config", "headers": headers}
        asyncio.run(Guarded(app, PageAccess("0.0.0.0", "open sésame"))(scope, None, send))
        return sent[-1].get("status", sent[-1]["type"]) if sent else None

    ask()
    ask("open")
    ask("open", kind="websocket")
    assert reached == []
    assert [event.get("status") for event in sent if event["type"] == "http.response.start"] == [401, 401]
    ask("open sésame")
    assert reached == ["/config"]


def test_a_port_that_is_taken_and_a_folder_that_is_no_run_are_said(served, folders, tmp_path):
    with pytest.raises(OSError, match="choose another --port"):
        opened(Arguments(runs=(str(folders[0]),), page=PageFlags(port=int(served.rpartition(":")[2]))))
    with pytest.raises(ValueError, match="is not the folder of a run"):
        opened(Arguments(runs=(str(tmp_path),), page=PageFlags(port=0)))


def test_ten_pages_that_draw_at_once_all_get_their_sample(served):
    said = {}

    def one(index):
        names = [f"page{index}", f"browser{index}"]
        form = new_form(prompt=f"{index + 20}", seed=f"{index}")
        said[index] = Caller(served).state("draw", "click", *names, *values_of(form), "", 0)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for index in range(10):
        assert "done" in said[index], said[index]
        assert f"000-{index + 20}" in said[index]


@pytest.mark.slow
def test_the_command_ends_quietly_with_an_open_page_and_leaves_no_uploads(run_folder, tmp_path):
    words = [sys.executable, "-P", "-m", "lumina_jax", "demo", str(run_folder), "--port", "0"]
    before = set((run_folder / "samples").glob("uploads-*"))
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = command.stdout.readline().split()[2]
        assert answer(address)[0] == 200
        listening = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc", timeout=60)
    finally:
        command.terminate()
        _, said = command.communicate(timeout=30)
    listening.close()
    assert "Traceback" not in said, said
    assert set((run_folder / "samples").glob("uploads-*")) == before
