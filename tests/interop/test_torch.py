"""The public names; and where PyTorch is installed, what it says itself of names and files."""

import ast
import dataclasses
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnext_jax.interop import torch as interop
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.names import TORCH7
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.registry import parse_name
from resnext_jax.models.resnext import NetworkSpec, ResNeXt
from tests.interop.weights import (
    CIFAR_SPEC,
    IMAGENET_SPEC,
    empty_model,
    random_images,
    random_state_dict,
    small_spec,
)
from tests.numerics import relative_difference, worst_difference
from tests.test_imports import imported

GOLDEN = Path(__file__).parent / "golden"  # by make_golden.py


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch")


@pytest.fixture
def reference(torch: ModuleType) -> ModuleType:
    from tests.interop import reference

    return reference


def apply(model: ResNeXt, images: np.ndarray) -> dict[str, jax.Array]:
    @jax.jit
    def run(images: jax.Array) -> dict[str, jax.Array]:
        return model.features(images) | {"logits": model(images)}

    return run(jnp.asarray(images))


def test_files_to_models_and_back(tmp_path: Path) -> None:
    model, other = empty_model(CIFAR_SPEC), empty_model(CIFAR_SPEC)
    interop.load_weights(model, GOLDEN / "wrapped_before_1.6.pth")
    interop.save_weights(model, tmp_path / "a.safetensors")
    interop.load_weights(other, str(tmp_path / "a.safetensors"))
    expected = random_state_dict(CIFAR_SPEC)
    for name, array in interop.to_state_dict(other).items():
        np.testing.assert_array_equal(array, expected[name])


def test_errors_name_the_file() -> None:
    spec = dataclasses.replace(CIFAR_SPEC, num_classes=10)
    model, path = empty_model(spec), GOLDEN / "plain.pth"
    with pytest.raises(WeightsError, match=r"^weights file .*plain\.pth does not fit resnext11"):
        interop.load_weights(model, path)
    with pytest.raises(WeightsError, match="no averaged weights"):
        interop.load_weights(model, path, ema=True)
    own = random_state_dict(spec, seed=5)
    interop.load_state_dict(model, own)
    interop.load_weights(model, path, classifier=False)
    np.testing.assert_array_equal(interop.to_state_dict(model)["fc.bias"], own["fc.bias"])


def test_one_place_alone_imports_pytorch() -> None:
    """And that only when it is called."""
    package = Path(interop.__file__).parents[1]
    importing = [file.name for file in package.rglob("*.py") if "torch" in imported(file)]
    assert importing == ["files.py"]
    with_torch = package / "interop" / "files.py"
    body = ast.parse(with_torch.read_text()).body
    assert not any("torch" in ast.unparse(node) for node in body if isinstance(node, ast.Import))


def test_everything_public_is_there() -> None:
    assert all(hasattr(interop, name) for name in interop.__all__)


@pytest.mark.parametrize("spec", [CIFAR_SPEC, IMAGENET_SPEC, small_spec()])
def test_names_are_the_references(spec: NetworkSpec, reference: ModuleType) -> None:
    """In its order too; and strict loading does without the counters."""
    network = reference.ResNet(spec)
    reference.load(network, random_state_dict(spec))
    model = empty_model(spec)
    interop.load_state_dict(model, network.state_dict())
    ours = interop.to_state_dict(model)
    theirs = {
        name: array
        for name, array in reference.arrays_of(network).items()
        if not name.endswith("num_batches_tracked")
    }
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)
    reference.load(reference.ResNet(spec), ours)


def test_a_new_network_computes_the_same(reference: ModuleType) -> None:
    """Exported to PyTorch and imported from there."""
    spec = small_spec()
    network = reference.ResNet(spec)
    reference.load(network, random_state_dict(spec, seed=3))
    logits, maps = reference.apply(network, random_images(2, 64))
    model = empty_model(spec)
    interop.load_state_dict(model, network.state_dict())
    assert worst_difference(apply(model, random_images(2, 64)), maps | {"logits": logits}) < 1e-5


def test_torch7s_network_computes_the_same(torch: ModuleType, reference: ModuleType) -> None:
    spec = small_spec()
    network = reference.Torch7ResNet(spec)
    reference.load(network, random_state_dict(spec, scheme=TORCH7))
    images = random_images(2, 64)
    with torch.no_grad():
        expected = network.eval()(reference.images_of(images)).numpy()
    model = empty_model(spec)
    interop.load_state_dict(model, network.state_dict())
    assert relative_difference(apply(model, images)["logits"], expected) < 1e-5


def test_pth_is_written_for_pytorch(torch: ModuleType, tmp_path: Path) -> None:
    options = LayerOptions(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model = empty_model(dataclasses.replace(CIFAR_SPEC, options=options))
    interop.load_state_dict(model, random_state_dict(CIFAR_SPEC))
    path = tmp_path / "a.pth"
    interop.save_weights(model, path)
    ours, theirs = interop.to_state_dict(model), torch.load(path, weights_only=True)
    assert list(theirs) == list(ours)
    assert theirs["conv1.weight"].dtype == torch.bfloat16
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name].float().numpy(), array.astype(np.float32))
    for name, array in interop.read_state_dict(path).items():
        assert array.dtype == ours[name].dtype
        np.testing.assert_array_equal(array, ours[name])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_what_pytorch_saves_is_read(torch: ModuleType, zipped: bool, tmp_path: Path) -> None:
    """Against its own reading."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors: dict[str, Any] = {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1:, :, 1:3],
        "strided": base[:, ::2],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors |= {kind: base.to(getattr(torch, kind)) for kind in kinds}
    path = tmp_path / "a.pth"
    torch.save(
        {"state_dict": OrderedDict(tensors), "epoch": 1, "loss": 0.5, "lr": None},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    arrays = interop.read_state_dict(path)
    assert list(arrays) == list(tensors)
    for name, tensor in torch.load(path, weights_only=True)["state_dict"].items():
        assert str(tensor.dtype) == f"torch.{arrays[name].dtype}"
        assert arrays[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(
            arrays[name].astype(np.float64), tensor.detach().double().numpy()
        )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_whole_networks_are_refused(
    torch: ModuleType, reference: ModuleType, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.pth"
    network = reference.ResNet(CIFAR_SPEC)
    torch.save(network, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"wants to run tests\.interop\.reference\.ResNet"):
        interop.read_state_dict(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet50", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"]
)
def test_imagenet_networks_compute_what_pytorch_does(name: str, reference: ModuleType) -> None:
    """At full size; with random weights and statistics, and every tensor there and back."""
    spec = NetworkSpec(parse_name(name), 1000)
    state_dict, images = random_state_dict(spec), random_images(2, 224)
    network = reference.ResNet(spec)
    reference.load(network, state_dict)
    logits, maps = reference.apply(network, images)
    model = empty_model(spec)
    interop.load_state_dict(model, network.state_dict())
    for array_name, array in interop.to_state_dict(model).items():
        np.testing.assert_array_equal(array, state_dict[array_name])
    actual = apply(model, images)
    expected = maps | {"logits": logits}
    worst = {part: relative_difference(actual[part], expected[part]) for part in expected}
    print(name, {part: f"{value:.1e}" for part, value in worst.items()})
    assert max(worst.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34", "wide_resnet50_2", "resnet50d", "seresnet50", "seresnext50_32x4d"],
)
def test_relatives_compute_what_timm_does(
    name: str, torch: ModuleType, reference: ModuleType
) -> None:
    """At full size, where timm is installed; `test_state_dicts` has small ones."""
    network = pytest.importorskip("timm").create_model(name)
    spec = NetworkSpec(parse_name(name), 1000)
    state_dict, images = random_state_dict(spec), random_images(2, 224)
    # As drawn, sums grow from block to block until what squeeze-and-excitation gets is in the
    # hundreds: its sigmoid is then a step, and rounding decides on which side of it a channel is.
    for array_name, array in state_dict.items():
        if array_name.endswith("bn3.weight"):
            state_dict[array_name] = np.float32(0.2) * array
    reference.load(network, state_dict)
    with torch.no_grad():
        logits = network.eval()(reference.images_of(images)).numpy()
    model = empty_model(spec)
    interop.load_state_dict(model, network.state_dict())
    for array_name, array in interop.to_state_dict(model).items():
        np.testing.assert_array_equal(array, state_dict[array_name])
    found = jax.jit(lambda images: model(images))(jnp.asarray(images))
    difference = relative_difference(found, logits)
    print(name, f"{difference:.1e}")
    assert difference < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["resnet", "resnetv2", "resnest", "sknet", "senet", "byobnet"])
def test_timms_residual_networks_are_found_or_refused_with_the_reason(
    family: str, torch: ModuleType
) -> None:
    """By name and by their state dicts, where timm is installed."""
    timm = pytest.importorskip("timm")
    for name in timm.list_models(module=family):
        if "res" not in name or name in ("test_resnet", "seresnextaa201d_32x8d"):
            continue
        with torch.device("meta"):
            state_dict = timm.create_model(name).state_dict()
        if name == "resnet200":  # ours of that name is a pre-activation network
            with pytest.raises(WeightsError, match="no model of this package fits"):
                interop.identify(state_dict)
        elif "aa" in name or "blur" in name:
            with pytest.raises(ValueError, match=r"not built here: .*anti-aliasing"):
                parse_name(name)
            # Their filters have no weights: a limit, told in `interop.torch`.
            plain = name.replace("aa", "").replace("blur", "")
            assert interop.identify(state_dict).arguments == {"name": plain, "num_classes": 1000}
        elif is_built(name):
            assert interop.identify(state_dict).arguments == {"name": name, "num_classes": 1000}
        else:
            if family != "byobnet":
                with pytest.raises(ValueError, match="is not implemented: "):
                    parse_name(name)
            with pytest.raises(WeightsError, match="it is of a network with"):
                interop.identify(state_dict)


def is_built(name: str) -> bool:
    try:
        parse_name(name)
    except ValueError:
        return False
    return True
