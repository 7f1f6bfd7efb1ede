"""The parts of a run are built as the config says."""

from resnext_jax.config.build import dense_transform, eval_transform, train_transform
from resnext_jax.configs import imagenet


def test_test_images_may_be_interpolated_in_another_way() -> None:
    config = imagenet.get_config("resnext50_32x4d")
    config.data.interpolation = "bilinear"
    assert eval_transform(config).interpolation == "bilinear"
    assert dense_transform(config).interpolation == "bilinear"
    config.data.eval_interpolation = "torch7"
    assert eval_transform(config).interpolation == "torch7"
    assert dense_transform(config).interpolation == "torch7"
    assert train_transform(config).interpolation == "bilinear"
