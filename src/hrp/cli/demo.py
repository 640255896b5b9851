"""``hrp demo`` shows HRP at work on an embedded model, offline."""

from __future__ import annotations

import argparse
import json
import shlex
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrp.cli.failures import reported
from hrp.cli.help_page import Help
from hrp.cli.locks import held, lock_beside
from hrp.cli.report import PAGE
from hrp.demo.settings import ARMS, DemoConfig, Run
from hrp.files import check_as_recorded, digests, settle, write_folder
from hrp.versions import installed_versions

if TYPE_CHECKING:
    from hrp.demo.runs import Finished, Task

RECORD = "results.json"  # every run, and the digests of the other files, as `hrp.json` has them
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
    from hrp.cli.outputs import check_place

    given = {"steps": options.steps, "seeds": options.seeds}
    chosen = {name: value for name, value in given.items() if value is not None}
    config = replace(DemoConfig(seed=options.seed), **(QUICK if options.quick else {}) | chosen)
    out = options.out
    settle(out, clear=True)
    if out.exists() and not options.overwrite:
        raise FileExistsError(
            f"output folder '{out}' exists; name another with --out, or pass --overwrite"
        )
    check_place(out, "--out")
    if out.exists():
        check_as_recorded(out, RECORD)
    with held(lock_beside(out), "hrp demo", out):
        run_demo(config, out, options.overwrite)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp demo",
        description="Fine-tune a tiny embedded model from PEFT's start and from HRP's, offline.",
        epilog="example: hrp demo --steps 80 --seed 3 --out /tmp/hrp-demo",
        formatter_class=Help,
    )
    steps, seeds = (f"(default: {n})" for n in (DemoConfig.steps, DemoConfig.seeds))
    add = parser.add_argument
    add("--steps", type=int, help=f"steps of each run, preheating included {steps}")
    add("--seeds", type=int, help=f"runs of each start {seeds}")
    add("--seed", type=int, default=DemoConfig.seed, help="first seed")
    add("--quick", action="store_true", help="{steps} steps, {seeds} seed".format(**QUICK))
    add("--out", type=Path, default=Path("hrp-demo"), help="folder to write")
    add("--overwrite", action="store_true", help="replace the demo that is there")
    return parser


def run_demo(config: DemoConfig, out: Path, overwrite: bool) -> list[Run]:
    """Train every arm on every seed, and print what came out.

    ``out`` gets ``adapter``, the run of the lowest test loss of the best HRP arm, ``spectrum``,
    what it started from, ``results.json`` with every run and a few answers, and the page, all of
    it or nothing.
    """
    from transformers.utils import logging

    from hrp.demo.runs import make_task, train_all
    from hrp.demo.summary import best_arm, reading, table

    print(INTRODUCTION.format(preheat_steps=config.preheat_steps, **vars(config)), flush=True)
    began = time.perf_counter()
    finished: list[Finished] = []
    logging.disable_progress_bar()  # of loading
    task, total = make_task(config), config.seeds * len(ARMS)
    for latest in train_all(config, task):
        finished.append(latest)
        done, run = len(finished), latest.run
        left = (time.perf_counter() - began) * (total - done) / done
        print(
            f"[{done}/{total}] seed {run.seed}  {run.arm:<16}  test loss {run.test_loss:.4f}"
            f"  ({run.seconds:.0f} s; about {left:.0f} s left)",
            flush=True,
        )
    runs = [each.run for each in finished]
    of_best_arm = [each for each in finished if each.run.arm == best_arm(runs)]
    best = min(of_best_arm, key=lambda each: each.run.test_loss)
    record = _record(config, runs, best, task)
    write_folder(out, lambda folder: _write(folder, record, best, out), overwrite, (PAGE,))
    print(f"\n{table(runs)}\n\n{reading(runs)}\n")
    print(_written(out, record, time.perf_counter() - began))
    return runs


def _record(config: DemoConfig, runs: list[Run], best: Finished, task: Task) -> dict[str, Any]:
    """Return what ``results.json`` holds, but for the digests of the other files."""
    from hrp.demo.runs import answers

    answered = zip(task.shown, answers(task.base, task), answers(best.model, task), strict=True)
    return {
        "config": asdict(config),
        "preheat_steps": config.preheat_steps,
        "saved": {"arm": best.run.arm, "seed": best.run.seed},
        "samples": [
            {"question": row["question"], "before": was, "after": now, "reference": row["answer"]}
            for row, was, now in answered
        ],
        "runs": [asdict(run) for run in runs],
        "versions": installed_versions(),
    }


def _write(folder: Path, record: dict[str, Any], best: Finished, out: Path) -> None:
    """Fill the folder that will be ``out``: adapter and card, spectrum, record, page."""
    from hrp.cli.modelcard import card
    from hrp.cli.report import write_own_page

    best.model.save_pretrained(folder / "adapter")
    best.spectrum.save(folder / "spectrum")
    readme = card(
        command="demo",
        adapter=str(out / "adapter"),
        lora_config=best.model.peft_config["default"].to_dict(),
        provenance=best.spectrum.provenance,
        start={"direction": best.arm.direction, "scale": 1.0},
        data="made arithmetic word problems",
    )
    (folder / "adapter" / "README.md").write_text(readme, encoding="utf-8")
    files = {name: [value] for name, value in digests(folder).items()}
    (folder / RECORD).write_text(json.dumps(record | {"files": files}, indent=2) + "\n")
    write_own_page(folder, str(out))  # which enters itself


def _written(out: Path, record: dict[str, Any], seconds: float) -> str:
    """Say what was saved, what the saved adapter answers, and what to do next."""
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
