"""The paper's Tables 1 and 2, counted from the networks."""

import functools
from collections.abc import Sequence

from resnext_jax.models import create_model
from resnext_jax.models.capacity import Complexity, complexity, width_for_cardinality
from resnext_jax.models.variables import skeleton, split
from resnext_jax.reports import paper
from resnext_jax.reports.runs import Run

_NETWORKS = ("resnet50", "resnext50_32x4d")


# Counting takes about a second, and several tables list the same networks.
_complexity = functools.cache(complexity)


def cost(model: str, classes: int) -> Complexity:
    """Count parameters and multiply-adds of a network, at its data set's image size."""
    return _complexity(model, num_classes=classes)


def cost_of(run: Run) -> Complexity:
    """Count parameters and multiply-adds of a run's network, at its image size and classes."""
    model = run.config.model
    return _complexity(
        model.name,
        image_size=run.config.data.image_size,
        num_classes=run.classes,
        residual=model.residual,
        preactivation=model.preactivation,
        stem_width=model.stem_width,
        template_width=model.template_width,
    )


def without_norms(counted: Complexity) -> int:
    """Return the number of parameters of convolutions and classifier only, as in the paper."""
    return sum(layer.params for layer in counted.by_layer if layer.macs)


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown_head(columns: Sequence[str]) -> list[str]:
    """Return the two header lines of a Markdown table."""
    return [markdown_row(columns), markdown_row(["---"] * len(columns))]


def beside(what: str) -> tuple[str, str]:
    """Return the titles of two columns: the paper's number and ours."""
    return f"{what}: paper", "ours"


def table_1() -> list[str]:
    """Table 1 in Markdown: the layers of ResNet-50 and ResNeXt-50 (32x4d), and their cost."""
    counted = [cost(name, 1000) for name in _NETWORKS]
    layers = [stages(name, 1000) for name in _NETWORKS]
    head = ["stage", *beside("output"), *beside("ResNet-50"), *beside("ResNeXt-50 (32 x 4d)")]
    lines = ["## Table 1. ResNet-50 and ResNeXt-50 with a 32 x 4d template", ""]
    lines += markdown_head(head)
    for stage, (output, *papers_cells) in paper.STAGES_50.items():
        ours = [of_network[stage] for of_network in layers]
        cells = [stage, output, ours[0][0]]
        for papers_layers, (_, our_layers) in zip(papers_cells, ours, strict=True):
            cells += [papers_layers, our_layers]
        lines.append(markdown_row(cells))
    for what, papers, numbers in (
        (
            "parameters, millions",
            paper.PARAMS_50,
            [f"{without_norms(of) / 1e6:.1f}" for of in counted],
        ),
        ("with batch norm's", ("", ""), [f"{of.params:,}" for of in counted]),
        ("FLOPs, billions", paper.MACS_50, [f"{of.macs / 1e9:.1f}" for of in counted]),
        ("exactly", ("", ""), [f"{of.macs:,}" for of in counted]),
    ):
        cells = [what, "", ""]
        for figure, number in zip(papers, numbers, strict=True):
            cells += [figure, number]
        lines.append(markdown_row(cells))
    return [
        *lines,
        "",
        "Brackets enclose the layers of a block, with C groups; pooling and softmax have no "
        "weights and are left out. The paper's parameters agree with ours for convolutions and "
        "classifier only, without batch norm's scale and shift. FLOPs are multiply-adds, as in "
        "the paper.",
        "",
    ]


def stages(model: str, classes: int) -> dict[str, tuple[str, str]]:
    """Describe a bottleneck network as Table 1 does.

    Returns:
      Output size and layers by stage ("conv1", ..., "fc"), read from the network's kernels.
    """
    network = skeleton(lambda rngs: create_model(model, num_classes=classes, rngs=rngs))
    kernels = {
        name.removesuffix(".kernel"): array.shape
        for name, array in split(network)[1].items()
        if name.endswith(".kernel")
    }
    counted = cost(model, classes)
    described = {}
    for stage in counted.by_stage:
        layers = [
            layer
            for layer in counted.by_layer
            if layer.stage == stage and layer.macs and "shortcut" not in layer.name
        ]
        names = [layer.name for layer in layers]
        blocks = {name.rpartition(".")[0] for name in names}
        height, width = (*layers[-1].output_shape[:-1], 1, 1)[:2]
        output = f"{height} x {width}"
        if stage == "fc":
            described[stage] = output, f"{kernels['fc'][-1]}-d fc"
        elif stage == "conv1":
            ((side, _, _, channels),) = (kernels[name] for name in names)
            stride = counted.image_size // height
            described[stage] = output, f"{side}x{side}, {channels}, stride {stride}"
        else:
            block = _block(kernels, sorted(name for name in names if f"{stage}.0." in name))
            described[stage] = output, f"[{block}] x {len(blocks)}"
    return described


def _block(kernels: dict[str, tuple[int, ...]], names: list[str]) -> str:
    described = []
    inputs = None  # of the block: its first layer has one group
    for name in names:
        side, _, group_inputs, outputs = kernels[name]
        groups = (inputs or group_inputs) // group_inputs
        described.append(f"{side}x{side}, {outputs}" + (f", C={groups}" if groups > 1 else ""))
        inputs = outputs
    return "; ".join(described)


def table_2() -> list[str]:
    """Table 2 in Markdown: cardinality and width of the bottleneck at equal complexity."""
    head = ["cardinality C", *beside("bottleneck width d"), *beside("width of group conv.")]
    head += [*beside("parameters"), *beside("FLOPs")]
    lines = ["## Table 2. Cardinality and width, for the template of conv2", ""]
    lines += markdown_head(head)
    for cardinality, papers_width, papers_group_width in paper.CAPACITIES:
        width = width_for_cardinality(cardinality)
        params, macs, group_width = block_cost(cardinality, width)
        lines.append(
            markdown_row(
                [
                    f"{cardinality}",
                    f"{papers_width}",
                    f"{width}",
                    f"{papers_group_width}",
                    f"{group_width}",
                    paper.BLOCK_PARAMS,
                    f"{round(params, -4) // 1000}k ({params:,})",
                    paper.BLOCK_MACS,
                    f"{macs / 1e9:.2f} G ({macs:,})",
                ]
            )
        )
    return [
        *lines,
        "",
        "Our d solves Eqn. 4. Parameters and FLOPs are counted in a block of the network, the "
        "second of conv2, which has no projection; batch norm is left out, as in Eqn. 4.",
        "",
    ]


def block_cost(cardinality: int, width: int) -> tuple[int, int, int]:
    """Count a block of conv2 with 256 inputs and outputs.

    Returns:
      Parameters and multiply-adds of its convolutions, and the channels of its 3x3 convolution.
    """
    kind = "resnet" if cardinality == 1 else "resnext"
    counted = cost(f"{kind}50_{cardinality}x{width}d", 1000)
    layers = [
        layer
        for layer in counted.by_layer
        if layer.name.startswith("stages.conv2.1.") and layer.macs
    ]
    (grouped,) = (layer for layer in layers if layer.name.endswith("conv2"))
    return (
        sum(layer.params for layer in layers),
        sum(layer.macs for layer in layers),
        grouped.output_shape[-1],
    )
