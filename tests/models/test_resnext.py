"""Shapes, shortcuts, initialisation and precision of whole networks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import create_model
from resnext_jax.models.blocks import BottleneckC
from resnext_jax.models.registry import parse_name
from resnext_jax.models.variables import merge, split
from tests.models.test_registry import abstract_model
from tests.numerics import relative_difference


def shapes_of(name: str, side: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    model = abstract_model(name, num_classes=10)

    def apply(model: nnx.Module, images: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        return model.features(images), model(images)  # type: ignore[attr-defined]

    model.eval()
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    maps, logits = nnx.eval_shape(apply, model, images)
    return {name: array.shape for name, array in maps.items()}, logits.shape


def test_imagenet_feature_shapes() -> None:
    """Table 1: maps of 56, 28, 14 and 7, whatever the cardinality."""
    expected = {
        "conv2": (2, 56, 56, 256),
        "conv3": (2, 28, 28, 512),
        "conv4": (2, 14, 14, 1024),
        "conv5": (2, 7, 7, 2048),
    }
    for name in ("resnet50", "resnext50_32x4d"):
        assert shapes_of(name, 224) == (expected, (2, 10))


def test_cifar_feature_shapes() -> None:
    expected = {"conv2": (2, 32, 32, 256), "conv3": (2, 16, 16, 512), "conv4": (2, 8, 8, 1024)}
    assert shapes_of("resnext29_8x64d", 32) == (expected, (2, 10))


@pytest.mark.parametrize(
    ("name", "widths", "sides"),
    [
        ("resnet18", (64, 128, 256, 512), (57, 29, 15, 8)),
        ("seresnext26d_32x4d", (256, 512, 1024, 2048), (57, 29, 15, 8)),
        ("cifar_resnet20", (16, 32, 64), (225, 113, 57)),
    ],
)
def test_feature_shapes_of_relatives(
    name: str, widths: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    maps, logits = shapes_of(name, 225)
    assert logits == (2, 10)
    assert [maps[stage] for stage in sorted(maps)] == [
        (2, side, side, width) for side, width in zip(sides, widths, strict=True)
    ]


def test_odd_sizes_round_up() -> None:
    maps, _ = shapes_of("resnet50", 225)
    assert [maps[stage][1] for stage in sorted(maps)] == [57, 29, 15, 8]


def test_bottleneck_widths_and_kernels() -> None:
    """Table 1's right column: C * d channels, doubled each stage; C groups of d inputs."""
    _, params, _ = split(abstract_model("resnext50_32x4d"))
    for stage in range(4):
        width = 128 * 2**stage
        prefix = f"stages.conv{stage + 2}.0"
        assert params[f"{prefix}.conv1.kernel"].shape[3] == width
        assert params[f"{prefix}.conv2.kernel"].shape == (3, 3, width // 32, width)
        assert params[f"{prefix}.conv3.kernel"].shape == (1, 1, width, 256 * 2**stage)


def test_shortcuts_project_only_where_the_shape_changes() -> None:
    _, params, _ = split(abstract_model("resnext50_32x4d"))
    projecting = {name.split(".shortcut")[0] for name in params if ".shortcut." in name}
    assert projecting == {f"stages.conv{stage}.0" for stage in (2, 3, 4, 5)}
    assert "stages.conv2.0.shortcut.norm.scale" in params
    assert not any(name.startswith("stem") and name.endswith("conv.bias") for name in params)


def test_without_residual_nothing_is_added() -> None:
    _, params, _ = split(abstract_model("resnext50_32x4d", residual=False))
    assert not any("shortcut" in name for name in params)
    options = {"template_width": 16, "stem_width": 16, "num_classes": 3}
    x = jnp.ones((2, 4, 4, 3))
    block_input = []
    for residual in (True, False):
        model = create_model(
            "resnext11_2x4d",
            rngs=nnx.Rngs(0),
            residual=residual,
            **options,  # type: ignore[arg-type]
        )
        block = model.stages["conv2"][0]
        assert isinstance(block, BottleneckC)
        block.norm3.scale.set_value(jnp.zeros(16))  # the residual branch gives nothing
        block_input.append(model.features(x)["conv2"])
    assert (block_input[0] != 0).any()
    assert (block_input[1] == 0).all()


def test_widths_can_be_reduced() -> None:
    _, params, _ = split(abstract_model("resnext29_8x4d", stem_width=16, template_width=64))
    assert params["stem.conv.kernel"].shape == (3, 3, 3, 16)
    assert params["stages.conv4.2.conv3.kernel"].shape == (1, 1, 128, 256)
    assert params["stages.conv4.2.conv2.kernel"].shape == (3, 3, 16, 128)  # not the bottleneck's


def test_initialisation_is_the_papers() -> None:
    model = create_model("resnext29_4x64d", num_classes=50, rngs=nnx.Rngs(0))
    _, params, batch_stats = split(model)
    for name, array in params.items():
        values = np.asarray(array, "float64")
        if name.endswith("conv2.kernel") or name.endswith("conv1.kernel"):
            stddev = math.sqrt(2 / (values.shape[0] * values.shape[1] * values.shape[3]))
            assert values.std() == pytest.approx(stddev, rel=0.05)
            assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size)
        elif name.endswith("scale"):
            assert (values == 1).all()
        elif name.endswith("bias"):
            assert (values == 0).all()
    classifier = np.asarray(params["fc.kernel"])
    bound = 1 / math.sqrt(1024)
    assert np.abs(classifier).max() <= bound
    assert classifier.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert all((array == name.endswith("var")).all() for name, array in batch_stats.items())


def test_train_and_eval_switch_batch_norm() -> None:
    model = create_model("resnext11_2x4d", rngs=nnx.Rngs(0), template_width=16, num_classes=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)
    before = split(model)[2]
    model.eval()
    model(x)
    assert all((split(model)[2][name] == before[name]).all() for name in before)
    model.train()
    model(x)
    assert all((split(model)[2][name] != before[name]).any() for name in before)


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "logits_dtype", "maps_dtype"),
    [
        ("float32", "float32", "float32", "float32"),
        ("bfloat16", "float32", "float32", "bfloat16"),
        ("float64", "float64", "float64", "float64"),
    ],
)
def test_dtypes(dtype: str, param_dtype: str, logits_dtype: str, maps_dtype: str) -> None:
    with jax.enable_x64(True):
        model = abstract_model(
            "resnext11_2x4d", dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype)
        )
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        apply = lambda model, x: (model(x), model.features(x))  # noqa: E731
        logits, maps = nnx.eval_shape(apply, model, images)
    assert logits.dtype == logits_dtype
    assert maps["conv4"].dtype == maps_dtype
    assert {array.dtype.name for array in split(model)[1].values()} == {param_dtype}


@pytest.mark.parametrize("preactivation", [False, True])
def test_dense_logits_classify_the_windows_of_the_last_map(preactivation: bool) -> None:
    model = create_model(
        "resnext11_2x4d",
        num_classes=3,
        preactivation=preactivation,
        stem_width=8,
        template_width=16,
        rngs=nnx.Rngs(0),
    )
    model.eval()

    @nnx.jit
    def apply(model: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        last = model.features(x)["conv4"]
        windows = [model.fc(last[:, :, i : i + 2].mean(axis=(1, 2))) for i in (0, 1)]
        return model(x), model.dense_logits(x, 2), sum(windows) / 2, model.dense_logits(x, 1)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), jnp.float32)
    logits, dense, expected, every_element = apply(model, x)
    assert relative_difference(dense, expected) < 1e-5
    assert relative_difference(every_element, logits) < 1e-5
    # It tells: the plain average over the map is another one.
    assert relative_difference(dense, logits) > 1e-3
    # An image of just the window's size is classified as ever.
    square = x[:, :, :8]
    logits, dense, _, _ = apply(model, square)
    assert relative_difference(dense, logits) < 1e-5


@pytest.mark.parametrize(
    ("name", "stride"), [("resnext50_32x4d", 32), ("resnet200", 32), ("resnext29_8x64d", 4)]
)
def test_total_stride_is_that_of_the_last_map(name: str, stride: int) -> None:
    maps, _ = shapes_of(name, 64)
    assert [*maps.values()][-1][1] == 64 // stride
    assert parse_name(name).total_stride == stride


@pytest.mark.parametrize("name", ["resnext11_2x4d", "wide_resnet28_10"])
def test_flaxs_table_of_a_model(name: str) -> None:
    """Which makes every method a function to compile, and the model is as it was afterwards."""
    model = create_model(
        name, rngs=nnx.Rngs(0), stem_width=4, template_width=4, num_classes=3, form="c"
    )
    images = jnp.ones((2, 8, 8, 3))
    table = nnx.tabulate(model, images, console_kwargs={"width": 200})
    assert "stages/conv2/0/conv1" in table
    assert model(images).shape == (2, 3)


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="this Flax has no nnx.view")
def test_a_view_of_a_model_is_in_the_mode_it_asks_for() -> None:
    model = create_model("resnext11_2x4d", rngs=nnx.Rngs(0), stem_width=4, template_width=4)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    testing = nnx.view(model, use_running_average=True)
    assert testing.stem.norm.use_running_average
    assert not model.stem.norm.use_running_average
    assert not nnx.view(testing, use_running_average=False).stem.norm.use_running_average
    found = testing(images)
    model.eval()
    np.testing.assert_array_equal(found, model(images))


@pytest.mark.parametrize("name", ["resnext11_2x4d", "wide_resnet28_10", "resnet18d"])
def test_pixels_that_are_not_normalised_are_refused(name: str) -> None:
    model = abstract_model(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    with pytest.raises(TypeError, match="images must be normalised floats, got uint8"):
        nnx.eval_shape(lambda model, images: model(images), model, images)


@pytest.mark.parametrize(("name", "size"), [("resnext11_2x4d", 8), ("resnet14", 32)])
@pytest.mark.parametrize("training", [False, True])
def test_forward_mode_with_portable_convolutions(name: str, size: int, training: bool) -> None:
    """As docs/performance.md says; on CPUs and GPUs."""
    model = abstract_model(
        name, num_classes=3, stem_width=8, template_width=8, conv_implementation="portable"
    )
    model.train() if training else model.eval()
    graphdef, *arrays = split(model)

    def loss(images: jax.Array, arrays: Any) -> jax.Array:
        total: jax.Array = merge(graphdef, *arrays)(images).sum()
        return total

    def forward(images: jax.Array, arrays: Any) -> Any:
        return jax.jvp(lambda x: loss(x, arrays), (images,), (images,))

    def forward_over_reverse(images: jax.Array, arrays: Any) -> Any:
        return jax.jvp(lambda x: jax.grad(loss)(x, arrays), (images,), (images,))

    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    jax.jit(forward_over_reverse).lower(images, arrays)
    if training or parse_name(name).stem == "imagenet":
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jit(forward).lower(images, arrays)
    else:
        jax.jit(forward).lower(images, arrays)


def test_bfloat16_is_close_to_float32() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)

    def logits(dtype: jax.typing.DTypeLike) -> jax.Array:
        model = create_model(
            "resnext11_2x4d", rngs=nnx.Rngs(0), template_width=16, num_classes=3, dtype=dtype
        )
        return nnx.jit(lambda model, x: model(x))(model, x)

    difference = relative_difference(logits(jnp.bfloat16), logits(jnp.float32))
    assert 0 < difference < 0.1
