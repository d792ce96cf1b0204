"""The training loop: batch, step, watch, log, save, show.

In: a state, a compiled step and a stream of batches. Out: the state at the last step, checkpoints, metrics, sheets.

Three promises. A loss, gradient or parameter that is not finite stops the run with the number of its step, before
anything is saved. SIGTERM, SIGHUP or Ctrl-C saves after the current step and ends the run without an error; sent to one
of several processes, it ends all of them after the same step. A run that continues from a checkpoint gives the same
bits as one that was never interrupted, in any number of processes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from lumina_jax.config import Config, RunConfig
from lumina_jax.failures import message
from lumina_jax.modalities import modality_of_source
from lumina_jax.parallel.multihost import check_agreement, compiled_together, is_first, say, stop_requests
from lumina_jax.training.checkpoint import Checkpoints, changed_fields, check_same_model
from lumina_jax.training.early_stopping import saved_lowest
from lumina_jax.training.feed import Feed
from lumina_jax.training.metrics import SAMPLES_PER_SECOND, MetricWriter, Progress, Speed
from lumina_jax.training.optimizer import learning_rate
from lumina_jax.training.state import (
    Parameters,
    TrainState,
    abstract_state,
    averaged_parameters,
    create_state,
    with_base,
)
from lumina_jax.training.step import Step, StepMetrics, TrainBatch
from lumina_jax.training.watched import watched

READING_FIELDS = frozenset({"cache", "workers", "prefetch"})
"""Fields that change how samples are read, but not what is trained."""
Show = Callable[[int, Parameters, Parameters | None], None]
"""Draws and writes a sheet of pictures for a step, from the averaged parameters and, if there is a base, from its
parameters."""
Evaluate = Callable[[Parameters], Mapping[str, float]]
"""Metrics of the averaged parameters, by name."""


@runtime_checkable
class Restorable(Protocol):
    """A stream of data that can continue from a recorded position."""

    def restore(self, state: dict[str, Any]) -> None: ...


class NotFiniteError(RuntimeError):
    """Training diverged; the checkpoints on disk are all good."""


class Due(NamedTuple):
    """What follows a step."""

    stopping: bool
    logging: bool
    saving: bool
    showing: bool
    evaluating: bool


def due_after(run: RunConfig, number: int, *, stopping: bool) -> Due:
    """What follows step `number`; what is evaluated is logged, too.

    Args:
      stopping: whether it is the last step, or a request to stop came.
    """

    def is_at(every: int | None) -> bool:
        return every is not None and number % every == 0

    evaluating = is_at(run.evaluate_every) or (run.evaluate_every is not None and number == run.steps)
    return Due(
        stopping=stopping,
        logging=stopping or evaluating or is_at(run.log_every),
        saving=stopping or is_at(run.checkpoint_every),
        showing=is_at(run.sample_every),
        evaluating=evaluating,
    )


def train_steps(
    config: Config,
    state: TrainState,
    step: Step,
    batches: Feed,
    *,
    checkpoints: Checkpoints,
    writer: MetricWriter | None,
    show: Show | None = None,
    evaluate: Evaluate | None = None,
) -> TrainState:
    """Train to `run.steps`, or until a request to stop. If reading data fails, the last step is saved first.

    Args:
      writer: writes the metrics; None in all processes but one.
      show: draws sheets of samples; None: there are none.
      evaluate: what `run.evaluate_every` asks for; None: nothing is evaluated.

    Raises:
      NotFiniteError: the loss or the gradient of a step is not finite.
    """
    run, rate = config.run, learning_rate(config.optimizer, config.run.steps)
    start, pending = int(state.step), None
    speed, curves = Speed(), Curves([modality.name for modality in config.model.modalities])
    with (
        stop_requests() as stop_requested,
        Progress(run.steps, start, run.name, samples=samples_word(config), is_shown=is_first()) as progress,
        watched(compiled_together(step), config, start, progress.note) as step,
    ):
        for number in range(start + 1, run.steps + 1):
            state, metrics = step(state, _next_batch(config, state, batches, checkpoints, pending))
            if pending is not None:  # those of the step before: the device need not wait for the host
                speed.count(curves.add(_check(*pending)))
            pending = (number, metrics)
            due = due_after(run, number, stopping=stop_requested(number) or number == run.steps)
            if not any(due):
                progress.advance(number)
                continue
            checked, pending = _check(number, metrics), None
            speed.count(curves.add(checked))
            if due.logging:
                measured = _evaluated(evaluate if due.evaluating else None, number, state, config, progress)
                due = _due_by_patience(checkpoints, run.patience, number, measured, due, progress)
                values = curves.values(checked) | {"learning_rate": float(rate(number - 1)), **measured}
                values |= {SAMPLES_PER_SECOND: speed.measure() or 0.0, "bad_samples": batches.bad_samples()}
                if writer is not None:
                    writer.write(number, values)
                progress.advance(number, values)
            if due.saving:
                checkpoints.save(number, state.saved, batches.state(), config.to_json())
            if due.showing and show is not None:
                _show(show, number, state, config, progress)
            if due.showing or due.evaluating:
                speed.restart()
            if due.stopping:
                break
        checkpoints.wait()
    return state


def restored_or_new(
    config: Config,
    mesh: Mesh,
    checkpoints: Checkpoints,
    stream: Restorable,
    initial: Callable[[], Parameters] | None = None,
) -> TrainState:
    """The state of the newest checkpoint, with the stream at its recorded position; or a new state.

    Args:
      initial: makes the parameters of a new state, and those that do not train; None: they are random, from the seed.

    Raises:
      ValueError: the checkpoint has another model, seed or base, or cannot be read, or some processes do not find it.
    """
    newest = check_newest(config, checkpoints)
    if newest is None:
        return create_state(config, mesh, None if initial is None else initial())
    saved = checkpoints.restore_config(newest)
    state = checkpoints.restore(newest, abstract_state(config, mesh).saved)
    if initial is not None and state.base is not None:
        state = with_base(state, initial(), config.run.init_from)
    data = checkpoints.restore_data(newest)
    if config.run.patience is not None:
        checkpoints.lowest = saved_lowest(data)
    stream.restore(data)
    say(f"continuing from step {newest} of {config.run.steps}")
    for change in changes(saved, config, newest):
        say(f"  {change}")
    return state


def changes(saved: Config, config: Config, step: int) -> list[str]:
    """The differences in settings for a run that continues after `step` steps, one line each."""
    found = [
        change
        for section in ("data", "text", "vae", "flow", "optimizer")
        for change in changed_fields(section, getattr(saved, section), getattr(config, section), but=READING_FIELDS)
    ]
    before, now = (float(learning_rate(one.optimizer, one.run.steps)(step)) for one in (saved, config))
    if before != now:
        if saved.run.steps != config.run.steps:
            found.append(f"run.steps was {saved.run.steps} and is {config.run.steps}")
        found.append(f"the learning rate of step {step + 1} was {before:.3g} and is {now:.3g}")
    if saved.data.mixture != config.data.mixture:
        found.append(
            "samples of the mixture come in another order: some may come twice in this epoch, and others not at all"
        )
    return found


def check_newest(config: Config, checkpoints: Checkpoints) -> int | None:
    """The newest checkpoint, or None; refuses one that cannot be continued, before any long work.

    Raises:
      ValueError: it has another model or seed, or some processes do not find it.
    """
    if jax.process_count() > 1 and not checkpoints.is_shared():
        raise ValueError(
            "every process writes its part of a checkpoint, so all must see one folder, but some do not see that of "
            "the first process; give a gs:// URL or a folder of a shared file system as run.checkpoints"
        )
    newest = checkpoints.latest()
    check_agreement({"the newest checkpoint": newest}, "start all of them again")
    if newest is not None:
        saved = checkpoints.restore_config(newest)
        check_same_model(saved.model, config.model, "a run must resume with its own model")
        if changed := changed_fields("finetune", saved.finetune, config.finetune, but=frozenset()):
            raise ValueError(
                f"a run must resume with the parameters that it trains, but {'; '.join(changed)}; restore these "
                "settings, or choose another run.name"
            )
        if saved.run.seed != config.run.seed:
            raise ValueError(
                f"a run must resume with its own seed, which orders its data, but run.seed was {saved.run.seed} and is "
                f"{config.run.seed}; set it to {saved.run.seed}, or choose another run.name for a new run"
            )
    return newest


def samples_word(config: Config) -> str:
    """The word for the samples of a run."""
    return "samples" if config.data.mixture else modality_of_source(config.data, config.model).plural


class Curves:
    """The losses to log: that of the last step, and for a model of several modalities the mean loss of each over the
    steps since the last report, as `loss/NAME`."""

    def __init__(self, modalities: list[str]):
        self._names = modalities
        self._losses, self._samples = np.zeros(len(modalities)), np.zeros(len(modalities))

    def add(self, metrics: StepMetrics) -> float:
        """Count a step; returns the number of its samples."""
        self._losses += metrics.totals.losses
        self._samples += metrics.totals.samples
        return float(np.sum(metrics.totals.samples))

    def values(self, last: StepMetrics) -> dict[str, float]:
        """The values to log now; the means start again."""
        numbers = {name: float(value) for name, value in last._asdict().items() if name != "totals"}
        numbers["samples"] = float(np.sum(last.totals.samples))
        if len(self._names) > 1:
            for name, losses, samples in zip(self._names, self._losses, self._samples):
                if samples:
                    numbers[f"loss/{name}"] = losses / samples
        self._losses[:], self._samples[:] = 0, 0
        return numbers


def _next_batch(
    config: Config,
    state: TrainState,
    batches: Feed,
    checkpoints: Checkpoints,
    pending: tuple[int, StepMetrics] | None,
) -> TrainBatch:
    """The next batch. If reading it fails, the last step is saved before the error is raised; in a job of several
    processes it is not, because all of them would have to save together."""
    try:
        return next(batches)
    except Exception:
        if jax.process_count() == 1 and int(state.step) > 0:
            if pending is not None:
                _check(*pending)
            checkpoints.save(int(state.step), state.saved, batches.state(), config.to_json())
        raise


def _show(show: Show, number: int, state: TrainState, config: Config, progress: Progress) -> None:
    """Draw a sheet; if that fails, print a warning and continue. In a job of several processes only errors of writing
    are ignored: after another error, the other processes would wait for this one."""
    progress.note(f"drawing a sheet of samples at step {number}")
    try:
        base = None if state.base is None else state.base.parameters
        show(number, averaged_parameters(state, config.finetune), base)
    except Exception as error:
        if jax.process_count() > 1 and not isinstance(error, OSError):
            raise
        progress.note(f"warning: there is no sheet of step {number}: {message(error)}")


def _evaluated(
    evaluate: Evaluate | None, number: int, state: TrainState, config: Config, progress: Progress
) -> Mapping[str, float]:
    """The metrics of the averaged parameters; none, and a warning, if that fails in a job of one process."""
    try:
        return {} if evaluate is None else evaluate(averaged_parameters(state, config.finetune))
    except Exception as error:
        if jax.process_count() > 1:
            raise
        progress.note(f"warning: step {number} is not evaluated: {message(error)}")
        return {}


def _due_by_patience(
    checkpoints: Checkpoints,
    patience: int | None,
    number: int,
    measured: Mapping[str, float],
    due: Due,
    progress: Progress,
) -> Due:
    """What follows a step whose held-out loss may be the lowest, which is saved, or not lower for too long."""
    if patience is None:
        return due
    lowest = checkpoints.lowest = checkpoints.lowest.after(number, measured)
    if lowest.has_run_out(patience):
        progress.note(
            f"stopping at step {number}: the held-out loss was lowest, {lowest.loss:.4g}, at step {lowest.step}, whose "
            "checkpoint is kept"
        )
        return due._replace(stopping=True, saving=True)
    return due._replace(saving=due.saving or lowest.step == number)


def _check(number: int, metrics: StepMetrics) -> StepMetrics:
    """The metrics on the host, when the device has computed them."""
    metrics = jax.device_get(metrics)
    try:
        chex.assert_tree_all_finite(metrics)
    except AssertionError:
        values = {name: float(value) for name, value in metrics._asdict().items() if name != "totals"}
        raise NotFiniteError(
            f"loss, gradient and parameters must be finite, but at step {number} they are {values}; nothing was saved "
            "since the last checkpoint. Start again from it with a lower optimizer.learning_rate, more "
            "optimizer.warmup_steps or a smaller optimizer.clip_norm"
        ) from None
    return metrics
