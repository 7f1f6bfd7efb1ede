"""Classify image files: the most probable classes, with names and probabilities.

    python -m resnext_jax.predict --weights=resnext50_32x4d.pth photo.jpg folder 'more/*.png'
    python -m resnext_jax.predict --weights=timm/resnext50_32x4d.a1_in1k photo.jpg
    python -m resnext_jax.predict --workdir=runs/flowers --json photo.jpg

Images are made as for testing: of a run as its config says, in one crop from the centre; for a
file of weights the short side becomes 256 and the centre 224 (in proportion, for another
`--image_size`), bicubic, cut where torchvision cuts; for published weights by name, as they say.
Unreadable images are reported on stderr and
skipped; the exit status is then 2.
"""

import argparse
import dataclasses
import glob
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from resnext_jax.config import build, cli
from resnext_jax.data.builders.synsets import imagenet1k_names
from resnext_jax.data.decode import ImageFile, UndecodableImageError, is_too_thin
from resnext_jax.data.deep_images import note_dim
from resnext_jax.data.file_names import SUFFIXES, is_hidden, is_image, note_ignored
from resnext_jax.data.transforms import EvalTransform
from resnext_jax.errors import (
    EXIT_USER_ERROR,
    CommandParser,
    DataError,
    UserError,
    positive_int,
    quoted,
    reports_user_errors,
)
from resnext_jax.files import path_argument, user_path
from resnext_jax.interop.identify import twins
from resnext_jax.models.variables import Arrays, merge
from resnext_jax.runs.images import add_image_flags, image_flags, set_images
from resnext_jax.runs.weights import LoadedNetwork, load_network

_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Guess:
    """A predicted class.

    Attributes:
      label: number of the class, from 0.
      name: name of the class.
      probability: from 0 to 1.
    """

    label: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for an image file.

    Attributes:
      path: path of the image.
      guesses: predicted classes, most probable first; () if the image cannot be read.
      error: why the image cannot be read, in a sentence; "" if it can.
    """

    path: str
    guesses: tuple[Guess, ...] = ()
    error: str = ""

    def as_json(self) -> str:
        """Return the prediction as one line of strict JSON."""
        if self.error:
            return json.dumps({"image": self.path, "error": self.error})
        guesses = [dataclasses.asdict(guess) for guess in self.guesses]
        return json.dumps({"image": self.path, "predictions": guesses}, allow_nan=False)

    def __str__(self) -> str:
        """Return one line for the image, and one per predicted class."""
        lines = [f"{100 * guess.probability:8.2f} %  {guess.name}" for guess in self.guesses]
        return "\n".join([quoted(self.path), *lines])


class Predictor:
    """A network that is ready to predict images, batch by batch, on one device.

    Attributes:
      turned: number of images so far that were turned as their EXIF orientation says.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        names: Sequence[str],
        *,
        top: int = 5,
        batch_size: int = 32,
    ):
        """Prepare the prediction; it is compiled on first use.

        Args:
          network: the network with its weights.
          names: class names, in label order.
          top: number of classes to return; all if there are fewer.
          batch_size: images per batch.
        """
        self._names, self._batch_size = tuple(names), batch_size
        self._transform = build.eval_transform(network.config)
        self._exif, self.turned = network.config.data.exif, 0
        self._weights = network.member.network.params, network.member.network.batch_stats
        graphdef = network.member.network.graphdef
        normalise, top = build.device_transform(network.config).test, min(top, len(self._names))

        @jax.jit
        def run(
            params: Arrays, batch_stats: Arrays, images: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            model = merge(graphdef, params, batch_stats)
            model.eval()
            probabilities = jax.nn.softmax(model(normalise({"image": images})))
            return jax.lax.top_k(probabilities, top)

        self._run: Callable[[Arrays, Arrays, np.ndarray], tuple[jax.Array, jax.Array]] = run

    def predict(self, paths: Iterable[str]) -> Iterator[Prediction]:
        """Yield the predictions of image files, in order.

        Raises:
          UserError: the network's probabilities are not finite.
        """
        size, exif = self._transform.image_size, self._exif
        waiting: list[tuple[list[str], list[np.ndarray | str], tuple[jax.Array, jax.Array]]] = []
        paths = iter(paths)
        with ThreadPoolExecutor(_THREADS) as threads:
            while part := list(itertools.islice(paths, self._batch_size)):
                both = list(threads.map(lambda path: _read(path, self._transform, exif), part))
                read = [image for image, _ in both]
                self.turned += sum(turned for _, turned in both)
                batch = np.zeros((self._batch_size, size, size, 3), np.uint8)
                for place, image in enumerate(read):
                    if not isinstance(image, str):
                        batch[place] = image
                # The next images are read while the device works on these.
                waiting.append((part, read, self._run(*self._weights, batch)))
                if len(waiting) > 1:
                    yield from self._predictions(*waiting.pop(0))
        for one in waiting:
            yield from self._predictions(*one)

    def _predictions(
        self,
        paths: list[str],
        read: list[np.ndarray | str],
        results: tuple[jax.Array, jax.Array],
    ) -> Iterator[Prediction]:
        probabilities, labels = jax.device_get(results)
        for path, image, some, best in zip(paths, read, probabilities, labels, strict=False):
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            if not np.isfinite(some).all():
                raise UserError(
                    f"the network's probabilities for {path} are not finite; check its weights."
                )
            guesses = zip(best.tolist(), some.tolist(), strict=True)
            yield Prediction(
                path, tuple(Guess(label, self._names[label], share) for label, share in guesses)
            )


def _read(path: str, transform: EvalTransform, exif: str) -> tuple[np.ndarray | str, bool]:
    """Return the image `[S, S, 3]` as the network gets it, uint8, or why there is none.

    And whether it is turned.
    """
    try:
        file = ImageFile(Path(path).read_bytes(), exif)
        image = np.asarray(file)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}.", False
    except UndecodableImageError as error:
        return f"{path} cannot be decoded ({error}).", False
    if file.is_dim:
        note_dim(lambda: path)
    height, width = image.shape[:2]
    if is_too_thin(height, width):
        return f"{path} is {width}x{height} pixels, too long and thin to be cut.", False
    prepared: np.ndarray = transform({"image": image})["image"]
    return prepared, file.is_turned


def find_images(arguments: Iterable[str]) -> list[str]:
    """List image files. The number of other files in a folder is reported on stderr.

    Args:
      arguments: files; folders, of which all images are taken (`data.file_names.SUFFIXES`); and
        patterns such as `photos/*.jpg` (`**` matches any folders).

    Raises:
      DataError: a folder has no images, or a pattern matches no file.
    """
    found: list[str] = []
    for argument in arguments:
        path = user_path(argument, "the image")
        argument = str(path)
        if path.is_dir():
            shown = [file for file in sorted(path.iterdir()) if not is_hidden(file.name)]
            inside = [file for file in shown if file.is_file()]
            files = [str(file) for file in inside if is_image(file.name)]
            note_ignored(path, (file.name for file in inside if not is_image(file.name)))
            if not files:
                raise DataError(
                    f"folder {argument} has no images ({', '.join(SUFFIXES)}); for images in "
                    f"its subfolders give a pattern, as in '{path / '**' / '*.jpg'}'."
                )
        elif glob.has_magic(argument) and not path.exists():
            fitting = sorted(glob.glob(argument, recursive=True))
            files = [file for file in fitting if Path(file).is_file() and _is_meant(file, path)]
            if not files:
                raise DataError(f"no file matches the pattern {argument!r}; check it.")
        else:
            files = [argument]  # a missing file is reported with the unreadable ones
        found += files
    return found


def _is_meant(file: str, pattern: Path) -> bool:
    """Whether no part of a matching path is hidden, except parts that the pattern names."""
    return not any(is_hidden(part) and part not in pattern.parts for part in Path(file).parts)


def class_names(network: LoadedNetwork, file: Path | None) -> tuple[list[str], str]:
    """Return the names of a network's classes, and what is to be said of them.

    Args:
      network: the network. Without `file`, the names are those of its run; failing that,
        ImageNet-1K's names for an ImageNet network of 1000 classes, and otherwise numbers.
      file: text file with one name per line, in label order; None: no file.

    Raises:
      UserError: the file cannot be read, or has the wrong number of names.
    """
    classes = network.member.spec.num_classes
    if file is not None:
        try:
            names = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(
                f"class names {file} cannot be read: {reason}; check --classes."
            ) from error
        if len(names) != classes:
            raise UserError(
                f"{file} has {len(names)} class names, one per line, but {network.member.origin} "
                f"has {classes} classes; give the names of its classes."
            )
        return names, ""
    if network.class_names is not None:
        return list(network.class_names), ""
    if classes == 1000 and network.member.spec.architecture.stem == "imagenet":
        return list(imagenet1k_names()), (
            "class names are ImageNet-1K's, assuming its classes in the usual order; "
            "--classes=FILE sets other names"
        )
    return [f"class {label}" for label in range(classes)], (
        "the weight file has no class names; --classes=FILE sets them"
    )


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the prediction command."""
    options = _parse(argv)
    paths = find_images(options.image)
    cli.keep_compiled_programs()
    network = load_network(
        workdir=options.workdir,
        file=options.weights,
        checkpoint=options.checkpoint,
        ema=options.ema,
    )
    network.config.data.eval_crops = "centre"
    set_images(network.config, network.wants, image_flags(options))
    if network.wants is not None:
        print(f"note: {network.member.origin} wants {network.wants}", file=sys.stderr)
    elif options.weights and network.class_names is None:  # otherwise it was exported from a run
        print(f"note: {twins(network.member.model)}", file=sys.stderr)
    names, remark = class_names(network, options.classes)
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    predictor = Predictor(
        network, names, top=options.top, batch_size=min(options.batch_size, len(paths))
    )
    status = 0
    for prediction in predictor.predict(paths):
        if prediction.error:
            print(f"error: {quoted(prediction.error)}", file=sys.stderr)
            status = EXIT_USER_ERROR
        if options.json or not prediction.error:
            print(prediction.as_json() if options.json else prediction, flush=True)
    if predictor.turned:
        turned = f"{predictor.turned:,} of {len(paths):,} images"
        print(f"turned: {turned}, as their EXIF orientation says", file=sys.stderr)
    if status:
        sys.exit(status)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m resnext_jax.predict",
        description="Classify image files.",
        allow_abbrev=False,
    )
    parser.add_network()
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="files, folders, or patterns in quotes"
    )
    parser.add_argument(
        "--classes", metavar="FILE", type=path_argument, help="class names, one per line"
    )
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="number of classes to print (5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_image_flags(parser)
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, metavar="N", help="images per batch (32)"
    )
    return parser.parse_args(argv)
