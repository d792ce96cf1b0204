"""All contestants, by name."""

from collections.abc import Sequence

from lumina_jax.kernel_bench.contestants import Contestant
from lumina_jax.kernel_bench.ours import OURS
from lumina_jax.kernel_bench.peers import PEERS

CONTESTANTS = (OURS, *PEERS)


def contestant_of(name: str) -> Contestant:
    """The contestant of a name; ValueError, with all names, where there is none."""
    for contestant in CONTESTANTS:
        if contestant.name == name:
            return contestant
    raise ValueError(f"contestant {name!r} is not one of {', '.join(c.name for c in CONTESTANTS)}")


def chosen(names: Sequence[str]) -> list[Contestant]:
    """The contestants with these names, or all whose package is installed."""
    if names:
        return [contestant_of(name) for name in names]
    return [contestant for contestant in CONTESTANTS if contestant.is_installed()]
