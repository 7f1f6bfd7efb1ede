"""What hosts must have alike is compared before they compute together."""

import json
from typing import Any

import jax
import pytest

import resnext_jax.detection.config  # noqa: F401  its tasks
from resnext_jax.config.fields import (
    TASKS,
    base_config,
    config_facts,
    set_field,
)
from resnext_jax.errors import UserError
from resnext_jax.parallel import distributed
from resnext_jax.parallel.distributed import check_hosts_agree


@pytest.fixture
def sentence(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what host 0 says where the hosts have found these facts; None where it goes on."""

    def check(*found: dict[str, Any]) -> str | None:
        monkeypatch.setattr(jax, "process_count", lambda: len(found))
        monkeypatch.setattr(
            distributed, "_gather", lambda sent: [json.dumps(one).encode() for one in found]
        )
        try:
            check_hosts_agree(lambda: found[0])
        except UserError as error:
            return str(error)
        return None

    return check


def test_equal_hosts_go_on(sentence: Any) -> None:
    facts = {"images": 56, "rate": 0.1, "none": None, "list": [1, 2]}
    assert sentence(facts, dict(facts), dict(facts)) is None


def test_what_differs_is_named_with_who_has_what(sentence: Any) -> None:
    message = sentence({"images": 56}, {"images": 50}, {"images": 56})
    assert "(images: 56 on 0, 2; 50 on 1; by process ID)" in message
    assert "make them the same on all processes" in message


def test_what_one_host_lacks_differs(sentence: Any) -> None:
    assert "config.x: None on 0; 3 on 1" in sentence({}, {"config.x": 3})


def test_many_differences_are_one_sentence(sentence: Any) -> None:
    hosts = [{f"fact {n}": host for n in range(9)} for host in range(2)]
    message = sentence(*hosts)
    assert "fact 2: 0 on 0; 1 on 1. And 6 more" in message
    assert "\n" not in message


def test_one_host_computes_nothing_for_it() -> None:
    check_hosts_agree(lambda: pytest.fail("there is nobody to compare with"))


def test_where_data_is_may_differ_and_nothing_else() -> None:
    config = base_config()
    set_field(config, "data.data_dir", "/here")
    set_field(config, "init_from", "/here/x.pth")
    assert config_facts(config) == config_facts(base_config())
    for task in TASKS.values():
        config = task.start()
        assert config_facts(config).keys() == {
            f"config.{name}" for name, row in task.fields.items() if not row.per_host
        }
        json.dumps(config_facts(config))
