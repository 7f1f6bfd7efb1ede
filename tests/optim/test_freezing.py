"""Which arrays are frozen, and that freezing costs nothing and changes nothing."""

import jax
import numpy as np
import optax
import pytest

from resnext_jax.optim.freezing import Freezing, is_backbone
from resnext_jax.training.step import StepSpec
from tests.training.tiny import TinyRun


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("stem.conv.kernel", 1),
        ("stages.conv2.0.conv1.kernel", 2),
        ("stages.conv4.1.norm3.mean", 4),
        ("fc.kernel", 99),
        ("norm.scale", 99),
    ],
)
def test_stages_are_counted_from_the_stem(name: str, stage: int) -> None:
    assert [Freezing(count)(name) for count in range(6)] == [stage <= n for n in range(6)]
    assert is_backbone(name) is not name.startswith("fc.")


@pytest.mark.slow  # test_options has frozen stages in a run
@pytest.mark.usefixtures("float64")
def test_frozen_stages_are_constants_normalised_as_in_testing() -> None:
    """On 1 and 2 devices, and in micro-batches: the frozen arrays stay, the others move alike."""
    frozen = Freezing(stages=2)
    runs = [
        TinyRun(devices, 16, weight_decay=0.0, spec=StepSpec(freezing=frozen, accumulate_steps=m))
        for devices, m in ((1, 1), (2, 2))
    ]
    before = jax.device_get(runs[0].state)
    losses = [run.train(2) for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    for run in runs:
        gradients = optax.tree_utils.tree_get(run.state.opt_state, "trace")
        for name, old in before.params.items():
            assert np.array_equal(run.state.params[name], old) == frozen(name), name
            assert np.any(gradients[name]) != frozen(name), name
        for name, old in before.batch_stats.items():
            assert np.array_equal(run.state.batch_stats[name], old) == frozen(name), name
