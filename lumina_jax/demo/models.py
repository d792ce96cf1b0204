"""The trained models that the page has opened, a few at a time.

In: a run, a step and an adapter. Out: a pipeline with these weights. Steps and adapters of one run share its compiled
programs. Models are on one device, which is enough for one sample at a time and shows it while it is drawn.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jax

from lumina_jax.demo.runs import ShownRun
from lumina_jax.generation.following import Follower
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.models.division import one_device_shardings
from lumina_jax.models.precision import abstract_parameters
from lumina_jax.trained import check_as_trained, open_adapter, open_run, strength_of, trained_parameters, with_adapters

MOST_OPEN = 2
"""Models in memory; two can be compared without reading one again for each sample."""


@dataclass
class _Opened:
    pipeline: Pipeline
    plain: dict[str, Any]
    """Its parameters without an adapter."""
    adapter: tuple[str, ...] = ()


class OpenedModels:
    """The models of some runs; for one thread alone.

    Args:
      follower: follows every drawing of them.
    """

    def __init__(self, follower: Follower):
        self._follower = follower
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    def pipeline(self, run: ShownRun, step: int | None, adapter: tuple[str, ...]) -> Pipeline:
        """The model of a run at a step (None: the newest), with an adapter as FOLDER:STRENGTH, or without.

        Raises:
          ValueError: it cannot be opened, or the adapter is of another model.
        """
        step = run.steps()[0] if step is None else step
        if run.name not in self._opened:
            while len(self._opened) >= MOST_OPEN:
                self._opened.popitem(last=False)
            self._opened[run.name] = self._open(run, step)
        self._opened.move_to_end(run.name)
        opened = self._opened[run.name]
        pipeline = opened.pipeline
        if pipeline.step != step:
            check_as_trained(run.folder, run.config, step, {})
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = one_device_shardings(run.config.model, here)
            abstract = abstract_parameters(run.config.model, run.config.sample.weights, shardings)
            opened.plain, pipeline.step = trained_parameters(run.folder, run.config, abstract, step)
            pipeline.parameters, opened.adapter = opened.plain, ()
        if opened.adapter != adapter:
            pairs = [strength_of(word) for word in adapter]
            added = [(open_adapter(folder, run.config.model), strength) for folder, strength in pairs]
            pipeline.parameters = with_adapters(opened.plain, added, run.folder) if added else opened.plain
            opened.adapter = adapter
        return pipeline

    def _open(self, run: ShownRun, step: int) -> _Opened:
        pipeline = open_run(run.folder, step, weights=run.config.sample.weights)
        if pipeline.mesh is not None:
            pipeline.parameters = jax.device_put(pipeline.parameters, jax.local_devices()[0])
            pipeline.mesh, pipeline.least_batch = None, 1
        pipeline.follower = self._follower
        return _Opened(pipeline, pipeline.parameters)
