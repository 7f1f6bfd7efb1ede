"""Training and evaluation lower to the programs that they lowered to before code moved."""

import json
from collections.abc import Iterator

import pytest

from tests.safeguards.programs import CASES, STORED, anonymous, digest, inputs, text_of, versions

_STORED = json.loads(STORED.read_text())
_OTHER = {name: value for name, value in versions().items() if value != _STORED[name]}


@pytest.fixture(scope="module")
def _inputs() -> Iterator[None]:
    with inputs():
        yield


@pytest.mark.filterwarnings("ignore:the load_module\\(\\) method is deprecated:DeprecationWarning")
@pytest.mark.skipif(bool(_OTHER), reason=f"stored for others than {_OTHER}")
@pytest.mark.usefixtures("_inputs")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * case.slow) for name, case in CASES.items()],
)
def test_the_program_is_the_stored_one(name: str) -> None:
    found = digest(text_of(CASES[name]))
    assert found == _STORED["programs"][name], (
        "another program; where that is meant, say why in the commit and store it: "
        "python -m tests.safeguards.programs --write"
    )


def test_every_stored_program_is_tested() -> None:
    assert _STORED["programs"].keys() == CASES.keys()


def test_names_do_not_count_and_all_else_does() -> None:
    def text(name: str, number: int) -> str:
        return (
            f"module @jit_{name} {{\n"
            f'  func.func public @main(%arg0: f32) -> (f32 {{jax.result_info = "{name}.x"}}) {{\n'
            f"    %0 = call @{name}(%arg0) : (f32) -> f32\n"
            f"    %1 = stablehlo.custom_call @library(%0) : (f32) -> f32\n"
            f"    %2 = stablehlo.constant dense<{number}>\n"
        )

    assert anonymous(text("step", 1)) == anonymous(text("move", 1))
    assert anonymous(text("step", 1)) != anonymous(text("step", 2))
    assert anonymous(text("step", 1)) != anonymous(text("step", 1).replace("library", "other"))
