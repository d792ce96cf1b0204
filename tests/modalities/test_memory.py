"""Memory while pictures and animations are decoded: what one takes, and what threads take together."""

import io
import json
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from lumina_jax.modalities.decoding import clips, memory, pictures
from lumina_jax.modalities.decoding.clips import read_frames
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.decoding.memory import Budget
from lumina_jax.modalities.decoding.pictures import open_picture

PEAK = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from lumina_jax.config import ClipConfig, DataConfig, ModelConfig
from lumina_jax.modalities.decoding import pictures
from lumina_jax.data.example import Example, Record
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.modalities.decoding.memory import Budget
from lumina_jax.data.preparation import Preparation
from lumina_jax.modalities import modality_of_source

file, frames, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pictures.DECODING = Budget(2**26)
data = DataConfig(media=ClipConfig(image_size=64, frames=frames))
model = ModelConfig(layers=1, heads=2, width=16, patch_size=4, channels=3)
prepare = Preparation(modality_of_source(data, model), model, 0)
record = Record("it", Clip(file) if frames > 1 else file, "a caption", None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(prepare, [(index, record) for index in range(threads)]))
assert all(isinstance(example, Example) for _, example in found), found
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


def megabytes(file, *, frames, threads):
    """How much a process grows while each of its threads prepares the file as a sample."""
    command = [sys.executable, "-c", PEAK, str(file), str(frames), str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_of_a_long_animation_only_the_frames_that_are_wanted_are_kept(tmp_path):
    frames = [Image.new("P", (1280, 720), index) for index in range(60)]
    frames[0].putpalette(bytes(range(256)) * 3)
    for frame in frames[1:]:
        frame.putpalette(bytes(range(256)) * 3)
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:], duration=50)
    assert megabytes(tmp_path / "long.gif", frames=2, threads=1) < 60  # all frames are 210


def test_threads_decode_large_pictures_one_after_another(tmp_path):
    Image.new("RGBA", (3000, 3000), (10, 20, 30, 40)).save(tmp_path / "large.png", compress_level=1)
    one = 3000 * 3000 * 4 / 2**20
    assert megabytes(tmp_path / "large.png", frames=1, threads=8) < 4 * one  # each takes two copies and some bands


def test_frames_of_a_large_animation_are_those_of_a_small_one(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (24, 16), (20 * index, 0, 0)) for index in range(12)]
    for ending in ("gif", "webp", "png"):
        file = tmp_path / f"it.{ending}"
        options = {"lossless": True} if ending == "webp" else {}
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=[50, 150] * 6, **options)
        kept = read_frames(Clip(file), lambda _: [0.0, 0.06, 0.21, 0.9, 1.19])
        with monkeypatch.context() as changed:
            changed.setattr(clips, "KEPT_PIXELS", 0)
            twice = read_frames(Clip(file), lambda _: [0.0, 0.06, 0.21, 0.9, 1.19])
        levels = [[round(float(np.asarray(frame)[..., 0].mean()) / 20) for frame in found] for found in (kept, twice)]
        assert levels == [[0, 1, 2, 9, 11]] * 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK", "1", "I;16", "transparent P", "transparent RGB"])
def test_a_picture_made_rgb_in_bands_equals_one_made_at_once(monkeypatch, mode):
    noise = np.random.default_rng(0).integers(0, 255, (37, 23, 4), np.uint8)
    options = {}
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 250)
    elif mode == "transparent P":
        picture, options = Image.fromarray(noise[..., :3]).quantize(8), {"transparency": 3}
    elif mode == "transparent RGB":
        picture, options = Image.fromarray(noise[..., :3]), {"transparency": tuple(noise[3, 3, :3].tolist())}
    else:
        picture = (
            Image.fromarray(noise).convert("RGB").convert(mode) if mode == "P" else Image.fromarray(noise).convert(mode)
        )
    stream = io.BytesIO()
    picture.save(stream, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole = np.asarray(open_picture(stream.getvalue()))
    monkeypatch.setattr(pictures, "BAND_PIXELS", 100)
    np.testing.assert_array_equal(np.asarray(open_picture(stream.getvalue())), whole)


def test_a_budget_lets_threads_in_while_there_is_room_and_in_their_order():
    budget, order, inside = Budget(10), [], threading.Event()

    def hold(name, amount, leave):
        with budget.reserved(amount):
            order.append(name)
            inside.set()
            assert leave.wait(60)

    def start(name, amount, leave):
        inside.clear()
        thread = threading.Thread(target=hold, args=(name, amount, leave))
        thread.start()
        return thread

    first, others = threading.Event(), threading.Event()
    others.set()
    threads = [start("six", 6, first)]
    assert inside.wait(60)
    threads.append(start("enormous", 1000, others))  # waits until it is alone
    time.sleep(0.05)
    threads.append(start("one", 1, others))  # would fit, but does not overtake
    time.sleep(0.05)
    assert order == ["six"]
    first.set()
    for thread in threads:
        thread.join(60)
    assert order == ["six", "enormous", "one"]


HOLDING = """
import sys, time
from lumina_jax.modalities.decoding.memory import DECODING
with DECODING.reserved(2**28):
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
time.sleep(60)
"""


def test_processes_take_turns_at_enormous_pictures_and_a_killed_one_frees_its(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    other = subprocess.Popen([sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    entered = threading.Event()

    def enter():
        with Budget(2**30).reserved(2**28):
            entered.set()

    try:
        assert other.stdout.readline() == "in\n"
        thread = threading.Thread(target=enter)
        thread.start()
        with Budget(2**30).reserved(2**27):  # ordinary ones never wait
            assert not entered.wait(0.3)
        other.kill()
        assert entered.wait(60)
        thread.join(60)
    finally:
        other.kill()
        other.communicate()


def test_a_process_does_not_wait_for_ever_for_one_that_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(memory, "PATIENCE", 0.1)
    with Budget(2**30).reserved(2**28), Budget(2**30).reserved(2**28):
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with Budget(2**30).reserved(2**28):
        pass


def test_a_budget_is_given_back_when_decoding_fails():
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), budget.reserved(10):
            raise ValueError("broken")
    with budget.reserved(10):
        pass


def test_sixteen_threads_hold_no_more_than_the_budget():
    budget, held, most, lock = Budget(100), [0], [0], threading.Lock()

    def decode(amount):
        for _ in range(20):
            with budget.reserved(amount):
                with lock:
                    held[0] += min(amount, 100)
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= min(amount, 100)

    threads = [threading.Thread(target=decode, args=(10 * (index + 1),)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 0 < most[0] <= 100
    assert held[0] == 0
