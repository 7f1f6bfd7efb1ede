"""Every field of a detector's configuration, and its default: the paper's Sec. 5.4 and App. B.

The two stages are a run each, with fields of `config.fields` and some of their own; both as one
network, in one run, is beyond the paper. What the papers count in steps of a batch is here in
epochs of a thousand such steps, so that another batch of B images trains at B / B0 times the rate
for B0 / B times the steps, as it should.
"""

from ml_collections import ConfigDict, config_dict

from resnext_jax.config.fields import TASKS, base_config

# Steps of the paper's batch that are called an epoch.
STEPS_PER_EPOCH = 1000


def rpn_config() -> ConfigDict:
    """Return the region proposal network's run, with no model chosen."""
    config = _common()
    config.task = "rpn"
    _set_batch(config, 16, rate=0.02)

    # The anchors of a position, see anchors.AnchorSpec.
    config.anchors = ConfigDict()
    config.anchors.base = 16
    config.anchors.ratios = (0.5, 1.0, 2.0)
    config.anchors.scales = (4.0, 8.0, 16.0, 32.0)

    # What the RPN proposes, to train Fast R-CNN on and to test it on.
    config.proposals = ConfigDict()
    config.proposals.width = 512  # channels of the RPN's head
    config.proposals.nms_iou = 0.7
    config.proposals.min_side = 16.0  # pixels of the image as it is stored
    config.proposals.train_before = config_dict.placeholder(int)  # best so many; None: all
    config.proposals.train = 2000
    config.proposals.test_before = 6000
    config.proposals.test = 300

    # Which anchors are learned from, see targets.RpnTargetSpec.
    config.targets = ConfigDict()
    config.targets.samples = 256
    config.targets.positives = 128
    config.targets.positive_iou = 0.7
    config.targets.negative_iou = 0.3
    config.targets.crowds = "ignore"
    return config


def fast_rcnn_config() -> ConfigDict:
    """Return Fast R-CNN's run, with no model and no proposals chosen."""
    config = _common()
    config.task = "fast_rcnn"
    _set_batch(config, 8, rate=0.005)

    # Folder of the proposals for both splits, of `python -m resnext_jax.detection.proposals`.
    config.data.proposals = config_dict.placeholder(str)
    # Of an image the best so many are read.
    config.data.train_proposals = 2000
    config.data.test_proposals = 300

    # Which regions are learned from, see targets.RegionTargetSpec.
    config.targets = ConfigDict()
    config.targets.samples = 64
    config.targets.foregrounds = 16
    config.targets.foreground_iou = 0.5
    config.targets.background_iou = 0.0  # at least; py-faster-rcnn's library has .1

    # How regions are cut out of the shared map: "pool", or "align" (He et al. 2017).
    config.roi = ConfigDict()
    config.roi.kind = "pool"
    config.roi.size = 14
    config.roi.sampling_ratio = 2  # align only

    # What is a detection.
    config.detections = ConfigDict()
    config.detections.score = 0.05
    config.detections.nms_iou = 0.3
    config.detections.most = 100  # an image
    return config


def faster_rcnn_config(*, pyramid: bool = False) -> ConfigDict:
    """Return the run of both stages as one network, with no model chosen; beyond the paper.

    Args:
      pyramid: start from the defaults of a feature pyramid. The fields are the same.
    """
    fast = fast_rcnn_config()
    config = rpn_config()
    config.task = "faster_rcnn"
    # No source trains this on so many devices: batch, rate and length of the paper's Fast R-CNN,
    # the anchors of its RPN, and proposals as in the end-to-end variant of py-faster-rcnn.
    _set_batch(config, fast.batch_size, rate=fast.optimizer.learning_rate)
    config.proposals.train_before = 12_000  # of a pyramid: on each level, as test_before
    # `targets` are the anchors'; these are the regions'.
    config.regions = fast.targets
    config.roi = fast.roi
    config.detections = fast.detections

    # Features of all four stages, see joint.PyramidSpec. With them anchors.base is that at stride
    # 16, twice as large at stride 32, and so on.
    config.pyramid = ConfigDict()
    config.pyramid.enabled = pyramid
    config.pyramid.width = 256
    config.pyramid.canonical_side = 224.0
    config.pyramid.head_width = 1024
    if pyramid:
        _set_pyramid(config)
    return config


def _set_pyramid(config: ConfigDict) -> None:
    """Set what Lin et al. 2017 (Sec. 4 and 5.2) have, and Detectron where they do not say."""
    _set_batch(config, 16, rate=0.02)
    # Detectron's schedule of 90,000 steps.
    config.num_epochs = 90.0
    config.schedule.boundaries = (60.0, 80.0)
    config.schedule.warmup_epochs = 0.5
    config.eval_every_epochs = 30.0
    # Squares of 32 pixels on P2, to 512 on P6.
    config.anchors.scales = (8.0,)
    config.proposals.train_before = config.proposals.train = 2000
    config.proposals.test_before = config.proposals.test = 1000
    config.proposals.min_side = 0.0
    config.proposals.width = 256
    config.regions.samples = 512
    config.regions.foregrounds = 128
    config.roi.kind = "align"
    config.roi.size = 7
    config.detections.nms_iou = 0.5
    config.data.short_side = 800
    config.data.long_side = 1333


def _set_batch(config: ConfigDict, batch_size: int, *, rate: float) -> None:
    config.batch_size = config.optimizer.base_batch_size = batch_size
    config.optimizer.learning_rate = rate
    config.images_per_epoch = STEPS_PER_EPOCH * batch_size
    config.num_epochs = 180.0
    config.schedule.boundaries = (120.0,)


def _common() -> ConfigDict:
    config = base_config()
    # Batch norms are fixed.
    del config.bn_group_size
    config.finetune.frozen_norms = True
    config.finetune.frozen_stages = 2
    del config.optimizer.label_smoothing
    config.optimizer.nesterov = False
    config.optimizer.new_bias_rate = 2.0  # what multiplies the rate of the new layers' biases

    config.eval_batch_size = 8
    config.eval_every_epochs = 60.0
    config.checkpoint_every_epochs = 5.0

    mean, std = config.data.mean, config.data.std
    del config.data
    config.data = ConfigDict()
    # "coco": annotations and images of data_dir, in COCO's format; "digit_scenes": see synthetic.
    config.data.name = "coco"
    # None: for the digit scenes only, which are made in runs/digit_scenes then.
    config.data.data_dir = config_dict.placeholder(str)
    config.data.train_annotations = "annotations/instances_train2017.json"
    config.data.train_images = "train2017"
    config.data.test_annotations = "annotations/instances_val2017.json"
    config.data.test_images = "val2017"
    config.data.short_side = 600
    config.data.long_side = 1000
    config.data.flip = True
    config.data.keep_empty = False  # train on images without objects too: all is background
    # Places for an image's objects; None: as many as the annotations need.
    config.data.max_boxes = config_dict.placeholder(int)
    config.data.num_workers = 0  # decoding processes; 0: threads
    config.data.mean, config.data.std = mean, std

    return config


TASKS.update(rpn=rpn_config, fast_rcnn=fast_rcnn_config, faster_rcnn=faster_rcnn_config)
