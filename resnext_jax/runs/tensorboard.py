"""Scalars for TensorBoard, written in the main thread, where errors can be raised.

tensorboardX's `SummaryWriter` writes in a thread of its own. When that meets a full disk it dies,
and after some more records the run would wait for it for ever.
"""

import os
import platform
import struct
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from resnext_jax.runs.workdir import WholeWriter, explained


class Board:
    """An event file in a folder."""

    def __init__(self, folder: Path, *, purge_step: int):
        """Open a new file; points that older files have from `purge_step` on are void.

        Raises:
          WorkdirError: it cannot be written, here and in the other methods.
        """
        with explained(folder):
            folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of the time in their names.
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._file = WholeWriter(folder / name)
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
        self._write(Event(step=purge_step, session_log=start))

    def add(self, values: dict[str, float], step: int) -> None:
        """Write the values at a step, by name."""
        for name, value in values.items():
            # Not by tensorboardX's `scalar`, which warns of a NaN on the console.
            point = Summary.Value(tag=name, simple_value=value)
            self._write(Event(step=step, summary=Summary(value=[point])))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        """Write a record: its length and the event, each with its checksum."""
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (part + struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(b"".join(parts))
