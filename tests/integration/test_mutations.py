"""Thousands of damaged spectra, records and YAML files: documented errors only, and soon."""

from __future__ import annotations

import copy
import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hrp
from helpers.faults import fault
from helpers.spectra_made import made_spectrum
from helpers.synthetic import full_record
from helpers.tiny_bench import BASE
from hrp.cli.yaml_files import read_yaml
from hrp_lab.bench.protocol import load_experiment, plan
from hrp_lab.bench.record import Record, RecordError

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**400, float("nan"), float("inf"), "", "x", "\ud800"),
    *([], {}, [[]], [None], {"a": None}, "9" * 5000, 60_000, "../../outside"),
)
SECONDS, MEBIBYTES = 2, 300


def changed_bytes(content: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    if generator.random() < 0.2:
        del damaged[generator.randrange(len(damaged)) :]
    return bytes(damaged)


def changed_json(content: Any, generator: random.Random) -> Any:
    """Replace or remove one or two values anywhere in a JSON value."""
    content = json.loads(json.dumps(content))
    for _ in range(generator.randint(1, 2)):
        holder, depth = content, generator.randint(0, 3)
        while holder:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = generator.choice(list(keys))
            if depth and isinstance(holder[key], dict | list) and holder[key]:
                holder, depth = holder[key], depth - 1
                continue
            if generator.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(generator.choice(ODD))
            break
    return content


def survive(count: int, attempt: Callable[[random.Random], None], documented: tuple) -> None:
    """Make so many attempts; each must end well or in a documented error, within the bounds."""
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count):
        began = time.process_time()
        try:
            attempt(random.Random(seed))
        except documented:
            refused += 1
        assert time.process_time() - began < SECONDS, seed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024  # KiB
    assert refused > count / 4


def check_spectra(folder: Path, count: int) -> None:
    kept = {"head.weight": torch.ones(2, 2)}
    hrp.Spectrum(made_spectrum(layers=1), {"losses": [2.0, 1.0]}, kept).save(folder / "s")
    original = {path.name: path.read_bytes() for path in (folder / "s").iterdir()}
    header = json.loads(original["spectrum.json"])

    def attempt(generator: random.Random) -> None:
        name = generator.choice(sorted(original))
        damaged = changed_bytes(original[name], generator)
        if name == "spectrum.json" and generator.random() < 0.7:
            damaged = json.dumps(changed_json(header, generator)).encode()
        try:
            (folder / "s" / name).write_bytes(damaged)
            loaded = hrp.Spectrum.load(folder / "s")
            assert all(module.S.isfinite().all() for module in loaded.values())
        finally:
            (folder / "s" / name).write_bytes(original[name])

    survive(count, attempt, (hrp.SpectrumFormatError, FileNotFoundError))


def check_records(count: int) -> None:
    fields = json.loads(full_record().to_json())

    def attempt(generator: random.Random) -> None:
        damaged = json.dumps(changed_json(fields, generator)).encode()
        if generator.random() < 0.3:
            damaged = changed_bytes(damaged, generator)
        record = Record.from_json(damaged)
        assert Record.from_json(record.to_json()).run_id == record.run_id

    survive(count, attempt, (RecordError,))


def check_yaml(folder: Path, count: int) -> None:
    path = folder / "experiment.yaml"

    def attempt(generator: random.Random) -> None:
        text = yaml.safe_dump(changed_json(BASE, generator)).encode(errors="replace")
        if generator.random() < 0.3:
            text = changed_bytes(text, generator)
        path.write_bytes(text)
        read_yaml(path)
        plan(load_experiment(path), {})

    survive(count, attempt, (ValueError,))


def test_a_few_damaged_spectra_records_and_yaml_files_give_documented_errors(tmp_path):
    check_spectra(tmp_path, 300)
    check_records(300)
    check_yaml(tmp_path, 100)


@fault(
    "Hostile or damaged input",
    "20,000 damaged spectra",
    command="`Spectrum.load`",
    outcome="read, or refused by one of two errors, in 2 s and 300 MB",
)
@pytest.mark.slow
def test_twenty_thousand_damaged_spectra_give_documented_errors(tmp_path):
    check_spectra(tmp_path, 20_000)


@fault(
    "Hostile or damaged input",
    "6,000 damaged records",
    command="hrp-lab bench",
    outcome="read, or refused by one error, likewise",
)
@pytest.mark.slow
def test_six_thousand_damaged_records_give_documented_errors():
    check_records(6_000)


@fault(
    "Hostile or damaged input",
    "1,500 damaged YAML files",
    command="hrp-lab bench",
    outcome="read, or refused by one error, likewise",
)
@pytest.mark.slow
def test_fifteen_hundred_damaged_yaml_files_give_documented_errors(tmp_path):
    check_yaml(tmp_path, 1_500)
