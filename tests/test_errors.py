"""What commands print reaches the user, whatever is in it."""

import io
import os
import sys

import pytest

from resnext_jax.errors import quoted, reports_user_errors


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_stdout_cannot_encode_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode("grün 大 ".encode() + b"\xff.jpg")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))

    @reports_user_errors
    def main(argv: object) -> None:
        print(name)

    main([])
    assert written.getvalue() == (name + "\n").encode(encoding, "backslashreplace")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b/grün 大.jpg", "a b/grün 大.jpg"),
        ("a\nb.jpg", r"'a\nb.jpg'"),
        ("it's\x1b[2J", r'"it' + r"'s\x1b[2J" + '"'),
        ("\udcff.jpg", r"'\udcff.jpg'"),
    ],
)
def test_what_would_break_a_line_is_quoted(text: str, shown: str) -> None:
    assert quoted(text) == shown
