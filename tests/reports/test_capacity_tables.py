"""Tables 1 and 2 are the paper's."""

import re
from pathlib import Path

import pytest

from resnext_jax.models.capacity import complexity
from resnext_jax.reports import paper
from resnext_jax.reports.capacity_tables import (
    block_cost,
    cost,
    cost_of,
    stages,
    table_1,
    table_2,
    without_norms,
)
from resnext_jax.reports.runs import read_run
from tests.reports.workdirs import digits, write_run


def cells(lines: list[str]) -> dict[str, list[str]]:
    """Return the rows of a Markdown table by their first cell."""
    rows = [line.strip("| ").split("|") for line in lines if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_table_1_equals_the_papers() -> None:
    rows = cells(table_1())
    below = ["parameters, millions", "with batch norm's", "FLOPs, billions", "exactly"]
    assert [*rows][2:] == [*paper.STAGES_50, *below]
    for stage, (output, resnet, resnext) in paper.STAGES_50.items():
        assert rows[stage] == [output, output, resnet, resnet, resnext, resnext]
    assert rows["parameters, millions"] == ["", "", "25.5", "25.5", "25.0", "25.0"]
    assert rows["FLOPs, billions"] == ["", "", "4.1", "4.1", "4.2", "4.2"]
    # And in full, with batch norm's scale and shift.
    assert rows["with batch norm's"][3::2] == ["25,557,032", "25,028,904"]


def test_the_papers_parameters_leave_batch_norm_out() -> None:
    resnet = cost("resnet50", 1000)
    assert resnet.params - without_norms(resnet) == 53_120
    assert f"{resnet.params / 1e6:.1f}" == "25.6"  # which is not the paper's figure
    assert f"{without_norms(cost('resnext29_16x64d', 10)) / 1e6:.1f}" == "68.1"


def test_table_2_equals_the_papers() -> None:
    rows = cells(table_2())
    assert [*rows][2:] == ["1", "2", "4", "8", "32"]
    for row in [*rows.values()][2:]:
        width, our_width, group_width, our_group_width, params, our_params, macs, our_macs = row
        assert width == our_width
        assert group_width == our_group_width
        assert (params, our_params[:4]) == ("~70k", "70k ")
        assert (macs, our_macs[:7]) == ("~0.22 G", "0.22 G ")
    golden = [int(re.sub(r"\D", "", row[5].split()[1])) for row in [*rows.values()][2:]]
    assert golden == [69_632, 69_760, 69_888, 71_456, 70_144]


def test_a_block_of_the_network_is_eqn_4() -> None:
    params, macs, group_width = block_cost(32, 4)
    assert params == 32 * (256 * 4 + 9 * 4 * 4 + 4 * 256)
    assert macs == 56 * 56 * params
    assert group_width == 128


def test_other_networks_are_described_as_they_are() -> None:
    described = stages("resnext29_8x64d", 10)
    assert described["conv1"] == ("32 x 32", "3x3, 64, stride 1")
    assert described["conv3"] == ("16 x 16", "[1x1, 1024; 3x3, 1024, C=8; 1x1, 512] x 3")
    assert described["fc"] == ("1 x 1", "10-d fc")


@pytest.mark.parametrize("residual", [True, False])
def test_a_runs_cost_is_of_its_own_network(tmp_path: Path, residual: bool) -> None:
    config = digits("resnext29_2x4d", **{"model.residual": residual})
    counted = cost_of(read_run(write_run(tmp_path / "run", config)))
    widths = {"stem_width": 16, "template_width": 64, "residual": residual}
    expected = complexity("resnext29_2x4d", image_size=16, num_classes=10, **widths)
    assert (counted.params, counted.macs) == (expected.params, expected.macs)
    assert (counted.params == 126_426) == residual
