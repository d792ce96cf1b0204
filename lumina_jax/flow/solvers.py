"""The solvers of the probability flow, their order and cost, and those that diffrax does not have.

The names are those of torchdiffeq, which the released samplers used. All except the Adams solvers run in diffrax.

| solver | order | model calls | grid |
|---|---|---|---|
| euler | 1 | 1 a step | any |
| midpoint | 2 | 2 a step | any |
| heun (heun2) | 2 | 2 a step | any |
| heun3 | 3 | 3 a step | any |
| rk4 (3/8 rule) | 4 | 4 a step | any |
| explicit_adams | 3 to 11, unstable from some 20 steps on | 1 a step, 4 in each of the first two | even |
| implicit_adams (fixed_adams) | 4 to 12 | 2 to 5 a step | even |
| adaptive_heun, fehlberg2 | 2 | 2, 3 a tried step | only its ends |
| bosh3 | 3 | 3 a tried step | only its ends |
| dopri5, tsit5 | 5 | 6 a tried step | only its ends |
| dopri8 | 8 | 13 a tried step | only its ends |
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import numpy as np


class Solver(NamedTuple):
    """The properties of a solver."""

    order: int
    calls: int
    """Model calls for each step; adaptive solvers: for each step that is tried."""
    adaptive: bool
    method: type[diffrax.AbstractSolver] | None
    """None: an Adams solver (`adams.py`)."""
    overshoots: bool = False
    """Adaptive: let the last step pass the end and interpolate back. The model is then called beyond the end."""


def solver_named(name: str) -> Solver:
    """Order, cost and kind of a solver.

    Raises:
      ValueError: there is no such solver.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown; choose one of {sorted(SOLVERS)}")
    return SOLVERS[name]


class Heun3(diffrax.AbstractERK):
    """Heun's third-order method. 3 stages; converges at order 3 on any grid."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 3]), np.array([0.0, 2 / 3])),
        b_sol=np.array([1 / 4, 0.0, 3 / 4]),
        b_error=np.array([1 / 4, -1 / 2, 1 / 4]),
        c=np.array([1 / 3, 2 / 3]),
    )
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 3


class ThreeEighths(diffrax.AbstractERK):
    """Kutta's 3/8 rule, which released samplers call rk4. 4 stages; converges at order 4 on any grid."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.array([1 / 8 - 1, 3 / 8, 3 / 8, 1 / 8]),
        c=np.array([1 / 3, 2 / 3, 1.0]),
    )
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 4


class Fehlberg2(diffrax.AbstractERK):
    """Fehlberg's 2(1) pair. 3 stages; order 2 with an error estimate, for steps chosen by tolerance."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 2]), np.array([1 / 256, 255 / 256])),
        b_sol=np.array([1 / 512, 255 / 256, 1 / 512]),
        b_error=np.array([-1 / 512, 0.0, 1 / 512]),
        c=np.array([1 / 2, 1.0]),
    )
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 2


SOLVERS: dict[str, Solver] = {
    "euler": Solver(1, 1, False, diffrax.Euler),
    "midpoint": Solver(2, 2, False, diffrax.Midpoint),
    "heun": Solver(2, 2, False, diffrax.Heun),
    "heun2": Solver(2, 2, False, diffrax.Heun),
    "heun3": Solver(3, 3, False, Heun3),
    "rk4": Solver(4, 4, False, ThreeEighths),
    "explicit_adams": Solver(3, 1, False, None),
    "implicit_adams": Solver(4, 5, False, None),
    "fixed_adams": Solver(4, 5, False, None),
    "adaptive_heun": Solver(2, 2, True, diffrax.Heun),
    "fehlberg2": Solver(2, 3, True, Fehlberg2),
    "bosh3": Solver(3, 3, True, diffrax.Bosh3),
    "dopri5": Solver(5, 6, True, diffrax.Dopri5),
    "tsit5": Solver(5, 6, True, diffrax.Tsit5),
    "dopri8": Solver(8, 13, True, diffrax.Dopri8),
}
