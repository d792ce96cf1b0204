"""Curves continue over restarts without gaps or duplicates; the terminal shows what is true."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from lumina_jax.progress import duration
from lumina_jax.training.jsonl import METRICS_FILE, Jsonl, read_metrics
from lumina_jax.training.metrics import MetricWriter, Progress, Speed
from lumina_jax.training.trackers import TENSORBOARD_FOLDER, TensorBoard


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def events(folder):
    """The TensorBoard events of a run, oldest file first: records of length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((folder / TENSORBOARD_FOLDER).iterdir()):
        data = io.BytesIO(file.read_bytes())
        while header := data.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            found.append(Event.FromString(data.read(length)))
            data.read(4)
    return found


def with_tensorboard(folder, resumed_step=0):
    return MetricWriter([Jsonl(folder, resumed_step=resumed_step), TensorBoard(folder, resumed_step=resumed_step)])


def write_steps(folder, steps, resumed_step=0, offset=0.0):
    writer = with_tensorboard(folder, resumed_step)
    for step in steps:
        writer.write(step, {"loss": step + offset})
    writer.close()


def test_metrics_are_lines_of_json_with_their_step(tmp_path):
    writer = MetricWriter([Jsonl(tmp_path, resumed_step=0)])
    writer.write(10, {"loss": np.float32(0.5), "learning_rate": 1e-4})
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 0.5, "learning_rate": 1e-4}], "must be there before close"
    writer.close()


def test_a_resumed_run_has_every_step_once_and_keeps_what_came_before(tmp_path):
    write_steps(tmp_path, range(10, 60, 10))
    write_steps(tmp_path, range(40, 80, 10), resumed_step=30, offset=0.5)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60, 70]
    assert [line["loss"] for line in lines] == [10, 20, 30, 40.5, 50.5, 60.5, 70.5]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_that_starts_again_at_step_0_drops_the_old_curve(tmp_path):
    write_steps(tmp_path, [10, 20])
    write_steps(tmp_path, [10], offset=0.5)
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 10.5}]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    write_steps(tmp_path, [10, 20])
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 30, "lo')
    write_steps(tmp_path, [30], resumed_step=20)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write_steps(tmp_path, [10, 20])
    path = tmp_path / METRICS_FILE
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match=r"metrics.jsonl must be a JSON object with a step, but line 1 is 'nonsense'"):
        Jsonl(tmp_path, resumed_step=20)


def test_a_run_without_the_file_is_named_where_its_metrics_are_needed(tmp_path):
    with pytest.raises(ValueError, match=r"must have metrics.jsonl, which a run writes unless run.jsonl is off"):
        read_metrics(tmp_path)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    writer = MetricWriter([Jsonl(tmp_path, resumed_step=0)])
    writer.write(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    writer.close()
    line = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "gradient_norm": None}


def test_tensorboard_gets_scalars_and_pictures_and_forgets_what_a_resumed_run_repeats(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    writer = with_tensorboard(tmp_path)
    writer.write(40, {"loss": 0.25})
    writer.image(40, "sheet", pixels)
    writer.close()
    write_steps(tmp_path, [40], resumed_step=30)
    found = events(tmp_path)
    values = [(event.step, value) for event in found for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values if value.HasField("simple_value")]
    assert (40, "loss", 0.25) in scalars
    (picture,) = [value.image for _, value in values if value.HasField("image")]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))), pixels)
    restarts = [event.step for event in found if event.session_log.status == event.session_log.START]
    assert 31 in restarts, "TensorBoard hides what was written from this step on by the earlier attempt"


def test_speed_leaves_out_the_first_step_and_pauses():
    clock, speed = Clock(), None
    speed = Speed(clock)
    assert speed.measure() is None
    clock.now += 60  # compilation
    speed.count(32)
    assert speed.measure() is None
    for _ in range(4):
        clock.now += 2
        speed.count(32)
    assert speed.measure() == pytest.approx(16)
    clock.now += 1000  # a sheet is drawn
    speed.restart()
    clock.now += 2
    speed.count(32)
    assert speed.measure() == pytest.approx(16)


def test_speed_is_smoothed_and_converges_to_a_new_one():
    clock = Clock()
    speed = Speed(clock)
    speed.count(1)
    measured = []
    for seconds in (1, *[2] * 40):
        clock.now += seconds
        speed.count(10)
        measured.append(speed.measure())
    assert measured[0] == pytest.approx(10)
    assert measured[1] == pytest.approx(0.7 * 10 + 0.3 * 5)
    assert measured[-1] == pytest.approx(5, rel=1e-4)


def test_without_a_terminal_each_report_is_one_plain_line(capsys):
    clock = Clock()
    with Progress(100, 10, "emoji", samples="images", clock=clock) as progress:
        for step in range(11, 31):
            clock.now += 3 if step > 11 else 500
            progress.advance(step)
        progress.advance(
            30, {"loss": 0.123456, "gradient_norm": 2.0, "learning_rate": 1e-4, "samples_per_second": 640.25}
        )
        progress.note("saved [x]")
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "3 s a step: about 4:21 to step 100",
        "emoji 30/100  loss 0.1235  gradient 2  640.2 images/s  3:30 left",
        "saved [x]",
    ]


@pytest.mark.parametrize(
    ("seconds", "total", "lines"),
    [
        (1.0, 3000, ["1 s a step: about 49:54 to step 3000"]),
        (0.004, 3000, []),
        (2.0, 30, []),
        (400.0, 1000, ["4e+02 s a step: about 110:53:20 to step 1000"]),
    ],
)
def test_the_length_of_a_long_run_is_estimated_once_after_its_first_seconds(capsys, seconds, total, lines):
    clock = Clock()
    with Progress(total, 0, "emoji", clock=clock) as progress:
        for step in range(1, 12):
            progress.advance(step)
            clock.now += seconds
    assert capsys.readouterr().out.splitlines() == lines


def test_the_last_report_says_how_long_the_run_took(capsys):
    clock = Clock()
    with Progress(2, 0, "speech", samples="sounds", clock=clock) as progress:
        clock.now += 90
        progress.advance(1)
        clock.now += 10
        progress.advance(2, {"loss": 0.5, "samples_per_second": 3.0})
    assert capsys.readouterr().out == "speech 2/2  loss 0.5  3 sounds/s  in 1:40\n"


def test_the_last_line_of_a_bar_stays_with_its_loss(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(2, 0, "emoji") as progress:
        progress.advance(1)
        progress.advance(2, {"loss": 0.5, "gradient_norm": 0.25, "samples_per_second": 640.25})
    last = capsys.readouterr().out.removesuffix("\x1b[?25h").removesuffix("\n").split("\x1b[2K")[-1]
    assert "loss 0.5" in last
    assert "640.2" in last


def test_metrics_of_older_runs_are_read_under_their_names_of_now(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "images_per_second": 32.0}\n')
    write_steps(tmp_path, [2], resumed_step=1)
    assert read_metrics(tmp_path)[0] == {"step": 1, "samples_per_second": 32.0}


def test_on_a_terminal_a_bar_shows_the_metrics(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(10, 0, "emoji") as progress:
        for step in range(1, 11):
            progress.advance(step, {"loss": 0.5})
    out = capsys.readouterr().out
    assert "━" in out
    assert "10/10" in out
    assert "loss 0.5" in out


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.0, "59 s"), (61.0, "1:01"), (3725.0, "1:02:05")])
def test_times_left_are_written_as_clocks_do(seconds, text):
    assert duration(seconds) == text
