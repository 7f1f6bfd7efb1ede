"""Every recipe loads, is valid, and takes the paper's steps at the paper's rates.

Their fields, one by one, are in tests/safeguards/golden/configs.json.
"""

import importlib
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from resnext_jax.config.build import (
    abstract_weights,
    build_schedule,
    eval_transform,
    num_steps,
    steps_per_epoch,
    train_transforms,
)
from resnext_jax.config.checks import validate
from resnext_jax.config.fields import field
from resnext_jax.data import catalog
from resnext_jax.data.reading import DecodedExamples
from resnext_jax.data.sources import open_source
from resnext_jax.errors import ConfigError
from resnext_jax.models import complexity
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.reports.matching import departures
from tests.models.test_registry import CIFAR_PARAMETERS, IMAGENET_PARAMETERS

FOLDER = Path(__file__).parent.parent / "configs"

IMAGENET_IMAGES, IMAGENET5K_IMAGES, CIFAR_IMAGES = 1_281_167, 6_800_000, 50_000


def module(name: str) -> types.ModuleType:
    return importlib.import_module(f"resnext_jax.configs.{name}")


def load(name: str) -> ConfigDict:
    config = module(name).get_config()
    assert isinstance(config, ConfigDict)
    return config


NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
# Detectors are tested in tests/detection/test_config.py.
ALL = [name for name in NAMES if load(name).task == "classification"]


@pytest.mark.parametrize("name", ALL)
def test_is_valid(name: str) -> None:
    validate(load(name))


@pytest.mark.parametrize("name", ALL)
def test_fits_one_device_and_eight(name: str) -> None:
    config = load(name)
    for count in (1, 8):
        mesh = make_mesh(config.batch_size, config.bn_group_size, jax.devices()[:count])
        assert mesh.size == count


def test_digits_are_normalised_by_their_own_mean_and_deviation(data_dir: Path) -> None:
    config = load("digits_resnext29")
    source = open_source("digits", "train", str(data_dir))
    examples = DecodedExamples(source)
    pixels = np.stack([examples[index]["image"] for index in range(len(source))])
    # Enlarging to 16x16 changes both a little.
    np.testing.assert_allclose(config.data.mean, pixels.mean(), atol=1)
    np.testing.assert_allclose(config.data.std, pixels.std(), atol=1)


def test_modern_recipe() -> None:
    """The figures of github.com/pytorch/vision/issues/3995, and of its scripts' defaults."""
    config = load("imagenet_resnext50_32x4d_modern")
    schedule = build_schedule(config, IMAGENET_IMAGES)
    steps = num_steps(config, IMAGENET_IMAGES)
    assert steps == 750_684
    epoch = steps // 600
    assert float(schedule(5 * epoch)) == pytest.approx(0.5, rel=1e-3)
    assert float(schedule(2 * epoch)) == pytest.approx(0.2, rel=1e-3)
    assert float(schedule(steps - 1)) < 1e-6
    # Their decay of 0.99998, adjusted: 1 - 0.00002 * 8 GPUs * 128 images * 32 steps / 600 epochs.
    assert config.ema.every_steps == 32
    assert config.ema.decay == pytest.approx(0.99890773, abs=1e-8)
    # Trained and tested on crops of 224; tested, out of 232.
    test = eval_transform(config)
    assert (test.image_size, test.short_side, test.interpolation) == (224, 232, "bilinear")


def test_the_modern_recipes_other_crop() -> None:
    """As its docstring says: trained on 176, tested on 224 out of 232."""
    config = load("imagenet_resnext50_32x4d_modern")
    config.data.image_size, config.data.eval_image_size = 176, 224
    validate(config)
    test = eval_transform(config)
    assert (test.image_size, test.short_side) == (224, 232)


def test_imagenet5k_takes_the_steps_of_imagenet() -> None:
    small, large = load("imagenet"), load("imagenet5k")
    epoch_steps = steps_per_epoch(small, IMAGENET_IMAGES)
    assert epoch_steps == pytest.approx(5004.56, abs=0.01)
    assert steps_per_epoch(large, IMAGENET5K_IMAGES) == epoch_steps
    assert large.num_epochs == small.num_epochs
    assert num_steps(large, IMAGENET5K_IMAGES) == num_steps(small, IMAGENET_IMAGES) == 500_456
    assert large.data.eval_first_classes == 1000
    schedules = [
        build_schedule(small, IMAGENET_IMAGES),
        build_schedule(large, IMAGENET5K_IMAGES),
    ]
    for step in (0, 150_136, 150_137, 300_274, 450_411):
        assert float(schedules[0](step)) == float(schedules[1](step))


def test_a_cifar_epoch_is_all_of_its_images() -> None:
    assert steps_per_epoch(load("cifar"), CIFAR_IMAGES) == 50_000 / 128


@pytest.mark.parametrize("name", ALL)
def test_the_data_set_is_in_the_catalog(name: str) -> None:
    catalog.find(load(name).data.name)


@pytest.mark.parametrize(
    "choice",
    [
        "",
        "cifar10",
        "cifar10,",
        "mnist,resnext29_8x64d",
        "resnext29_8x64d",
        "cifar10,resnext29_8x64d,preactivated",
        "cifar10,resnext29_8x64d,preact,preact",
    ],
)
def test_cifar_refuses_what_is_not_a_data_set_and_a_model(choice: str) -> None:
    with pytest.raises(ConfigError, match="cifar10 or cifar100") as error:
        module("cifar").get_config(choice)
    assert repr(choice) in str(error.value)


def test_options_of_the_imagenet_recipe() -> None:
    plain = load("imagenet")
    assert plain.data.eval_image_size is None
    ablation = module("imagenet").get_config("resnet50,no_residual")
    large = module("imagenet").get_config("resnext101_64x4d,crop320")
    both = module("imagenet").get_config("resnet200,no_residual,crop320")
    for config in (ablation, large, both):
        validate(config)
    assert (ablation.model.name, ablation.model.residual) == ("resnet50", False)
    assert ablation.data.eval_image_size is None
    assert (large.model.name, large.model.residual) == ("resnext101_64x4d", True)
    assert (large.data.image_size, large.data.eval_image_size) == (224, 320)
    assert (eval_transform(large).image_size, eval_transform(large).short_side) == (320, 320)
    assert (both.model.residual, both.data.eval_image_size) == (False, 320)


@pytest.mark.parametrize("option", ["", "crop299", "preact"])
def test_imagenet_refuses_other_options(option: str) -> None:
    with pytest.raises(ConfigError, match="no_residual and crop320") as error:
        module("imagenet").get_config(f"resnet50,{option}")
    assert repr(option) in str(error.value)


# How ml_collections loads the file.
loads_by_flag = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)


def parse(*arguments: str) -> ConfigDict:
    """Load a config as train.py does."""
    values = flags.FlagValues()
    command = ["train.py", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    values(command)
    config = holder.value
    assert config is not None
    return config


@loads_by_flag
@pytest.mark.parametrize(
    ("choice", "model", "dataset"),
    [
        ("imagenet.py:resnet50", "resnet50", "imagenet2012"),
        ("imagenet.py:resnext101_2x40d", "resnext101_2x40d", "imagenet2012"),
        ("imagenet.py", "resnext50_32x4d", "imagenet2012"),
        ("imagenet5k.py:resnet101", "resnet101", "imagenet5k"),
        ("cifar.py:cifar100,resnext29_16x64d", "resnext29_16x64d", "cifar100"),
        ("digits_resnext29.py", "resnext29_8x4d", "digits"),
        ("folder.py:resnet101,crop320", "resnet101", "folder"),
    ],
)
def test_the_command_line_chooses_the_model(choice: str, model: str, dataset: str) -> None:
    config = parse(f"--config={FOLDER / choice}")
    validate(config)
    assert (config.model.name, config.data.name) == (model, dataset)


@loads_by_flag
def test_the_command_line_changes_any_field() -> None:
    config = parse(
        f"--config={FOLDER / 'imagenet.py'}:resnet50",
        "--config.batch_size=64",
        "--config.bn_group_size=16",
        "--config.num_epochs=3",
        "--config.images_per_epoch=1000",
        "--config.schedule.boundaries=(148.0,223.0)",
        "--config.data.data_dir=/tmp/data",
        "--config.data.flip=false",
    )
    validate(config)
    assert (config.batch_size, config.bn_group_size) == (64, 16)
    assert config.num_epochs == 3.0
    assert config.images_per_epoch == 1000
    assert tuple(config.schedule.boundaries) == (148.0, 223.0)
    assert config.data.data_dir == "/tmp/data"
    assert config.data.flip is False


@loads_by_flag
def test_a_loaded_config_takes_no_new_fields() -> None:
    config = parse(f"--config={FOLDER / 'digits_resnext29.py'}")
    with pytest.raises(AttributeError):
        config.batchsize = 64
    with pytest.raises(AttributeError):
        config.optimizer.learning_rte = 0.1


# Every experiment of the paper's tables that a config reaches by name:
# file, argument, and the model's options that differ from the defaults.
TABLES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("imagenet", model, {})
        for model in (
            "resnet50",
            "resnext50_2x40d",
            "resnext50_4x24d",
            "resnext50_8x14d",
            "resnext50_32x4d",
            "resnet101",
            "resnext101_2x40d",
            "resnext101_4x24d",
            "resnext101_8x14d",
            "resnext101_32x4d",
            "resnet200",
            "resnet101_1x100d",
            "resnext101_2x64d",
            "resnext101_64x4d",
        )
    ),
    ("imagenet", "resnet50,no_residual", {"residual": False}),
    ("imagenet", "resnext50_32x4d,no_residual", {"residual": False}),
    ("imagenet", "resnet200,crop320", {}),
    ("imagenet", "resnext101_64x4d,crop320", {}),
    *(
        ("imagenet5k", model, {})
        for model in ("resnet50", "resnext50_32x4d", "resnet101", "resnext101_32x4d")
    ),
    *(
        ("cifar", f"{dataset},{model}", {})
        for dataset in ("cifar10", "cifar100")
        for model in (
            "resnext29_8x64d",
            "resnext29_16x64d",
            "wide_resnet28_10",
            "resnext29_2x64d",
            "resnet29_1x128d",
        )
    ),
    ("cifar", "cifar10,resnext29_8x64d,preact", {"preactivation": True}),
]


@pytest.mark.parametrize(("file", "argument", "options"), TABLES)
def test_every_experiment_of_the_tables(file: str, argument: str, options: dict[str, Any]) -> None:
    """Batch, groups, schedule, and the network, built without arrays."""
    config = module(file).get_config(argument)
    validate(config)
    dataset, images, batch, group, rate_falls = {
        "imagenet": ("imagenet2012", IMAGENET_IMAGES, 256, 32, [150_137, 300_274, 450_411]),
        "imagenet5k": ("imagenet5k", IMAGENET5K_IMAGES, 256, 32, [150_137, 300_274, 450_411]),
        "cifar": (argument.split(",")[0], CIFAR_IMAGES, 128, 16, [58_594, 87_891]),
    }[file]
    if "preact" in argument:
        batch, group, rate_falls = 256, 32, [29_297, 43_946]
    assert config.data.name == dataset
    assert (config.batch_size, config.bn_group_size) == (batch, group)
    assert config.data.eval_image_size == (320 if "crop320" in argument else None)
    schedule = build_schedule(config, images)
    rate = 0.1
    for step in rate_falls:
        assert float(schedule(step - 1)) == pytest.approx(rate)
        rate /= 10
        assert float(schedule(step)) == pytest.approx(rate)

    if "crop320" in argument:  # the network is that of another row
        assert config.model == module(file).get_config(argument.split(",")[0]).model
        return
    classes = {"imagenet2012": 1000, "imagenet5k": 5000, "cifar10": 10, "cifar100": 100}[dataset]
    mesh = make_mesh(config.batch_size, config.bn_group_size)
    _, params, _ = abstract_weights(config, classes, mesh)
    built = sum(array.size for array in params.values())
    assert built == parameters(config.model.name, classes, options)


def parameters(model: str, classes: int, options: dict[str, Any]) -> int:
    """Return the golden number, or where there is none what the network's layers add up to."""
    golden = {(name, 1000): count for name, count in IMAGENET_PARAMETERS}
    golden |= {(name, count): parameters for name, count, parameters in CIFAR_PARAMETERS}
    if (model, 1000) in golden:  # and 4,000 classes more, of 2,048 features and a bias each
        golden[model, 5000] = golden[model, 1000] + 4000 * (2048 + 1)
    if options or (model, classes) not in golden:
        return complexity(model, num_classes=classes, **options).params
    return golden[model, classes]


def test_strikes_back_recipes() -> None:
    """The figures of arXiv:2110.00476, Table 2."""
    configs = [load(f"imagenet_a{number}") for number in (1, 2, 3)]

    def column(name: str) -> list[object]:
        return [field(config, name) for config in configs]

    assert column("num_epochs") == [600, 300, 100]
    assert column("optimizer.learning_rate") == [5e-3, 5e-3, 8e-3]
    assert column("optimizer.weight_decay") == [0.01, 0.02, 0.02]
    assert column("optimizer.label_smoothing") == [0.1, 0, 0]
    assert column("optimizer.drop_path") == [0.05, 0.05, 0]
    assert column("data.image_size") == [224, 224, 160]
    assert column("data.repeats") == [3, 3, 1]
    assert column("data.rand_augment_magnitude") == [7, 7, 6]
    assert column("data.mixup") == [0.2, 0.1, 0.1]
    for config in configs:
        assert (config.optimizer.name, config.optimizer.loss) == ("lamb", "bce")
        assert (eval_transform(config).image_size, config.batch_size) == (224, 2048)
        # Reports show such a run with what is not the paper's.
        assert "optimizer.name=lamb (sgd)" in departures(config)


def test_fast_recipe_changes_the_size_once() -> None:
    config = module("imagenet_fast").get_config("16,resnext50_32x4d")
    validate(config)
    assert [t.image_size for _, t in train_transforms(config, IMAGENET_IMAGES)] == [160, 192]
    schedule = build_schedule(config, IMAGENET_IMAGES)
    steps = num_steps(config, IMAGENET_IMAGES)
    peak = round(2 * steps_per_epoch(config, IMAGENET_IMAGES))
    rates = [float(schedule(step)) for step in (peak, (peak + steps) / 2, steps)]
    assert rates == pytest.approx([1.7, 0.85, 0.0], abs=1e-3)
    with pytest.raises(ConfigError, match="must begin with a number of epochs"):
        module("imagenet_fast").get_config("resnet50")


def test_finetuning_names_its_network() -> None:
    config = module("finetune").get_config("timm/resnet50.a1_in1k,tfds:oxford_flowers102")
    validate(config)
    assert (config.model.name, config.data.name) == ("resnet50", "tfds:oxford_flowers102")
    with pytest.raises(ConfigError, match="must be NAME,DATA"):
        module("finetune").get_config("resnet50")
