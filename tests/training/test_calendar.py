"""When a run logs, tests and saves."""

import pytest
from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config
from resnext_jax.training.calendar import SaveClock, make_calendar


def make_config(**fields: object) -> ConfigDict:
    config = base_config()
    config.log_every_steps = 40
    for name, value in fields.items():
        config[name] = value
    return config


def test_a_run_saves_before_each_test_and_logs_before_each_save() -> None:
    calendar = make_calendar(make_config(eval_every_epochs=2.0), epoch_steps=25.0, num_steps=110)
    assert sorted(calendar.test) == [50, 100, 110]
    assert sorted(calendar.save) == [25, 50, 75, 100, 110]
    assert sorted(calendar.log) == [0, 25, 40, 50, 75, 80, 100, 110]
    assert calendar.keep == set()


def test_checkpoints_by_steps_cut_no_record_short() -> None:
    config = make_config(checkpoint_every_steps=30, keep_every_epochs=3.0)
    calendar = make_calendar(config, epoch_steps=25.0, num_steps=110)
    assert sorted(calendar.save) == [0, 25, 30, 50, 60, 75, 90, 100, 110]
    assert sorted(calendar.log) == [0, 25, 40, 50, 75, 80, 100, 110]
    assert sorted(calendar.keep) == [75, 110]


def test_epochs_need_not_be_whole_steps() -> None:
    config = make_config(eval_every_epochs=1.0)
    calendar = make_calendar(config, epoch_steps=11.23, num_steps=45)
    assert sorted(calendar.test) == [12, 23, 34, 45]
    short = make_calendar(make_config(eval_every_epochs=0.01), epoch_steps=11.23, num_steps=4)
    assert sorted(short.test) == [1, 2, 3, 4]


def test_a_clock_is_due_by_the_minutes_since_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock, never = SaveClock(2.0), SaveClock(None)
    seen = []
    for passed in (119, 1):
        now += passed
        seen.append((clock.due, never.due))
    clock.restart()
    for passed in (0, 10**9):
        now += passed
        seen.append((clock.due, never.due))
    assert seen == [(False, False), (True, False), (False, False), (True, False)]
