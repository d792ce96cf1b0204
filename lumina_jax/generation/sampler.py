"""The compiled programs of sampling: from noise to data, back, and the density of data.

In: a model as graph and parameters, latents or noise, and a condition. Out: latents [b f h w c] or log densities. The
condition's keys and values are computed once; guidance scale and time shift are inputs, never reasons to compile.

On several devices the path is walked inside `jax.shard_map`, like the gradient of a train step (`models/division.py`):
each device has its own samples, or its own tokens of them, and gathers the weights of one layer after another.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from lumina_jax.config import SampleConfig
from lumina_jax.flow import ancestral, dpm_solver, ode, paths, sde
from lumina_jax.flow.adams import Mean
from lumina_jax.flow.adaptive import SampleNorms, mean_of_rows
from lumina_jax.flow.likelihood import log_likelihood
from lumina_jax.generation.editing import Edit, KnownPath
from lumina_jax.generation.extrapolation import Extent
from lumina_jax.generation.guided import Prompt, Task, counts_of, guided_output, latents_of_patches
from lumina_jax.generation.style import Reference, beside, prompt_beside, tokens_beside
from lumina_jax.generation.trajectories import denoised, flow, resampled, solver_settings, stochastic
from lumina_jax.parallel.mesh import axis_size, row_spec, token_spec
from lumina_jax.tokens import Grid, Tokens, tokens_of

Latents = Float[jax.Array | np.ndarray, "b f h w c"]
Shares = Float[jax.Array | np.ndarray, "n *f h w"]
"""Of n captions, in all samples, and in all frames or in each."""
Local = Callable[[dict, Tokens, Any, "Prompt"], Float[Array, "..."]]
"""Of parameters, tokens, what else there is of each token, and a prompt."""


def draw(
    task: Task,
    settings: SampleConfig,
    parameters: dict,
    noise: Latents,
    keys: Key[Array, " b"],
    prompt: Prompt,
    edit: Edit | None = None,
    shares: Shares | None = None,
    reference: Reference | None = None,
) -> Latents:
    """Noise to latents; `keys` are for the noise of the stochastic solvers.

    Args:
      shares: of each caption of `prompt`, in each value of the latents; None: there is one.
      reference: what each sample attends to besides itself; None: nothing.
    """
    chex.assert_rank([noise, keys], [5, 1])
    chex.assert_equal_shape_prefix([noise, keys], 1)
    if edit is not None:
        prompt = prompt._replace(strength=jnp.asarray(edit.strength))
    is_resampled = settings.resamplings > 1 and edit is not None
    if settings.solver not in (*sde.STOCHASTIC, *ancestral.ANCESTRAL) and not is_resampled:
        return _walked(task, settings, parameters, noise, prompt, edit, shares, reference, backwards=False)
    tokens, grid, prompt, of_samples = _rows(task, noise, prompt, edit, shares, reference)
    count = settings.steps * (settings.resamplings - 1 if is_resampled else 1)
    size = (count, grid.length, tokens.patches.shape[2])
    draws = _of_all_steps(keys, size)
    draws = draws if reference is None else beside(draws, _of_all_steps(reference.keys, size))

    def local(parameters: dict, tokens: Tokens, more: tuple, prompt: Prompt) -> Float[Array, "b l p"]:
        (draws, (of_edit, of_captions)), x = more, tokens.patches
        increments, extent = jnp.moveaxis(draws, 2, 0), Extent(*noise.shape[1:4])
        known = _known_path(task, x, of_edit, prompt)
        if is_resampled:
            output = guided_output(task, settings, parameters, extent, tokens, prompt, of_captions)
            velocity, times = flow(output, task.config, settings, prompt.time_shift, known)
            of_steps = jnp.reshape(increments, (settings.steps, -1, *increments.shape[1:]))
            x, path = x if known is None else known.start(times[0]), paths.path(task.config.flow.path)
            drawn = resampled(velocity, x, times, of_steps, path, settings)
        elif settings.solver in ancestral.ANCESTRAL:
            keeps = task.config.model.predict_sigma
            output = guided_output(task, settings, parameters, extent, tokens, prompt, of_captions, keep_sigma=keeps)
            drawn = denoised(output, x, increments, settings, prompt.time_shift, keeps, known)
        else:
            output = guided_output(task, settings, parameters, extent, tokens, prompt, of_captions)
            drawn = stochastic(output, x, increments, task.config, settings, prompt.time_shift, known)
        return drawn if known is None else known.end(drawn)

    return latents_of_patches(_shared(task, local, parameters, tokens, (draws, of_samples), prompt), grid, task)


def invert(task: Task, settings: SampleConfig, parameters: dict, latents: Latents, prompt: Prompt) -> Latents:
    """Latents to the noise from which an ODE solver draws them."""
    return _walked(task, settings, parameters, latents, prompt, None, None, None, backwards=True)


def _walked(
    task: Task,
    settings: SampleConfig,
    parameters: dict,
    latents: Latents,
    prompt: Prompt,
    edit: Edit | None,
    shares: Shares | None,
    reference: Reference | None,
    *,
    backwards: bool,
) -> Latents:
    """Where the probability flow leads, from noise to data or backwards."""
    tokens, grid, prompt, of_samples = _rows(task, latents, prompt, edit, shares, reference)
    means = _means(task, tokens.kinds.shape[1])

    def local(parameters: dict, tokens: Tokens, of_samples: tuple, prompt: Prompt) -> Float[Array, "b l p"]:
        of_edit, of_captions = of_samples
        output = guided_output(task, settings, parameters, Extent(*latents.shape[1:4]), tokens, prompt, of_captions)
        known = _known_path(task, tokens.patches, of_edit, prompt)
        velocity, times = flow(output, task.config, settings, prompt.time_shift, known)
        times = times[::-1] if backwards else times
        x = tokens.patches if known is None else known.start(times[0])
        if settings.solver in dpm_solver.DPM_SOLVERS:
            end = dpm_solver.integrate(velocity, x, times, path=paths.path(task.config.flow.path))
        else:
            end = ode.integrate(velocity, x, times, **means, **solver_settings(settings))
        return end if known is None else known.end(end)

    return latents_of_patches(_shared(task, local, parameters, tokens, of_samples, prompt), grid, task)


def _rows(
    task: Task, noise: Latents, prompt: Prompt, edit: Edit | None, shares: Shares | None, reference: Reference | None
) -> tuple[Tokens, Grid, Prompt, tuple]:
    """The tokens of samples and their grid, what steers them, and their parts of an edit and of captions.

    A reference is behind its sample in a row.
    """
    tokens, grid = _tokens(noise, task)
    of_samples = _edit_tokens(edit, task), _share_tokens(shares, noise, task)
    if reference is None:
        return tokens, grid, prompt, of_samples
    of_references = _edit_tokens(reference.edit, task), _share_tokens(shares, reference.noise, task)
    is_apart = task.config.model.position_kind == "rope"
    rows = tokens_beside(tokens, _tokens(reference.noise, task)[0], is_apart=is_apart)
    return rows, grid, prompt_beside(prompt, reference), beside(of_samples, of_references)


def _of_all_steps(keys: Key[Array, " b"], size: tuple[int, int, int]) -> Float[Array, "b l n p"]:
    """Standard normal noise of each token at all steps; `size` is that of steps, tokens and values."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.normal(key, size))(keys), 1, 2)


def density(
    task: Task, settings: SampleConfig, parameters: dict, latents: Latents, signs: Latents, prompt: Prompt
) -> Float[Array, " b"]:
    """log p of latents in nats, by Hutchinson's estimate with these signs."""
    chex.assert_equal_shape([latents, signs])
    tokens, grid = _tokens(latents, task)
    means = _means(task, grid.length)

    def over_row(total: Float[Array, " b"]) -> Float[Array, " b"]:
        return total if task.division is None else task.division.over_row(total)

    def local(parameters: dict, tokens: Tokens, signs: Array, prompt: Prompt) -> Float[Array, " b"]:
        output = guided_output(task, settings, parameters, Extent(*latents.shape[1:4]), tokens, prompt)
        velocity, times = flow(output, task.config, settings, prompt.time_shift)
        counts = counts_of(tokens, task)
        found = log_likelihood(
            velocity,
            tokens.patches,
            signs,
            times[::-1],
            mask=counts,
            over_row=over_row,
            **means,
            **solver_settings(settings),
        )
        return found.log_density

    of_signs = _tokens(signs, task)[0].patches
    return _shared(task, local, parameters, tokens, of_signs, prompt, of_rows=True)


def _shared(
    task: Task,
    local: Local,
    parameters: dict,
    tokens: Tokens,
    beside: PyTree[Float[Array, "b l ..."]],
    prompt: Prompt,
    *,
    of_rows: bool = False,
) -> Float[Array, "b ..."]:
    """`local`, on each device for its own rows and tokens: what it finds of tokens, or `of_rows`.

    Raises:
      ValueError: the devices do not divide the rows.
    """
    if task.division is None:
        return local(parameters, tokens, beside, prompt)
    mesh, (count, length) = task.division.mesh, tokens.kinds.shape
    devices = axis_size(mesh, "data", "fsdp")
    if count % devices:
        raise ValueError(
            f"the samples of a batch must be a multiple of the {devices} devices along data and fsdp, but there are "
            f"{count}; fill the batch up to {count + -count % devices}"
        )
    missing = -length % axis_size(mesh, "sequence")

    def filled(x: Float[Array, "b l ..."] | Int[Array, "b l ..."]) -> Array:
        """With tokens of Kind.PAD and of no sample, which stay 0 along the path."""
        return jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))

    rows, of_tokens, everywhere = row_spec(mesh), token_spec(mesh), PartitionSpec()
    of_prompt = Prompt._make([rows, rows, *[everywhere] * 2, rows, *[everywhere] * 2, rows, rows])
    across = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(task.division.specs, of_tokens, of_tokens, of_prompt),
        out_specs=rows if of_rows else of_tokens,
        check_vma=False,  # the path is the same on devices that divide products
    )
    tokens, beside = jax.tree.map(filled, (tokens, beside))
    found = across(parameters, tokens, beside, prompt)
    return found if of_rows else found[:, :length]


def _means(task: Task, length: int) -> dict[str, Any]:
    """How errors are measured, in the words of `ode.integrate`."""
    return {"mean": _mean(task, length), "samples": _samples(task, length)}


def _mean(task: Task, length: int) -> Mean:
    """The mean over all samples, of `length` tokens, wherever these are: all devices must take the same steps."""
    if task.division is None:
        return jnp.mean
    mesh = task.division.mesh
    filled = length + -length % axis_size(mesh, "sequence")

    def mean(values: Float[Array, "..."]) -> Float[Array, ""]:
        everyone = jax.lax.pmean(jnp.mean(values), mesh.axis_names)
        return everyone * (filled / length) if values.ndim > 1 else everyone  # tokens that fill up have 0

    return mean


def _samples(task: Task, length: int) -> SampleNorms:
    """How each sample of `length` tokens is measured by itself, where devices have parts of the batch and of tokens."""
    if task.division is None:
        return SampleNorms()
    mesh = task.division.mesh
    filled, across = length + -length % axis_size(mesh, "sequence"), task.division.over_row
    devices = axis_size(mesh, "sequence")

    def mean(values: Float[Array, "b ..."]) -> Float[Array, " b"]:
        means = mean_of_rows(values)
        return across(means) / devices * (filled / length) if values.ndim > 1 else means  # tokens that fill up have 0

    return SampleNorms(mean, lambda flag: jax.lax.pmax(flag.astype(jnp.int32), mesh.axis_names) > 0)


def _tokens(latents: Latents, task: Task) -> tuple[Tokens, Grid]:
    """Tokens of latents; where the model has several modalities, with patches as wide as the widest."""
    model = task.config.model
    tokens, grid = tokens_of(
        latents, patch_size=task.modality.patch_size, nextline=model.nextline, nextframe=model.nextframe
    )
    if not model.others:
        return tokens, grid
    missing = model.patch_values - task.modality.patch_values
    patches = jnp.pad(jnp.asarray(tokens.patches), ((0, 0), (0, 0), (0, missing)))
    return tokens._replace(patches=patches, modalities=jnp.full(tokens.kinds.shape, task.modality_index)), grid


def _edit_tokens(edit: Edit | None, task: Task) -> tuple[Float[Array, "b l p"], Float[Array, "b l p"]] | None:
    """Patches of the source of an edit, and 1 for each value of it that is kept."""
    if edit is None:
        return None
    kept = jnp.broadcast_to(edit.kept, edit.source.shape)
    return _tokens(edit.source, task)[0].patches, _tokens(kept, task)[0].patches


def _share_tokens(shares: Shares | None, latents: Latents, task: Task) -> tuple[Float[Array, "b l p"], ...]:
    """The share of each caption in each value of the patches of these latents; nothing where there is one caption."""
    if shares is None:
        return ()
    everywhere = (jnp.broadcast_to(share[..., None], latents.shape) for share in shares)
    return tuple(_tokens(of_caption, task)[0].patches for of_caption in everywhere)


def _known_path(task: Task, noise: Float[Array, "b l p"], of_edit: tuple | None, prompt: Prompt) -> KnownPath | None:
    """The path that leads from noise to a source; None where there is none."""
    if of_edit is None or prompt.strength is None:
        return None
    source, kept = of_edit
    return KnownPath(paths.path(task.config.flow.path), noise, source, kept > 0, prompt.strength)
