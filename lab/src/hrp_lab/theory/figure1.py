"""Redraws Figure 1 of the paper: loss curves of matrix factorisation from five kinds of start.

Target diag(I_12, O_20), rank 2, preheat rank 6; left classic LoRA, right asymmetric LoRA. To the
caption's four starts (Gaussian, orthogonal, HRP, target's own directions) comes HRP "B" (P5).
The paper's times, scales and counts of draws are unknown to us: they are settings here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hrp.validation import check_integer, check_positive
from hrp_lab.theory.flow import Start, gradient_flow, random_start, wise_start
from hrp_lab.theory.flow_preheating import preheat_flow
from hrp_lab.theory.preheating_statements import flat_same_direction_mean
from hrp_lab.theory.problem import OTHER, MatrixFactorization, flat_target
from hrp_lab.theory.rows import estimate
from hrp_lab.theory.start_statements import random_limit

Panel = Literal["classic", "asymmetric"]
PANELS: tuple[Panel, ...] = ("classic", "asymmetric")
ARMS = ("gaussian", "orthogonal", "HRP A", "HRP B", "target")

EXCESS = 0.01
# By then every run has arrived: the slowest Gaussian draws of the asymmetric panel need it.
_LIMIT_TIME = 80.0


@dataclass(frozen=True)
class Figure1Config:
    """Holds the figure's settings; the defaults are the caption's, where it has them.

    Args:
        draws: number of random starts, and of preheatings.
        seed: seed of all draws.
        preheat_rank: R.
        preheat_time: flow time of preheating, from a random orthonormal A. The right panel does
            not depend on it (docs/theory.md, P7).
        end_time: end of the plotted curves; the final losses are taken much later.
        k: number of ones of the target diag(I_k, O).
        size: its rows and columns.
        rank: r, of the adapter.
    """

    draws: int = 200
    seed: int = 0
    preheat_rank: int = 6
    preheat_time: float = 1.0
    end_time: float = 6.0
    k: int = 12
    size: int = 32
    rank: int = 2

    def __post_init__(self) -> None:
        check_integer("draws", self.draws, minimum=2)
        check_positive("preheat_time", self.preheat_time)
        self.problem.check_ranks(self.rank, self.preheat_rank, self.size)

    @property
    def problem(self) -> MatrixFactorization:
        """Return the target."""
        return flat_target(self.k, self.size, self.size)


@dataclass(frozen=True, eq=False)
class Figure1:
    """Holds the losses (draws, times) by panel and arm that the figure shows, and the settings.

    The last of ``times`` is far to the right of the figure, for the final losses.
    """

    config: Figure1Config
    times: Float[np.ndarray, " times"]
    losses: dict[tuple[Panel, str], Float[np.ndarray, "_ times"]]

    @property
    def optimum(self) -> float:
        """Return L*, the best loss at the rank."""
        return self.config.problem.optimum(self.config.rank)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: per panel and arm the final loss and the time to 1 % excess loss."""
        return [self._row(panel, arm) for panel in PANELS for arm in ARMS]

    def _row(self, panel: Panel, arm: str) -> dict[str, Any]:
        losses = self.losses[panel, arm]
        final = estimate(losses[:, -1])
        times = times_to((1 + EXCESS) * self.optimum, self.times, losses)
        time = estimate(times)
        arrives = bool(np.isfinite(time.mean))
        charged = self.config.preheat_time if arm.startswith("HRP") else 0.0
        return {
            "panel": panel,
            "start": arm,
            "final_loss": final.mean,
            "standard_error": final.standard_error,
            "predicted": predicted_final(self.config, panel, arm),
            "reached": float(np.isfinite(times).mean()),
            "time": time.mean if arrives else None,
            "time_standard_error": time.standard_error if arrives else None,
            "time_with_preheating": time.mean + charged if arrives else None,
        }

    def table(self) -> str:
        """Return final losses and times, a line for every panel and arm."""
        head = (
            f"{'LoRA':<11} {'start':<11} {'final loss':>10} {'+- SE':>8} {'predicted':>9} "
            f"{'reached':>8} {'time':>6} {'+- SE':>6} {'+ preheating':>13}"
        )
        lines = [f"L* = {self.optimum:g}; time: until L <= 1.01 L*", "", head]
        for row in self.rows():
            times = (row["time"], row["time_standard_error"], row["time_with_preheating"])
            spent, error, charged = ("-" if value is None else f"{value:.3f}" for value in times)
            lines.append(
                f"{row['panel']:<11} {row['start']:<11} {row['final_loss']:>10.4f} "
                f"{row['standard_error']:>8.4f} {row['predicted']:>9.4f} {row['reached']:>8.0%} "
                f"{spent:>6} {error:>6} {charged:>13}"
            )
        return "\n".join(lines)


def times_to(
    loss: float, times: Float[np.ndarray, " times"], losses: Float[np.ndarray, "draws times"]
) -> Float[np.ndarray, " draws"]:
    """Return when each draw's falling loss comes down to ``loss``; infinity where it never does.

    Linear interpolation between the times.
    """
    return np.array([np.interp(-loss, -path, times, right=np.inf) for path in losses])


def predicted_final(config: Figure1Config, panel: Panel, arm: str) -> float:
    """Return the expected final loss: T1, P6 or L* (P2, P5; the classic flow always reaches L*)."""
    problem = config.problem
    if panel == "asymmetric" and arm in ("gaussian", "orthogonal"):
        return random_limit(problem, config.rank)
    if panel == "asymmetric" and arm == "HRP A":
        return flat_same_direction_mean(config.k, config.size, config.preheat_rank, config.rank)
    return problem.optimum(config.rank)


def figure1(config: Figure1Config) -> Figure1:
    """Run both panels, ``draws`` times each arm; the target's own start has no randomness."""
    rng = np.random.default_rng(config.seed)
    times = np.append(np.linspace(0, config.end_time, 161), _LIMIT_TIME)
    losses = {}
    for panel in PANELS:
        for arm, start in _starts(config, panel, rng).items():
            trained = "both" if panel == "classic" else OTHER[start.direction]
            run = gradient_flow(config.problem, start, times, trained)
            losses[panel, arm] = np.broadcast_to(run.losses, (config.draws, times.size))
    return Figure1(config, times, losses)


def _starts(config: Figure1Config, panel: Panel, rng: np.random.Generator) -> dict[str, Start]:
    problem, rank, draws = config.problem, config.rank, config.draws
    first = random_start(problem, config.preheat_rank, rng, draws, "orthogonal")
    update = preheat_flow(
        problem, first, config.preheat_time, "both" if panel == "classic" else "B"
    )
    return {
        "gaussian": random_start(problem, rank, rng, draws, "gaussian"),
        "orthogonal": random_start(problem, rank, rng, draws, "orthogonal"),
        "HRP A": update.start(problem, rank, "A"),
        "HRP B": update.start(problem, rank, "B"),
        "target": wise_start(problem, rank),
    }
