"""``hrp-lab bench`` runs experiments, lists them, packs their records and writes them as pages."""

from __future__ import annotations

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrp.cli.failures import reported
from hrp.cli.locks import held, lock_beside
from hrp.validation import check_choice, check_integer, check_positive

_CONTROL = "lora"
EPILOG = """examples:
  hrp-lab bench list
  hrp-lab bench run experiments/standin-wordproblems.yaml
  hrp-lab bench run experiments/standin-gsm8k-450.yaml --model_name_or_path DIR/base-lm-30m \\
      --dataset_path DIR/gsm8k --workers 14 --time_limit 540
  hrp-lab bench report experiments/results/standin-gsm8k-450 --out docs/results.md
  hrp-lab bench report experiments/results/standin-sst2 --spectrum runs/spectrum --out page.html
  hrp-lab bench pack experiments/standin-gsm8k-450.yaml
  hrp-lab bench export experiments/results/standin-gsm8k-450 --out peft-results

Records lie in the folder NAME, one file a run, or packed in NAME.jsonl beside it, one line a run;
either path names both. A rerun does only what is missing.
HRP_GIT_COMMIT names the commit for the records where the tree is a copy without .git, or with one
that is not its own.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp-lab bench",
        description="Compare initialisers: learning-rate sweeps, seeds, costs charged.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="run|list|report|export|pack"
    )
    run = commands.add_parser("run", help="run what is missing of an experiment")
    listed = commands.add_parser("list", help="arms and tasks, or an experiment's runs")
    report = commands.add_parser(
        "report", help="write records' tables and figures as a Markdown or an HTML page"
    )
    export = commands.add_parser(
        "export", help="write records as results of PEFT's method_comparison, one JSON a run"
    )
    pack = commands.add_parser(
        "pack", help="fold the records of finished runs into one file an experiment"
    )
    run.add_argument("config", type=Path, help="the experiment's YAML file")
    listed.add_argument("config", type=Path, nargs="?", help="the experiment's YAML file")
    pack.add_argument(
        "experiments", type=Path, nargs="+", metavar="EXPERIMENT_OR_FOLDER",
        help="experiments' YAML files, with their records in results/NAME beside them, or folders "
        "of records",
    )  # fmt: skip
    for command in (run, listed):
        command.add_argument(
            "--records", type=Path, metavar="DIR",
            help="folder of the records, or packed file (default: results/NAME beside the config)",
        )  # fmt: skip
    for command in (report, export):
        command.add_argument(
            "records", type=Path, nargs="+", help="folders of records, or their packed files"
        )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    _add_run_options(run)
    _add_report_options(report)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--cache", type=Path, metavar="DIR",
        help="for what runs share (default: .shared beside the config)")
    add("--model_name_or_path", metavar="NAME",
        help="base model (default: the experiment's `model`)")
    add("--dataset_path", metavar="DIR",
        help="local data or hub name (default: the task's own)")
    add("--workers", type=int, default=1, metavar="N",
        help="processes, spread over this machine's GPUs (default: 1)")
    add("--padding_free", action="store_true",
        help="causal tasks' batches without padding: the same gradient, sooner")
    add("--torch_compile", action="store_true",
        help="compile the model's blocks, once a worker for each kind of adapter")
    add("--cuda_graphs", action="store_true",
        help="replay training steps as CUDA graphs: for models too small to keep a GPU busy")
    add("--engine", choices=("local", "ray"), default="local",
        help="local processes, or Ray tasks, N at a time (default: local)")
    add("--ray_address", metavar="ADDRESS", help="a running cluster (default: start a local one)")
    add("--time_limit", type=float, metavar="SECONDS", help="stop then; a rerun goes on")
    add("--retry_failed", action="store_true", help="do runs again whose record is a failure")
    # fmt: on


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # fmt: off
    add("--out", type=Path, required=True, metavar="FILE",
        help="FILE.html, one self-contained page, or FILE.md, with its figures beside it")
    add("--title", help="of the page (default: 'HRP benchmark' in HTML, 'Results' in Markdown)")
    add("--metric", help="to judge by (default: each task's own)")
    add("--control", default=_CONTROL, help="arm to compare with (default: %(default)s)")
    add("--spectrum", action="append", default=[], type=Path, metavar="DIR",
        help="HTML: a spectrum to show; give it again for more, compared with the first")
    add("--reading", type=Path, metavar="FILE",
        help="Markdown: a text of your own to begin the page with")
    # fmt: on


def main(argv: list[str]) -> int:
    """Run ``hrp-lab bench``; returns 0, or 2 where the arguments cannot be used."""
    options = _parser().parse_args(argv)
    commands = {"run": _run, "list": _list, "report": _report, "export": _export, "pack": _pack}

    def job() -> int:
        commands[options.command](options, argv)
        return 0

    return reported(f"bench {options.command}", job, "hrp-lab")


def _run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    from hrp_lab.bench.context import Places
    from hrp_lab.bench.driver import Driver
    from hrp_lab.bench.protocol import load_experiment
    from hrp_lab.bench.speed.options import Speed

    _check_run(options)
    experiment = load_experiment(options.config)
    records = _records_folder(options, experiment.experiment)
    places = Places(
        records=records,
        cache=options.cache or options.config.parent / ".shared",
        model=options.model_name_or_path,
        dataset=options.dataset_path,
        git=_git(),
        command=shlex.join(["hrp-lab", "bench", *argv]),
        speed=Speed(options.padding_free, options.torch_compile, options.cuda_graphs),
    )
    with held(lock_beside(records), "hrp-lab bench run", records):
        driver = Driver(
            experiment, places, lambda line: print(line, flush=True), options.time_limit,
            options.retry_failed,
        )  # fmt: skip
        summary = driver.run(_engine(options, places))
    print(f"{summary}\nrecords: {records}", flush=True)


def _check_run(options: argparse.Namespace) -> None:
    check_integer("--workers", options.workers, minimum=1)
    if options.time_limit is not None:
        check_positive("--time_limit", options.time_limit)
    if options.cuda_graphs:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "`--cuda_graphs` needs an NVIDIA GPU, and PyTorch sees none; leave it out"
            )


def _engine(options: argparse.Namespace, places: Any) -> Any:
    from hrp_lab.bench.engines import Ray, Sequential, Workers, visible_gpus

    if options.engine == "ray":
        return Ray(places, options.workers, options.ray_address)
    if options.workers == 1 and len(visible_gpus()) < 2:
        return Sequential(places)
    return Workers(places, options.workers)


def _records_folder(options: argparse.Namespace, experiment: str) -> Path:
    from hrp_lab.bench.record_store import records_folder

    return records_folder(options.records or options.config.parent / "results" / experiment)


def _git() -> tuple[str | None, bool | None]:
    import hrp
    from hrp_lab.bench.record import git_state

    if named := os.environ.get("HRP_GIT_COMMIT"):
        return named, None
    return git_state(Path(hrp.__file__).parent)


def _list(options: argparse.Namespace, _: Sequence[str]) -> None:
    from hrp_lab.bench.arms import ARMS
    from hrp_lab.bench.tasks import TASKS

    if options.config:
        _list_experiment(options)
        return
    width = max(map(len, [*ARMS, *TASKS]))
    print("arms (* charged for their start):")
    for name, arm in ARMS.items():
        print(f"  {name:<{width}} {'*' if arm.charged else ' '} {arm.about}")
    print("\ntasks, and the metric that each is judged by:")
    for name, (_module, metric) in TASKS.items():
        print(f"  {name:<{width}}   {metric}")


def _list_experiment(options: argparse.Namespace) -> None:
    from hrp_lab.bench.comparisons import told_apart
    from hrp_lab.bench.protocol import lines, load_experiment, plan
    from hrp_lab.bench.record_store import find_records

    experiment = load_experiment(options.config)
    records = find_records(_records_folder(options, experiment.experiment))
    runs = plan(experiment, records)
    configurations = lines(experiment)
    labels = told_apart([(f"{line.task}  {line.arm}", line.config) for line in configurations])
    for line, label in zip(configurations, labels, strict=True):
        rates = " ".join(f"{rate:g}" for rate in line.grid)
        print(f"{label}  {line.config['budget']}  learning rates {rates}")
    statuses = Counter(
        records[run.run_id].status if run.run_id in records else "missing" for run in runs
    )
    print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in statuses.items()))


def _report(options: argparse.Namespace, _: Sequence[str]) -> None:
    from hrp.files import write_text
    from hrp.report.html import check_page
    from hrp.spectra.spectrum import Spectrum
    from hrp_lab.bench.record_store import load_all
    from hrp_lab.report.markdown import write_page
    from hrp_lab.report.sections import GENERATOR, report_page

    out, html = options.out, options.out.suffix == ".html"
    if not html and out.suffix != ".md":
        raise ValueError(f"`--out` must end in .html or .md, got '{out}'")
    if options.spectrum and not html:
        raise ValueError(f"`--spectrum` needs `--out` to end in .html, got '{out}'")
    if options.reading and html:
        raise ValueError(f"`--reading` needs `--out` to end in .md, got '{out}'")
    records = load_all(options.records)
    if options.metric:
        known = sorted({name for record in records for name in record.metrics})
        check_choice("--metric", options.metric, tuple(known))
    if options.control != _CONTROL:  # a page without the default one is a page
        check_choice("--control", options.control, tuple(sorted({r.arm for r in records})))
    asked = options.metric, options.control
    if html:
        check_page(out, GENERATOR)
        spectra = {str(folder): Spectrum.load(folder) for folder in options.spectrum}
        title = options.title or "HRP benchmark"
        write_text(out, report_page(records, spectra, title, *asked))
        shown = f"{len(spectra)} spectra"
    else:
        reading = options.reading.read_text(encoding="utf-8") if options.reading else ""
        count = write_page(records, out, options.title or "Results", *asked, reading)
        shown = f"{count} figures"
    print(f"wrote {out} ({len(records)} records, {shown})")


def _export(options: argparse.Namespace, _: Sequence[str]) -> None:
    from hrp_lab.bench.export import export_records
    from hrp_lab.bench.record_store import load_all

    records = load_all(options.records)
    written = export_records(records, options.out)
    left = len(records) - len(written)
    print(f"wrote {len(written)} results to {options.out} ({left} runs not applicable, left out)")


def _pack(options: argparse.Namespace, _: Sequence[str]) -> None:
    from hrp_lab.bench.record_store import pack

    for source in options.experiments:
        if source.suffix in (".yaml", ".yml"):
            from hrp_lab.bench.protocol import load_experiment  # slow, for it imports all arms

            source = source.parent / "results" / load_experiment(source).experiment
        packed, count = pack(source)
        print(f"packed {count} records into {packed}")
