"""Every command, killed before and after every rename: nothing half-written, nothing foreign lost.

The same command afterwards ends with the bits that an undisturbed run gives, and leaves no trace of
the kill. Files of the user lie beside the results, and in them where HRP takes other files there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import pytest
import yaml
from transformers import Trainer

import hrp
from helpers import killing
from helpers.commands import BASE, LORA, QUICK, call, questions, training
from helpers.faults import fault
from helpers.spectra_made import made_spectrum
from helpers.synthetic import full_record
from helpers.tiny import tiny_llama, with_lora
from helpers.tiny_bench import FEW
from helpers.trainer_arguments import trainer_arguments
from hrp.files import settle
from hrp.preheating.checkpoints import MARKER, Checkpoints
from hrp_lab.bench.record_store import find_records, pack, write_record
from hrp_lab.cli.bench_commands import main as bench

STEPS = ("--preheat_steps", "9", "--max_steps", "6")
THEIRS = "mine.txt"  # the name of every file of the user's


@dataclass(frozen=True)
class Case:
    """Describes a command to kill.

    Args:
        job: does the work, given the inputs, the place and whether it follows a kill.
        inputs: makes what the job reads, in a folder that all runs share.
        outputs: folders in the place that appear whole or not at all.
        prepare: makes what an earlier run has left, given the inputs and the place.
        open_to_others: folders in which files of the user may lie.
        names: calls of `os` around which to kill.
        every: of the moments, only each such one: where most are those of another case.
    """

    job: Callable[[Path, Path, bool], int | None]
    inputs: Callable[[Path], object] = questions
    outputs: tuple[str, ...] = ("out",)
    prepare: Callable[[Path, Path], object] = lambda inputs, place: None
    open_to_others: tuple[str, ...] = ()
    names: tuple[str, ...] = killing.RENAMES
    every: int = 1


def train(command: str, inputs: Path, place: Path, *more: str) -> int:
    flags = training(inputs / "rows.jsonl", place / "out", *STEPS, *more)
    return call(command, *flags)


def sft(inputs: Path, place: Path, again: bool) -> int:
    return train("sft", inputs, place, *(["--resume"] if again else []))


def preheat(inputs: Path, place: Path, again: bool) -> int:
    return train("preheat", inputs, place, *(["--resume"] if again else []))


def sft_over(inputs: Path, place: Path, again: bool) -> int:
    return train("sft", inputs, place, "--overwrite", "--seed", "7")


def preheat_over(inputs: Path, place: Path, again: bool) -> int:
    return train("preheat", inputs, place, "--overwrite", "--seed", "7")


def classify(inputs: Path, place: Path, *more: str) -> int:
    task = ("--task", "classification", "--model_name_or_path", BASE)
    data = ("--dataset_path", inputs / "classes.jsonl", "--output_dir", place / "out")
    return call("finetune", *task, *data, *LORA, *QUICK, *STEPS, *more)


def finetune(inputs: Path, place: Path, again: bool) -> int:
    return classify(inputs, place, *(["--resume"] if again else []))


def finetune_over(inputs: Path, place: Path, again: bool) -> int:
    return classify(inputs, place, "--overwrite", "--seed", "7")


def init(inputs: Path, place: Path, again: bool) -> int:
    rank = ("--lora_r", "2", "--output_dir", place / "out")
    return call("init", "--spectrum", inputs / "spectrum", *rank, *["--overwrite"] * again)


def init_over(inputs: Path, place: Path, again: bool) -> int:
    rank = ("--lora_r", "3", "--output_dir", place / "out")
    return call("init", "--spectrum", inputs / "spectrum", *rank, "--overwrite")


def demo(inputs: Path, place: Path, again: bool, steps: str = "2") -> int:
    length = ("--steps", steps, "--seeds", "1")
    return call("demo", *length, "--out", place / "out", *["--overwrite"] * again)


def demo_over(inputs: Path, place: Path, again: bool) -> int:
    return demo(inputs, place, True, "3")


def bench_run(inputs: Path, place: Path, again: bool) -> int:
    where = ("--records", place / "records", "--cache", place / "cache")
    return bench(["run", str(inputs / "few.yaml"), *map(str, where)])


def bench_pack(inputs: Path, place: Path, again: bool) -> int:
    return bench(["pack", str(place / "records")])


def save(inputs: Path, place: Path, again: bool) -> None:
    made_spectrum(seed=1).save(place / "out", overwrite=True)


def preheat_by_library(inputs: Path, place: Path, again: bool) -> None:
    config = hrp.HRPConfig(preheat_rank=16, preheat_steps=6, learning_rate=1e-2)
    spectrum = hrp.preheat(
        with_lora(tiny_llama()),
        config,
        trainer_cls=Trainer,
        checkpoints=Checkpoints(place / "work", 2),
        **trainer_arguments(place / "trainer"),
    )
    spectrum.save(place / "out", overwrite=again)


def classes(inputs: Path) -> None:
    rows = [{"text": f"{i} plus 1 is good", "label": i % 2} for i in range(24)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (inputs / "classes.jsonl").write_text(text)


def spectrum(inputs: Path) -> None:
    flags = training(questions(inputs), inputs / "spectrum")
    assert killing.run(call, "preheat", *flags, place=inputs).status == 0


def experiment(inputs: Path) -> None:
    (inputs / "few.yaml").write_text(yaml.safe_dump(FEW))


def records(inputs: Path, place: Path) -> None:
    for seed in range(4):
        write_record(full_record(seed=seed), place / "records")
        if seed == 1:
            pack(place / "records")


def earlier(job: Callable[[Path, Path, bool], int | None]) -> Callable[[Path, Path], None]:
    """Return what lets ``job`` make an earlier result, once; each place gets a copy of it."""

    def prepare(inputs: Path, place: Path) -> None:
        made = inputs / "earlier"
        if not made.exists():
            made.mkdir()
            ended = killing.run(job, inputs, made, False, place=made)
            assert ended.status == 0, ended.said
        shutil.copytree(made, place, dirs_exist_ok=True)

    return prepare


def saved(inputs: Path, place: Path, again: bool) -> None:
    made_spectrum(seed=0).save(place / "out")


CHANGES = (*killing.RENAMES, *killing.REMOVALS)
CASES = {
    "sft": Case(sft, outputs=("out/spectrum",), open_to_others=("out",)),
    "sft --overwrite": Case(
        sft_over,
        outputs=("out/spectrum",),
        prepare=earlier(sft),
        open_to_others=("out",),
        every=3,
    ),
    "preheat": Case(preheat),
    "preheat --overwrite": Case(preheat_over, prepare=earlier(preheat)),
    "finetune": Case(finetune, classes, ("out/spectrum",), open_to_others=("out",), every=3),
    "finetune --overwrite": Case(
        finetune_over,
        classes,
        ("out/spectrum",),
        earlier(finetune),
        open_to_others=("out",),
        every=3,
    ),
    "init": Case(init, spectrum, names=CHANGES),
    "init --overwrite": Case(init_over, spectrum, prepare=earlier(init), names=CHANGES),
    "demo": Case(demo, lambda inputs: None),
    "demo --overwrite": Case(demo_over, lambda inputs: None, prepare=earlier(demo)),
    "bench run": Case(bench_run, experiment, (), open_to_others=("records", "cache")),
    "bench pack": Case(
        bench_pack, experiment, (), records, open_to_others=("records",), names=CHANGES
    ),
    "Spectrum.save": Case(save, experiment, prepare=earlier(saved), names=CHANGES),
    "Checkpoints": Case(preheat_by_library, experiment, open_to_others=("work", "trainer")),
}


def add_theirs(case: Case, place: Path) -> dict[Path, str]:
    """Put files of the user beside the results, and in them where they may be; return them all."""
    beside = (".out.12345678", ".out.old.12345678", ".hrp-12345678", ".out.preheating2", "out1")
    inside = ("", "checkpoint-old", "checkpoint-2x", ".hrp-mine")
    paths = [place / name for name in beside]
    paths += [place / name / below for name in case.open_to_others for below in inside]
    if case.job is preheat_by_library:  # whose own folder is below these
        paths += [place / "work" / f"checkpoint-{step}" for step in (2, 4, 6)]
    for number, path in enumerate(paths):
        path.mkdir(parents=True, exist_ok=True)
        (path / THEIRS).write_text(f"mine {number}")
    return {path / THEIRS: f"mine {number}" for number, path in enumerate(paths)}


def content(folder: Path) -> dict[str, object]:
    """Return every file and folder below ``folder`` with all of it that no clock can change."""
    paths = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): essence(path) for path in paths}


def essence(path: Path) -> object:
    if path.suffix in (".safetensors", ".txt", ".jsonl"):
        return path.read_bytes()
    if path.suffix != ".json" or not path.is_file():
        return None
    facts = json.loads(path.read_text())
    provenance = facts.get("provenance", {}) if isinstance(facts, dict) else {}
    if path.name == "spectrum.json":
        return facts["modules"], facts["kept"], provenance["losses"]
    return (facts["metrics"], facts["losses"]) if "metrics" in facts else None


def assert_nothing_half_written(case: Case, place: Path, wholes: list[Path]) -> None:
    """What loads is of one run: of the killed one, as an undisturbed one makes it, or the earlier.

    ``wholes`` are the places of those two runs.
    """
    for name in case.outputs:
        settle(place / name)
        if (place / name).exists():
            assert content(place / name) in [content(whole / name) for whole in wholes]
    if (place / "out" / "adapter_config.json").exists():
        known = [adapter(whole / "out") for whole in wholes]
        assert adapter(place / "out") in known
    for marker in place.rglob(MARKER):
        assert (marker.parent / "adapter_model.safetensors").is_file()
        assert (marker.parent / "optimizer.pt").is_file()
    if (place / "records").exists():
        whole, found = results(wholes[0] / "records"), results(place / "records")
        assert [run_id for run_id in found if found[run_id] != whole[run_id]] == []
        assert found.keys() == whole.keys() or case.job is bench_run


def results(folder: Path) -> dict[str, object]:
    lines = {run_id: record.to_line() for run_id, record in find_records(folder).items()}
    return {run_id: itemgetter("metrics", "losses")(json.loads(lines[run_id])) for run_id in lines}


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def check(case: Case, folder: Path, moments: Callable[[int], Iterable[int]]) -> int:
    """Kill the job at ``moments`` of all that it has, each in a place of its own; count them."""
    inputs, undisturbed = folder / "inputs", folder / "undisturbed"
    inputs.mkdir()
    case.inputs(inputs)
    prepared(case, inputs, undisturbed)
    ended = killing.run(case.job, inputs, undisturbed, False, place=undisturbed, names=case.names)
    assert ended.status == 0, ended.said
    expected = content(undisturbed)
    wholes = [path for path in (undisturbed, inputs / "earlier") if path.exists()]
    kills = 0
    for moment in moments(ended.moments):
        place = folder / f"killed{moment}"
        theirs = prepared(case, inputs, place)
        killed = killing.run(
            case.job, inputs, place, False, place=place, moment=moment, names=case.names
        )
        assert killed.killed, (moment, killed)
        assert_kept(theirs)
        seen = shutil.copytree(place, folder / "seen", symlinks=True)  # looking finishes a rename
        assert_nothing_half_written(case, seen, wholes)
        shutil.rmtree(seen)
        again = killing.run(case.job, inputs, place, True, place=place, names=case.names)
        assert again.status == 0, (moment, again.said)
        assert_kept(theirs)
        found = content(place)
        assert found.keys() == expected.keys(), moment
        assert [name for name in found if found[name] != expected[name]] == [], moment
        shutil.rmtree(place)
        kills += 1
    assert kills > 0
    return kills


def prepared(case: Case, inputs: Path, place: Path) -> dict[Path, str]:
    place.mkdir()
    case.prepare(inputs, place)
    return add_theirs(case, place)


def assert_kept(theirs: dict[Path, str]) -> None:
    for path, text in theirs.items():
        assert path.read_text() == text, path


@pytest.mark.parametrize(
    "name", [pytest.param("sft", marks=pytest.mark.slow), "preheat --overwrite", "bench pack"]
)
def test_a_command_killed_around_a_rename_ends_as_if_undisturbed(name, tmp_path):
    assert check(CASES[name], tmp_path, lambda count: [count // 2]) == 1


@fault(
    "Kills and interrupts",
    "killed before or after any rename",
    command="all that write anything",
    outcome="the same command (`--resume`) gives the same bits on the CPU; nothing half-written, "
    "no file of another's touched",
)
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_commands_killed_around_every_rename_end_as_if_undisturbed(name, tmp_path, capsys):
    case = CASES[name]
    kills = check(case, tmp_path, lambda count: range(0, count, case.every))
    with capsys.disabled():
        print(f"\n{name}: {kills} kills")
