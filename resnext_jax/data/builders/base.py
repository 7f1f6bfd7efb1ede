"""What our tfds builders share: where their raw files are, and what is checked before they run."""

import abc
import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from resnext_jax.data.builders.spilling import spilling

# In a prepared data set: `Inputs.origin` of what it was prepared from.
ORIGIN_FILE = "prepared_from.json"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Raw files to prepare a data set from.

    Attributes:
      manual_dir: folder with archives, or with folders of images.
      archive: one archive, where a data set comes as one.
      synsets: file with the synsets to take, one in a line (ImageNet-5K).
      trust_archives: take archives whose size or checksum is not the published one.
    """

    manual_dir: Path | None = None
    archive: Path | None = None
    synsets: Path | None = None
    trust_archives: bool = False

    def origin(self) -> dict[str, str]:
        """Return what is given, by option: the path, and of a file the size."""
        given = {option: getattr(self, option) for option in ("manual_dir", "archive", "synsets")}
        return {option: _described(path.absolute()) for option, path in given.items() if path}


def _described(path: Path) -> str:
    return f"{path} ({path.stat().st_size:,} bytes)" if path.is_file() else str(path)


class Builder(  # type: ignore[call-arg]  # tfds's, of which mypy knows nothing
    tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True
):
    """A tfds builder that reads its raw files without TensorFlow and checks them first.

    Examples hold `image` (encoded as the raw files have it: bytes are passed
    through, because tfds encodes arrays with TensorFlow), `label`, and where
    there is one a name: `file_name` or `id`.
    """

    inputs: Inputs = Inputs()
    # What this data set is called in sentences.
    TITLE: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep the class out of tfds's registry: a recipe that defines one is loaded twice."""
        super().__init_subclass__(**({"skip_registration": True} | options))

    @classmethod
    def create(cls, inputs: Inputs, data_dir: str | None) -> "Builder":
        """Make the builder of a data set in a tfds folder (None: tfds's default folder).

        Raises:
          DataError: the inputs are needed to say which data set it is, and cannot be read.
        """
        builder = cls(data_dir=data_dir, file_format="array_record")
        builder.inputs = inputs
        return builder

    @property
    def data_versions(self) -> tuple[str, ...]:
        """What a run writes down of its data, and what earlier versions wrote for the same.

        Empty where the version of the data set says it all.
        """
        return ()

    @abc.abstractmethod
    def check_inputs(self) -> int:
        """Check that the raw files are there and readable, before anything is written.

        Returns:
          Bytes that the prepared data set will take, about.

        Raises:
          DataError: a file is missing, is not what it should be, or cannot be read.
        """

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        # Without TensorFlow even where a split is too large to be shuffled in memory.
        with spilling():
            super()._download_and_prepare(*args, **kwargs)
        # The folder still has another name, and gets its own when all is written.
        Path(self.data_path, ORIGIN_FILE).write_text(json.dumps(self.inputs.origin()))

    def prepared_from(self) -> dict[str, str] | None:
        """Return `Inputs.origin` of a prepared data set; None where nobody wrote it down."""
        try:
            origin: dict[str, str] = json.loads(Path(self.data_dir, ORIGIN_FILE).read_text())
        except (OSError, ValueError):  # of an earlier version, or of tfds
            return None
        return origin
