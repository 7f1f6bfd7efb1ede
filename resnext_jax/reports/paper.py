"""The paper's tables as data: the published numbers, and which of our runs match each.

Numbers are strings, with the digits that the paper prints. Source: Xie et al. 2017, Tables 1 to 8
and the table on shortcuts in Sec. 5.1.
"""

import dataclasses

from resnext_jax.reports.matching import CROP_224, CROP_320, WHOLE_32, Crop, Slot

NOT_RUN = "not run"
NO_FIGURE = "-"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      paper: the published number, or `NO_FIGURE`.
      slot: which of our runs match; None: none can.
      metric: key of our number in a test record.
      empty: text if no run matches.
    """

    paper: str
    slot: Slot | None
    metric: str = "top1_error"
    empty: str = NOT_RUN


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
      network: the network, as the paper writes it.
      setting: the template, cardinality x width, or "".
      cells: one per column of the table.
      model: our name of the network, for counting its parameters and FLOPs; None: not counted.
      classes: number of classes, for counting.
      paper_params: published parameters in millions, or "".
      paper_macs: published FLOPs in billions, or "".
    """

    network: str
    setting: str
    cells: tuple[Cell, ...]
    model: str | None = None
    classes: int = 1000
    paper_params: str = ""
    paper_macs: str = ""


@dataclasses.dataclass(frozen=True)
class ErrorTable:
    """A table of errors.

    Attributes:
      key: its name on the command line, "3" to "8" or "residual".
      title: title of the table.
      columns: column titles, one per cell of a row.
      rows: from top to bottom.
      remarks: notes printed below the table.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    remarks: tuple[str, ...] = ()


_TOP1 = "top-1 error, %"
_TOP5 = "top-5 error, %"


def _errors(
    model: str,
    *figures: str,
    data: str = "imagenet2012",
    crop: Crop = CROP_224,
    residual: bool = True,
) -> tuple[Cell, ...]:
    """Return the cells for the top-1 error, and optionally the top-5 error, of a kind of run."""
    slot = Slot(model, data, crop, residual)
    metrics = ("top1_error", "top5_error")
    return tuple(Cell(paper, slot, metric) for paper, metric in zip(figures, metrics, strict=False))


# Setting, and the error with 50 and with 101 layers.
_PRESERVED = (
    ("1 x 64d", "23.9", "22.0"),
    ("2 x 40d", "23.0", "21.7"),
    ("4 x 24d", "22.6", "21.4"),
    ("8 x 14d", "22.3", "21.3"),
    ("32 x 4d", "22.2", "21.2"),
)


def _preserved(depth: int, setting: str, error: str, macs: str) -> TableRow:
    if setting == "1 x 64d":
        network, model = "ResNet", f"resnet{depth}"
    else:
        network, model = "ResNeXt", f"resnext{depth}_{setting.replace(' ', '')}"
    return TableRow(f"{network}-{depth}", setting, _errors(model, error), model, paper_macs=macs)


TABLE_3 = ErrorTable(
    "3",
    "Ablation experiments on ImageNet-1K, complexity preserved",
    (_TOP1,),
    (
        *(_preserved(50, setting, error, "~4.1") for setting, error, _ in _PRESERVED),
        *(_preserved(101, setting, error, "~7.8") for setting, _, error in _PRESERVED),
    ),
)

TABLE_4 = ErrorTable(
    "4",
    "Comparisons on ImageNet-1K when FLOPs are increased to twice ResNet-101's",
    (_TOP1, _TOP5),
    tuple(
        TableRow(network, setting, _errors(model, *errors), model, paper_macs=macs)
        for network, setting, model, macs, *errors in (
            ("ResNet-101", "1 x 64d", "resnet101", "~7.8", "22.0", "6.0"),
            ("ResNeXt-101", "32 x 4d", "resnext101_32x4d", "~7.8", "21.2", "5.6"),
            ("ResNet-200", "1 x 64d", "resnet200", "~15", "21.7", "5.8"),
            ("ResNet-101, wider", "1 x 100d", "resnet101_1x100d", "~15", "21.3", "5.7"),
            ("ResNeXt-101", "2 x 64d", "resnext101_2x64d", "~15", "20.7", "5.5"),
            ("ResNeXt-101", "64 x 4d", "resnext101_64x4d", "~15", "20.4", "5.3"),
        )
    ),
)

TABLE_RESIDUAL = ErrorTable(
    "residual",
    "Residual connections on ImageNet-1K (Sec. 5.1, a table without a number)",
    (f"with shortcuts, {_TOP1}", f"without, {_TOP1}"),
    tuple(
        TableRow(
            network,
            setting,
            _errors(model, with_shortcuts) + _errors(model, without, residual=False),
            model,
        )
        for network, setting, model, with_shortcuts, without in (
            ("ResNet-50", "1 x 64d", "resnet50", "23.9", "31.2"),
            ("ResNeXt-50", "32 x 4d", "resnext50_32x4d", "22.2", "26.1"),
        )
    ),
    ("FLOPs and parameters are those with shortcuts.",),
)


def _two_crops(model: str, *figures: str) -> tuple[Cell, ...]:
    return _errors(model, *figures[:2]) + _errors(model, *figures[2:], crop=CROP_320)


def _quoted(*figures: str) -> tuple[Cell, ...]:
    return tuple(Cell(figure, None, empty=NO_FIGURE) for figure in figures)


TABLE_5 = ErrorTable(
    "5",
    "State-of-the-art models on ImageNet-1K, single crop",
    tuple(f"{size}, {error}" for size in ("224", "320 or 299") for error in (_TOP1, _TOP5)),
    (
        TableRow("ResNet-101", "", _two_crops("resnet101", "22.0", "6.0", "-", "-"), "resnet101"),
        TableRow(
            "ResNet-200", "", _two_crops("resnet200", "21.7", "5.8", "20.1", "4.8"), "resnet200"
        ),
        TableRow("Inception-v3", "", _quoted("-", "-", "21.2", "5.6")),
        TableRow("Inception-v4", "", _quoted("-", "-", "20.0", "5.0")),
        TableRow("Inception-ResNet-v2", "", _quoted("-", "-", "19.9", "4.9")),
        TableRow(
            "ResNeXt-101",
            "64 x 4d",
            _two_crops("resnext101_64x4d", "20.4", "5.3", "19.1", "4.4"),
            "resnext101_64x4d",
        ),
    ),
    (
        "The Inception networks were tested on 299x299 crops, and are not part of this project.",
        "FLOPs are those at 224x224.",
        "With more than one crop, the paper reports 17.7 % top-1 and 3.7 % top-5 error for one "
        "network (multi-scale dense testing), and 3.03 % top-5 error of an ensemble on the test "
        "set.",
    ),
)


def _5k(model: str, *figures: str) -> tuple[Cell, ...]:
    slot = Slot(model, "imagenet5k")
    metrics = ("top1_error", "top5_error", "top1_error_1000way", "top5_error_1000way")
    return tuple(Cell(paper, slot, metric) for paper, metric in zip(figures, metrics, strict=True))


TABLE_6 = ErrorTable(
    "6",
    "ImageNet-5K, tested on ImageNet-1K's validation images",
    tuple(f"{ways}, {error}" for ways in ("5K-way", "1K-way") for error in (_TOP1, _TOP5)),
    tuple(
        TableRow(network, setting, _5k(model, *errors), model, classes=5000)
        for network, setting, model, *errors in (
            ("ResNet-50", "1 x 64d", "resnet50", "45.5", "19.4", "27.1", "8.2"),
            ("ResNeXt-50", "32 x 4d", "resnext50_32x4d", "42.3", "16.8", "24.4", "6.6"),
            ("ResNet-101", "1 x 64d", "resnet101", "42.4", "16.9", "24.2", "6.8"),
            ("ResNeXt-101", "32 x 4d", "resnext101_32x4d", "40.1", "15.1", "22.2", "5.7"),
        )
    ),
)

TABLE_7 = ErrorTable(
    "7",
    "Test error and model size on CIFAR; the paper's are averages of 10 runs",
    ("CIFAR-10 error, %", "CIFAR-100 error, %"),
    tuple(
        TableRow(
            network,
            setting,
            _errors(model, on_10, data="cifar10", crop=WHOLE_32)
            + _errors(model, on_100, data="cifar100", crop=WHOLE_32),
            model,
            classes=10,
            paper_params=params,
        )
        for network, setting, model, params, on_10, on_100 in (
            ("Wide ResNet", "28-10", "wide_resnet28_10", "36.5", "4.17", "20.50"),
            ("ResNeXt-29", "8 x 64d", "resnext29_8x64d", "34.4", "3.65", "17.77"),
            ("ResNeXt-29", "16 x 64d", "resnext29_16x64d", "68.1", "3.58", "17.31"),
        )
    ),
    ("FLOPs and parameters are those of CIFAR-10's networks.",),
)

TABLE_8 = ErrorTable(
    "8",
    "Object detection on COCO minival, Faster R-CNN",
    ("AP@0.5, %", "AP, %"),
    tuple(
        TableRow(network, setting, tuple(Cell(figure, None) for figure in figures))
        for network, setting, *figures in (
            ("ResNet-50", "1 x 64d", "47.6", "26.5"),
            ("ResNeXt-50", "32 x 4d", "49.7", "27.5"),
            ("ResNet-101", "1 x 64d", "51.1", "29.8"),
            ("ResNeXt-101", "32 x 4d", "51.9", "30.0"),
        )
    ),
    ("Results of detectors are not filled in from workdirs.",),
)

# In the paper's order.
ERROR_TABLES = (TABLE_3, TABLE_4, TABLE_RESIDUAL, TABLE_5, TABLE_6, TABLE_7, TABLE_8)


def _blocks(blocks: int, inner: int, outer: int, groups: str = "") -> str:
    return f"[1x1, {inner}; 3x3, {inner}{groups}; 1x1, {outer}] x {blocks}"


# Table 1, by stage: output, ResNet-50, ResNeXt-50 (32x4d). Layers without weights are left out.
STAGES_50 = {
    "conv1": ("112 x 112", "7x7, 64, stride 2", "7x7, 64, stride 2"),
    **{
        stage: (output, _blocks(blocks, resnet, outer), _blocks(blocks, resnext, outer, ", C=32"))
        for stage, output, blocks, resnet, resnext, outer in (
            ("conv2", "56 x 56", 3, 64, 128, 256),
            ("conv3", "28 x 28", 4, 128, 256, 512),
            ("conv4", "14 x 14", 6, 256, 512, 1024),
            ("conv5", "7 x 7", 3, 512, 1024, 2048),
        )
    },
    "fc": ("1 x 1", "1000-d fc", "1000-d fc"),
}
PARAMS_50 = ("25.5", "25.0")  # millions
MACS_50 = ("4.1", "4.2")  # billions

# Table 2: cardinality, width of the bottleneck, width of the group convolution.
CAPACITIES = ((1, 64, 64), (2, 40, 80), (4, 24, 96), (8, 14, 112), (32, 4, 128))
BLOCK_PARAMS = "~70k"
BLOCK_MACS = "~0.22 G"
