"""Print docs/config.md: python -m resnext_jax.commands.config_page > docs/config.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from resnext_jax.config.fields import FIXED, IMMATERIAL, TASKS, Field, field


def page() -> str:
    """Return docs/config.md: classifiers' fields, and of each detector what differs."""
    lines = [
        "# Configuration",
        "",
        "Written by `python -m resnext_jax.commands.config_page` from the tables in",
        "[`config/fields.py`](../resnext_jax/config/fields.py) and",
        "[`detection/config.py`](../resnext_jax/detection/config.py). Each field can be set on the",
        "command line: `--config.batch_size=64`. `train.py --help --config=FILE` lists a recipe's",
        "own values. When a run resumes, fields marked `*` may have changed, and those marked `**`",
        "may because no result depends on them (but for rounding); the others are compared.",
    ]
    shown: dict[str, tuple[Field, Any]] = {}
    for name, task in TASKS.items():
        config = task.start()
        rows = {n: (row, field(config, n)) for n, row in task.fields.items()}
        lines += ["", f"## task={name}", ""]
        if absent := sorted(shown.keys() - rows.keys()):
            lines += [f"As above, without {', '.join(f'`{n}`' for n in absent)}, and with:", ""]
        lines += ["| field | default | must be | meaning |", "| --- | --- | --- | --- |"]
        lines += _rows({n: row for n, row in rows.items() if shown.get(n) != row})
        shown = rows
    return "\n".join(lines) + "\n"


def _rows(rows: Mapping[str, tuple[Field, Any]]) -> Iterator[str]:
    for name, (row, value) in rows.items():
        allowed = row.allowed.replace("*", r"\*")
        mark = {FIXED: "", IMMATERIAL: " \\*\\*"}.get(row.resume, " \\*")
        yield f"| `{name}`{mark} | `{value!r}` | {allowed} | {row.meaning} |"


if __name__ == "__main__":
    print(page(), end="")
