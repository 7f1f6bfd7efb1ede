"""Runs for reports: read from workdirs, grouped by experiment, and averaged over seeds."""

import dataclasses
import glob
import json
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from resnext_jax.config.fields import IMMATERIAL, base_config, field, field_names, fields_of
from resnext_jax.errors import WorkdirError
from resnext_jax.evaluation.eval_file import EVAL_FILE, read_evaluations
from resnext_jax.files import user_path
from resnext_jax.models.registry import network_spec
from resnext_jax.models.resnext import Architecture
from resnext_jax.reports.errors import ReportError
from resnext_jax.runs.log import METRICS_FILE, read_metrics
from resnext_jax.runs.workdir import CONFIG_FILE, DATA_SET_FILE, existing_workdir

# Test records, keyed by weights: "raw" or "ema".
Tests = Mapping[str, dict[str, Any]]


def settings(config: ConfigDict) -> dict[str, Any]:
    """Return the config fields that define an experiment, by dotted name, as JSON values.

    All fields count, except the seed and those that do not affect results.
    """
    same = {name for name, row in fields_of(config).items() if row.resume == IMMATERIAL} | {"seed"}
    names = sorted(set(field_names(config)) - same)
    named: dict[str, Any] = json.loads(json.dumps({name: field(config, name) for name in names}))
    return named


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run, read from its workdir.

    Attributes:
      workdir: path of the workdir, as given.
      config: the run's config; missing fields have their defaults.
      classes: number of classes of its data set.
      data_version: version of its data set.
      records: the records of `metrics.jsonl`.
      evaluations: the evaluations of `eval.json`, see `evaluation.eval_file`.
    """

    workdir: str
    config: ConfigDict
    classes: int
    data_version: str
    records: Sequence[dict[str, Any]]
    evaluations: Sequence[dict[str, Any]] = ()

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        return int(self.config.seed)

    @property
    def architecture(self) -> Architecture:
        """Architecture of the network, independent of its name."""
        model = self.config.model
        spec = network_spec(
            model.name,
            preactivation=model.preactivation,
            stem_width=model.stem_width,
            template_width=model.template_width,
        )
        return spec.architecture

    @property
    def last_test(self) -> dict[str, dict[str, Any]]:
        """Records of the last test, keyed by weights; {} before the first test."""
        tests = [record for record in self.records if record["split"] == "test"]
        return {test["weights"]: test for test in tests if test["step"] == tests[-1]["step"]}

    @property
    def finished(self) -> bool:
        """Whether the last test was made at the run's last step, with all kinds of weights."""
        tests = self.last_test
        wanted = {"raw"} if self.config.ema.decay is None else {"raw", "ema"}
        if not wanted <= tests.keys():
            return False
        step, epoch = tests["raw"]["step"], tests["raw"]["epoch"]
        # Minus an epsilon: the product can be a half with a float error, which rounds up or down.
        return bool(epoch) and step >= round(self.config.num_epochs * step / epoch - 1e-6)


def read_run(workdir: str) -> Run:
    """Read a run from its workdir.

    Raises:
      WorkdirError: the workdir or one of its files is missing or damaged.
    """
    folder = existing_workdir(workdir)
    config = base_config()
    stored = _stored(folder / CONFIG_FILE)
    try:
        config.update(stored)
        data_set, records = _data_set(folder / DATA_SET_FILE), read_metrics(folder)
        evaluations = tuple(read_evaluations(folder / EVAL_FILE).values())
        run = Run(workdir, config, *data_set, records, evaluations)
        _ = run.architecture, run.seed, settings(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise WorkdirError(
            f"{folder / CONFIG_FILE} is damaged ({error}); restore the run's config, or leave "
            "that workdir out."
        ) from error
    for record in run.records:
        if record["split"] == "test" and not _is_test(record):
            raise WorkdirError(
                f"{folder / METRICS_FILE} is damaged (a test at step {record['step']} lacks its "
                "weights or its error); restore that file, or leave that workdir out."
            )
    return run


def _is_test(record: dict[str, Any]) -> bool:
    error = record.get("top1_error")
    return record.get("weights") in ("raw", "ema") and isinstance(error, int | float)


def _data_set(path: Path) -> tuple[int, str]:
    stored = _stored(path)
    classes = stored.get("classes")
    if not isinstance(classes, list) or not classes:
        raise WorkdirError(f"{path} has no list of classes; leave that workdir out.")
    return len(classes), str(stored.get("version", ""))


def _stored(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        raise WorkdirError(
            f"{path.parent} has no {path.name}, so it is not a workdir; give workdirs of runs."
        ) from None
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); restore the run's file, or leave that workdir out."
        ) from error
    return content


def find_workdirs(
    patterns: Iterable[str], say: Callable[[str], None] = lambda line: None
) -> list[str]:
    """List workdirs, each once.

    Args:
      patterns: folders, or patterns such as `runs/*/seed*` (`**` matches any folders); of a
        pattern, only the folders with a `config.json` count.
      say: called with a message that lists the other folders matching a pattern.

    Raises:
      ReportError: a pattern matches no workdir.
    """
    found: dict[str, str] = {}
    for pattern in (str(user_path(pattern, "--workdir")) for pattern in patterns):
        workdirs = [pattern]
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            fitting = sorted(glob.glob(pattern, recursive=True), key=_by_numbers)
            folders = [path for path in fitting if os.path.isdir(path)]
            workdirs = [path for path in folders if (Path(path) / CONFIG_FILE).is_file()]
            if not workdirs:
                raise ReportError(
                    f"--workdir={pattern} matches no workdir (a folder with {CONFIG_FILE}); give "
                    "workdirs of runs."
                )
            others = [path for path in folders if path not in workdirs]
            if others and "**" not in pattern:
                say(f"ignored, because they have no {CONFIG_FILE}: {', '.join(others)}")
        for workdir in workdirs:
            found.setdefault(os.path.realpath(workdir), workdir.rstrip("/") or workdir)
    return list(found.values())


def _by_numbers(path: str) -> list[tuple[int, str]]:
    """Return a sort key for natural order: 8x4d before 16x4d."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path)]


@dataclasses.dataclass(frozen=True)
class Score:
    """An error rate averaged over seeds.

    Attributes:
      mean: mean, in percent.
      deviation: sample standard deviation (n - 1) in percent; None for a single seed.
      count: number of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, the paper's error bars; 0 for a single seed."""
        return 0.0 if self.deviation is None else self.deviation / math.sqrt(self.count)

    def __str__(self) -> str:
        """Return the mean, with the standard deviation if there are several seeds."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The runs of an experiment, which differ only in the seed.

    Attributes:
      runs: finished runs, the first of each seed, sorted by seed.
      others: excluded runs, with the reason.
    """

    runs: tuple[Run, ...]
    others: tuple[tuple[Run, str], ...]

    @property
    def example(self) -> Run:
        """One of the runs."""
        return self.runs[0] if self.runs else self.others[0][0]

    def score(
        self,
        metric: str,
        weights: str,
        tests_of: Callable[[Run], Tests] = lambda run: run.last_test,
    ) -> Score | None:
        """Average a test metric over the seeds; None if no run has it.

        Args:
          metric: key of the metric in a test record.
          weights: "raw" or "ema".
          tests_of: returns a run's test records, keyed by weights; default: the last test during
            training.
        """
        tests = [tests_of(run).get(weights, {}) for run in self.runs]
        values = [test[metric] for test in tests if isinstance(test.get(metric), int | float)]
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Score(statistics.fmean(values), deviation, len(values))


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs that differ only in the seed, in order of appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([settings(run.config), run.data_version, run.classes])
        found.setdefault(key, []).append(run)
    return [_group(members) for members in found.values()]


def _group(members: list[Run]) -> Group:
    by_seed: dict[int, Run] = {}
    others = []
    for run in members:
        if not run.finished:
            others.append((run, _progress(run)))
        elif run.seed in by_seed:
            others.append((run, f"the same run as {by_seed[run.seed].workdir}, by config and seed"))
        else:
            by_seed[run.seed] = run
    return Group(tuple(by_seed[seed] for seed in sorted(by_seed)), tuple(others))


def _progress(run: Run) -> str:
    epoch = run.records[-1]["epoch"] if run.records else 0
    tests = [
        f"top-1 error {test['top1_error']:.2f} % ({weights}) at epoch {test['epoch']:g}"
        for weights, test in run.last_test.items()
    ]
    last = f", last test: {' and '.join(tests)}" if tests else ", never tested"
    return f"unfinished: {epoch:g} of {run.config.num_epochs:g} epochs{last}"


def labels(groups: Sequence[Group]) -> list[str]:
    """Return a distinct label for each group: its model, and where needed more.

    The data set is added if there are several, and the fields in which groups of the same model
    and data set differ.
    """
    configs = [settings(group.example.config) for group in groups]
    several = len({config["data.name"] for config in configs}) > 1
    named = []
    for config in configs:
        alike = [other for other in configs if _twins(config, other)]
        differing = sorted(
            {
                name
                for other in alike
                for name in config | other
                if name in _differing(config, other)
            }
        )
        where = f" on {config['data.name']}" if several else ""
        fields = "".join(f", {name}={config.get(name)}" for name in differing)
        named.append(f"{config['model.name']}{where}{fields}")
    return named


def _twins(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("model.name", "data.name"))


def _differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}
