"""Whole checkpoints: a manifest of hashes in each folder, and the folders of a run.

A folder counts as a checkpoint only with a manifest that every file in it agrees with. It gets the
name of its step after all that, by one rename; and loses it, by one rename too, before it is
deleted. So however a run is killed, a folder with a step's name is complete, or was damaged later.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from resnext_jax.errors import CheckpointError, one_line

MANIFEST_FILE = "manifest.json"
_ALGORITHM = "sha256"
_SAVING = ".saving"
_DELETING = ".deleting"
# What a killed run leaves: its own folders, and those that Orbax makes in their place at first.
_LEFTOVER = re.compile(
    rf"\d+({re.escape(_SAVING)}|{re.escape(_DELETING)}|\.orbax-checkpoint-tmp)\b.*", re.ASCII
)

# Why nothing can be written, and what to do about it.
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EIO: "see to the disk",
}


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in a folder, and wait until they are on the disk.

    Raises:
      OSError: a file cannot be read, or the manifest not be written.
    """
    files = {}
    for name, path in _files(folder):
        with path.open("rb") as file:
            # Python's own writes may still be in memory only, and the checkpoint before
            # this one is about to be deleted.
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, _ALGORITHM).hexdigest()
            files[name] = {"bytes": file.tell(), _ALGORITHM: digest}
    with (folder / MANIFEST_FILE).open("wb") as file:
        file.write(_render(files))
        file.flush()
        os.fsync(file.fileno())
    for path in {folder, *(path.parent for _, path in _files(folder))}:
        _sync_folder(path)


def find_damage(folder: Path) -> str | None:
    """Compare a folder with its manifest.

    Returns:
      What is wrong with which file, to follow "is damaged:"; None if the
      folder is whole.
    """
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        return f"it has no {MANIFEST_FILE}"
    except OSError as error:
        return f"{MANIFEST_FILE} cannot be read ({error.strerror})"
    try:
        listed = json.loads(text)["files"]
        unchanged = _render(listed) == text
    except (ValueError, KeyError, TypeError):
        unchanged = False
    if not unchanged:
        return f"{MANIFEST_FILE} is not as it was written"
    return _find_difference(dict(_files(folder)), listed)


def _find_difference(present: dict[str, Path], listed: dict[str, Any]) -> str | None:
    """Find a file that is not as listed; cheap differences first."""
    missing, added = listed.keys() - present.keys(), present.keys() - listed.keys()
    if missing:
        return f"{min(missing)} is missing"
    if added:
        return f"{min(added)} does not belong to it"
    sizes = {}
    for name, path in present.items():
        try:
            sizes[name] = path.stat().st_size
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    for name, size in sizes.items():
        if size != listed[name]["bytes"]:
            return f"{name} has {size} bytes instead of {listed[name]['bytes']}"
    for name, path in present.items():
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, _ALGORITHM).hexdigest()
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if digest != listed[name][_ALGORITHM]:
            return f"{name} has other contents than were saved"
    return None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All in a folder that is not a folder, the manifest apart, by name with slashes."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST_FILE and (path.is_symlink() or not path.is_dir()):
            yield name, path


def _render(files: dict[str, Any]) -> bytes:
    """Write a manifest, whose own hash is part of it.

    Any other bytes, even if they mean the same, are a manifest that was changed.
    """
    body = json.dumps(files, indent=1, sort_keys=True)
    digest = hashlib.new(_ALGORITHM, body.encode()).hexdigest()
    return f'{{"files": {body},\n"{_ALGORITHM}": "{digest}"}}\n'.encode()


def _sync_folder(folder: Path) -> None:
    # Not every file system lets folders be synchronised.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StepFolders:
    """The folders `STEP/` of one workdir's checkpoints. Used by the first host alone.

    Attributes:
      directory: which holds them.
    """

    def __init__(self, workdir: Path, directory: Path, warn: Callable[[str], None]):
        """Look at nothing yet.

        Args:
          workdir: damaged checkpoints are moved to `damaged/` in it.
          directory: of the checkpoints.
          warn: takes a sentence about each damaged checkpoint.
        """
        self.directory = directory
        self._damaged = workdir / "damaged"
        self._warn = warn
        # What is wrong with a checkpoint; hashing takes long, so once is enough.
        self._damages: dict[int, str | None] = {}
        self._reported: set[int] = set()

    def path(self, step: int) -> Path:
        """Return the folder of a step, there or not."""
        return self.directory / str(step)

    def saving_path(self, step: int) -> Path:
        """Return where the checkpoint of a step is made."""
        return self.directory / f"{step}{_SAVING}"

    def steps(self) -> list[int]:
        """List the steps that have a folder, damaged ones too, in order.

        Raises:
          CheckpointError: the folder of them all cannot be read.
        """
        try:
            names = [entry.name for entry in os.scandir(self.directory) if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"{self.directory} cannot be read ({error.strerror}); make it a folder that can."
            ) from error
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    def damage(self, step: int) -> str | None:
        """Say what is wrong with a checkpoint, None if it is whole; reads all of it once."""
        if step not in self._damages:
            self._damages[step] = find_damage(self.path(step))
        return self._damages[step]

    def newest_whole(self, *, repair: bool) -> int | None:
        """Find the newest whole checkpoint; None if there are none at all.

        Args:
          repair: move newer ones, which are damaged, out of the way; they are
            warned of in any case.

        Raises:
          CheckpointError: there are checkpoints, and none is whole.
        """
        damages: dict[int, str] = {}
        for step in reversed(self.steps()):
            damage = self.damage(step)
            if damage is None:
                self._report(damages, step, repair=repair)
                return step
            if self.path(step).is_dir():  # otherwise the run that goes on has deleted it
                damages[step] = damage
        if not damages:
            return None
        # Left where they are: without them the next start would be from nothing.
        newest, damage = next(iter(damages.items()))
        raise CheckpointError(
            f"no checkpoint in {self.directory} is whole (of {len(damages)}; {newest} is damaged: "
            f"{damage}); put back a whole one, or use another --workdir to start over."
        )

    def newest_intact(self) -> int | None:
        """Return the newest whole checkpoint, and say nothing of others."""
        whole = (step for step in reversed(self.steps()) if self.damage(step) is None)
        return next(whole, None)

    def _report(self, damages: dict[int, str], used: int, *, repair: bool) -> None:
        for step, damage in damages.items():
            message = f"checkpoint {self.path(step)} is damaged: {damage}; {used} is used instead"
            if repair:
                message += f", and it is moved to {self.move_aside(step)}"
            elif step in self._reported:
                continue
            self._reported.add(step)
            self._warn(f"{message}.")

    def move_aside(self, step: int) -> Path:
        """Move a damaged checkpoint to `damaged/`, and return where it is now."""
        target, number = self._damaged / str(step), 1
        while target.exists():
            number += 1
            target = self._damaged / f"{step}-{number}"
        try:
            self._damaged.mkdir(exist_ok=True)
            shutil.move(self.path(step), target)
        except OSError as error:
            raise CheckpointError(
                f"the damaged checkpoint {self.path(step)} cannot be moved to {target} "
                f"({error.strerror}); move it away yourself, and start again."
            ) from error
        self._damages.pop(step, None)
        return target

    def commit(self, step: int) -> None:
        """Make a checkpoint of what lies, all written, in `saving_path`.

        Raises:
          OSError: it cannot be written.
        """
        write_manifest(self.saving_path(step))
        os.rename(self.saving_path(step), self.path(step))
        _sync_folder(self.directory)
        self._damages[step] = None

    def delete_all_but(self, kept: Collection[int]) -> None:
        """Delete all checkpoints but those of some steps; raises OSError."""
        for step in self.steps():
            if step not in kept:
                # Never half a checkpoint under a step's name.
                rest = self.path(step).with_name(f"{step}{_DELETING}")
                os.rename(self.path(step), rest)
                self._damages.pop(step, None)
                shutil.rmtree(rest)

    def discard(self, step: int) -> None:
        """Delete, as far as that goes, what was written of a checkpoint that failed."""
        for rest in self.directory.glob(f"{step}{_SAVING}*"):
            shutil.rmtree(rest, ignore_errors=True)

    def clean(self) -> None:
        """Delete what runs that were killed have left half written or half deleted."""
        for entry in os.scandir(self.directory):
            if entry.is_dir(follow_symlinks=False) and _LEFTOVER.fullmatch(entry.name):
                shutil.rmtree(entry.path)

    def unwritable(self, step: int, error: Exception) -> CheckpointError:
        """Put into a sentence why a checkpoint was not written, and where that leaves the run."""
        number, reason = _why_unwritable(error)
        try:
            earlier = self.newest_intact()
        except CheckpointError:
            resume = "it goes on from the newest checkpoint, if that is intact"
        else:
            resume = (
                "there is no earlier checkpoint, so it starts over"
                if earlier is None
                else f"it goes on from checkpoint {earlier}, which is intact"
            )
        failure = CheckpointError(
            f"checkpoint {step} could not be written to {self.directory} ({reason}); "
            f"{_REMEDIES.get(number, 'fix that')}, and run the same command again: {resume}."
        )
        failure.__cause__ = error
        return failure


def _why_unwritable(error: BaseException) -> tuple[int, str]:
    """Find the number and the words for what the system refused, in an error and its causes.

    Returns:
      The number, 0 if there is none, and the words.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno, os.strerror(cause.errno)
        # TensorStore has the system's words in a text of its own.
        for number in _REMEDIES:
            if os.strerror(number) in str(cause):
                return number, os.strerror(number)
    return 0, one_line(error)
