"""State dicts into networks and back; against what PyTorch computed (make_golden)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.names import TORCH7, counters, table
from resnext_jax.interop.state_dicts import (
    load_state_dict,
    to_state_dict,
    weights_from_torch,
    weights_to_torch,
)
from resnext_jax.models import create_model
from resnext_jax.models.blocks import FORMS, BottleneckC, Form
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.resnext import NetworkSpec, ResNeXt
from resnext_jax.models.variables import skeleton, split
from tests.interop.weights import (
    CIFAR_SPEC,
    FAMILY,
    FAMILY_SIZE,
    IMAGENET_SPEC,
    STRANGERS,
    empty_model,
    random_images,
    random_state_dict,
    stranger,
)
from tests.numerics import relative_difference, worst_difference

GOLDEN = Path(__file__).parent / "golden" / "networks.npz"  # by make_golden.py


def in_dtype(spec: NetworkSpec, dtype: str) -> NetworkSpec:
    options = LayerOptions(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    return dataclasses.replace(spec, options=options)


def without_counters(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert actual[name].shape == array.shape
        assert actual[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def test_imagenet_network_computes_what_pytorch_does() -> None:
    with np.load(GOLDEN) as golden:
        expected = {name: golden[f"imagenet/{name}"] for name in ("conv2", "conv3", "conv4")}
        expected |= {name: golden[f"imagenet/{name}"] for name in ("conv5", "logits")}
    model = empty_model(IMAGENET_SPEC)
    load_state_dict(model, random_state_dict(IMAGENET_SPEC))

    @jax.jit
    def apply(images: jax.Array) -> dict[str, jax.Array]:
        return model.features(images) | {"logits": model(images)}

    assert worst_difference(apply(jnp.asarray(random_images(2, 32))), expected) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_cifar_network_computes_what_pytorch_does(form: Form) -> None:
    with np.load(GOLDEN) as golden:
        expected = golden["cifar/logits"]
    model = empty_model(CIFAR_SPEC)
    if form != "c":
        build = dataclasses.replace(CIFAR_SPEC, form=form)
        model = skeleton(lambda rngs: ResNeXt(build, rngs=rngs))
        model.eval()
    state_dict = random_state_dict(CIFAR_SPEC)
    load_state_dict(model, state_dict)
    assert relative_difference(jax.jit(lambda x: model(x))(random_images(2, 32)), expected) < 1e-5
    assert_same_bits(to_state_dict(model), without_counters(state_dict))


@pytest.mark.parametrize("spec", [CIFAR_SPEC, IMAGENET_SPEC], ids=["cifar", "imagenet"])
def test_import_and_export_give_back_every_bit(spec: NetworkSpec) -> None:
    state_dict = random_state_dict(spec)
    state_dict["bn1.bias"][:4] = [np.nan, -0.0, np.inf, 1e-42]
    assert_same_bits(
        weights_to_torch(*weights_from_torch(state_dict, spec), spec),
        without_counters(state_dict),
    )


def test_bits_of_other_dtypes() -> None:
    spec = in_dtype(CIFAR_SPEC, "bfloat16")
    state_dict = without_counters(random_state_dict(spec))
    for row in table(spec):
        if row.collection == "params":  # running statistics are float32 at least
            state_dict[row.theirs] = state_dict[row.theirs].astype(jnp.bfloat16)
    assert_same_bits(weights_to_torch(*weights_from_torch(state_dict, spec), spec), state_dict)


@pytest.mark.usefixtures("float64")
def test_bits_of_double_precision() -> None:
    spec = in_dtype(CIFAR_SPEC, "float64")
    state_dict = random_state_dict(spec, dtype="float64")
    back = weights_to_torch(*weights_from_torch(state_dict, spec), spec)
    assert_same_bits(back, without_counters(state_dict))


@pytest.mark.parametrize("dtype", ["float16", "float64", jnp.bfloat16])
def test_other_precisions_are_rounded_to_the_models(dtype: str) -> None:
    state_dict = {
        name: array.astype(dtype)
        for name, array in without_counters(random_state_dict(CIFAR_SPEC, dtype="float64")).items()
    }
    back = weights_to_torch(*weights_from_torch(state_dict, CIFAR_SPEC), CIFAR_SPEC)
    assert_same_bits(back, {name: array.astype("float32") for name, array in state_dict.items()})


def test_torch7s_names_lead_to_the_same_arrays() -> None:
    """The same draws under the other names."""
    theirs = random_state_dict(IMAGENET_SPEC, scheme=TORCH7)
    assert "features.0.weight" in theirs
    actual = weights_from_torch(theirs, IMAGENET_SPEC)
    expected = weights_from_torch(random_state_dict(IMAGENET_SPEC), IMAGENET_SPEC)
    for tree, other in zip(actual, expected, strict=True):
        assert worst_difference(tree, other) == 0
    del theirs["features.4.1.0.0.1.weight"]
    with pytest.raises(WeightsError, match=r"1 name missing \(features\.4\.1\.0\.0\.1\.weight\)"):
        weights_from_torch(theirs, IMAGENET_SPEC)


def aligned(array: np.ndarray) -> np.ndarray:
    """Copy to where JAX would share the memory."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_a_model_is_filled_in_place() -> None:
    """Its modes, devices and modules stay, and it shares no memory with what it was given."""
    model = empty_model(CIFAR_SPEC)
    load_state_dict(model, random_state_dict(CIFAR_SPEC, seed=5))
    model.train()
    model.stem.norm.eval()
    elsewhere = jax.devices()[3]
    model.fc.kernel.set_value(jax.device_put(model.fc.kernel.get_value(), elsewhere))
    stem, kernel = model.stem, model.stem.conv.kernel
    state_dict = {f"module.{name}": array for name, array in random_state_dict(CIFAR_SPEC).items()}
    expected = without_counters(random_state_dict(CIFAR_SPEC))
    load_state_dict(model, {"state_dict": state_dict, "epoch": 4})
    for array in state_dict.values():
        array[...] = 0
    assert_same_bits(to_state_dict(model), expected)
    assert model.stem is stem
    assert model.stem.conv.kernel is kernel
    assert model.stem.norm.use_running_average
    block = model.stages["conv2"][0]
    assert isinstance(block, BottleneckC)
    assert not block.norm3.use_running_average
    assert model.fc.kernel.get_value().devices() == {elsewhere}


def test_without_the_classifier() -> None:
    spec = dataclasses.replace(CIFAR_SPEC, num_classes=9)
    model = empty_model(spec)
    own = random_state_dict(spec, seed=5)
    load_state_dict(model, own)
    other = random_state_dict(CIFAR_SPEC)
    with pytest.raises(WeightsError):
        load_state_dict(model, other)
    load_state_dict(model, other, classifier=False)
    expected = {
        name: (own if name.startswith("fc.") else other)[name] for name in without_counters(own)
    }
    assert_same_bits(to_state_dict(model), expected)
    params, _ = weights_from_torch(other, spec, classifier=False)
    assert not any(name.startswith("fc.") for name in params)
    del other["fc.weight"], other["fc.bias"]
    load_state_dict(model, other, classifier=False)
    assert_same_bits(to_state_dict(model), expected)


def misfit(state_dict: Mapping[str, Any], spec: NetworkSpec = CIFAR_SPEC) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        weights_from_torch(state_dict, spec, source="FILE")
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_difference_is_listed() -> None:
    state_dict = random_state_dict(CIFAR_SPEC)
    del state_dict["layer1.0.conv3.weight"], state_dict["bn1.running_var"]
    state_dict["layer2.0.conv2.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    state_dict["conv1.num_batches_tracked"] = np.array(1)
    state_dict |= {f"extra{number:02}": np.zeros(1) for number in range(13)}
    error = misfit(state_dict)
    assert error.missing == ("bn1.running_var", "layer1.0.conv3.weight")
    assert error.unexpected == (
        "conv1.num_batches_tracked",
        *(f"extra{number:02}" for number in range(13)),
    )
    assert error.misshapen == {"layer2.0.conv2.weight": ((4, 4, 3, 3), (4, 2, 3, 3))}
    names = ", ".join(f"extra{number:02}" for number in range(9))
    assert str(error) == (
        "FILE does not fit resnext11_2x1d: "
        "2 names missing (bn1.running_var, layer1.0.conv3.weight); "
        f"14 names unexpected (conv1.num_batches_tracked, {names}, and 4 more); "
        "1 array of another shape (layer2.0.conv2.weight is (4, 4, 3, 3), not (4, 2, 3, 3)); "
        "python -m resnext_jax.interop.torch inspect FILE names the model that a file fits."
    )


def test_another_number_of_classes_is_told_first() -> None:
    spec = dataclasses.replace(CIFAR_SPEC, num_classes=1000)
    error = misfit(random_state_dict(spec))
    assert str(error).startswith(
        "FILE does not fit resnext11_2x1d: it is for 1000 classes, the model has 3;"
    )
    assert str(error).endswith(
        "build the model with num_classes=1000, or load all but the classifier (classifier=False)."
    )
    assert error.misshapen.keys() == {"fc.weight", "fc.bias"}
    state_dict = random_state_dict(spec)
    del state_dict["conv1.weight"]
    message = str(misfit(state_dict))
    assert "it is for 1000 classes, the model has 3; 1 name missing" in message
    assert "inspect FILE" in message


@pytest.mark.parametrize("kind", STRANGERS)
def test_known_strangers_are_named(kind: str) -> None:
    message = str(misfit(stranger(kind)))
    assert f"it is of a network with {kind}" in message
    assert "use weights of a network that list_models() names" in message


def test_relatives_are_no_strangers() -> None:
    """They do not fit, but which network they fit can be found."""
    message = str(misfit(random_state_dict(FAMILY["seresnext14_4x1d"])))
    assert "names unexpected" in message
    assert "of a network with" not in message
    assert "inspect FILE names the model" in message


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet34d")),
        "resnet26d_1x4d",
        pytest.param("seresnext14_4x1d", marks=pytest.mark.slow),
        "seresnet18",
        pytest.param("seresnext26d_2x2d", marks=pytest.mark.slow),
    ],
)
def test_relatives_compute_what_timm_does(name: str) -> None:
    spec = FAMILY[name]
    state_dict = random_state_dict(spec)
    model = empty_model(spec)
    load_state_dict(model, state_dict)
    images = random_images(2, FAMILY_SIZE, channels=spec.architecture.in_channels)
    logits = jax.jit(lambda images: model(images))(jnp.asarray(images))
    with np.load(GOLDEN.with_name("family.npz")) as golden:
        assert relative_difference(logits, golden[name]) < 1e-4
    ours = to_state_dict(model)
    for array_name, array in without_counters(state_dict).items():
        np.testing.assert_array_equal(ours[array_name], array)


def test_a_misfit_leaves_the_model_as_it_was() -> None:
    model = empty_model(CIFAR_SPEC)
    first = random_state_dict(CIFAR_SPEC)
    load_state_dict(model, first)
    second = random_state_dict(CIFAR_SPEC, seed=2)
    second["fc.bias"] = np.array(["a", "b", "c"])
    with pytest.raises(WeightsError, match=r"fc\.bias of the state dict is of dtype <U1"):
        load_state_dict(model, second)
    assert_same_bits(to_state_dict(model), without_counters(first))


class OnAnotherDevice:
    """A tensor that NumPy cannot read."""

    shape = (3,)

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")


def test_what_cannot_be_read_is_told() -> None:
    state_dict = random_state_dict(CIFAR_SPEC)
    quantised = state_dict | {"fc.bias": np.zeros(3, np.int8)}
    assert "fc.bias of FILE is of dtype int8, where weights are floating" in str(misfit(quantised))
    elsewhere = dict[str, Any](state_dict) | {"fc.bias": OnAnotherDevice()}
    assert "can't convert cuda:0 device type tensor to numpy.); give tensors as" in str(
        misfit(elsewhere)
    )


def test_preactivation_networks_are_refused() -> None:
    model = skeleton(
        lambda rngs: create_model("resnext11_2x1d", preactivation=True, num_classes=3, rngs=rngs)
    )
    with pytest.raises(WeightsError, match="pre-activation networks have no usual names"):
        load_state_dict(model, random_state_dict(CIFAR_SPEC))
    with pytest.raises(WeightsError, match="pre-activation networks have no usual names"):
        to_state_dict(model)


def test_a_classifier_that_was_replaced_by_hand_is_the_models() -> None:
    model = empty_model(CIFAR_SPEC)
    model.fc = nnx.Linear(model.fc.in_features, 7, rngs=nnx.Rngs(0))
    spec = dataclasses.replace(CIFAR_SPEC, num_classes=7)
    state_dict = random_state_dict(spec)
    load_state_dict(model, state_dict)
    assert_same_bits(to_state_dict(model), without_counters(state_dict))
    model.fc = nnx.Linear(model.fc.in_features, 7, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"is not an nnx\.Linear with a bias"):
        to_state_dict(model)


def test_changed_models_and_other_things_are_refused() -> None:
    model = empty_model(CIFAR_SPEC)
    wider = dataclasses.replace(CIFAR_SPEC.architecture, stem_width=8)
    model.spec = dataclasses.replace(CIFAR_SPEC, architecture=wider)
    with pytest.raises(TypeError, match="not the one that its spec describes"):
        load_state_dict(model, random_state_dict(model.spec))
    _, params, batch_stats = split(model)
    with pytest.raises(ValueError, match="not the arrays of the network"):
        weights_to_torch(params, batch_stats, model.spec)
    with pytest.raises(TypeError, match="not a BatchNorm"):
        to_state_dict(model.stem.norm)  # type: ignore[arg-type]


def test_counters_are_passed_over_and_not_written() -> None:
    state_dict = random_state_dict(CIFAR_SPEC)
    assert counters(table(CIFAR_SPEC)) < state_dict.keys()
    params, batch_stats = weights_from_torch(state_dict, CIFAR_SPEC)
    assert not any("tracked" in name for name in [*params, *batch_stats])
    assert not any("tracked" in name for name in weights_to_torch(params, batch_stats, CIFAR_SPEC))
