"""The folder a run lives in."""

import contextlib
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from resnext_jax.config.fields import FIXED, field, field_names, task_of
from resnext_jax.errors import ConfigError, DataError, WorkdirError
from resnext_jax.files import replacing, user_path
from resnext_jax.parallel.distributed import is_first_host

CONFIG_FILE = "config.json"
DATA_SET_FILE = "data_set.json"
LOCK_FILE = ".lock"


def open_workdir(path: str | os.PathLike[str]) -> Path:
    """Make the folder if it is missing, and check that it can be written.

    Raises:
      UserError: it is no path of this machine, or cannot be made, read or written.
    """
    workdir = user_path(path, "--workdir").absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            os.listdir(workdir)
        # Made now, so that an obstacle is reported before the training, not after it.
        for name in ("checkpoints", "plots", "tensorboard"):
            (workdir / name).mkdir(exist_ok=True)
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be used: {error.strerror} ({error.filename}); "
            "give a folder you can read and write with --workdir=..."
        ) from error
    return workdir


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep other runs from writing to a workdir; the system frees a dead run's lock.

    Only the first host of a run writes, and only it takes the lock.

    Raises:
      WorkdirError: another run has it.
    """
    if not is_first_host():
        yield
        return
    path = workdir / LOCK_FILE
    with explained(path):
        file = path.open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise WorkdirError(
                f"workdir {workdir} is being written to by another run ({holder}); wait for it, "
                "stop it, or use another --workdir."
            ) from None
        except OSError:
            pass  # a file system without locks
        with explained(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        yield


def existing_workdir(path: str | os.PathLike[str]) -> Path:
    """Check that the folder is there and readable; raises UserError where it is not."""
    workdir = user_path(path, "--workdir").absolute()
    try:
        os.listdir(workdir)
    except FileNotFoundError:
        raise WorkdirError(f"workdir {workdir} does not exist; give the folder of a run.") from None
    except OSError as error:
        raise WorkdirError(
            f"workdir {workdir} cannot be read: {error.strerror}; give the folder of a run."
        ) from error
    return workdir


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one whole.

    Raises:
      WorkdirError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained(path), replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may leave the name of the new, and nothing


class WholeWriter:
    """A file opened for appending; a write is complete on return, or raises.

    There is no buffer: what could not be written is not tried again on closing.
    """

    def __init__(self, path: Path):
        """Open; raises WorkdirError, as `write` and `sync` do."""
        self.path = path
        with explained(path):
            self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Add to the end."""
        with explained(self.path):
            while data:
                data = data[self._file.write(data) :]

    def sync(self) -> None:
        """Wait until all is on the disk itself."""
        with explained(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close."""
        self._file.close()


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Put into a sentence why a file of the workdir cannot be written inside."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f"{path} cannot be written ({error.strerror}); make room for it, then the same command "
            "goes on from the last checkpoint."
        ) from error


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Write `config.json`."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(workdir / CONFIG_FILE, text + "\n")


class DataSet(Protocol):
    """What is written down of the data that a run is trained on."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def version(self) -> str:
        """Which version, or a hash of which images there are."""

    @property
    def former_versions(self) -> tuple[str, ...]:
        """What earlier versions of this package have written for the same data."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label, in label order."""


def write_data_set(source: DataSet, workdir: Path) -> None:
    """Write `data_set.json`: which data a run is trained on."""
    stored = {"name": source.name, "version": source.version, "classes": source.class_names}
    text = json.dumps(stored, indent=2, allow_nan=False)
    write_atomically(workdir / DATA_SET_FILE, text + "\n")


def stored_class_names(workdir: Path) -> tuple[str, ...]:
    """Return the names of the classes of a workdir's run, in label order.

    Raises:
      WorkdirError: `data_set.json` is missing or damaged.
    """
    path = workdir / DATA_SET_FILE
    try:
        classes = json.loads(path.read_text())["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f"{path} does not list the classes ({error}); give the folder of a whole run."
        ) from error
    if not isinstance(classes, list) or not classes:
        raise WorkdirError(f"{path} does not list the classes; give the folder of a whole run.")
    return tuple(map(str, classes))


def stored_config(workdir: Path) -> ConfigDict:
    """Return the config of a workdir's run; fields that it lacks have their defaults.

    Raises:
      WorkdirError: `config.json` is missing or damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        config = task_of(ConfigDict({"task": "classification"} | stored)).start()
        config.update(stored)
    except FileNotFoundError:
        raise WorkdirError(
            f"workdir {workdir} has no {CONFIG_FILE}; give the folder of a whole run."
        ) from None
    except (OSError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); put the run's config back, or use another --workdir."
        ) from error
    return config


def check_same_data(source: DataSet, workdir: Path) -> None:
    """Check that a workdir's run was trained on this data, of which it needs the very images.

    Raises:
      DataError: other classes, or other images.
      WorkdirError: `data_set.json` is damaged.
    """
    path = workdir / DATA_SET_FILE
    try:
        stored = json.loads(path.read_text())
        classes, version = stored["classes"], stored["version"]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); remove it if you know that the data is the run's, "
            "or use another --workdir."
        ) from error
    if classes != list(source.class_names):
        raise DataError(
            f"the run in {workdir} was trained on other classes than data set {source.name!r} has "
            "now; use the run's data, or another --workdir to start over."
        )
    if version not in (source.version, *source.former_versions):
        raise DataError(
            f"the run in {workdir} was trained on {version!r} of data set {source.name!r}, now it "
            f"is {source.version!r}: images were added, removed or renamed, or have other labels; "
            "put them back, or use another --workdir to start over."
        )


def check_same_run(
    config: ConfigDict,
    workdir: Path,
    sections: tuple[str, ...] | None = None,
    *,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Check that a workdir's run was started with this config, if `config.json` is there.

    Args:
      config: of now.
      workdir: of the run.
      sections: names of the sections to compare, such as "model"; None means all.
      ignored: fields that may differ besides those that always may.

    Raises:
      ConfigError: lists the fields that differ and may not.
      WorkdirError: `config.json` is damaged.
    """
    path = workdir / CONFIG_FILE
    try:
        stored = json.loads(path.read_text())
        check_same_config(config, stored, workdir, sections, ignored=ignored)
    except FileNotFoundError:
        return
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); put the run's config back, or use another --workdir."
        ) from error


def check_same_config(
    config: ConfigDict,
    stored: dict[str, Any],
    workdir: Path,
    sections: tuple[str, ...] | None = None,
    *,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Check that a run was started with this config; see `check_same_run`.

    Args:
      config: of now.
      stored: of the run, as JSON gives it back.
      workdir: of the run, to be named.
      sections: to compare.
      ignored: fields that may differ.
    """
    before = ConfigDict(stored)
    task, stored_names = task_of(config), set(field_names(before))
    defaults = task.start()  # what had no such field did as the default says
    differing = []
    for name, row in task.fields.items():
        if row.resume != FIXED or name in ignored:
            continue
        if sections and name.partition(".")[0] not in sections:
            continue
        # Through JSON, which has lists and no tuples.
        new = json.loads(json.dumps(field(config, name)))
        old = field(before if name in stored_names else defaults, name)
        if new != (list(old) if isinstance(old, tuple) else old):
            differing.append(f"{name} is {new!r}, was {old!r}")
    if differing:
        raise ConfigError(
            f"workdir {workdir} holds a run with another config ({'; '.join(differing)}); "
            "use the same config, or another --workdir to start over."
        )
