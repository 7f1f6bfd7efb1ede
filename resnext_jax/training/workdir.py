"""The folder a run lives in."""

import json
import os
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from resnext_jax.errors import ConfigError, WorkdirError
from resnext_jax.training.config import field, field_names

CONFIG_FILE = "config.json"

# Fields that do not change what is computed: a run may resume with others.
_MAY_CHANGE = frozenset(
    {
        "data.data_dir",
        "data.num_workers",
        "data.eval_image_size",
        "eval_batch_size",
        "eval_every_epochs",
        "checkpoint_every_epochs",
        "keep_checkpoints",
        "log_every_steps",
    }
)


def open_workdir(path: str | os.PathLike[str]) -> Path:
    """Make the folder if it is missing, and check that it can be written.

    Raises:
      WorkdirError: it cannot be made, read or written.
    """
    workdir = Path(path).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            os.listdir(workdir)
        # Made now: what stands in the way shall not be told after the training.
        for name in ("checkpoints", "plots", "tensorboard"):
            (workdir / name).mkdir(exist_ok=True)
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be used: {error.strerror} ({error.filename}); "
            "give a folder you can read and write with --workdir=..."
        ) from error
    return workdir


def existing_workdir(path: str | os.PathLike[str]) -> Path:
    """Check that the folder is there and readable; raises WorkdirError where it is not."""
    workdir = Path(path).absolute()
    try:
        os.listdir(workdir)
    except FileNotFoundError:
        raise WorkdirError(f"workdir {workdir} does not exist; give the folder of a run.") from None
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be read: {error.strerror}; give the folder of a run."
        ) from error
    return workdir


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves either the old one or the new one whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Write `config.json`."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    write_atomically(workdir / CONFIG_FILE, text + "\n")


def check_same_run(
    config: ConfigDict, workdir: Path, sections: tuple[str, ...] | None = None
) -> None:
    """Check that a workdir's run was started with this config.

    Args:
      config: of now.
      workdir: of the run.
      sections: names of the sections to compare, such as "model"; None means all.

    Raises:
      ConfigError: lists the fields that differ and may not.
      WorkdirError: `config.json` is damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        stored = ConfigDict(json.loads(path.read_text()))
        stored_names = set(field_names(stored))
    except FileNotFoundError:
        return
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); put the run's config back, or use another --workdir."
        ) from error
    differing = []
    for name in field_names(config):
        if name in _MAY_CHANGE or (sections and name.partition(".")[0] not in sections):
            continue
        # Through JSON, which has lists and no tuples.
        new = json.loads(json.dumps(field(config, name)))
        old = field(stored, name) if name in stored_names else None
        if new != (list(old) if isinstance(old, tuple) else old):
            differing.append(f"{name} is {new!r}, was {old!r}")
    if differing:
        raise ConfigError(
            f"workdir {workdir} holds a run with another config ({'; '.join(differing)}); "
            "use the same config, or another --workdir to start over."
        )
