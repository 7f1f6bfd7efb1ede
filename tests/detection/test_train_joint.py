"""Training both stages as one network: its losses, its gradients, and a run of each form."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.config.fields import field_names, set_field
from resnext_jax.data.augment import Batch
from resnext_jax.detection import training
from resnext_jax.detection.config import faster_rcnn_config
from resnext_jax.detection.detector import propose_from_levels
from resnext_jax.detection.losses import fast_rcnn_loss, rpn_loss
from resnext_jax.detection.models import RPN, FastRCNN, RoiSpec
from resnext_jax.detection.proposals import ProposalSpec
from resnext_jax.detection.pyramid import level_anchors
from resnext_jax.detection.setup import anchor_specs, normalised
from resnext_jax.detection.targets import (
    RegionTargetSpec,
    RpnTargetSpec,
    region_targets,
    rpn_targets,
)
from resnext_jax.detection.testing import evaluate_detector
from resnext_jax.detection.training import keys_of
from resnext_jax.detection.validation import validate_detector
from resnext_jax.errors import ConfigError
from resnext_jax.models.variables import Arrays, merge, skeleton, split
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.log import RunLog, read_metrics
from resnext_jax.training.state import TrainState
from tests.detection import test_training as stages
from tests.detection.small import STEPS, small_scenes
from tests.detection.small_joint import drawn_weights, small_joint_config

RPN_LOSSES, REGION_LOSSES = ("rpn_class_loss", "rpn_box_loss"), ("class_loss", "box_loss")
SAID = ("RPN class", "RPN box", "class", "box")
FORMS = (
    pytest.param(False, id="shared map"),
    pytest.param(True, id="pyramid", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes") / "small")


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest, scenes: Path) -> ConfigDict:
    return small_joint_config(scenes, pyramid=request.param)


@pytest.fixture(scope="module")
def whole(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("joint")
    return workdir, jax.device_get(training.train(config, workdir))


class Drawn:
    """A network whose weights are drawn, and a batch of images."""

    def __init__(self, config: ConfigDict):
        self.config = config
        mesh = make_mesh(config.batch_size, 1, jax.devices()[:1])
        task, _ = training.prepare(config, mesh)
        self.batch: Batch = jax.device_get(next(task.batches(0, 1)))
        self.stage = training.make_stage(config, training.open_splits(config))
        self.graphdef, self.params, self.batch_stats = drawn_weights(config, names=10)

    def losses(self, params: Arrays, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the losses of the images of a batch, and their parts."""
        model = merge(self.graphdef, params, self.batch_stats)
        model.eval()
        return self.stage.image_losses(model, normalised(batch, self.config), batch)


@pytest.fixture(scope="module")
def drawn(config: ConfigDict) -> Drawn:
    return Drawn(config)


@pytest.mark.slow
def test_a_run_logs_four_losses_and_their_sum(whole: tuple[Path, TrainState]) -> None:
    records = read_metrics(whole[0])
    trained = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in trained] == [*range(1, STEPS + 1)]
    for record in trained:
        parts = [record[name] for name in (*RPN_LOSSES, *REGION_LOSSES)]
        assert min(parts) > 0
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert record["foreground"] > 0
    assert 0 <= records[-1]["AP"] <= records[-1]["AP50"] <= 100


def stages_of(drawn: Drawn) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what says something of anchors, and of regions: two networks, if there are such."""
    config = drawn.config
    if config.pyramid.enabled:
        model = merge(drawn.graphdef, drawn.params, drawn.batch_stats)
        model.eval()
        return (
            lambda images: model.rpn_outputs(model.features(images)),
            lambda images, boxes: model.on_regions(model.features(images), boxes),
        )
    spec = build.model_spec(config, 11)
    networks = []
    for network in (
        skeleton(lambda rngs: RPN(spec, anchors_per_position=6, width=16, rngs=rngs)),
        skeleton(lambda rngs: FastRCNN(spec, roi=RoiSpec("pool", 4), rngs=rngs)),
    ):
        graphdef, params, batch_stats = split(network)
        params = {name: drawn.params[name] for name in params}
        batch_stats = {name: drawn.batch_stats[name] for name in batch_stats}
        networks.append(merge(graphdef, params, batch_stats))
        networks[-1].eval()
    return networks[0], networks[1]


def test_its_losses_are_those_of_both_stages_on_the_same_proposals(
    drawn: Drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage by itself, image by image; its loss is the sum, and all are on the console."""
    batch, config = drawn.batch, drawn.config
    of_anchors, of_regions = stages_of(drawn)
    anchors = level_anchors(64, 64, anchor_specs(config))
    before = config.proposals.train_before
    chosen = ProposalSpec(before=before, most=24, nms_iou=0.7, min_side=4.0)

    @jax.jit
    def separately(image: Batch) -> tuple[jax.Array, ...]:
        """Losses of one image, as of a batch of one."""
        pixels, (key,) = normalised(image, config), keys_of(image)
        names = ("boxes", "classes", "valid", "crowd", "size", "original_size")
        boxes, classes, valid, crowd, size, original_size = (image[name][0] for name in names)
        logits, deltas = (each[0] for each in of_anchors(pixels))
        proposals, _, filled = propose_from_levels(
            logits, deltas, size, original_size, anchors=anchors, spec=chosen
        )
        keys = jax.random.split(key)
        first = rpn_targets(
            keys[0],
            np.concatenate(anchors),
            boxes,
            valid,
            crowd,
            size,
            RpnTargetSpec(samples=32, positives=16),
        )
        spec = RegionTargetSpec(samples=8, foregrounds=4)
        second = region_targets(keys[1], proposals, filled, boxes, classes, valid, crowd, spec)
        rpn_losses = rpn_loss(logits, deltas, first)
        logits, deltas = (each[0] for each in of_regions(pixels, second.boxes[None]))
        return *rpn_losses, *fast_rcnn_loss(logits, deltas, second)

    losses, metrics = jax.device_get(jax.jit(drawn.losses)(drawn.params, batch))
    with RunLog(tmp_path, start_step=0, num_steps=1, active=True) as log:
        means = {name: float(values.mean()) for name, values in metrics.items()}
        log.record({"step": 1, "epoch": 1.0, "split": "train", "learning_rate": 0.1} | means)
    said = capsys.readouterr().out
    for name, words in zip((*RPN_LOSSES, *REGION_LOSSES), SAID, strict=True):
        assert f" {words} {means[name]:.4f} " in said
    for index in range(len(losses)):
        image = {name: array[index : index + 1] for name, array in batch.items()}
        parts = [float(part) for part in separately(image)]
        assert min(parts) > 0
        found = [metrics[name][index] for name in (*RPN_LOSSES, *REGION_LOSSES)]
        assert found == pytest.approx(parts, rel=1e-4)
        assert losses[index] == pytest.approx(sum(parts), rel=1e-4)


@pytest.mark.slow
def test_no_gradient_flows_through_the_proposals(drawn: Drawn) -> None:
    """The regions' losses teach the trunk, but not the head that has proposed the regions."""

    def of_both(params: Arrays, batch: Batch) -> jax.Array:
        _, metrics = drawn.losses(params, batch)
        return jnp.stack(
            [
                jnp.stack([metrics[name].sum() for name in names]).sum()
                for names in (RPN_LOSSES, REGION_LOSSES)
            ]
        )

    gradients = jax.device_get(jax.jit(jax.jacrev(of_both))(drawn.params, drawn.batch))
    for name, by_losses in gradients.items():
        if name.startswith("rpn."):
            own, other = by_losses
        elif name.startswith(("cls.", "box.", "fc1.", "fc2.")):
            other, own = by_losses
        else:
            continue
        assert np.any(own), name
        assert not np.any(other), name
    for gradient in gradients["stages.conv4.0.conv1.kernel"]:
        assert np.any(gradient)


@pytest.mark.slow
def test_frozen_arrays_stay_bit_for_bit_and_all_others_move(
    config: ConfigDict, whole: tuple[Path, TrainState]
) -> None:
    stages.test_frozen_arrays_stay_bit_for_bit_and_all_others_move(config, whole)


@pytest.mark.slow
def test_a_run_is_scored_without_files_of_proposals(
    config: ConfigDict, whole: tuple[Path, TrainState], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same COCO metrics as the run's own last test, and the detections for COCO's server."""
    evaluate_detector(config, [str(whole[0])], [])
    stored = json.loads((whole[0] / "detection_scores.json").read_text())
    assert (stored["step"], stored["images"]) == (STEPS, 5)
    last = read_metrics(whole[0])[-1]
    for name in ("AP", "AP50", "AP75"):
        assert 100 * stored["scores"][name] == pytest.approx(last[name], abs=1e-6)
    rows = json.loads((whole[0] / "detections_test.json").read_text())
    assert f"{len(rows)} detections" in capsys.readouterr().out
    changed = config.copy_and_resolve_references()
    changed.anchors.base = 32
    with pytest.raises(ConfigError, match=r"anchors\.base is 32, was 16"):
        evaluate_detector(changed, [str(whole[0])], [])


@pytest.mark.slow
def test_stopped_and_resumed_it_is_the_same_run(
    config: ConfigDict,
    whole: tuple[Path, TrainState],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages.test_stopped_and_resumed_it_is_the_same_run(config, whole, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_one_and_eight_devices_train_alike(config: ConfigDict) -> None:
    stages.test_one_and_eight_devices_train_alike(config)


def load(name: str) -> ConfigDict:
    config = importlib.import_module(f"resnext_jax.configs.{name}").get_config()
    config.data.data_dir = "/data/coco"
    validate_detector(config)
    assert isinstance(config, ConfigDict)
    return config


def rates(config: ConfigDict) -> list[tuple[int, float]]:
    """Return the steps at which the rate is another, and the last step."""
    steps = build.num_steps(config, 118_287)
    schedule = build.build_schedule(config, 118_287)
    values = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(500, steps)))
    changes = [500, *(np.flatnonzero(np.diff(values)) + 501).tolist()]
    return [(int(step), float(values[step - 500])) for step in changes] + [(steps, 0.0)]


def test_recipes_are_as_long_as_their_sources_say() -> None:
    shared, pyramid = (load(f"coco_resnext50_32x4d_{form}") for form in ("faster_rcnn", "fpn"))
    for config, batch, expected in (
        (shared, 8, [(500, 0.005), (120_000, 0.0005), (180_000, 0)]),
        (pyramid, 16, [(500, 0.02), (60_000, 0.002), (80_000, 0.0002), (90_000, 0)]),
    ):
        assert config.batch_size == batch
        found = rates(config)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [rate for _, rate in found] == pytest.approx([rate for _, rate in expected])
        assert config.model.name == "resnext50_32x4d"
        assert (config.targets.samples, config.targets.positives) == (256, 128)
        assert config.optimizer.new_bias_rate == 2
        assert (config.finetune.frozen_stages, config.finetune.frozen_norms) == (2, True)
    proposals = shared.proposals
    assert (proposals.train_before, proposals.train) == (12_000, 2000)
    assert (proposals.test_before, proposals.test) == (6000, 300)
    assert (shared.regions.samples, shared.regions.foregrounds) == (64, 16)
    assert (shared.roi.kind, shared.roi.size) == ("pool", 14)
    proposals = pyramid.proposals
    assert (proposals.train_before, proposals.train, proposals.width) == (2000, 2000, 256)
    assert (proposals.test_before, proposals.test) == (1000, 1000)
    assert (pyramid.regions.samples, pyramid.regions.foregrounds) == (512, 128)
    assert (pyramid.roi.kind, pyramid.roi.size) == ("align", 7)
    assert (pyramid.data.short_side, pyramid.data.long_side) == (800, 1333)
    assert (pyramid.pyramid.width, pyramid.pyramid.head_width) == (256, 1024)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"pyramid.enabled": True}, "config.roi.kind='pool' must be align with config.pyramid"),
        (
            {"pyramid.enabled": True, "roi.kind": "align", "anchors.base": 18},
            "config.anchors.base=18 must be a multiple of 4",
        ),
        ({"pyramid.canonical_side": 0.0}, "must be greater than 0"),
        ({"regions.samples": 0}, "config.regions.samples=0 must be at least 1"),
        ({"targets.negative_iou": 0.8}, "must be at most config.targets.positive_iou=0.7"),
        ({"data.data_dir": None}, "config.data.data_dir is not set"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(changes: dict[str, Any], part: str) -> None:
    config = load("coco_resnext50_32x4d_faster_rcnn")
    for name, value in changes.items():
        set_field(config, name, value)
    with pytest.raises(ConfigError) as error:
        validate_detector(config)
    assert part in str(error.value)


def test_both_forms_have_the_same_fields() -> None:
    assert field_names(faster_rcnn_config()) == field_names(faster_rcnn_config(pyramid=True))
