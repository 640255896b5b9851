"""``hrp-lab bench`` runs experiments, lists them, packs their records and writes them as pages."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrp.cli.failures import reported
from hrp.cli.locks import held, lock_beside
from hrp_lab.cli.bench_report import add_report, add_sources, report

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
    _add_run(commands)
    _add_list(commands)
    add_report(commands)
    _add_export(commands)
    _add_pack(commands)
    return parser


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="run what is missing of an experiment")
    parser.add_argument("config", type=Path, help="the experiment's YAML file")
    _add_records(parser)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="for what runs share (default: .shared beside the config)",
    )  # fmt: skip
    parser.add_argument(
        "--model_name_or_path",
        metavar="NAME",
        help="base model (default: the experiment's `model`)",
    )
    parser.add_argument(
        "--dataset_path", metavar="DIR", help="local data or hub name (default: the task's own)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes, spread over this machine's GPUs (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--padding_free", action="store_true",
        help="causal tasks' batches without padding: the same gradient, sooner",
    )  # fmt: skip
    parser.add_argument(
        "--torch_compile", action="store_true",
        help="compile the model's blocks, once a worker for each kind of adapter",
    )  # fmt: skip
    parser.add_argument(
        "--cuda_graphs", action="store_true",
        help="replay training steps as CUDA graphs: for models too small to keep a GPU busy",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="local processes, or Ray tasks, N at a time (default: local)",
    )  # fmt: skip
    parser.add_argument(
        "--ray_address", metavar="ADDRESS", help="a running cluster (default: start a local one)"
    )
    parser.add_argument(
        "--time_limit", type=float, metavar="SECONDS", help="stop then; a rerun goes on"
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="do runs again whose record is a failure"
    )


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="arms and tasks, or an experiment's runs")
    parser.add_argument("config", type=Path, nargs="?", help="the experiment's YAML file")
    _add_records(parser)


def _add_records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records", type=Path, metavar="DIR",
        help="folder of the records, or packed file (default: results/NAME beside the config)",
    )  # fmt: skip


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="write records as results of PEFT's method_comparison, one JSON a run"
    )
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")


def _add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack", help="fold the records of finished runs into one file an experiment"
    )
    parser.add_argument(
        "experiments", type=Path, nargs="+", metavar="EXPERIMENT_OR_FOLDER",
        help="experiments' YAML files, with their records in results/NAME beside them, or folders "
        "of records",
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Run ``hrp-lab bench``; returns 0, or 2 where the arguments cannot be used."""
    options = _parser().parse_args(argv)
    commands = {"run": _run, "list": _list, "report": report, "export": _export, "pack": _pack}
    command = commands[options.command]
    return reported(f"bench {options.command}", lambda: command(options, argv), "hrp-lab")


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
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
    return 0


def _check_run(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise ValueError(f"`--workers` must be at least 1, got {options.workers}")
    if options.time_limit is not None and not options.time_limit > 0:
        raise ValueError(f"`--time_limit` must be > 0, got {options.time_limit:g}")
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


def _list(options: argparse.Namespace, _: Sequence[str]) -> int:
    from hrp_lab.bench.arms import ARMS
    from hrp_lab.bench.tasks import TASKS

    if options.config:
        return _list_experiment(options)
    width = max(map(len, [*ARMS, *TASKS]))
    print("arms (* charged for their start):")
    for name, arm in ARMS.items():
        print(f"  {name:<{width}} {'*' if arm.charged else ' '} {arm.about}")
    print("\ntasks, and the metric that each is judged by:")
    for name, (_module, metric) in TASKS.items():
        print(f"  {name:<{width}}   {metric}")
    return 0


def _list_experiment(options: argparse.Namespace) -> int:
    from hrp_lab.bench.comparisons import told_apart
    from hrp_lab.bench.protocol import lines, load_experiment, plan
    from hrp_lab.bench.record_store import find_records

    experiment = load_experiment(options.config)
    records = find_records(_records_folder(options, experiment.experiment))
    runs = plan(experiment, records)
    statuses: dict[str, int] = {}
    for run in runs:
        status = records[run.run_id].status if run.run_id in records else "missing"
        statuses[status] = statuses.get(status, 0) + 1
    configurations = lines(experiment)
    labels = told_apart([(f"{line.task}  {line.arm}", line.config) for line in configurations])
    for line, label in zip(configurations, labels, strict=True):
        rates = " ".join(f"{rate:g}" for rate in line.grid)
        print(f"{label}  {line.config['budget']}  learning rates {rates}")
    print(f"{len(runs)} runs: " + ", ".join(f"{n} {status}" for status, n in statuses.items()))
    return 0


def _export(options: argparse.Namespace, _: Sequence[str]) -> int:
    from hrp_lab.bench.export import export_records
    from hrp_lab.bench.record_store import load_all

    records = load_all(options.records)
    written = export_records(records, options.out)
    left = len(records) - len(written)
    print(f"wrote {len(written)} results to {options.out} ({left} runs not applicable, left out)")
    return 0


def _pack(options: argparse.Namespace, _: Sequence[str]) -> int:
    from hrp_lab.bench.record_store import pack

    for source in options.experiments:
        if source.suffix in (".yaml", ".yml"):
            from hrp_lab.bench.protocol import load_experiment  # slow, for it imports all arms

            source = source.parent / "results" / load_experiment(source).experiment
        packed, count = pack(source)
        print(f"packed {count} records into {packed}")
    return 0
