"""Networks as StableHLO: exported, read again, and compared."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from resnext_jax.commands.export import check, export, main, read_export
from resnext_jax.config import build
from resnext_jax.data.augment import DeviceTransform
from resnext_jax.errors import UserError
from resnext_jax.interop.files import write_state_dict
from resnext_jax.interop.pretrained import read_wants
from resnext_jax.models import create_model
from resnext_jax.models.registry import network_spec
from resnext_jax.models.variables import merge, skeleton, split
from resnext_jax.ops import cpu
from resnext_jax.parallel.mesh import make_mesh
from resnext_jax.runs.hub import export_hub, hub_config
from resnext_jax.runs.weights import load_network
from tests.evaluation.workdirs import digits_config, make_workdir, write_weights
from tests.interop.weights import random_state_dict
from tests.numerics import relative_difference

SIZE = 8
TRANSFORM = DeviceTransform(mean=(120.0, 110.0, 100.0), std=(60.0, 61.0, 62.0))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workdir(tmp_path_factory.mktemp("runs") / "run", digits_config(), ema=True)


@pytest.fixture(scope="module")
def model(workdir: Path) -> nnx.Module:
    network = load_network(workdir=workdir).member.network
    found: nnx.Module = merge(network.graphdef, network.params, network.batch_stats)
    return found


@pytest.fixture
def portable() -> Iterator[None]:
    """The network itself does without the library too, so that nothing differs by rounding."""
    with mock.patch.object(cpu, "has_onednn", return_value=False):
        yield


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def logits(model: nnx.Module, pixels: np.ndarray) -> np.ndarray:
    model.eval()
    run = jax.jit(lambda x: model(TRANSFORM.test({"image": x})))
    return np.asarray(run(pixels))


@pytest.mark.usefixtures("portable")
@pytest.mark.parametrize("batch_size", [3, None])
def test_what_is_read_again_gives_the_same_logits(
    batch_size: int | None, model: nnx.Module, tmp_path: Path
) -> None:
    exported = export(model, image_size=SIZE, batch_size=batch_size, preprocess=TRANSFORM.test)
    (tmp_path / "file").write_bytes(exported.serialize())
    again = read_export(tmp_path / "file")
    # Of any number of images, or of the one that was said.
    for count in (3,) if batch_size else (1, 4):
        np.testing.assert_array_equal(again.call(images(count)), logits(model, images(count)))
    wrong = images(4) if batch_size else np.zeros((4, SIZE + 1, SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="Shape mismatch"):
        again.call(wrong)


@pytest.mark.usefixtures("onednn")
def test_an_export_needs_no_library_that_its_network_uses(model: nnx.Module) -> None:
    exported = export(model, image_size=SIZE, batch_size=3, preprocess=TRANSFORM.test)
    assert "onednn" not in str(exported.mlir_module())
    expected = logits(model, images(3))
    assert relative_difference(exported.call(images(3)), expected) < 1e-5


def test_normalised_images_and_other_networks() -> None:
    """Pre-activation, in bfloat16, blocks compiled as a loop, and in training mode until then."""
    config = digits_config()
    config.update_from_flattened_dict(
        {"model.preactivation": True, "model.scan_blocks": True, "model.dtype": "bfloat16"}
    )
    graphdef, *shapes = build.abstract_weights(config, 3, make_mesh(8, None))
    rng = np.random.default_rng(0)
    arrays = [
        {
            name: jnp.asarray(0.1 + 0.2 * rng.random(like.shape, np.float32))
            for name, like in tree.items()
        }
        for tree in shapes
    ]
    model = merge(graphdef, *arrays)
    exported = export(model, image_size=SIZE)
    assert not model.norm.use_running_average  # the model is as it was
    normalised = jnp.asarray(images(2), jnp.float32) / 100 - 1
    found = exported.call(normalised)
    assert (found.shape, found.dtype) == ((2, 3), jnp.float32)
    model.eval()
    np.testing.assert_array_equal(found, jax.jit(lambda x: model(x))(normalised))


def test_a_classifier_that_was_replaced_by_hand_is_exported(model: Any) -> None:
    changed = nnx.clone(model)
    changed.fc = nnx.Linear(model.fc.in_features, 7, rngs=nnx.Rngs(0))
    (logits,) = export(changed, image_size=SIZE, batch_size=2).out_avals
    assert logits.shape == (2, 7)


def test_a_network_for_grey_images_takes_them() -> None:
    model = skeleton(lambda rngs: create_model("resnext11_2x1d", in_channels=1, rngs=rngs))
    arrays = (
        {name: jnp.ones(like.shape, like.dtype) for name, like in tree.items()}
        for tree in split(model)[1:]
    )
    exported = export(merge(split(model)[0], *arrays), image_size=SIZE, batch_size=1)
    assert exported.in_avals[0].shape == (1, SIZE, SIZE, 1)


def test_other_platforms(model: nnx.Module) -> None:
    exported = export(model, image_size=SIZE, batch_size=2, platforms=("cpu", "cuda", "tpu"))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    expected = export(model, image_size=SIZE, batch_size=2).call(images(2) / np.float32(255))
    np.testing.assert_array_equal(exported.call(images(2) / np.float32(255)), expected)
    with pytest.raises(ValueError, match="unknown platform 'gpu'; choose of cpu, cuda"):
        export(model, image_size=SIZE, platforms=["gpu"])


@pytest.mark.usefixtures("portable")
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(
    ("platforms", "grouped"),
    [
        (["cpu"], False),
        (["tpu"], False),
        (["cuda"], True),
        (["cpu", "tpu"], False),
        (["cpu", "cuda"], True),
    ],
)
def test_each_platform_has_its_own_lowering(
    platforms: list[str], grouped: bool, model: nnx.Module
) -> None:
    """Packs of groups on CPUs and TPUs, and nowhere the CPU's library."""
    program = str(export(model, image_size=SIZE, platforms=platforms).mlir_module())
    assert "onednn" not in program
    assert ("feature_group_count = 2" in program) == grouped


def test_an_export_of_other_weights_is_found_out(model: nnx.Module) -> None:
    exported = export(model, image_size=SIZE, preprocess=TRANSFORM.test)
    assert check(exported, model, TRANSFORM).difference == 0
    other = DeviceTransform(mean=(0.0, 0.0, 0.0), std=(60.0, 61.0, 62.0))
    with pytest.raises(UserError, match="logits differ from the network's by"):
        check(exported, model, other)


def test_the_command(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.stablehlo"
    main([f"--workdir={workdir}", f"--out={out}", "--ema"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"network: {workdir}, step 0, averaged"
    assert lines[1].startswith("takes: uint8[n,8,8,3], pixels in RGB")
    assert lines[2] == "gives: float32[n,10], logits"
    assert lines[3] == "runs on: cpu"
    assert lines[4] == f"file: {out}, {out.stat().st_size:,} bytes"
    assert lines[5].startswith("checked: read again, its logits of 3 random images differ")
    # The average, and not the weights themselves.
    single = load_network(workdir=workdir, ema=True)
    network = single.member.network
    average = merge(network.graphdef, network.params, network.batch_stats)
    average.eval()
    data = single.config.data
    normalised = (images(2).astype(np.float32) - data.mean) / np.asarray(data.std)
    expected = jax.jit(lambda x: average(x))(jnp.asarray(normalised, jnp.float32))
    np.testing.assert_allclose(read_export(out).call(images(2)), expected, rtol=1e-4, atol=1e-4)


def test_a_file_of_weights_and_other_platforms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_weights(tmp_path / "a.safetensors", digits_config())
    out = tmp_path / "a.stablehlo"
    arguments = [f"--weights={weights}", f"--out={out}", "--batch=2", "--image_size=16"]
    main([*arguments, "--platforms=cuda,tpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("takes: uint8[2,16,16,3]")
    assert lines[3:4] == ["runs on: cuda, tpu"]
    assert lines[5] == "not checked: this machine has cpu"
    with pytest.raises(ValueError, match="platform"):
        read_export(out).call(np.zeros((2, 16, 16, 3), np.uint8))


@pytest.mark.usefixtures("portable")
def test_an_export_needs_nothing_but_jax(model: nnx.Module, tmp_path: Path) -> None:
    exported = export(model, image_size=SIZE, preprocess=TRANSFORM.test)
    (tmp_path / "file").write_bytes(exported.serialize())
    np.save(tmp_path / "images.npy", images(3))
    script = (
        "import sys, jax, numpy as np, jax.export\n"
        "exported = jax.export.deserialize(open('file', 'rb').read())\n"
        "np.save('logits.npy', exported.call(np.load('images.npy')))\n"
        "assert not {'flax', 'resnext_jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits(model, images(3)))


def test_mistakes_are_told_in_a_sentence(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = f"--workdir={workdir}", f"--out={tmp_path / 'a'}"
    for arguments, part in (
        ([run], "--out"),
        ([out], "--weights --workdir is required"),
        ([run, out, "--batch=0"], "'0' is not a whole number above 0"),
        ([run, out, "--image_size=x"], "'x' is not a whole number above 0"),
        ([run, out, "--platforms=cpu,gpu"], "'gpu' is not one of cpu, cuda, rocm, tpu"),
        ([run, f"--out={tmp_path}/none/a"], "there is no folder"),
        ([f"--workdir={tmp_path}/none", out], "does not exist"),
        ([f"--weights={workdir}/config.json", out], "neither .safetensors nor"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert (left.value.code, captured.out) == (2, "")
        (sentence,) = captured.err.splitlines()
        assert part in sentence, sentence
    assert not (tmp_path / "a").exists()


def test_a_file_that_is_no_export(tmp_path: Path, model: nnx.Module) -> None:
    whole = export(model, image_size=SIZE).serialize()
    for name, data in (("text", b"abc" * 100), ("cut", bytes(whole[:1000])), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"is damaged or was not written by jax\.export"):
            read_export(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_export(tmp_path / "none")


def test_orbax_alone_reads_what_was_exported_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names of form c, whatever was trained; and the model can be built from it."""
    config = digits_config()
    config.model.form = "a"
    workdir, folder = make_workdir(tmp_path / "run", config), tmp_path / "weights"
    main([f"--workdir={workdir}", f"--out={folder}", "--format=orbax"])
    assert "for orbax.checkpoint" in capsys.readouterr().out
    handler = ocp.PyTreeCheckpointHandler()
    tree = ocp.Checkpointer(handler).restore(folder)
    arguments = handler.metadata(folder).custom_metadata
    assert arguments.keys() == {"name", "num_classes", "stem_width", "template_width"}
    shapes = nnx.eval_shape(lambda: create_model(**arguments, rngs=nnx.Rngs(0)))
    graphdef, params, batch_stats = split(shapes)
    assert tree["params"].keys() == params.keys()
    assert tree["batch_stats"].keys() == batch_stats.keys()
    single = load_network(workdir=workdir).member.network
    trained = merge(single.graphdef, single.params, single.batch_stats)
    restored = merge(graphdef, tree["params"], tree["batch_stats"])
    pixels = images(2)
    assert relative_difference(logits(restored, pixels), logits(trained, pixels)) < 1e-5
    with pytest.raises(SystemExit) as end:
        main([f"--workdir={workdir}", f"--out={folder}", "--format=orbax"])
    assert end.value.code == 2
    assert f"{folder} cannot be written: it is a folder" in capsys.readouterr().err


def test_timm_has_no_small_networks(workdir: Path, tmp_path: Path) -> None:
    found = load_network(workdir=workdir)
    with pytest.raises(UserError, match="timm has no network like this one"):
        export_hub(found, tmp_path / "hub")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("short_side", [224, 229, 232, 235, 256, 321])
def test_the_hubs_config_says_how_images_are_made(
    short_side: int, workdir: Path, tmp_path: Path
) -> None:
    found = load_network(workdir=workdir)
    found.config.data.crop = "random_sized"
    found.config.data.image_size, found.config.data.eval_image_size = 224, None
    found.config.data.eval_short_side = short_side
    config = hub_config(found, "resnet50", num_features=64)
    (tmp_path / "config.json").write_text(json.dumps(config))
    wants = read_wants(tmp_path / "config.json", "the config")
    assert (wants.image_size, wants.short_side) == (224, short_side)
    assert wants.class_names == found.class_names
    np.testing.assert_allclose(np.array(wants.mean) * 255, found.config.data.mean, rtol=1e-12)
    np.testing.assert_allclose(np.array(wants.std) * 255, found.config.data.std, rtol=1e-12)


@pytest.mark.slow
def test_timm_reads_an_export_for_the_hub(tmp_path: Path) -> None:
    """Needs PyTorch and timm."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    names = ("ant", "bee", "cat")
    file = tmp_path / "resnet18.safetensors"
    write_state_dict(random_state_dict(network_spec("resnet18", num_classes=3)), file, names)
    main([f"--weights={file}", "--format=hub", f"--out={tmp_path / 'hub'}"])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    found = load_network(file=file)
    data = timm.data.resolve_model_data_config(theirs)
    assert (*data["input_size"], data["crop_pct"]) == (3, 224, 224, 0.875)
    np.testing.assert_allclose(data["mean"], (0.485, 0.456, 0.406), rtol=1e-6)
    assert theirs.pretrained_cfg["label_names"] == list(names)
    network = found.member.network
    model = merge(network.graphdef, network.params, network.batch_stats)
    model.eval()
    draw = np.random.RandomState(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(lambda x: model(x))(draw))
    with torch.no_grad():
        theirs_logits = theirs(torch.from_numpy(draw.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours, theirs_logits, atol=1e-4 * abs(theirs_logits).max())
