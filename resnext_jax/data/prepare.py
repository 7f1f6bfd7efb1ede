"""Preparing data sets: from raw files to array records that are read at random.

As a command: `python -m resnext_jax.data.prepare --dataset=NAME`, with `--help` for the rest.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.shuffle import DuplicatedKeysError

from resnext_jax.data.builders.base import Builder, Inputs
from resnext_jax.data.catalog import find
from resnext_jax.errors import DataError
from resnext_jax.files import user_path

# Which data sets can use an input that most have no use for.
_TAKEN_BY = {"archive": ("cifar10", "cifar100"), "synsets": ("imagenet5k",)}

# tfds writes a split into shuffling files and from these into shards, and deletes the former one
# by one: at most a shard is there twice.
_SHARE = 1.1
_MARGIN = 2**26

_VARIABLE = "TFDS_DATA_DIR"

_ELSEWHERE = (
    "choose another folder with --data_dir=FOLDER (in training --config.data.data_dir=FOLDER)"
)


def prepare(name: str, inputs: Inputs | None = None, data_dir: str | None = None) -> Builder:
    """Prepare a data set, unless that has been done.

    What was prepared before is left as it is, and a note says so where `inputs` name files.

    One process prepares, others wait for it. The remains of an interrupted run
    are never read; the next run removes them.

    Args:
      name: one of `catalog.CATALOG`.
      inputs: where the raw files are, for data sets that need it.
      data_dir: tfds folder; None means tfds's default, `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The builder, whose `as_data_source` can be used.

    Raises:
      DataError: the name, a raw file or an option is wrong, a download failed, the disk
        is or would be full, the folder cannot be written, or it was prepared from other files.
    """
    builder_class = find(name).builder_class()
    inputs = _checked(name, inputs or Inputs())
    data_dir = str(data_folder(data_dir))
    builder = _create(builder_class, inputs, data_dir)
    if _is_prepared(builder):
        _check_origin(builder, inputs)
        # tfds reads what is there when a builder is made: another process may have ended since.
        return builder if builder.info.splits else _create(builder_class, inputs, data_dir)
    root = Path(builder.data_dir_root)
    with _explained(builder.TITLE, root), _locked(root, name):
        if not _is_prepared(builder):
            _prepare(builder, name)
            return builder
    # Another process did it.
    return _create(builder_class, inputs, data_dir)


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the tfds folder that is meant, as tfds does, with every path checked.

    Raises:
      UserError: `data_dir`, or `$TFDS_DATA_DIR` where it is None, is no path (see `user_path`).
    """
    if data_dir is not None:
        return user_path(data_dir, "data_dir")
    return user_path(os.environ.get(_VARIABLE, "~/tensorflow_datasets"), f"${_VARIABLE}")


def _checked(name: str, inputs: Inputs) -> Inputs:
    for option, takers in _TAKEN_BY.items():
        if getattr(inputs, option) and name not in takers:
            raise DataError(
                f"data set {name!r} takes no --{option}; it is for {' and '.join(takers)}."
            )
    paths = ("manual_dir", "archive", "synsets")
    given = {path: getattr(inputs, path) for path in paths if getattr(inputs, path) is not None}
    expanded = {option: user_path(path, f"--{option}") for option, path in given.items()}
    return Inputs(**expanded, trust_archives=inputs.trust_archives)


def _is_prepared(builder: Builder) -> bool:
    # As tfds's `is_prepared`, which warns where it is not.
    return Path(builder.data_dir, "dataset_info.json").exists()


def _check_origin(builder: Builder, inputs: Inputs) -> None:
    """Say that a data set was prepared before; raises DataError if from other files."""
    if builder.data_versions or not (wanted := inputs.origin()):
        return  # it is found by its contents, or nobody asked for it
    origin = builder.prepared_from()
    before = f"{builder.TITLE} in {builder.data_dir} was prepared before"
    if origin is None or origin == wanted:
        source = "files that nobody wrote down" if origin is None else _listed(origin)
        print(
            f"note: {before}, from {source}, and is left as it is; to prepare it again, remove "
            "that folder first",
            file=sys.stderr,
        )
        return
    raise DataError(
        f"{before}, from {_listed(origin) or 'what it downloaded'} and not from {_listed(wanted)}; "
        f"remove that folder first, or {_ELSEWHERE}."
    )


def _listed(origin: Mapping[str, str]) -> str:
    return " and ".join(f"--{option}={path}" for option, path in origin.items())


def _create(builder_class: type[Builder], inputs: Inputs, data_dir: str | None) -> Builder:
    try:
        return builder_class.create(inputs, data_dir)
    except DataError:
        raise
    except Exception as error:  # tfds raises whatever damaged files make it stumble over
        raise DataError(
            f"{builder_class.TITLE} in {data_dir or 'the tfds folder'} cannot be read "
            f"({_told(error)}); remove it there, or {_ELSEWHERE}."
        ) from error


def _prepare(builder: Builder, name: str) -> None:
    root, folder = Path(builder.data_dir_root), Path(builder.data_dir)
    if folder.exists():
        # tfds would take it for the prepared data set.
        raise DataError(f"{folder} is no whole data set; remove it, or {_ELSEWHERE}.")
    needed = builder.check_inputs()
    _remove_leftovers(root, name)
    _check_space(builder.TITLE, root, needed)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # tfds prints what it does; stdout is kept for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
        _check_splits(builder)
    except BaseException:
        _remove_leftovers(root, name)
        raise


def _check_splits(builder: Builder) -> None:
    splits = builder.info.splits
    empty = [split for split, info in splits.items() if not info.num_examples]
    if empty or not splits:
        shutil.rmtree(builder.data_dir)
        raise DataError(
            f"{builder.TITLE} has no images{' for ' if empty else ''}{' and '.join(empty)}; "
            "check the files it is prepared from."
        )


def _check_space(title: str, root: Path, needed: int) -> None:
    wanted = _SHARE * needed + _MARGIN
    free = shutil.disk_usage(root).free
    if free < wanted:
        raise DataError(
            f"{title} needs {wanted / 1e9:.2f} GB in {root} while it is prepared, where "
            f"{free / 1e9:.2f} GB are free; make room there, or {_ELSEWHERE}."
        )


def _remove_leftovers(root: Path, name: str) -> None:
    """Remove what interrupted runs have left; only for the holder of the lock."""
    folder = root / name
    # A data set with configurations has its versions one level below.
    for pattern in ("incomplete.??????_*", "*/incomplete.??????_*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for path in (root / "downloads" / name).glob("*.tmp.*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Keep other processes from preparing the same data set; the system frees dead ones' locks."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {name} in {root}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained(title: str, root: Path) -> Iterator[None]:
    """Raise a DataError that says what went wrong."""
    try:
        yield
    except Exception as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, DataError):
                raise cause from cause.__cause__
        advice = _advice(error, causes)
        if advice is None:
            raise
        raise DataError(f"{title} cannot be prepared in {root}; {advice}.") from error


def _advice(error: Exception, causes: Sequence[BaseException]) -> str | None:
    """Say what happened and what to do about it; None for mistakes of the program."""
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    # The shards are written by a library whose errors are nothing but text.
    if numbers & {errno.ENOSPC, errno.EDQUOT} or "No space left on device" in str(error):
        return f"the disk is full: make room there, or {_ELSEWHERE}"
    if errno.EMFILE in numbers:
        return "too many files are open: run ulimit -n 4096 first"
    if numbers:
        return f"{_told(error)}: make that folder writable, or {_ELSEWHERE}"
    if any(isinstance(cause, DuplicatedKeysError) for cause in causes):
        return "two images have the same name: check the files it is prepared from"
    if isinstance(error, RuntimeError | ValueError | AssertionError):
        return f"{_told(error)}: check the files it is prepared from, or {_ELSEWHERE}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it was raised for, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


if __name__ == "__main__":
    from resnext_jax.commands.prepare import main

    main(sys.argv[1:])
