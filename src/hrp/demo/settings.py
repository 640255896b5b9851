"""Holds the settings and records of the demo, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from hrp.config import Direction
from hrp.validation import check_integer


@dataclass(frozen=True)
class Arm:
    """Describes a way to fine-tune: a LoRA from PEFT's or HRP's start, or every weight."""

    name: str
    learning_rate: float
    direction: Direction | None = None
    adapter: bool = True


# Each rate is its arm's best of four: mean test loss of the default DemoConfig over seeds 100, 101
# and 102, on 200 test problems of another seed than the demo's.
#                   5e-3    7e-3    1e-2    1.4e-2
#   PEFT default    0.2895  0.2551  0.2446  0.2532
#   HRP "A"         0.2534  0.2375  0.2411  0.2552
#   HRP "B"         0.2769  0.2531  0.2502  0.2830
#   HRP "AB"        0.2276  0.2101  0.1964  0.2147
#                   5e-4    1e-3    2e-3    3e-3
#   full            0.2527  0.1786  0.2052  0.2807
ARMS = (
    Arm("PEFT default", 1e-2),
    Arm('HRP "A"', 7e-3, "A"),
    Arm('HRP "B"', 1e-2, "B"),
    Arm('HRP "AB"', 1e-2, "AB"),
    Arm("full fine-tuning", 1e-3, adapter=False),
)


@dataclass(frozen=True)
class DemoConfig:
    """Holds the demo's sizes; each of ``seeds`` seeds from ``seed`` on draws one run an arm.

    Preheating's rank (of 32, 64, 128), share (of 0.05, 0.1, 0.2) and rate (of 1e-3, 2e-3) were
    chosen on seed 100 alone, where rank 128 and share 0.2 were as good.

    Raises:
        ValueError: a negative seed, no seeds, or fewer than two steps.
    """

    steps: int = 160
    seed: int = 0
    seeds: int = 2
    rank: int = 4
    lora_alpha: int = 8
    preheat_rank: int = 64
    preheat_share: float = 0.1
    preheat_learning_rate: float = 2e-3
    batch_size: int = 8
    train_problems: int = 2000
    test_problems: int = 200

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, minimum=2)
        check_integer("seed", self.seed, minimum=0)
        check_integer("seeds", self.seeds, minimum=1)

    @property
    def preheat_steps(self) -> int:
        """Return preheating's part of ``steps``; at least one step is left to fine-tuning."""
        return max(1, round(self.preheat_share * self.steps))


@dataclass(frozen=True)
class Run:
    """Records one run; losses are nats a token over the answers, ``exact`` a share in 0..1.

    ``seconds`` counts the preheating that the arm needed.
    """

    arm: str
    seed: int
    preheat_steps: int
    steps: int
    learning_rate: float
    test_loss: float
    exact: float
    seconds: float
    losses: list[float]
