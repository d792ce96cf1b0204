"""Why a sample could not be drawn: its values are not finite. The others of its batch are."""

from typing import NamedTuple

from lumina_jax.config import SampleConfig
from lumina_jax.flow.solvers import SOLVERS

NOT_DECODED = "the autoencoder makes values of it that are not finite; check the files in vae.path"


class NotDrawn(NamedTuple):
    """Stands for a sample whose values are not finite."""

    reason: str


def lost_on_the_way(settings: SampleConfig) -> str:
    """Why the latents of a sample are not finite, and what helps."""
    if settings.solver in SOLVERS and SOLVERS[settings.solver].adaptive:
        return (
            f"the solver {settings.solver} found no steps that keep its errors below {settings.rtol=} and "
            f"{settings.atol=}; allow larger ones, such as --rtol 0.01, or use fixed steps: --solver midpoint"
        ).replace("settings.", "")
    return "its values are not finite; use less guidance, more steps or another solver, or check the weights"
