"""Puts the figures' numbers into aligned text, as the commands print it."""

from __future__ import annotations

from collections.abc import Iterable

from hrp_lab.theory.figure1 import Figure1
from hrp_lab.theory.sweep import SIDES, Sweep
from hrp_lab.theory.truncation_sweep import LOSSES, TruncationSweep


def figure1_table(result: Figure1) -> str:
    """Return final losses and times, a line for every panel and arm."""
    head = (
        f"{'LoRA':<11} {'start':<11} {'final loss':>10} {'+- SE':>8} {'predicted':>9} "
        f"{'reached':>8} {'time':>6} {'+- SE':>6} {'+ preheating':>13}"
    )
    lines = [f"L* = {result.optimum:g}; time: until L <= 1.01 L*", "", head]
    for row in result.rows():
        times = (row["time"], row["time_standard_error"], row["time_with_preheating"])
        spent, error, charged = ("-" if value is None else f"{value:.3f}" for value in times)
        lines.append(
            f"{row['panel']:<11} {row['start']:<11} {row['final_loss']:>10.4f} "
            f"{row['standard_error']:>8.4f} {row['predicted']:>9.4f} {row['reached']:>8.0%} "
            f"{spent:>6} {error:>6} {charged:>13}"
        )
    return "\n".join(lines)


def sweep_table(result: Sweep) -> str:
    """Return mean final losses by R and K, a block for each direction."""
    limits, steps = result.limits(), result.config.preheat_steps
    lines = [
        f"optimum {limits['optimum']:.4f}, random {limits['random']:.4f}, effective rank k_r "
        f"{limits['effective_rank']:.2f}; mean final loss by R (rows) and K (columns)"
    ]
    for direction in SIDES:
        lines += ["", f"direction {direction}, R \\ K" + _cells(f"{step}" for step in steps)]
        for rank in result.config.preheat_ranks:
            rows = result.losses(direction, preheat_rank=rank)
            lines.append(f"{rank:>18}" + _cells(f"{row['mean']:.4f}" for row in rows))
    return "\n".join(lines)


def truncation_table(result: TruncationSweep) -> str:
    """Return the losses around the cut, a line for every condition number and time."""
    lines = [
        "mean losses as shares of the loss at step 0; avoided: of the plain cut's rise, +- SE",
        "",
        f"{'weighted':<19} {'condition':>9} {'time':>5}" + _cells(LOSSES) + "   avoided",
    ]
    for row in result.avoided():
        setting = row["weights"], row["condition"], row["preheat_time"]
        means = _cells(f"{result.losses[*setting, name].mean():.4f}" for name in LOSSES)
        share = f"{row['mean']:>8.1%} +- {row['standard_error']:.1%}"
        lines.append(f"{setting[0]:<19} {setting[1]:>9g} {setting[2]:>5g}{means} {share}")
    return "\n".join(lines)


def _cells(texts: Iterable[str]) -> str:
    return "".join(f" {text:>9}" for text in texts)
