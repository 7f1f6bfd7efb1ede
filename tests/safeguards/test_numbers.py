"""Twenty steps of training come to the numbers that they came to before code moved."""

import json

import pytest

from tests.safeguards.close import assert_close
from tests.safeguards.numbers import RUNS, STORED, machine, measured
from tests.safeguards.programs import versions

_STORED = json.loads(STORED.read_text())
_OTHER = {name: value for name, value in versions().items() if value != _STORED[name]}


@pytest.mark.slow
@pytest.mark.skipif(bool(_OTHER), reason=f"stored for others than {_OTHER}")
@pytest.mark.parametrize("name", RUNS)
def test_training_comes_to_the_stored_numbers(name: str) -> None:
    found, stored = measured(name), _STORED["runs"][name]
    # Box losses are far below 1 at first.
    assert_close(found["metrics"], stored["metrics"], rel=1e-5, abs=1e-9)
    if machine() == _STORED["processor"]:
        assert found["hashes"] == stored["hashes"], (
            "other weights; where that is meant, say why in the commit and store them: "
            "python -m tests.safeguards.numbers --write"
        )
