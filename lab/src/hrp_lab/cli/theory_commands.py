"""Runs ``hrp-lab theory``: checks the theorems, redraws Figure 1, sweeps ranks, steps and cuts."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

EXAMPLES = """\
examples:
  hrp-lab theory check                          every statement, in seconds; status 1 if one breaks
  hrp-lab theory figure1 --out figures          the paper's Figure 1, with the numbers beside it
  hrp-lab theory sweep --spectrum flat --decay 12 --first 1 --shape 32 32 --rank 2 \\
      --preheat-ranks 2 6 12 24 32 --out figures
  hrp-lab theory truncation --out figures       the loss after the cut, plain SVD against the metric
"""


def main(argv: list[str]) -> int:
    """Run one subcommand: 0, 1 where a checked statement is broken, 2 for unusable arguments."""
    options = _parser().parse_args(argv)
    command = shlex.join(["hrp-lab", "theory", *argv])
    try:
        if getattr(options, "out", None):
            from hrp.cli.outputs import check_place

            check_place(options.out, "--out")
        return int(options.run(options, command))
    except (ValueError, ArithmeticError, OSError) as error:
        print(f"hrp-lab theory {options.subcommand}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp-lab theory",
        description="Theory lab: matrix factorisation under gradient flow (docs/theory.md).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for name, (run, add_options, text, example) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, epilog=f"example: hrp-lab theory {name} {example}"
        )
        command.add_argument("--seed", type=int, default=0, help="seed of all draws (default: 0)")
        command.add_argument("--record", type=Path, help="JSON file for the table and the settings")
        add_options(command.add_argument)
        command.set_defaults(run=run)
    return parser


# fmt: off
def _check_options(add: Callable[..., Any]) -> None:
    add("--draws", type=int, default=2000, help="of each mean (default: 2000)")


def _figure1_options(add: Callable[..., Any]) -> None:
    add("--draws", type=int, default=200, help="of each start (default: 200)")
    add("--preheat-rank", type=int, default=6, help="R (default: 6)")
    add("--preheat-time", type=float, default=1.0, help="flow time of preheating (default: 1)")
    add("--out", type=Path, help="folder for theory-figure1.png")


def _sweep_options(add: Callable[..., Any]) -> None:
    from hrp_lab.theory.descent import Method
    from hrp_lab.theory.flow_starts import RandomKind
    from hrp_lab.theory.sweep import SpectrumKind, SweepConfig

    known = SweepConfig()
    add("--spectrum", choices=get_args(SpectrumKind), default="geometric", help="of the target")
    add("--decay", type=float, help="ratio, exponent, or k of 'flat' (default: 0.8, 1 or 12)")
    add("--first", type=float, default=3.0, help="largest singular value")
    add("--shape", type=int, nargs=2, default=(24, 32), metavar=("M", "N"), help="of the target")
    add("--rank", type=int, default=known.rank, help="r (default: %(default)s)")
    add("--preheat-ranks", type=int, nargs="+", default=known.preheat_ranks, metavar="R",
        help="ascending")
    add("--preheat-steps", type=int, nargs="+", default=known.preheat_steps, metavar="K",
        help="ascending")
    add("--method", choices=get_args(Method), default="gd", help="preheats")
    add("--step-size", type=float, default=0.02, help="(default: 0.02)")
    add("--noise", type=float, default=0.0, help="on gradients, for sgd and adam")
    add("--train-factors", choices=("both", "B"), default="both", help="in preheating")
    add("--kind", choices=get_args(RandomKind), default="orthogonal")
    add("--draws", type=int, default=known.draws, help="(default: %(default)s)")
    add("--out", type=Path, help="folder for the plot")
    add("--name", default="theory-sweep", help="of the plot (default: %(default)s)")


def _truncation_options(add: Callable[..., Any]) -> None:
    from hrp_lab.theory.truncation_sweep import TruncationConfig

    known = TruncationConfig()
    add("--conditions", type=float, nargs="+", default=known.conditions, metavar="C",
        help="condition numbers, ascending (default: %(default)s)")
    add("--preheat-times", type=float, nargs="+", default=known.preheat_times, metavar="T",
        help="flow times of preheating, ascending (default: %(default)s)")
    add("--preheat-rank", type=int, default=known.preheat_rank, help="R")
    add("--rank", type=int, default=known.rank, help="r (default: %(default)s)")
    add("--damping", type=float, default=known.damping, help="of the metrics")
    add("--draws", type=int, default=known.draws, help="(default: %(default)s)")
    add("--out", type=Path, help="folder for theory-truncation.png")
# fmt: on


def _check(options: argparse.Namespace, command: str) -> int:
    from hrp_lab.theory.check import CheckConfig, check_all
    from hrp_lab.theory.rows import table

    config = CheckConfig(**_fields(options, CheckConfig))
    began = time.perf_counter()
    rows = check_all(config)
    broken = [row for row in rows if not row.holds]
    print(table(rows))
    seconds = time.perf_counter() - began
    print(f"\n{len(rows) - len(broken)} of {len(rows)} hold ({seconds:.1f} s)")
    _record(options, command, asdict(config), table=[row.to_dict() for row in rows])
    return 1 if broken else 0


def _figure1(options: argparse.Namespace, command: str) -> int:
    from hrp_lab.theory.figure1 import Figure1Config, figure1
    from hrp_lab.theory.theory_tables import figure1_table

    config = Figure1Config(**_fields(options, Figure1Config))
    result = figure1(config)
    print(figure1_table(result))
    _record(options, command, asdict(config), optimum=result.optimum, table=result.rows())
    _draw(options, "theory-figure1", lambda plots: plots.draw_figure1(result))
    return 0


def _sweep(options: argparse.Namespace, command: str) -> int:
    from hrp_lab.theory.descent import Descent
    from hrp_lab.theory.sweep import SweepConfig, TargetConfig, sweep
    from hrp_lab.theory.theory_tables import sweep_table

    decays = {"geometric": 0.8, "power-law": 1.0, "flat": 12.0}
    decay = decays[options.spectrum] if options.decay is None else options.decay
    m, n = options.shape
    config = SweepConfig(
        target=TargetConfig(options.spectrum, m, n, decay, options.first),
        optimizer=Descent(options.method, options.step_size, noise=options.noise),
        **_fields(options, SweepConfig),
    )
    result = sweep(config)
    print(sweep_table(result))
    _record(options, command, asdict(config), limits=result.limits(), table=result.rows)
    _draw(options, options.name, lambda plots: plots.draw_sweep(result))
    return 0


def _truncation(options: argparse.Namespace, command: str) -> int:
    from hrp_lab.theory.theory_tables import truncation_table
    from hrp_lab.theory.truncation_sweep import TruncationConfig, truncation_sweep

    config = TruncationConfig(**_fields(options, TruncationConfig))
    result = truncation_sweep(config)
    print(truncation_table(result))
    avoided = result.avoided()
    _record(options, command, asdict(config), table=result.rows(), avoided=avoided)
    _draw(options, "theory-truncation", lambda plots: plots.draw_truncation(result))
    return 0


def _fields(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Return the fields of a config that flags set; those with several values are tuples."""
    given = {f.name: getattr(options, f.name) for f in fields(config) if f.name in options}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _draw(options: argparse.Namespace, name: str, draw: Callable[[Any], Any]) -> None:
    """Draw with the module of plots, which is slow to load, where ``--out`` asks for it."""
    if options.out:
        from hrp_lab.theory import theory_plots

        path = options.out / f"{name}.png"
        theory_plots.save_figure(draw(theory_plots), path)
        print(f"wrote {path}")


def _record(
    options: argparse.Namespace, command: str, settings: dict[str, Any], **measured: Any
) -> None:
    """Write what was measured, with its settings and versions, where ``--record`` asks for it.

    Raises ``ValueError`` for NaN and infinity, which JSON has no words for.
    """
    from hrp.files import write_text
    from hrp.versions import installed_versions

    if options.record:
        versions = installed_versions() | {name: version(name) for name in ("numpy", "scipy")}
        record = {"command": command, "settings": settings, **measured, "versions": versions}
        write_text(options.record, json.dumps(record, indent=1, allow_nan=False) + "\n")
        print(f"wrote {options.record}")


_COMMANDS: dict[str, tuple[Callable[..., int], Callable[..., None], str, str]] = {
    "check": (
        _check,
        _check_options,
        "Put every statement to the test: 1e-8 where it is exact, three standard errors where it "
        "is a mean (at other seeds about one run in twenty breaks one by chance).",
        "--draws 5000 --seed 1",
    ),
    "figure1": (
        _figure1,
        _figure1_options,
        "Redraw the paper's Figure 1, with direction B beside it; print final losses and times.",
        "--draws 400 --out figures",
    ),
    "sweep": (
        _sweep,
        _sweep_options,
        "Final loss against preheat rank and preheating steps, for a chosen spectrum.",
        "--spectrum power-law --decay 1 --method adam --out figures",
    ),
    "truncation": (
        _truncation,
        _truncation_options,
        "Cut preheated updates to rank r, by the plain SVD and in the metric of the loss, where "
        "inputs (and outputs) have second moments of a given condition number.",
        "--draws 5 --conditions 1 100 --out figures",
    ),
}
