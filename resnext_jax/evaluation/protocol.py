"""What of a test image is scored: the protocol, in words and as data."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.evaluation.dense import short_sides


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How test images are made and scored.

    Attributes:
      crops: "centre", "ten" or "dense" (`config.data.eval_crops`).
      image_size: side of what the network sees at a time, in pixels.
      short_sides: what images are resized to before that is cut out, in pixels; None where the
        whole image is made square.
      interpolation: see `data.resize`.
      antialias: likewise; False where it is not read.
      centre: see `data.transforms.CENTRES`.
    """

    crops: str
    image_size: int
    short_sides: tuple[int, ...] | None
    interpolation: str
    antialias: bool
    centre: str = "torch7"

    @classmethod
    def of(cls, config: ConfigDict) -> "Protocol":
        """Return the protocol of a config."""
        made = build.eval_transform(config)
        sides: tuple[int, ...] | None = None
        if config.data.eval_crops == "dense":
            sides = short_sides(made.image_size)
        elif made.short_side is not None:
            sides = (made.short_side,)
        return cls(
            config.data.eval_crops,
            made.image_size,
            sides,
            made.interpolation,
            made.antialias and made.interpolation != "torch7",
            made.centre,
        )

    def __str__(self) -> str:
        """Return a short name, such as "centre 224 of 256": not the whole of it."""
        if self.short_sides is None:
            return f"whole {self.image_size}"
        return f"{self.crops} {self.image_size} of {', '.join(map(str, self.short_sides))}"

    @property
    def resizing(self) -> str:
        """How images are resized and cut, such as "bicubic, antialiased"."""
        cut = self.short_sides is not None and self.crops != "dense"
        parts = (
            self.interpolation,
            "antialiased" if self.antialias else "",
            f"{self.centre}'s centre" if cut and self.centre != "torch7" else "",
        )
        return ", ".join(filter(None, parts))

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary for a JSON file."""
        sides = None if self.short_sides is None else list(self.short_sides)
        return dataclasses.asdict(self) | {"short_sides": sides}
