"""What a run writes: strict JSON lines, TensorBoard scalars, lines or a bar on the console."""

import io
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from resnext_jax.errors import WorkdirError
from resnext_jax.runs.log import METRICS_FILE, RunLog, read_metrics
from tests.programs import ROOT


def train_record(step: int, **changes: Any) -> dict[str, Any]:
    record = {
        "step": step,
        "epoch": step / 4,
        "split": "train",
        "loss": 2.0 / step,
        "top1_error": 50.0,
        "top5_error": 12.5,
        "images_per_second": 100.0,
        "data_wait_fraction": 0.25,
        "learning_rate": 0.1,
    }
    return record | changes


def eval_record(step: int, **changes: Any) -> dict[str, Any]:
    record = {
        "step": step,
        "epoch": step / 4,
        "split": "test",
        "weights": "raw",
        "loss": 3.0 / step,
        "top1_error": 60.0,
        "top5_error": 20.0,
    }
    return record | changes


def write(workdir: Path, records: list[dict[str, Any]], start_step: int = 0) -> None:
    with RunLog(workdir, start_step=start_step, num_steps=8, active=True) as log:
        for record in records:
            log.record(record)


def events(workdir: Path) -> list[Event]:
    """Read TensorBoard's files: length, its checksum, the event, its checksum; again."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        place = 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            found.append(Event.FromString(data[place + 12 : place + 12 + length]))
            place += 12 + length + 4
    return found


def scalars(workdir: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in events(workdir)
        for value in event.summary.value
    }


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [train_record(1), eval_record(1), train_record(2, loss=1e-30)]
    write(tmp_path, records)
    assert read_metrics(tmp_path) == records
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 3


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with RunLog(tmp_path, start_step=0, num_steps=8, active=True) as log:
        log.record(train_record(1))
        assert read_metrics(tmp_path) == [train_record(1)]


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_null(tmp_path: Path, value: float) -> None:
    write(tmp_path, [train_record(1, loss=value)])
    text = (tmp_path / METRICS_FILE).read_text()
    assert json.loads(text, parse_constant=refuse) == train_record(1, loss=None)


def test_no_log_has_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [train_record(1), train_record(2)])
    path = tmp_path / METRICS_FILE
    text = path.read_text()
    for cut in (1, 2, 30):
        path.write_text(text[:-cut])
        assert read_metrics(tmp_path) == [train_record(1)]
    # Resuming mends the file.
    write(tmp_path, [train_record(2)], start_step=1)
    assert path.read_text() == text


def test_resuming_drops_the_records_of_steps_to_be_repeated(tmp_path: Path) -> None:
    write(tmp_path, [train_record(2), eval_record(2), train_record(4), train_record(5)])
    write(tmp_path, [train_record(4, loss=9.0)], start_step=2)
    assert read_metrics(tmp_path) == [train_record(2), eval_record(2), train_record(4, loss=9.0)]


def test_starting_over_drops_all_records(tmp_path: Path) -> None:
    write(tmp_path, [train_record(2)])
    write(tmp_path, [])
    assert read_metrics(tmp_path) == []


def test_tensorboard_has_every_number_by_split(tmp_path: Path) -> None:
    write(tmp_path, [train_record(1), eval_record(2)])
    names = ["loss", "top1_error", "top5_error"]
    train_names = [*names, "images_per_second", "data_wait_fraction", "learning_rate"]
    expected = {(f"train/{name}", 1): train_record(1)[name] for name in train_names}
    expected |= {(f"test/{name}", 2): eval_record(2)[name] for name in names}
    assert scalars(tmp_path) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start_step", [0, 1, 7])
def test_tensorboard_is_told_which_steps_are_repeated(tmp_path: Path, start_step: int) -> None:
    """From the start too: a crash before the first checkpoint leaves points to be replaced."""
    write(tmp_path, [train_record(start_step + 1)], start_step=start_step)
    restarts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in restarts] == [
        (start_step + 1, SessionLog.SessionStatus.Value("START"))
    ]


def test_an_inactive_log_writes_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, start_step=0, num_steps=8, active=False) as log:
        log.say("hello")
        log.advance()
        log.record(train_record(1))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def squeezed(line: str) -> str:
    return " ".join(line.split())


def test_without_a_terminal_each_record_is_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, start_step=0, num_steps=8, active=True) as log:
        log.say("hello")
        log.advance()
        log.record(train_record(4))
        log.record(eval_record(4))
        log.record(train_record(5, images_per_second=None, data_wait_fraction=None))
    output, errors = capfd.readouterr()
    assert errors == ""
    hello, train, test, untimed = output.splitlines()
    assert hello == "hello"
    assert squeezed(train) == (
        "epoch 1.00 step 4 train loss 0.5000 top-1 error 50.00 % top-5 error 12.50 % "
        "rate 0.10000 100 images/s 25 % waiting for data"
    )
    assert squeezed(test) == (
        "epoch 1.00 step 4 test loss 0.7500 top-1 error 60.00 % top-5 error 20.00 %"
    )
    assert "images/s" not in untimed


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_on_a_terminal_a_bar_shows_progress_and_training_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunLog(tmp_path, start_step=3, num_steps=8, active=True) as log:
        log.advance()
        log.record(train_record(4))
        log.record(eval_record(4))
    assert "4/8" in terminal.getvalue()
    assert "loss=0.500" in terminal.getvalue()
    assert "top1_error=50.0%" in terminal.getvalue()
    output = capsys.readouterr().out
    assert "train" not in output
    assert "test" in output
    assert len(read_metrics(tmp_path)) == 2


def test_the_time_left_is_told_by_the_pace_since_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with RunLog(tmp_path, start_step=3, num_steps=13, active=True) as log:
        for step in range(4, 8):
            log.advance()
            if step > 4:
                now += 20.0
        log.record(train_record(7))
        log.record(eval_record(7))
    train, test = capsys.readouterr().out.splitlines()
    assert train.endswith("  02:00 left")  # three steps in a minute, six to go
    assert "left" not in test


def test_what_a_record_says_of_memory_and_of_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [train_record(1, peak_memory_bytes=2_500_000_000, skipped_steps=3)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("2.50 GB at most  3 steps left out")
    assert scalars(tmp_path)["train/peak_memory_bytes", 1] == 2.5e9


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_that_were_left_out_are_told_with_their_losses(
    terminal: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    losses, norms = [math.nan, *range(70, 76)], [math.inf, 1234.56]
    record = train_record(
        7,
        loss=math.nan,
        skipped_steps=7,
        skipped_losses=losses,
        skipped_gradient_norms=norms,
    )
    write(tmp_path, [record])
    told = "7 steps left out  loss nan, 70, 71, 72, 73, ...  gradient norm inf, 1235"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert line.endswith(told)
    assert line.strip().startswith("step      7" if terminal else "epoch")
    (stored,) = read_metrics(tmp_path)
    assert stored["skipped_losses"] == [None, *range(70, 76)]
    assert stored["skipped_gradient_norms"] == [None, 1234.56]
    assert math.isnan(scalars(tmp_path)["train/loss", 7])
    assert caplog.records == []  # tensorboardX warns of NaN, had it the chance


def test_averaged_weights_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [eval_record(2), eval_record(2, weights="ema", loss=0.125)])
    raw, ema = capsys.readouterr().out.splitlines()
    assert " test " in raw
    assert " ema " in ema
    assert scalars(tmp_path)["test/loss", 2] == 1.5
    assert scalars(tmp_path)["ema/loss", 2] == 0.125


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_that_is_lost_is_no_reason_to_end(tmp_path: Path, terminal: bool) -> None:
    """The signal that a lost terminal sends also ends the `tee` that reads."""
    code = f"""
import pathlib, sys
from tests.runs.test_log import *
with RunLog(pathlib.Path({str(tmp_path)!r}), start_step=0, num_steps=8, active=True) as log:
    assert sys.stderr.isatty() == {terminal}
    log.say("begin")
    sys.stdin.read()
    for step in range(1, 4):
        log.record(train_record(step))
        log.record(eval_record(step))
        log.advance()
print("end")
"""
    reader, writer = os.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=writer, stderr=writer
    )
    os.close(writer)
    said = b""
    while b"begin" not in said:
        said += os.read(reader, 1000)
    os.close(reader)
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert len(read_metrics(tmp_path)) == 6


def fill_the_disk(workdir: Path, room: int) -> None:
    """Write records until a file may not grow any more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with RunLog(workdir, start_step=0, num_steps=8, active=True) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            for step in range(1, 100):
                log.record(train_record(step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("room", [700, 1700])
def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path, room: int) -> None:
    """Closing the files says nothing more, and does not wait."""
    with pytest.raises(WorkdirError, match=r"cannot be written \(File too large\)"):
        fill_the_disk(tmp_path, room)
    # What was written is whole, and the log can go on.
    records = read_metrics(tmp_path)
    assert records == [train_record(step) for step in range(1, len(records) + 1)]
    write(tmp_path, [train_record(len(records) + 1)], start_step=len(records))
    assert len(read_metrics(tmp_path)) == len(records) + 1


def test_records_of_one_moment_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLog(tmp_path, start_step=0, num_steps=8, active=True) as log:
        writes: list[bytes] = []
        monkeypatch.setattr(log._file, "write", writes.append)
        log.record(eval_record(1), eval_record(1, weights="ema"))
    (written,) = writes
    assert len(written.splitlines()) == 2


@pytest.mark.parametrize("text", ["garbage\n", "3\n", '{"epoch": 1.0, "split": "train"}\n'])
def test_a_damaged_log_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path)


def test_a_log_of_binary_rubbish_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(bytes(range(256)))
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path)
