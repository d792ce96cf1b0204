"""The trained models that the page has opened, a few at a time.

In: a run, a step and adapters. Out: a pipeline with these weights. Steps of one run share its compiled programs, and so
do its adapters: each one that is offered takes part, with the strength 0 if it is not chosen. Models are on one device,
which is enough for one sample at a time and shows it while it is drawn.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lumina_jax.demo.runs import ShownRun
from lumina_jax.generation.following import Follower
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.interop.peft import Adapter
from lumina_jax.models.adapters import check_base, has_adapters
from lumina_jax.models.division import one_device_shardings
from lumina_jax.models.precision import abstract_parameters
from lumina_jax.trained import check_as_trained, open_adapter, open_run, strength_of, trained_parameters, with_adapters

MOST_OPEN = 2
"""Models in memory; two can be compared without reading one again for each sample."""


@dataclass
class _Opened:
    pipeline: Pipeline
    plain: dict[str, Any]
    """Its parameters without adapters."""
    adapters: tuple[str, ...] = ()
    silent: dict[str, Adapter] | None = None
    """Those of the page that fit it and can be joined, by their folders; None: not looked for."""


class OpenedModels:
    """The models of some runs; for one thread alone.

    Args:
      offered: folders of adapters that may be chosen.
      follower: follows every drawing of them.
    """

    def __init__(self, offered: Sequence[str], follower: Follower):
        self._offered, self._follower = list(offered), follower
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    def pipeline(self, run: ShownRun, step: int | None, adapters: tuple[str, ...]) -> Pipeline:
        """The model of a run at a step (None: the newest), with adapters as FOLDER:STRENGTH, or without.

        Raises:
          ValueError: it cannot be opened, or an adapter is of another model.
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
            pipeline.parameters, opened.adapters, opened.silent = opened.plain, (), None
        if opened.adapters != adapters:
            pipeline.parameters = self._adapted(opened, run, adapters) if adapters else opened.plain
            opened.adapters = adapters
        return pipeline

    def _adapted(self, opened: _Opened, run: ShownRun, words: tuple[str, ...]) -> dict[str, Any]:
        """The parameters of a model with adapters."""
        if has_adapters(opened.plain):
            raise ValueError(
                f"{run.name} trained adapters of quantised weights, to which others cannot be added; draw with its "
                "base and all adapters instead"
            )
        pairs = dict(strength_of(word) for word in words)
        chosen = {folder: open_adapter(folder, run.config.model) for folder in pairs}
        added = {folder: (adapter, pairs[folder]) for folder, adapter in chosen.items()}
        if not any(adapter.magnitudes for adapter in chosen.values()):  # DoRA stands alone
            if opened.silent is None:
                opened.silent = self._silent(opened, run)
            added = {**{folder: (adapter, 0.0) for folder, adapter in opened.silent.items()}, **added}
        return with_adapters(opened.plain, list(added.values()), run.folder)

    def _silent(self, opened: _Opened, run: ShownRun) -> dict[str, Adapter]:
        found = {}
        for folder in self._offered:
            try:
                adapter = open_adapter(folder, run.config.model)
                if adapter.base:
                    check_base(adapter.base, opened.plain, str(run.folder))
            except (ValueError, OSError):  # whoever chooses it is told why
                continue
            if not adapter.magnitudes:
                found[folder] = adapter._replace(base="")
        return found

    def _open(self, run: ShownRun, step: int) -> _Opened:
        pipeline = open_run(run.folder, step, weights=run.config.sample.weights)
        if pipeline.mesh is not None:
            pipeline.parameters = jax.device_put(pipeline.parameters, jax.local_devices()[0])
            pipeline.mesh, pipeline.least_batch = None, 1
        pipeline.follower = self._follower
        return _Opened(pipeline, pipeline.parameters)
