"""``hrp demo`` shows HRP at work on an embedded model, offline."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrp.cli.failures import reported
from hrp.cli.locks import held, lock_beside
from hrp.demo.settings import RECORD, DemoConfig, check_earlier
from hrp.files import settle

if TYPE_CHECKING:
    from hrp.demo.runs import Finished

_ANSWERS = ("before", "after", "reference")
QUICK = {"steps": 60, "seeds": 1}

INTRODUCTION = """\
Fine-tuning the embedded base model, a Llama of 0.9 M parameters that has never seen a worked
problem, with LoRA r = {rank} on arithmetic word problems. {steps} optimizer steps a run in all;
HRP's starts spend {preheat_steps} of theirs on preheating at rank {preheat_rank}.
"""

WRITTEN = """\
Wrote {out} after {seconds:.0f} s: {arm} of seed {seed} as a plain PEFT adapter,
its spectrum, and results.json with every run.{page}
Load the adapter like any other:

    import hrp.demo, peft
    base, tokenizer = hrp.demo.load_base()
    model = peft.PeftModel.from_pretrained(base, "{out}/adapter")

What next:
    hrp inspect {folder}/spectrum
    hrp init --spectrum {folder}/spectrum --lora_r 8 --lora_alpha 16 --output_dir {folder}-r8
    hrp sft --model_name_or_path Qwen/Qwen3-0.6B --dataset_path your.jsonl --output_dir runs/adapter
"""


def main(argv: list[str]) -> int:
    """Run the demo; returns the exit status."""
    options = _parser().parse_args(argv)
    return reported("demo", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    config = _config(options)
    _check_place(options.out, options.overwrite)
    with held(lock_beside(options.out), "hrp demo", options.out):
        _demo(config, options.out, options.overwrite)
    return 0


def _check_place(out: Path, overwrite: bool) -> None:
    settle(out, clear=True)
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
    from tqdm import tqdm

    from hrp.demo.runs import run_demo
    from hrp.demo.summary import reading, table

    best: list[Finished] = []

    def finish(folder: Path, finished: Finished) -> None:
        best.append(finished)
        _add_card_and_page(folder, finished, out)

    print(INTRODUCTION.format(preheat_steps=config.preheat_steps, **vars(config)), flush=True)
    began = time.perf_counter()
    # The bar, with the time left, is for people only: not drawn where stderr is no terminal.
    with _quiet(), tqdm(total=config.total_steps, unit="step", disable=None, leave=False) as bar:
        runs = run_demo(config, out, overwrite, say=_above(bar), tick=bar.update, finish=finish)
    print(f"\n{table(runs)}\n\n{reading(runs)}\n")
    print(_written(out, time.perf_counter() - began))


def _above(bar: Any) -> Callable[[str], None]:
    def say(line: str) -> None:
        bar.write(line)
        sys.stdout.flush()

    return say


def _add_card_and_page(folder: Path, best: Finished, out: Path) -> None:
    """Add our model card and, where matplotlib is there, the run's page to a demo's folder."""
    from hrp.cli.modelcard import CardFacts, card
    from hrp.cli.report import write_own_page
    from hrp.demo.base_model import BASE

    facts = CardFacts(
        command="demo",
        base=str(BASE),
        adapter=str(out / "adapter"),
        lora_config=best.model.peft_config["default"].to_dict(),
        provenance=best.spectrum.provenance,
        start={"direction": best.arm.direction, "scale": 1.0},
        data="made arithmetic word problems",
    )
    (folder / "adapter" / "README.md").write_text(card(facts), encoding="utf-8")
    write_own_page(folder, str(out))


def _written(out: Path, seconds: float) -> str:
    """Say what was saved, what the saved adapter answers, and what to do next."""
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    shown = "".join(
        f"\n{sample['question']}\n"
        + "".join(f"  {when + ':':<11}{_one_line(sample[when])}\n" for when in _ANSWERS)
        for sample in record["samples"]
    )
    page = f"\nIn pictures: {out / 'report.html'}" if (out / "report.html").exists() else ""
    words = {"seconds": seconds, "page": page, "folder": shlex.quote(str(out))}
    written = WRITTEN.format(out=out, **words, **record["saved"])
    return f"The first test problems, before fine-tuning and after:\n{shown}\n{written}"


def _one_line(answer: str) -> str:
    return textwrap.shorten(" / ".join(answer.split("\n")), 160, placeholder=" ...")


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
