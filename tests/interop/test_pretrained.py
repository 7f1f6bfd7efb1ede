"""Published weights by name, from a server of the hub's protocol on this machine."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resnext_jax
from resnext_jax.commands import predict, weights
from resnext_jax.config import build
from resnext_jax.errors import ConfigError
from resnext_jax.evaluation.run import evaluate_all
from resnext_jax.interop import hub as hub_module
from resnext_jax.interop.errors import WeightsError
from resnext_jax.interop.pretrained import create_model, find, is_name
from resnext_jax.interop.torch import load_weights
from resnext_jax.models import registry
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import digest
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.images import NO_FLAGS, set_images
from resnext_jax.runs.weights import foreign_images, load_network
from resnext_jax.training import setup
from resnext_jax.training.warm_start import warm_start
from tests.data.images import photograph_file
from tests.evaluation.workdirs import digits_config
from tests.interop.hub_server import IMAGES, Hub

NAME = "cifar_resnet8.test"
MESH = make_mesh(1, None, jax.devices()[:1])
SPEC = network_spec("cifar_resnet8", num_classes=3)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A server that is not running, and the hub library that knows no other."""
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    with hub.running():  # chooses the port
        pass

    def forget() -> None:
        # The library reads its environment when it is imported.
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.port}")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        forget()
        yield hub
    forget()


@pytest.fixture
def hub(
    stopped: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Hub, Path, Path]]:
    """The server, with weights of one name; their file; and an empty cache."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    stopped.repositories.clear()
    stopped.fetched.clear()
    stopped.trouble, stopped.requests = "", 0
    file = stopped.add(NAME, SPEC, tmp_path / "published")
    with stopped.running():
        yield stopped, file, cache


def logits(model: nnx.Module) -> np.ndarray:
    model.eval()
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 3)), jnp.float32)
    return np.asarray(jax.jit(lambda x: model(x))(images))


def refused(name: str = NAME) -> str:
    with pytest.raises(WeightsError) as caught:
        find(name)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_a_name_is_fetched_once_and_equals_its_file(hub: tuple[Hub, Path, Path]) -> None:
    server, file, _ = hub
    model = resnext_jax.create_model(f"timm/{NAME}", pretrained=True, rngs=nnx.Rngs(0))
    assert server.fetched == ["config.json", "model.safetensors"]
    requests = server.requests
    again = create_model(NAME, pretrained=True)
    assert server.requests == requests  # not even a question whether there is something new
    loaded = registry.create_model("cifar_resnet8", num_classes=3, rngs=nnx.Rngs(5))
    load_weights(loaded, file)
    expected = logits(loaded)
    np.testing.assert_array_equal(logits(model), expected)
    np.testing.assert_array_equal(logits(again), expected)


def test_a_new_classifier_and_none(hub: tuple[Hub, Path, Path]) -> None:
    del hub
    model = create_model(NAME, pretrained=True, rngs=nnx.Rngs(0), num_classes=10)
    assert logits(model).shape == (2, 10)
    bare = create_model(NAME, pretrained=True, num_classes=0)
    features = logits(bare)
    assert features.shape == (2, 64)
    np.testing.assert_allclose(
        features @ np.asarray(model.fc.kernel) + np.asarray(model.fc.bias), logits(model), rtol=1e-5
    )
    with pytest.raises(TypeError, match="rngs is missing"):
        create_model(NAME, pretrained=True, num_classes=10)
    with pytest.raises(TypeError, match="rngs is missing"):
        create_model("cifar_resnet8")
    assert create_model("cifar_resnet8", rngs=nnx.Rngs(0)).fc.out_features == 1000


def test_without_the_server_the_cache_is_enough(hub: tuple[Hub, Path, Path]) -> None:
    server, _, cache = hub
    assert find(NAME).wants.short_side == 35
    server.trouble = "500"
    assert str(cache) in str(find(NAME).file)


def test_nothing_cached_and_no_server_is_told_soon(
    stopped: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    sentence = refused()
    assert time.monotonic() - begin < 5
    assert sentence.startswith(
        f"config.json of timm/{NAME} is not in the cache and cannot be fetched from "
        f"http://127.0.0.1:{stopped.port} ("
    )


def test_damage_in_the_cache_is_refused(hub: tuple[Hub, Path, Path]) -> None:
    server, _, _ = hub
    stored = find(NAME).file.resolve()
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    sentence = refused()
    assert f"model.safetensors of timm/{NAME} is damaged in the cache" in sentence
    assert f"delete {stored}, and it is fetched again" in sentence
    stored.unlink()
    assert find(NAME).file.resolve() == stored
    assert server.fetched.count("model.safetensors") == 2


@pytest.mark.parametrize("trouble", ["500", "stall", "cut"])
def test_a_transfer_that_fails_leaves_nothing_that_is_read(
    trouble: str, hub: tuple[Hub, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    server, file, cache = hub
    server.trouble = trouble
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    sentence = refused()
    assert f"of timm/{NAME} is not in the cache and cannot be fetched from" in sentence
    assert not list(cache.rglob("snapshots/*/model.safetensors"))
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    server.trouble = ""
    assert find(NAME).file.read_bytes() == file.read_bytes()


def test_commands_take_names(
    hub: tuple[Hub, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photograph_file("china"))
    wanted = (
        "images of 32x32 from a short side of 35 (bilinear), mean 0.5, 0.4, 0.3, std 0.25, 0.2, "
        "0.125; 3 classes; licence cc-by-nc-4.0: not for commercial use"
    )
    predict.main([f"--weights={NAME}", str(photo)])
    err = capsys.readouterr().err
    assert f"note: timm/{NAME} wants {wanted}\n" in err
    assert "names and shapes" not in err
    weights.main(["inspect", NAME])
    assert f"wants: {wanted}\n" in capsys.readouterr().out
    # The same of the file, with everything by flags; each flag changes something.
    flags = ["--image_size=32", "--short_side=35", "--interpolation=bilinear"]
    flags += ["--mean=0.5,0.4,0.3", "--std=0.25,0.2,0.125"]
    found = load_network(file=NAME)
    transform = build.eval_transform(found.config)
    assert (transform.image_size, transform.short_side, transform.centre) == (32, 35, "torchvision")
    assert transform.interpolation == "bilinear"
    plain = load_network(file=hub[1])
    plain.config.data.crop = "random_sized"
    set_images(
        plain.config, None, predict.image_flags(predict._parse([*flags, "--weights=x", "y"]))
    )
    assert build.eval_transform(plain.config) == transform
    for which in ("mean", "std"):
        np.testing.assert_allclose(plain.config.data[which], found.config.data[which])


def test_names_are_scored_and_started_from(
    hub: tuple[Hub, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, _, _ = hub
    name = "cifar_resnet8.digits"
    file = server.add(name, network_spec("cifar_resnet8", num_classes=10), tmp_path / "more")
    config = digits_config()
    config.data.eval_antialias = True
    by_name = evaluate_all(config, files=[name])
    assert f"note: timm/{name} wants images of 32x32" in capsys.readouterr().err
    assert str(by_name.protocol) == "centre 32 of 35"
    same = foreign_images(config)
    set_images(same, find(name).wants, NO_FLAGS)
    by_file = evaluate_all(same, files=[file])
    assert by_name.rows[0].result == by_file.rows[0].result
    other = IMAGES | {"crop_pct": 1.0}
    server.add("cifar_resnet8.other", network_spec("cifar_resnet8", num_classes=10), tmp_path / "x")
    server.repositories["timm/cifar_resnet8.other"]["config.json"] = json.dumps(
        {"architecture": "cifar_resnet8", "num_classes": 10, "pretrained_cfg": other}
    ).encode()
    with pytest.raises(ConfigError, match="want different images"):
        evaluate_all(config, files=[name, "cifar_resnet8.other"])
    config.model.name, config.init_from = "cifar_resnet8", name
    config.model.stem_width = config.model.template_width = None
    state = setup.build_state(config, 10, build.build_optimizer(config, jnp.asarray), MESH)[1]
    capsys.readouterr()
    started = warm_start(config, state, MESH)
    assert f"note: timm/{name} was trained with config.data.mean=(127.5, 102, 76.5)" in (
        capsys.readouterr().err
    )
    config.init_from = str(file)
    from_file = warm_start(config, state, MESH)
    assert digest(started.params, started.batch_stats) == digest(
        from_file.params, from_file.batch_stats
    )
    assert digest(started.params) != digest(state.params)


def test_what_does_not_exist_is_told(hub: tuple[Hub, Path, Path], tmp_path: Path) -> None:
    server, _, _ = hub
    assert "has no repository timm/resnet50.nobody" in refused("resnet50.nobody")
    del server.repositories[f"timm/{NAME}"]["model.safetensors"]
    server.repositories[f"timm/{NAME}"]["pytorch_model.bin"] = b"a pickle"
    assert f"timm/{NAME} at http" in refused()
    assert "has no model.safetensors" in refused()
    requests = server.requests
    assert "not implemented: it filters" in refused("timm/resnetaa50.a1h_in1k")
    assert "names a network and no weights" in refused("resnet50")
    assert "names no published weights" in refused("vit_base.in1k")
    assert server.requests == requests
    server.add("cifar_resnet14.test", SPEC, tmp_path, architecture="resnetblur50")
    assert "is of 'resnetblur50', not of 'cifar_resnet14'" in refused("cifar_resnet14.test")
    server.add("cifar_resnet20.test", SPEC, tmp_path, model_args={"output_stride": 8})
    assert "asks for model_args={'output_stride': 8}" in refused("cifar_resnet20.test")
    server.add("cifar_resnet26.test", SPEC, tmp_path, pretrained_cfg={})
    assert "is not one that timm writes" in refused("cifar_resnet26.test")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'resnext-jax\[hub\]'"):
        hub_module.fetch("timm/resnet50.a1_in1k", ("config.json",))


def test_files_come_before_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("timm/resnet50.a1_in1k", "resnet50.a1_in1k", "timm/resnet50"):
        assert is_name(name)
    for name in ("resnet50.pth", "runs/resnet50", "resnet50", "photo.jpg", "./resnet50.a1_in1k"):
        assert not is_name(name)
    Path("resnet50.a1_in1k").touch()
    assert not is_name("resnet50.a1_in1k")
