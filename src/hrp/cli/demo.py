"""``hrp demo``: see HRP work on an embedded model, offline."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hrp.cli.locks import held, lock_beside
from hrp.demo.settings import DemoConfig, check_earlier
from hrp.files import settle

QUICK = {"steps": 60, "seeds": 1}

INTRODUCTION = """\
Fine-tuning the embedded base model, a Llama of 0.9 M parameters that has never seen a worked
problem, with LoRA r = {rank} on arithmetic word problems. {steps} optimizer steps a run in all;
HRP's starts spend {preheat_steps} of theirs on preheating at rank {preheat_rank}.
"""

WRITTEN = """\
Wrote {out} after {seconds:.0f} s: the HRP run of the lowest test loss as a plain PEFT adapter, its
spectrum, and results.json with every run. Load the adapter like any other:

    import hrp.demo, peft
    base, tokenizer = hrp.demo.load_base()
    model = peft.PeftModel.from_pretrained(base, "{adapter}")
"""


def main(argv: list[str]) -> int:
    """Run the demo; returns 0, or 2 where the arguments cannot be used."""
    options = _parser().parse_args(argv)
    with ExitStack() as stack:
        try:
            config = _config(options)
            _check_place(options.out, options.overwrite)
            stack.enter_context(held(lock_beside(options.out), "hrp demo", options.out))
        except (ValueError, OSError) as error:
            print(f"hrp demo: {error}", file=sys.stderr)
            return 2
        _demo(config, options.out, options.overwrite)
    return 0


def _check_place(out: Path, overwrite: bool) -> None:
    settle(out)
    if out.exists() and not overwrite:
        raise FileExistsError(
            f"output folder '{out}' exists; name another with --out, or pass --overwrite"
        )
    from hrp.cli.outputs import check_place

    check_place(out, "--out")
    check_earlier(out)


def _parser() -> argparse.ArgumentParser:
    defaults = DemoConfig()
    parser = argparse.ArgumentParser(
        prog="hrp demo",
        description="Fine-tune a tiny embedded model from PEFT's start and from HRP's, offline.",
        epilog="example: hrp demo --steps 80 --seed 3 --out /tmp/hrp-demo",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"steps of each run, preheating included (default: {defaults.steps})",
    )
    parser.add_argument("--seeds", type=int, help=f"runs of each start (default: {defaults.seeds})")
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="first seed (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="{steps} steps, {seeds} seed".format(**QUICK)
    )
    parser.add_argument(
        "--out", type=Path, default=Path("hrp-demo"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the demo that is there")
    return parser


def _config(options: argparse.Namespace) -> DemoConfig:
    given = {"steps": options.steps, "seeds": options.seeds}
    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(DemoConfig(seed=options.seed), **(QUICK if options.quick else {}) | chosen)


def _demo(config: DemoConfig, out: Path, overwrite: bool) -> None:
    """Run, then print what came out; torch and transformers load only here."""
    from hrp.demo.runs import run_demo
    from hrp.demo.table import reading, table

    print(INTRODUCTION.format(preheat_steps=config.preheat_steps, **vars(config)), flush=True)
    began = time.perf_counter()
    with _quiet():
        runs = run_demo(config, out, overwrite, say=lambda line: print(line, flush=True))
    print(f"\n{table(runs)}\n\n{reading(runs)}\n")
    print(WRITTEN.format(out=out, adapter=out / "adapter", seconds=time.perf_counter() - began))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep loading bars, and PEFT's use of names that transformers renamed, off the screen."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
