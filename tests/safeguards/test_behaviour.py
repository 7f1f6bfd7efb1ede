"""Commands say, and recipes are, what they were before code moved."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Served
from tests.safeguards.behaviour import COMMANDS, CONFIGS, differences, observed, recipes
from tests.safeguards.command_lines import HELP, WRONG, lines, write_others
from tests.safeguards.inputs import write_all
from tests.safeguards.serving import serving

_ADVICE = (
    "where that is meant, say why in the commit and store it: "
    "python -m tests.safeguards.behaviour --write"
)
_COMMANDS = json.loads(COMMANDS.read_text())

# Sentences of argparse and absl differ.
same_python = pytest.mark.skipif(sys.version_info[:2] != (3, 13), reason="stored with Python 3.13")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands").resolve()
    write_all(path)
    write_others(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with serving(folder) as server:
        yield server


@same_python
@pytest.mark.parametrize("line", [*lines(HELP), *lines(WRONG)])
def test_a_command_says_what_it_said(line: str, server: Served, folder: Path) -> None:
    assert observed(server, line, folder) == _COMMANDS[line], _ADVICE


def test_every_stored_command_is_run() -> None:
    assert list(_COMMANDS) == [*lines(HELP), *lines(WRONG)]


def test_every_mistake_has_one_sentence_and_status_2() -> None:
    for line in lines(WRONG):
        result = _COMMANDS[line]
        assert result["status"] == 2, line
        assert result["err"][-1].startswith("error: "), line
        assert sum(text.startswith("error: ") for text in result["err"]) == 1, line


def test_the_recipes_are_what_they_were() -> None:
    assert differences(recipes()) == json.loads(CONFIGS.read_text()), _ADVICE
