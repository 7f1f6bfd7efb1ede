r"""Fine-tuning of published weights on another data set.

Source: none; AdamW with layer-wise rate decay, as is common for pretrained networks.
Command: python train.py --config=configs/finetune.py:timm/resnext50_32x4d.a1_in1k,folder \
    --config.data.manual_dir=DIR --workdir=WORKDIR
NAME is a name of published weights (docs/evaluation.md), which are downloaded when the run starts;
the network follows from it. DATA is a data set (docs/data.md), such as folder or
tfds:oxford_flowers102.
Expected: not measured, not run here; depends on your images.
"""

from ml_collections import ConfigDict

from resnext_jax.config.fields import base_config
from resnext_jax.errors import ConfigError


def get_config(choice: str = "timm/resnext50_32x4d.a1_in1k,folder") -> ConfigDict:
    """Return the recipe for "NAME,DATA"."""
    name, _, data = choice.partition(",")
    if not name or not data:
        raise ConfigError(
            f"configs/finetune.py:{choice} must be NAME,DATA: published weights and a data set, as "
            "in configs/finetune.py:timm/resnext50_32x4d.a1_in1k,folder."
        )
    config = base_config()
    config.init_from = name
    config.model.name = name.rpartition("/")[2].partition(".")[0]
    config.batch_size = 128
    config.bn_group_size = 32
    config.num_epochs = 30.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.base_batch_size = 128
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_norm = False
    config.optimizer.decay_bias = False
    config.optimizer.clip_norm = 1.0
    config.optimizer.label_smoothing = 0.1
    config.finetune.layer_decay = 0.8
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 2.0
    config.ema.decay = 0.999
    config.ema.warmup = True

    config.data.name = data
    config.data.train_antialias = True
    config.data.rand_augment = "increasing"
    config.data.brightness = config.data.contrast = config.data.saturation = 0.0
    config.data.lighting = 0.0
    config.data.num_workers = 8
    return config
