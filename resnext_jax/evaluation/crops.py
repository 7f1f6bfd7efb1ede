"""Testing on crops of one size: the centre of each image, or ten of it."""

import contextlib
from collections.abc import Callable, Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from resnext_jax.config import build
from resnext_jax.data.pipeline import eval_batches, host_positions, to_devices
from resnext_jax.data.sources import Source
from resnext_jax.evaluation.evaluator import Ensemble, Scorer, score_batches
from resnext_jax.evaluation.images import EvalResult
from resnext_jax.models.variables import Network
from resnext_jax.parallel.mesh import batch_sharding

# Crops an image, by `config.data.eval_crops`.
_CROPS = {"centre": 1, "ten": 10}


class CropEvaluation:
    """A test set, ready to be scored on one or ten crops an image again and again."""

    def __init__(self, config: ConfigDict, source: Source, mesh: Mesh):
        """Prepare the steps (they compile when first run).

        A batch holds `config.eval_batch_size` crops, of all devices together: ten an image are a
        tenth of the images, at least one a device.
        """
        self._config = config
        self._source = source
        self._sharding = batch_sharding(mesh)
        images = max(1, config.eval_batch_size // _CROPS[config.data.eval_crops])
        # Blanks fill up the batch, so any size can be rounded up to fit the devices.
        devices = mesh.size
        self._batch_size = -(-images // devices) * devices
        self._scorer = Scorer(
            build.device_transform(config).test, mesh, first_classes=config.data.eval_first_classes
        )

    def score(
        self,
        networks: Sequence[Network],
        ensembles: Sequence[Ensemble],
        *,
        between_batches: Callable[[], None] = lambda: None,
    ) -> list[EvalResult]:
        """Score every test image once; see `run.Evaluation.score`."""
        batches = eval_batches(
            self._source,
            build.eval_transform(self._config, crops=self._config.data.eval_crops),
            batch_size=self._batch_size,
            positions=host_positions(self._sharding, self._batch_size),
            num_workers=self._config.data.num_workers,
            on_error=self._config.data.on_error,
        )
        with contextlib.closing(
            to_devices(batches, self._sharding, self._batch_size)
        ) as on_devices:
            return score_batches(
                self._scorer,
                networks,
                ensembles,
                on_devices,
                len(self._source),
                between_batches=between_batches,
            )
