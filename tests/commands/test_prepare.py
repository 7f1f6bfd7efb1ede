"""The command that prepares: what it prints, and how it ends on mistakes and interrupts."""

import http.server
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resnext_jax.commands.prepare import main
from tests.data.raw import write_cifar_archive, write_folder

ROOT = Path(__file__).parents[2]


def exit_status(*arguments: str) -> object:
    try:
        main(list(arguments))
    except SystemExit as left:
        return left.code
    return 0


def test_command_prepares_and_prints_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "pets", classes=("cat", "dog", "emu"), per_class=2)
    arguments = [
        "--dataset=folder",
        f"--manual-dir={tmp_path / 'pets'}",
        f"--data_dir={tmp_path / 'data'}",
    ]
    assert exit_status(*arguments) == 0
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "data" / "folder").glob("pets-*/1.0.0")
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert out == (
        "data set: folder 1.0.0\n"
        "train: 6 images\n"
        "validation: 6 images\n"
        "classes: 3\n"
        f"size: {size:,} bytes\n"
        f"folder: {folder}\n"
    )
    assert exit_status(*arguments) == 0
    assert capsys.readouterr().out == out


def test_command_runs_as_a_module(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    write_cifar_archive(archive, "cifar100")
    command = [sys.executable, "-m", "resnext_jax.data.prepare", "--dataset=cifar100"]
    command += [f"--archive={archive}", f"--data_dir={tmp_path / 'data'}"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    refused = run()
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: archive {archive} is not the published")
    assert refused.stderr.count("\n") == 1
    trusted = run("--trust-archives")
    assert trusted.returncode == 0, trusted.stderr
    assert trusted.stdout.startswith("data set: cifar100 3.0.2\ntrain: 12 images\n")


MISTAKES = {
    "no data set": ([], "the following arguments are required: --dataset"),
    "unknown data set": (["--dataset=mnist"], "invalid choice: 'mnist'"),
    "unknown option": (["--dataset=digits", "--data=x"], "unrecognized arguments: --data=x"),
    "no value": (
        ["--dataset=digits", "--data_dir"],
        "--data_dir/--data-dir: expected one argument",
    ),
    "useless": (["--dataset=digits", "--synsets=x"], "data set 'digits' takes no --synsets"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_command_tells_mistakes_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert message in told.err
    assert told.err.count("\n") == 1


DOWNLOADS = """
import dataclasses, runpy, sys
from resnext_jax.data.builders.cifar import Cifar10
Cifar10.ARCHIVE = dataclasses.replace(Cifar10.ARCHIVE, url=sys.argv.pop(1))
if sys.argv[1].startswith("--dataset"):
    runpy.run_module("resnext_jax.data.prepare", run_name="__main__")
else:
    runpy.run_path("train.py", run_name="__main__")
"""
# Arguments of the command, and of the training, that downloads.
PREPARING = ["--dataset=cifar10", "--data_dir={tmp}"]
TRAINING = [
    "--config=configs/cifar10_resnext29_8x64d.py",
    "--config.data.data_dir={tmp}",
    "--workdir={tmp}/run",
]


@pytest.mark.parametrize("arguments", [PREPARING, TRAINING], ids=["prepare", "train"])
def test_no_download_is_waited_for_when_interrupted(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    downloading, over = threading.Semaphore(0), threading.Event()

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 10_000)
            downloading.release()
            over.wait(60)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/c.tar.gz"
        given = [argument.format(tmp=tmp_path) for argument in arguments]
        command = [sys.executable, "-c", DOWNLOADS, url, *given]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            # Once to see whether the server is there, once for the archive.
            assert all(downloading.acquire(timeout=60) for _ in range(2))
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        over.set()
        server.shutdown()
        thread.join()
    assert process.returncode == 130
    assert told.endswith("interrupted; run the same command again.\n")
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left - {".lock"} == {".cifar10.lock"}  # the first is of the run, if it is one
