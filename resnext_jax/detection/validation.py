"""Check a detector's configuration before anything is built."""

from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.checks import (
    check_fields,
    check_frozen_stages,
    check_model,
    check_schedule,
)
from resnext_jax.detection.models import check_architecture
from resnext_jax.errors import ConfigError


def validate_detector(config: ConfigDict) -> None:
    """Check the whole configuration of a detector's run before anything is built.

    Raises:
      ConfigError: names the first wrong field, its value and what is allowed.
    """
    check_fields(config)
    check_model(config.model)
    try:
        check_architecture(build.model_spec(config, num_classes=2))
    except ValueError as error:
        raise ConfigError(f"config.model.name={config.model.name!r}: {error}") from error
    check_frozen_stages(config)
    check_schedule(config)
    if config.data.name == "coco" and config.data.data_dir is None:
        raise ConfigError(
            "config.data.data_dir is not set; name the folder of COCO's images and annotations "
            "with --config.data.data_dir=..."
        )
    if config.data.short_side > config.data.long_side:
        raise ConfigError(
            f"config.data.short_side={config.data.short_side} must be at most "
            f"config.data.long_side={config.data.long_side}."
        )
    _check_samples(config)
    targets = config.targets
    if config.task != "fast_rcnn" and targets.negative_iou > targets.positive_iou:
        raise ConfigError(
            f"config.targets.negative_iou={config.targets.negative_iou} must be at most "
            f"config.targets.positive_iou={config.targets.positive_iou}."
        )
    if config.task == "fast_rcnn" and config.data.proposals is None:
        raise ConfigError(
            "config.data.proposals is not set; make proposals from a trained RPN with python -m "
            "resnext_jax.detection.proposals, and name their folder with "
            "--config.data.proposals=..."
        )
    if config.task == "faster_rcnn" and config.pyramid.enabled:
        _check_pyramid(config)


def _check_samples(config: ConfigDict) -> None:
    for section in ("targets", "regions"):
        for share in ("positives", "foregrounds"):
            settings = config.get(section, {})
            if share in settings and settings[share] > settings.samples:
                raise ConfigError(
                    f"config.{section}.{share}={settings[share]} must be at most "
                    f"config.{section}.samples={settings.samples}, of which they are a part."
                )


def _check_pyramid(config: ConfigDict) -> None:
    if config.roi.kind != "align":
        raise ConfigError(
            f"config.roi.kind={config.roi.kind!r} must be align with "
            "config.pyramid.enabled=True: regions are pooled from one map alone."
        )
    # The finest level's anchors have a quarter of it.
    if config.anchors.base % 4:
        raise ConfigError(
            f"config.anchors.base={config.anchors.base} must be a multiple of 4 with "
            "config.pyramid.enabled=True."
        )
