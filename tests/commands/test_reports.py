"""The command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from resnext_jax.commands.reports import main
from tests.reports.workdirs import digits, write_run

# By ml_collections, where it loads a config file.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)

ROOT = Path(__file__).parents[2]


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is said of a mistake: one sentence, with exit status 2."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (sentence,) = captured.err.splitlines()
    assert sentence.startswith("error: ")
    return sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables", "--table", "9"], "argument --table: invalid choice: '9' (choose from"),
        (["tables", "--workdir=/nowhere/at/all"], "workdir /nowhere/at/all does not exist"),
        (["tables", "--workdir=/nowhere/*"], "--workdir=/nowhere/* matches no workdir"),
        (["tables", "--", "--config.seed=1"], "tables takes no flags after --"),
        (["curves", "--workdir=x"], "the following arguments are required: --out"),
        (["curves", "--out=a.png"], "the following arguments are required: --workdir"),
        (["curves", "--workdir=x", "--out=a.gif"], "--out=a.gif is not a supported picture format"),
        (["curves", "--workdir=x", "--out=a.png", "--figure=4"], "argument --figure: invalid"),
        (["sweep", "table9", "--workdir=x"], "argument NAME: invalid choice: 'table9'"),
        (["sweep", "digits"], "the following arguments are required: --workdir"),
        (["sweep", "digits", "--workdir=x", "--seeds=0"], "--seeds=0 must be at least 1"),
        (["draw"], "argument COMMAND: invalid choice: 'draw'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(arguments, capsys)


def test_tables_to_the_console_and_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        write_run(tmp_path / "runs" / f"seed{seed}", digits(seed=seed), 3.0 + seed)
    workdirs = f"--workdir={tmp_path}/runs/*"
    main(["tables", workdirs, "--table", "2", "8"])
    text = capsys.readouterr().out
    assert text.index("## Table 2") < text.index("## Table 8")
    assert "## Table 3" not in text
    assert "| resnext29_1x4d | digits | 3.02 | 87,514 | raw | 3.50 ± 0.71 |" in text
    out = tmp_path / "new" / "tables.md"
    main(["tables", workdirs, "--table=2", "--table=8", f"--out={out}"])
    assert out.read_text() == text
    assert capsys.readouterr().out == f"written: {out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["tables.md"]


@pytest.mark.parametrize("figure", ["5", "7"])
def test_curves_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], figure: str) -> None:
    done = write_run(tmp_path / "done", digits("resnext29_2x4d"))
    begun = write_run(tmp_path / "begun", digits(), epochs=3)
    out = tmp_path / "curve.png"
    main(["curves", "--workdir", done, begun, f"--out={out}", f"--figure={figure}"])
    assert out.read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.out == f"written: {out}, of 2 run(s) of 2 experiment(s)\n"
    assert (f"left out: {begun}: unfinished" in captured.err) == (figure == "7")


def test_what_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["tables", "--table=8", f"--out={tmp_path}/file/tables.md"]
    assert "tables.md cannot be written" in failure(arguments, capsys)
    (tmp_path / "folder").mkdir()
    arguments = ["tables", "--table=8", f"--out={tmp_path}/folder"]
    assert "folder cannot be written" in failure(arguments, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_sweep_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", "digits", f"--workdir={tmp_path}", "--seeds=2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 7
    assert all("train.py --config=" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_as_a_module() -> None:
    """And to a reader that stops: no traceback."""
    command = f"{sys.executable} -m resnext_jax.reports tables --table 8 | head -n 1"
    result = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout == "# The paper's tables\n"
    assert result.stderr == ""
