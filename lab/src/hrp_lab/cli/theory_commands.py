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

from hrp.validation import check_integer

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
    options.command = shlex.join(["hrp-lab", "theory", *argv])
    try:
        check_integer("seed", options.seed, minimum=0)
        if getattr(options, "out", None):
            from hrp.cli.outputs import check_place

            check_place(options.out, "--out")
        return int(options.run(options))
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
    _add_check(commands)
    _add_figure1(commands)
    _add_sweep(commands)
    _add_truncation(commands)
    return parser


def _command(
    commands: Any, run: Callable[..., int], draws: int, text: str, example: str
) -> argparse.ArgumentParser:
    """Add the subcommand that ``example`` begins with, and the flags that all of them share."""
    name = example.partition(" ")[0]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: hrp-lab theory {example}"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    parser.add_argument("--record", type=Path, help="JSON file for the table and the settings")
    parser.add_argument(
        "--draws", type=int, default=draws, help="random starts (default: %(default)s)"
    )
    if name != "check":
        parser.add_argument("--out", type=Path, help=f"folder for theory-{name}.png")
    parser.set_defaults(run=run, name=f"theory-{name}")
    return parser


def _add_check(commands: Any) -> None:
    text = (
        "Put every statement to the test: 1e-8 where it is exact, three standard errors where it "
        "is a mean (at other seeds about one run in twenty breaks one by chance)."
    )
    _command(commands, _check, 2000, text, "check --draws 5000 --seed 1")


def _add_figure1(commands: Any) -> None:
    text = "Redraw the paper's Figure 1, with direction B beside it; print final losses and times."
    add = _command(commands, _figure1, 200, text, "figure1 --draws 400 --out figures").add_argument
    add("--preheat-rank", type=int, default=6, help="R (default: 6)")
    add("--preheat-time", type=float, default=1.0, help="flow time of preheating (default: 1)")


def _add_sweep(commands: Any) -> None:
    from hrp_lab.theory.flow import RandomKind
    from hrp_lab.theory.sweep import Method, SpectrumKind, SweepConfig

    known = SweepConfig()
    text = "Final loss against preheat rank and preheating steps, for a chosen spectrum."
    example = "sweep --spectrum power-law --decay 1 --method adam --out figures"
    add = _command(commands, _sweep, known.draws, text, example).add_argument
    kinds, methods = get_args(SpectrumKind), get_args(Method)
    add("--spectrum", choices=kinds, default="geometric", help="of the target")
    add("--decay", type=float, help="ratio, exponent, or k of 'flat' (default: 0.8, 1 or 12)")
    add("--first", type=float, default=3.0, help="largest singular value")
    add("--shape", type=int, nargs=2, default=(24, 32), metavar=("M", "N"), help="of the target")
    add("--rank", type=int, default=known.rank, help="r (default: %(default)s)")
    several: dict[str, Any] = {"type": int, "nargs": "+", "help": "ascending"}
    add("--preheat-ranks", default=known.preheat_ranks, metavar="R", **several)
    add("--preheat-steps", default=known.preheat_steps, metavar="K", **several)
    add("--method", choices=methods, default="gd", help="preheats")
    add("--step-size", type=float, default=0.02, help="(default: 0.02)")
    add("--noise", type=float, default=0.0, help="on gradients, for sgd and adam")
    add("--train-factors", choices=("both", "B"), default="both", help="in preheating")
    add("--kind", choices=get_args(RandomKind), default="orthogonal")
    add("--name", help="of the picture (default: %(default)s)")


def _add_truncation(commands: Any) -> None:
    from hrp_lab.theory.truncation_sweep import TruncationConfig

    known = TruncationConfig()
    text = (
        "Cut preheated updates to rank r, by the plain SVD and in the metric of the loss, where "
        "inputs (and outputs) have second moments of a given condition number."
    )
    example = "truncation --draws 5 --conditions 1 100 --out figures"
    add = _command(commands, _truncation, known.draws, text, example).add_argument
    for flag, metavar, default, about in (
        ("--conditions", "C", known.conditions, "condition numbers"),
        ("--preheat-times", "T", known.preheat_times, "flow times of preheating"),
    ):
        text = f"{about}, ascending (default: {' '.join(f'{value:g}' for value in default)})"
        add(flag, type=float, nargs="+", default=default, metavar=metavar, help=text)
    add("--preheat-rank", type=int, default=known.preheat_rank, help="R (default: %(default)s)")
    add("--rank", type=int, default=known.rank, help="r (default: %(default)s)")
    add("--damping", type=float, default=known.damping, help="of the metrics")


def _check(options: argparse.Namespace) -> int:
    from hrp_lab.theory.check import CheckConfig, check_all
    from hrp_lab.theory.rows import table

    config = CheckConfig(**_fields(options, CheckConfig))
    began = time.perf_counter()
    rows = check_all(config)
    broken = [row for row in rows if not row.holds]
    print(table(rows))
    seconds = time.perf_counter() - began
    print(f"\n{len(rows) - len(broken)} of {len(rows)} hold ({seconds:.1f} s)")
    _record(options, config, table=[row.to_dict() for row in rows])
    return 1 if broken else 0


def _figure1(options: argparse.Namespace) -> int:
    from hrp_lab.theory.figure1 import Figure1Config, figure1

    result = figure1(Figure1Config(**_fields(options, Figure1Config)))
    return _show(options, result, optimum=result.optimum, table=result.rows())


def _sweep(options: argparse.Namespace) -> int:
    from hrp_lab.theory.sweep import Descent, SweepConfig, TargetConfig, sweep

    decays = {"geometric": 0.8, "power-law": 1.0, "flat": 12.0}
    decay = decays[options.spectrum] if options.decay is None else options.decay
    m, n = options.shape
    target = TargetConfig(options.spectrum, m, n, decay, options.first)
    optimizer = Descent(options.method, options.step_size, options.noise)
    result = sweep(SweepConfig(target, optimizer=optimizer, **_fields(options, SweepConfig)))
    return _show(options, result, limits=result.limits(), table=result.rows)


def _truncation(options: argparse.Namespace) -> int:
    from hrp_lab.theory.truncation_sweep import TruncationConfig, truncation_sweep

    result = truncation_sweep(TruncationConfig(**_fields(options, TruncationConfig)))
    return _show(options, result, table=result.rows(), avoided=result.avoided())


def _fields(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Return the fields of a config that flags set; those with several values are tuples."""
    given = {f.name: getattr(options, f.name) for f in fields(config) if f.name in options}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}


def _show(options: argparse.Namespace, result: Any, **measured: Any) -> int:
    """Print the table, record what was measured, and draw it by ``theory_plots.draw_COMMAND``."""
    print(result.table())
    _record(options, result.config, **measured)
    if options.out:
        from hrp_lab.theory import theory_plots

        path = options.out / f"{options.name}.png"
        draw = getattr(theory_plots, f"draw_{options.subcommand}")
        theory_plots.save_figure(draw(result), path)
        print(f"wrote {path}")
    return 0


def _record(options: argparse.Namespace, config: Any, **measured: Any) -> None:
    """Write what was measured, with its settings and versions, where ``--record`` asks for it.

    Raises ``ValueError`` for NaN and infinity, which JSON has no words for.
    """
    from hrp.files import write_text
    from hrp.versions import installed_versions

    if options.record:
        versions = installed_versions() | {name: version(name) for name in ("numpy", "scipy")}
        settings = {"command": options.command, "settings": asdict(config)}
        record = settings | measured | {"versions": versions}
        write_text(options.record, json.dumps(record, indent=1, allow_nan=False) + "\n")
        print(f"wrote {options.record}")
