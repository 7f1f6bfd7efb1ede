"""Command lines whose output is kept, in a folder of `programs.inputs` and `write_others`.

{digits} and the like are the flags of a recipe, {root} is the project's folder.
"""

from pathlib import Path

from tests.safeguards.recipes import CLASSIFIER, DETECTOR, FAST_RCNN, PYRAMID, RPN

ROOT = Path(__file__).parent.parent.parent

HELP = """
train.py --help
eval.py --help
-m resnext_jax.data.prepare --help
-m resnext_jax.data.preview --help
-m resnext_jax.detection.infer --help
-m resnext_jax.detection.proposals --help
-m resnext_jax.detection.synthetic --help
-m resnext_jax.export --help
-m resnext_jax.interop.torch --help
-m resnext_jax.interop.torch export --help
-m resnext_jax.interop.torch inspect --help
-m resnext_jax.models --help
-m resnext_jax.predict --help
-m resnext_jax.reports --help
-m resnext_jax.reports curves --help
-m resnext_jax.reports sweep --help
-m resnext_jax.reports tables --help
"""

WRONG = """
train.py
train.py --config=
train.py --config=none.py
train.py --config={root}/configs
train.py --config={root}/configs/digits_resnext29.py:foo
train.py --config={root}/configs/cifar.py:mnist,resnext29_8x64d
train.py --config={root}/configs/coco.py:mask_rcnn,resnet50
train.py --config={root}/configs/imagenet.py:resnet50,crop299
train.py --config=broken.py
train.py --config=no_config.py
train.py {digits} --config.batchsize=64
train.py {digits} --config.optimizer.momentun=0.5
train.py {digits} --config.model=resnet50
train.py {digits} --config.batch_size=abc
train.py {digits} --config.batch_size=4.5
train.py {digits} --config.batch_size=None
train.py {digits} --config.batch_size=
train.py {digits} --config.init_from=
train.py {digits} --wrkdir=run
train.py {digits} stray
train.py {digits} --workdir=gs://bucket/run
train.py {digits} --workdir=
train.py {digits} --workdir=file/run
train.py {digits} --workdir=run --config.model.name=resnext29_0x4d
train.py {digits} --workdir=run --config.model.name=resnext50_32x4
train.py {digits} --workdir=run --config.model.name=resnext50
train.py {digits} --workdir=run --config.model.name=resnet50_2x64d
train.py {digits} --workdir=run --config.model.name=resnext28_2x4d
train.py {digits} --workdir=run --config.model.form=d
train.py {digits} --workdir=run --config.model.name=resnet200 --config.model.form=a
train.py {digits} --workdir=run --config.model.dtype=float16
train.py {digits} --workdir=run --config.model.dtype=float64
train.py {digits} --workdir=run --config.bn_group_size=5
train.py {digits} --workdir=run --config.accumulate_steps=5
train.py {digits} --workdir=run --config.seed=-1
train.py {digits} --workdir=run --config.num_epochs=0.001
train.py {digits} --workdir=run --config.num_epochs=nan
train.py {digits} --workdir=run --config.schedule.name=polynomial
train.py {digits} --workdir=run --config.schedule.factor=0.1
train.py {digits} --workdir=run --config.schedule.warmup_epochs=20
train.py {digits} --workdir=run --config.optimizer.momentum=1.0
train.py {digits} --workdir=run --config.ema.decay=1.0
train.py {digits} --workdir=run --config.guard.on_nonfinite=ignore
train.py {digits} --workdir=run --config.guard.spike_factor=0.5
train.py {digits} --workdir=run --config.profile_steps=(5,4)
train.py {digits} --workdir=run --config.keep_checkpoints=0
train.py {digits} --workdir=run --config.task=segmentation
train.py {digits} --workdir=run --config.finetune.frozen_stages=9
train.py {digits} --workdir=run --config.finetune.frozen_stages=1
train.py {digits} --workdir=run --config.init_from=s3://bucket/run
train.py {digits} --workdir=run --config.data.name=mnist
train.py {digits} --workdir=run --config.data.name=imagenet2012
train.py {digits} --workdir=run --config.data.name=folder
train.py {digits} --workdir=run --config.data.name=folder --config.data.manual_dir=nowhere
train.py {digits} --workdir=run --config.data.crop=centre
train.py {digits} --workdir=run --config.data.eval_crops=ten
train.py {digits} --workdir=run --config.data.crop=random_sized --config.data.eval_short_side=15
train.py {digits} --workdir=run --config.data.mixup=0.2 --config.batch_size=33
train.py {digits} --workdir=run --config.data.interpolation=torch7 --config.data.train_antialias
train.py {digits} --workdir=run --config.data.mean=(1.0,2.0)
train.py {digits} --workdir=classifier --config.optimizer.learning_rate=1.0
train.py {digits} --workdir=run --process_id=1
train.py {digits} --workdir=run --num_processes=2 --process_id=0
train.py {rpn} --workdir=run --config.data.data_dir=nowhere
train.py {rpn} --workdir=run --config.data.data_dir=None
train.py {rpn} --workdir=run --config.init_from=None
train.py {rpn} --workdir=run --config.data.short_side=65
train.py {rpn} --workdir=run --config.targets.positives=33
train.py {rpn} --workdir=run --config.targets.negative_iou=0.8
train.py {rpn} --workdir=run --config.model.form=b
train.py {fast_rcnn} --workdir=run --config.data.proposals=None
train.py {fast_rcnn} --workdir=run --config.roi.kind=mask
train.py {pyramid} --workdir=run --config.roi.kind=pool
train.py {pyramid} --workdir=run --config.anchors.base=6
eval.py {digits} --workdir=none
eval.py {digits} --workdir=folders
eval.py {digits} --workdir=classifier --checkpoint=7
eval.py {digits} --workdir=classifier --checkpoint=newest
eval.py {digits} --workdir=classifier --confusion=matrix.txt
eval.py {digits} --workdir=classifier --output=file/eval.json
eval.py {digits} --workdir=classifier --config.model.form=a
eval.py {digits} --workdir=broken_run
eval.py {digits} --weights=none.pth
eval.py {digits} --weights=broken.pth
eval.py {digits} --weights=file
eval.py {detector} --workdir=detector --per_class=classes.csv
eval.py {detector} --workdir=detector,detector
eval.py {detector} --workdir=classifier
-m resnext_jax.predict
-m resnext_jax.predict --workdir=none image.png
-m resnext_jax.predict --workdir=classifier none.png
-m resnext_jax.predict --workdir=classifier --top=0 image.png
-m resnext_jax.predict --weights=broken.pth image.png
-m resnext_jax.predict --workdir=classifier --weights=broken.pth image.png
-m resnext_jax.export --out=model
-m resnext_jax.export --workdir=none --out=model
-m resnext_jax.data.prepare --dataset=mnist
-m resnext_jax.data.prepare --dataset=imagenet2012 --manual_dir=none
-m resnext_jax.data.prepare --dataset=folder
-m resnext_jax.data.preview {digits} --out=file/batch.png
-m resnext_jax.interop.torch inspect none.pth
-m resnext_jax.interop.torch inspect broken.pth
-m resnext_jax.interop.torch export --workdir=none --out=x.pth
-m resnext_jax.models resnext50
-m resnext_jax.reports
-m resnext_jax.reports tables --workdir=none
-m resnext_jax.reports sweep table9 --workdir=sweep
-m resnext_jax.detection.proposals --workdir=classifier --out=found
-m resnext_jax.detection.synthetic --out=made --train=0
-m resnext_jax.detection.infer --workdir=classifier image.png
-m resnext_jax.detection.infer --workdir=detector none.png
-m resnext_jax.detection.infer --workdir=detector --score=2 image.png
"""

_RECIPES = {
    "digits": CLASSIFIER,
    "rpn": RPN,
    "fast_rcnn": FAST_RCNN,
    "detector": DETECTOR,
    "pyramid": PYRAMID,
}


def lines(text: str) -> list[str]:
    """Return the lines of one of the lists."""
    return text.split("\n")[1:-1]


def words(line: str) -> list[str]:
    """Return the arguments of a line."""
    recipes = {name: " ".join(recipe.flags(ROOT)) for name, recipe in _RECIPES.items()}
    return [
        str(ROOT / word) if word in ("train.py", "eval.py") else word
        for word in line.format(root=ROOT, **recipes).split()
    ]


def write_others(folder: Path) -> None:
    """Write what the wrong lines name, beside the inputs."""
    (folder / "file").write_text("")
    (folder / "broken.py").write_text("def get_config():\n    raise KeyError('there is none')\n")
    (folder / "no_config.py").write_text("x = 1\n")
    (folder / "broken.pth").write_bytes(b"these are no weights")
    (folder / "broken_run").mkdir()
    (folder / "broken_run" / "config.json").write_text("{")
    (folder / "image.png").write_bytes((folder / "scenes" / "test" / "0.png").read_bytes())
