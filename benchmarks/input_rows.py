"""What `input_pipeline` measures, and how it is printed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure

_BATCHES_TO_FEED = (256, 1024)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is measured, and on how many cores.

    Attributes:
      name: for the table.
      cores: how many it may use.
      command: the program and its arguments, but for the images.
    """

    name: str
    cores: int
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rate:
    """What was measured of a variant.

    Attributes:
      variant: what it is of.
      timing: of a sample.
      images: in a sample.
      core: images in a second of processor time.
    """

    variant: Variant
    timing: measure.Timing
    images: int
    core: float

    def cell(self) -> str:
        """Return images a second as `median (min-max)`."""
        seconds = self.timing.seconds
        middle, low, high = (
            measure.three_digits(self.images / value)
            for value in (self.timing.median, max(seconds), min(seconds))
        )
        cut = f" r{len(seconds)}" if len(seconds) < self.timing.planned else ""
        return f"{middle} ({low}-{high}){cut}"

    def as_record(self, reference: float | None) -> dict[str, Any]:
        """Return what the JSON file says of it, with its ratio to another one's `core`."""
        return {
            "variant": self.variant.name,
            "cores": self.variant.cores,
            "images_per_second": self.images / self.timing.median,
            "images_per_core_second": self.core,
            "against_tfdata": None if reference is None else self.core / reference,
            **self.timing.as_record(),
        }


def tfdata_core(rates: Sequence[Rate]) -> float | None:
    """Images a core of tf.data on one core; None where it was not measured."""
    found = [rate.core for rate in rates if rate.variant.name == "tf.data"]
    return found[0] if found else None


def print_rates(rates: Sequence[Rate], limit: float) -> None:
    """Print a line for each variant."""
    reference = tfdata_core(rates)
    rows = [
        [
            rate.variant.name,
            str(rate.variant.cores),
            rate.cell(),
            measure.three_digits(rate.core),
            "-" if reference is None else f"{rate.core / reference:.2f}",
        ]
        for rate in rates
    ]
    measure.print_table(["variant", "cores", "images/s", "a core", "x tf.data"], rows, left=1)
    print("a core: images in a second of processor time; x tf.data: of that, by tf.data's on one.")
    print(measure.cut_note(limit))
    if reference is None:
        print("tf.data is left out: --tensorflow-python names an environment that has it.")


def print_colour(timings: Mapping[str, measure.Timing], batch_size: int, core: float) -> None:
    """Print what the device's part takes, and what it would cost a core of the host."""
    device, host = (timings[place].median / batch_size for place in ("device", "host"))
    print(
        f"\nColour, lighting and normalisation of {batch_size} images, in ms: on the device "
        f"{timings['device'].cell()},\nin NumPy on the host {timings['host'].cell()}. An image: "
        f"{1e3 * device:.4f} on the device, {1e3 * host:.2f} on the host,\nwhere the transform "
        f"alone would go from {measure.three_digits(core)} images/s a core to "
        f"{measure.three_digits(1 / (1 / core + host))}."
    )


def print_feeding(rates: Sequence[Rate], cores: int) -> None:
    """Print which training steps the cores beside a GPU would feed, if they add up."""
    rows = []
    for rate in rates:
        if rate.variant.cores == 1:
            together = cores * rate.core
            steps = [measure.milliseconds(batch / together) for batch in _BATCHES_TO_FEED]
            rows.append([rate.variant.name, measure.three_digits(together), *steps])
    print(f"\nBy arithmetic: {cores} such cores beside a GPU, if their rates add up. A training")
    print("step is fed if it takes at least that many ms; no GPU's own speed is measured here.")
    header = ["variant", "images/s", *(f"batch {batch}, ms" for batch in _BATCHES_TO_FEED)]
    measure.print_table(header, rows, left=1)
