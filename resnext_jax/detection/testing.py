"""Scoring the stages: recall of proposals, and COCO's metrics of detections."""

import datetime
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from resnext_jax.config.fields import config_facts
from resnext_jax.detection.coco import CocoSplit
from resnext_jax.detection.detector import Detector
from resnext_jax.detection.evaluate import (
    ResultEntry,
    coco_metrics,
    format_metrics,
    proposal_recall,
    results_rows,
    write_results,
)
from resnext_jax.detection.loading import Proposals
from resnext_jax.detection.proposals import Proposer, StoredProposals
from resnext_jax.detection.setup import (
    StoredWeights,
    check_categories,
    check_countable,
    open_split,
    stored_weights,
)
from resnext_jax.detection.validation import validate_detector
from resnext_jax.errors import ConfigError
from resnext_jax.evaluation.outputs import check_writable, write_output
from resnext_jax.files import strict_json, user_path
from resnext_jax.models.variables import Arrays, digest
from resnext_jax.parallel.distributed import check_hosts_agree, is_first_host
from resnext_jax.runs.workdir import check_same_run, existing_workdir, stored_class_names

# How many of an image's proposals are looked at.
RECALL_AT = (100, 300)
# Of COCO's metrics, those that a run's log has.
LOGGED = ("AP", "AP50", "AP75")
SCORES_FILE, RESULTS_FILE = "detection_scores.json", "detections_test.json"


def nothing() -> None:
    """Do what is done between batches: nothing."""


def score_proposals(
    proposer: Proposer,
    split: CocoSplit,
    weights: tuple[Arrays, Arrays],
    between_batches: Callable[[], None] = nothing,
) -> dict[str, float]:
    """Return the share of a split's objects that an RPN's best proposals cover, in percent.

    Args:
      proposer: the RPN.
      split: the images.
      weights: parameters and running statistics.
      between_batches: what it raises ends the scoring.
    """
    found = proposer.run(split, *weights, between_batches)
    proposals = {index: boxes for index, boxes, _ in found}
    recall = proposal_recall(split, proposals.__getitem__, limits=RECALL_AT)
    return {f"recall{limit}": 100 * value for limit, value in recall.items()}


def find_objects(
    detector: Detector,
    split: CocoSplit,
    weights: tuple[Arrays, Arrays],
    between_batches: Callable[[], None] = nothing,
    *,
    proposals: Proposals | None = None,
) -> list[ResultEntry]:
    """Return what a detector finds in a split's images, as COCO's server takes it.

    Args:
      detector: Fast R-CNN, or Faster R-CNN of one network.
      split: the images.
      weights: parameters and running statistics.
      between_batches: what it raises ends the pass.
      proposals: of each image, for Fast R-CNN.
    """
    found = detector.run(split, *weights, between_batches, proposals=proposals)
    return [row for index, image in found for row in results_rows(split, index, image)]


def logged_metrics(split: CocoSplit, rows: Sequence[ResultEntry]) -> dict[str, float]:
    """Return `LOGGED` of COCO's metrics, in percent."""
    metrics = coco_metrics(split, rows)
    return {name: 100 * metrics[name] for name in LOGGED}


def evaluate_detector(
    config: ConfigDict,
    workdirs: Sequence[str],
    files: Sequence[str],
    *,
    checkpoint: str = "latest",
    ema: bool = False,
    output: str | None = None,
    per_class: str | None = None,
    confusion: str | None = None,
    any_class_names: bool = False,
) -> None:
    """Score one stage's run, print, and write: what eval.py does for a detector.

    Args:
      config: of the run; data, proposals and what is a detection may differ.
      workdirs: one, of the run.
      files: none.
      checkpoint: "latest", "best", or a step.
      ema: score the averaged weights.
      output: JSON file for the scores; None: `detection_scores.json` of the workdir. The detections
        are written to the workdir, `detections_test.json`.
      per_class: None.
      confusion: None.
      any_class_names: False.

    Raises:
      UserError: config, data, workdir or checkpoint are unusable.
    """
    for flag, value in (
        ("weights", files),
        ("per_class", per_class),
        ("confusion", confusion),
        ("any_class_names", any_class_names),
    ):
        if value:
            raise ConfigError(
                f"--{flag} is for classifiers, and the config's task is a detector's."
            )
    if len(workdirs) != 1:
        raise ConfigError("a detector's stage is scored alone; give one --workdir.")
    validate_detector(config)
    folder = existing_workdir(workdirs[0])
    scores_path = folder / SCORES_FILE if output is None else user_path(output, "--output")
    if is_first_host():
        check_writable(scores_path, "--output")
    _, stored = stored_weights(folder, config.task, checkpoint, ema=ema)
    check_same_run(config, folder, sections=("model", "anchors", "roi", "pyramid"))
    split = open_split(config, "test")
    check_categories(split, stored_class_names(folder))
    check_countable(split)
    check_hosts_agree(
        lambda: {
            **config_facts(config),
            **split.facts("test"),
            "the weights": digest(stored.params, stored.batch_stats),
        }
    )
    scores, rows = _score(config, stored, split)
    if not is_first_host():
        return
    made = {
        "step": stored.step,
        "weights": "ema" if ema else "raw",
        "images": len(split),
        "annotations": split.annotations.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    text = strict_json(made | {"scores": scores}, indent=2) + "\n"
    write_output(scores_path, text, "--output")
    if rows is None:
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in scores.items())
        print(f"step {stored.step}: {len(split)} test images, {shown}")
    else:
        write_results(folder / RESULTS_FILE, rows)
        print(f"step {stored.step}: {len(split)} test images, {len(rows)} detections")
        print(format_metrics(scores))
        print(f"written: {folder / RESULTS_FILE}")
    print(f"written: {scores_path}")


def _score(
    config: ConfigDict, stored: StoredWeights, split: CocoSplit
) -> tuple[dict[str, float], list[ResultEntry] | None]:
    """Return scores, and for all but the RPN the detections too."""
    weights = stored.params, stored.batch_stats
    if config.task == "rpn":
        proposer = Proposer(config, stored.graphdef, stored.mesh, training=False)
        return score_proposals(proposer, split, weights), None
    proposals = None
    if config.task == "fast_rcnn":
        proposals = StoredProposals(config.data.proposals, "test", split)
    detector = Detector(config, stored.graphdef, stored.mesh)
    rows = find_objects(detector, split, weights, proposals=proposals)
    return coco_metrics(split, rows), rows
