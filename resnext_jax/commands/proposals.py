"""Write a trained RPN's proposals to files for Fast R-CNN (Ren et al. 2015, Sec. 3.3).

    python -m resnext_jax.detection.proposals --workdir=RPN_WORKDIR --out=FOLDER

writes the proposals for the training and test images. Configs of Fast R-CNN read the folder that
`config.data.proposals` names.
"""

import contextlib
from collections.abc import Sequence

from resnext_jax.detection.proposals import Proposer, store
from resnext_jax.detection.setup import open_split, stored_weights
from resnext_jax.errors import CommandParser, reports_user_errors
from resnext_jax.files import path_argument


@reports_user_errors
def main(argv: Sequence[str]) -> None:
    """Run the command that writes proposals."""
    parser = CommandParser("python -m resnext_jax.detection.proposals", description=__doc__)
    parser.add_argument("--workdir", type=path_argument, required=True, help="workdir of the RPN")
    parser.add_argument("--out", type=path_argument, required=True, help="folder to write")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or a step")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights")
    parser.add_argument(
        "--data_dir", type=path_argument, help="folder of the data set (default: the run's)"
    )
    parser.add_argument("--split", choices=("train", "test"), help="default: both splits")
    arguments = parser.parse_args(argv)
    config, weights = stored_weights(
        arguments.workdir, "rpn", arguments.checkpoint, ema=arguments.ema
    )
    if arguments.data_dir is not None:
        config.data.data_dir = str(arguments.data_dir)
    for name in [arguments.split] if arguments.split else ["train", "test"]:
        split = open_split(config, name)
        proposer = Proposer(config, weights.graphdef, weights.mesh, training=name == "train")
        with contextlib.closing(proposer.run(split, weights.params, weights.batch_stats)) as found:
            folder = arguments.out / name
            count = store(folder, split, config.proposals[name], found)
        print(f"{folder}: {count / len(split):.1f} proposals per image, {len(split)} images")
