"""Watching runs in a bucket, as they are written there: whole objects that are replaced by longer ones.

The bucket is a folder whose client remembers listings, as gcsfs does; and, where gcsfs and gcp-storage-emulator are
installed, a server on this computer that speaks the protocol of Google Cloud Storage.
"""

import io
import json
import socket
import threading
import urllib.error
import urllib.request
from urllib.parse import quote

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from lumina_jax.commands.watch import Arguments, opened
from lumina_jax.page_access import PageFlags
from lumina_jax.training.checkpoint import FILE_SYSTEMS
from lumina_jax.watching.runs import OVERLAP, WatchedRun

RUN = "runs/a run, 50 % & [x]"
PNG = b"\x89PNG of a sheet"


class FolderBucket:
    """A bucket in a folder, and a client that answers from the listings that it has seen."""

    def __init__(self, root, monkeypatch):
        self.root, self.sent, self.fails = root, [], False
        bucket = self

        class Reading(io.FileIO):
            def read(self, size=-1):
                content = super().read(size)
                bucket.sent.append(len(content))
                return content

        class Client(LocalFileSystem):
            cachable = False

            @classmethod
            def _strip_protocol(cls, path):
                return super()._strip_protocol(str(path).replace("gs://", f"{root}/"))

            def ls(self, path, detail=False, **kwargs):
                path = self._strip_protocol(path)
                found = self.dircache.get(path)
                if found is None:
                    self._ask()
                    found = self.dircache[path] = super().ls(path, detail=True)
                return found if detail else [entry["name"] for entry in found]

            def info(self, path, **kwargs):
                self._ask()
                return super().info(path, **kwargs)

            def _open(self, path, mode="rb", **kwargs):
                self._ask()
                return Reading(path, mode)

            def _ask(self):
                if bucket.fails:
                    raise ConnectionOfSomeLibraryError("no network")

        def client(scheme, **options):
            assert scheme == "gs"
            return Client(**options)

        monkeypatch.setitem(FILE_SYSTEMS, "gs", ("fsspec", "part of the package"))
        monkeypatch.setattr(fsspec, "filesystem", client)

    def put(self, name, content):
        file = self.root / "bucket" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


class ConnectionOfSomeLibraryError(Exception):
    """An error of a class that nobody here knows."""


class EmulatedBucket:
    """A bucket of gcp-storage-emulator, which gcsfs reads."""

    def __init__(self, monkeypatch):
        from gcp_storage_emulator.server import Response, create_server

        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.address, self.sent = f"http://localhost:{port}", []
        write_file = Response.write_file

        def counted(response, content, **options):
            self.sent.append(len(content))
            write_file(response, content, **options)

        monkeypatch.setattr(Response, "write_file", counted)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", self.address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        self.server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
        self.server.start()

    def put(self, name, content):
        url = f"{self.address}/upload/storage/v1/b/bucket/o?uploadType=media&name={quote(name, safe='')}"
        urllib.request.urlopen(urllib.request.Request(url, data=content, method="POST")).close()


@pytest.fixture(params=["folder", "emulator"])
def bucket(request, tmp_path, monkeypatch):
    if request.param == "folder":
        (tmp_path / "bucket").mkdir()
        yield FolderBucket(tmp_path, monkeypatch)
        return
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    emulated = EmulatedBucket(monkeypatch)
    yield emulated
    emulated.server.stop()


def lines(*steps):
    return b"".join(json.dumps({"step": step, "loss": 10 / step, "samples": 4}).encode() + b"\n" for step in steps)


def watched(*names):
    return [WatchedRun(f"gs://bucket/{name}") for name in names]


def steps_of(run):
    run.read_metrics()
    return [point.step for point in run.points]


def sheets_of(run):
    run.read_sheets()
    return [sheet.step for sheet in run.sheets]


def test_a_run_in_a_bucket_is_followed_while_it_grows(bucket):
    bucket.put(f"{RUN}/config.json", b'{"run": {"steps": 50}}')
    [run] = watched(RUN)
    assert run.name == "a run, 50 % & [x]"
    assert (steps_of(run), sheets_of(run)) == ([], [])
    bucket.put(f"{RUN}/metrics.jsonl", lines(1) + b'{"step": 2, "lo')
    bucket.put(f"{RUN}/samples/step_0000001.png", PNG)
    assert steps_of(run) == [1], "half a line waits for its other half"
    assert sheets_of(run) == [1]
    bucket.put(f"{RUN}/metrics.jsonl", lines(1, 2, 3))
    bucket.put(f"{RUN}/samples/step_0000003.png", PNG + b"3")
    assert steps_of(run) == [1, 2, 3]
    assert sheets_of(run) == [1, 3]
    assert run.sheet("step_0000003.png") == PNG + b"3"
    assert run.sheet("step_0000004.png") is None
    bucket.put(f"{RUN}/metrics.jsonl", lines(1, 5))
    assert steps_of(run) == [1, 5], "the run resumed from step 1"
    assert run.problems == []


def test_of_a_long_curve_in_a_bucket_only_what_is_new_is_read(bucket):
    old, new = lines(*range(1, 2000)), lines(2000)
    bucket.put(f"{RUN}/metrics.jsonl", old)
    [run] = watched(RUN)
    assert len(steps_of(run)) == 1999
    bucket.put(f"{RUN}/metrics.jsonl", old + new)
    bucket.sent.clear()
    assert steps_of(run)[-1] == 2000
    assert sum(bucket.sent) == OVERLAP + len(new)


def test_the_page_shows_runs_of_a_bucket_with_their_settings_as_they_become(bucket):
    names = (RUN, "runs/other")
    for name in names:
        bucket.put(f"{name}/metrics.jsonl", lines(1))
    bucket.put(f"{RUN}/samples/step_0000001.png", PNG)
    server = opened(Arguments(runs=tuple(f"gs://bucket/{name}" for name in names), page=PageFlags(port=0)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert [run["settings"] for run in json.loads(server.state())["runs"]] == [{}, {}]
    for rate, name in enumerate(names):
        bucket.put(f"{name}/config.json", json.dumps({"optimizer": {"learning_rate": rate}}).encode())
    runs = json.loads(server.state())["runs"]
    with urllib.request.urlopen(f"{server.address}/sheet/0/step_0000001.png") as sheet:
        assert sheet.read() == PNG
    server.shutdown()
    server.server_close()
    assert [run["settings"] for run in runs] == [{"optimizer.learning_rate": "0"}, {"optimizer.learning_rate": "1"}]
    assert [run["curves"]["loss"]["steps"] for run in runs] == [[1], [1]]
    assert [len(run["sheets"]) for run in runs] == [1, 0]
    assert [run["problems"] for run in runs] == [[], []]


@pytest.mark.parametrize("url", ["gs://bucket/runs/none", "gs://bucket", "gs://bucket-that-is-not/runs/one"])
def test_a_run_that_is_not_in_the_bucket_is_refused(bucket, url):
    with pytest.raises(ValueError, match=f"{url} is not the folder of a run: it has neither config.json nor"):
        WatchedRun(url)


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A bucket that can be told not to answer; gcsfs would try for half a minute."""
    (tmp_path / "bucket").mkdir()
    return FolderBucket(tmp_path, monkeypatch)


def test_a_bucket_that_does_not_answer_is_said_and_what_was_read_stays(failing):
    failing.put("run/metrics.jsonl", lines(1, 2))
    failing.put("run/samples/step_0000001.png", PNG)
    failing.put("run/config.json", b'{"optimizer": {"learning_rate": 1}}')
    server = opened(Arguments(runs=("gs://bucket/run",), page=PageFlags(port=0)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.state()
    failing.fails = True
    [run] = json.loads(server.state())["runs"]
    assert "gs://bucket/run/metrics.jsonl cannot be read (no network); check the URL, the network" in run["problems"][0]
    assert run["curves"]["loss"]["steps"] == [1, 2]
    assert run["settings"] == {"optimizer.learning_rate": "1"}
    assert [sheet["step"] for sheet in run["sheets"]] == [1]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.address}/sheet/0/step_0000001.png")
    assert (refused.value.code, b"no network" in refused.value.read()) == (503, True)
    failing.fails = False
    failing.put("run/metrics.jsonl", lines(1, 2, 3))
    [run] = json.loads(server.state())["runs"]
    server.shutdown()
    server.server_close()
    assert (run["curves"]["loss"]["steps"], run["problems"]) == ([1, 2, 3], [])


def test_a_bucket_that_does_not_answer_at_first_is_one_error(failing, capsys):
    failing.put("run/metrics.jsonl", lines(1))
    failing.fails = True
    with pytest.raises(OSError, match=r"gs://bucket/run/config.json cannot be read \(no network\); check the URL"):
        WatchedRun("gs://bucket/run")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("gs://bucket/run", r"gs://bucket/run needs the package gcsfs; pip install 'lumina_jax\[gcs\]'"),
        (
            "http://host/run",
            "folders are local, or URLs that begin with gs:// or s3://, but 'http://host/run' is neither",
        ),
    ],
)
def test_urls_that_nothing_here_reads_are_refused(url, reason, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=reason):
        WatchedRun(url)
