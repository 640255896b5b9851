"""`hrp sft` never removes a spectrum that it was given, or that it did not make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hrp
from helpers.commands import assert_same_spectrum, call, questions, training
from helpers.faults import fault


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return questions(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A spectrum of `hrp preheat`, and the adapter that starts from it; not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    assert call("preheat", *training(data, folder / "spectrum")) == 0
    given = ("--spectrum", folder / "spectrum")
    assert call("sft", *training(data, folder / "adapter", *given)) == 0
    return folder


@pytest.fixture
def preheated(made, tmp_path):
    """An output folder whose sub-folder is the spectrum that `hrp preheat` wrote there."""
    shutil.copytree(made / "spectrum", tmp_path / "run" / "spectrum")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An output of `hrp sft` that preheated itself; not to be written to."""
    output = tmp_path_factory.mktemp("finished") / "adapter"
    assert call("sft", *training(data, output)) == 0
    return output


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(one: Path, two: Path) -> None:
    first, second = adapter(one), adapter(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_spectrum_inside_the_output_folder_is_kept_and_started_from(made, preheated, data):
    before = content(preheated / "spectrum")
    given = ("--spectrum", preheated / "spectrum")
    assert call("sft", *training(data, preheated, *given)) == 0
    assert content(preheated / "spectrum") == before
    assert_same_adapter(preheated, made / "adapter")


def test_a_run_is_done_again_from_its_own_spectrum(finished, data, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(finished, output)
    given = ("--spectrum", output / "spectrum", "--overwrite")
    for _ in range(2):
        (output / "adapter_model.safetensors").unlink()
        assert call("sft", *training(data, output, *given)) == 0
        assert content(output / "spectrum") == content(finished / "spectrum")
        assert_same_adapter(output, finished)


def test_a_link_to_the_spectrum_does_not_hide_that_it_is_the_one_given(made, preheated, data):
    (preheated.parent / "link").symlink_to(preheated / "spectrum")
    given = ("--spectrum", preheated.parent / "link")
    assert call("sft", *training(data, preheated, *given)) == 0
    assert content(preheated / "spectrum") == content(made / "spectrum")


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_a_spectrum_that_no_run_has_made_is_not_replaced(preheated, data, capsys, flags):
    before = content(preheated)
    assert call("sft", *training(data, preheated, *flags)) == 2
    message = capsys.readouterr().err
    assert f"'{preheated / 'spectrum'}' was not made by the run in '{preheated}'" in message
    assert f"pass --spectrum {preheated / 'spectrum'} to start from it" in message
    assert content(preheated) == before


def test_a_spectrum_once_given_is_not_removed_by_a_later_run_without_it(preheated, data, capsys):
    given = ("--spectrum", preheated / "spectrum")
    assert call("sft", *training(data, preheated, *given)) == 0
    before = content(preheated)
    assert call("sft", *training(data, preheated, "--overwrite")) == 2
    assert "was not made by the run" in capsys.readouterr().err
    assert content(preheated) == before


@pytest.mark.parametrize("damage", ["absent", "broken", "of another model"])
def test_a_spectrum_that_cannot_be_used_costs_no_finished_adapter(
    finished, data, tmp_path, capsys, damage
):
    bad = tmp_path / "bad"
    if damage == "broken":
        shutil.copytree(finished / "spectrum", bad)
        (bad / "spectrum.safetensors").write_bytes(b"half")
    elif damage == "of another model":
        other = hrp.ModuleSpectrum(torch.eye(8, 4), torch.ones(4), torch.eye(4, 8), 1.0)
        hrp.Spectrum({"transformer.h.0.attn": other}).save(bad)
    before = content(finished)
    assert call("sft", *training(data, finished, "--spectrum", bad, "--overwrite")) == 2
    assert "spectrum" in capsys.readouterr().err
    assert content(finished) == before


def test_a_preheating_that_is_refused_costs_no_finished_adapter(finished, data, capsys):
    before = content(finished)
    assert call("sft", *training(data, finished, "--overwrite", "--preheat_rank", "2")) == 2
    assert "`preheat_rank` must be at least the adapter's rank 4" in capsys.readouterr().err
    assert content(finished) == before


@pytest.mark.parametrize("name", ["hrp-preheating", "checkpoint-4"])
def test_a_spectrum_where_a_run_keeps_its_work_is_refused(made, data, tmp_path, capsys, name):
    shutil.copytree(made / "spectrum", tmp_path / "run" / name)
    given = ("--spectrum", tmp_path / "run" / name, "--overwrite")
    assert call("sft", *training(data, tmp_path / "run", *given)) == 2
    assert f"`--spectrum` must be outside '{tmp_path / 'run' / name}'" in capsys.readouterr().err
    assert content(tmp_path / "run" / name) == content(made / "spectrum")


@pytest.mark.parametrize("name", ["hrp-preheating", "checkpoint-2", "spectrum"])
def test_a_folder_in_the_way_of_the_work_is_not_removed(made, data, tmp_path, capsys, name):
    shutil.copytree(made / "spectrum", tmp_path / "run" / name)
    for flags in ((), ("--overwrite",), ("--resume",)):
        assert call("sft", *training(data, tmp_path / "run", *flags)) == 2
        assert name in capsys.readouterr().err
    assert content(tmp_path / "run") == content_at(made / "spectrum", name)


def content_at(folder: Path, name: str) -> dict[str, bytes]:
    return {f"{name}/{path}": text for path, text in content(folder).items()}


def test_a_file_that_is_named_like_a_checkpoint_is_kept(made, data, tmp_path):
    for name in ("checkpoint-notes.txt", "checkpoint-2"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    given = ("--spectrum", made / "spectrum", "--save_strategy", "no", "--overwrite")
    assert call("sft", *training(data, tmp_path / "run", *given)) == 0
    assert (tmp_path / "run" / "checkpoint-notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "checkpoint-2").read_text() == "mine"


@pytest.mark.parametrize("moves", range(4))  # of the record, two checkpoints, the spectrum
def test_a_run_killed_while_it_clears_leaves_what_can_be_resumed(
    finished, data, tmp_path, monkeypatch, moves
):
    from hrp.cli import outputs

    output = tmp_path / "killed"
    shutil.copytree(finished, output)
    replace, done = outputs.os.replace, []

    def killed_after(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(outputs.os, "replace", killed_after)
    assert call("sft", *training(data, output, "--overwrite")) == 130
    monkeypatch.undo()
    state = outputs.Output(output, "sft", {}).state()
    assert state == ("interrupted" if moves else "finished")
    assert_same_spectrum(
        hrp.Spectrum.load(output / "spectrum"), hrp.Spectrum.load(finished / "spectrum")
    )
    assert call("sft", *training(data, output, "--resume")) == 0
    assert_same_adapter(output, finished)


@pytest.mark.parametrize("text", ['{"fini', "[]", '{"finished": true}', "\xff"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_a_broken_record_is_named_with_the_remedy(data, tmp_path, capsys, text, flags):
    record = tmp_path / "run" / "hrp.json"
    record.parent.mkdir()
    record.write_text(text, encoding="latin-1")
    assert call("sft", *training(data, record.parent, *flags)) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"hrp sft: '{record}' is no")
    assert "choose another --output_dir, or remove the file" in message
    assert record.read_text(encoding="latin-1") == text


FOREIGN = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "README.md",
    "tokenizer.json",
    "checkpoint-500/optimizer.pt",
    "checkpoint-2/thesis.txt",
    "hrp-preheating/notes.txt",
    "spectrum/notes.txt",
]


@fault(
    "Whose file is it",
    "another program's adapter or checkpoint beside an unfinished `hrp.json`",
    command="sft, finetune",
    outcome="refused by name, status 2, with any flag",
)
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_another_program_s_work_beside_an_unfinished_record_is_kept(
    data, tmp_path, capsys, name, flags
):
    output = tmp_path / "run"
    output.mkdir()
    record = {"command": "sft", "finished": False, "settings": {}, "run": "a", "files": {}}
    (output / "hrp.json").write_text(json.dumps(record))
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("theirs")
    before = content(output)
    assert call("sft", *training(data, output, *flags)) == 2
    assert name.partition("/")[0] in capsys.readouterr().err
    assert content(output) == before


@fault(
    "Whose file is it",
    "your notes in `spectrum/` or `checkpoint-N/`",
    command="sft, finetune",
    outcome="`--overwrite` is refused by name, status 2",
)
@pytest.mark.parametrize("name", ["spectrum/notes.txt", "checkpoint-4/notes.txt"])
def test_a_user_s_file_inside_a_finished_output_is_named_and_kept(
    finished, data, tmp_path, capsys, name
):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / name).write_text("mine")
    before = content(output)
    assert call("sft", *training(data, output, "--overwrite")) == 2
    assert f"hrp did not write '{name}'" in capsys.readouterr().err
    assert content(output) == before
    assert call("sft", *training(data, output)) == 0  # finished all the same
    assert content(output) == before


def test_a_spectrum_that_hrp_preheat_has_put_into_an_unfinished_output_is_kept(
    made, finished, data, tmp_path, capsys
):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "spectrum")
    shutil.copytree(made / "spectrum", output / "spectrum")
    record = json.loads((output / "hrp.json").read_text())
    (output / "hrp.json").write_text(json.dumps(record | {"finished": False}))
    before = content(output)
    for flags in ((), ("--overwrite",), ("--resume",)):
        assert call("sft", *training(data, output, *flags)) == 2
        assert "was not made by the run" in capsys.readouterr().err
    assert content(output) == before


@fault(
    "Whose file is it",
    "a `README.md` of yours appears while training",
    command="sft, finetune",
    outcome="refused before anything moves; `--resume` ends the run without training again",
)
def test_a_file_that_appears_while_training_is_not_replaced(made, data, tmp_path, capsys):
    from hrp.cli import running

    output, train = tmp_path / "run", running.finetune

    def trained(trainer, folder):
        train(trainer, folder)
        (output / "README.md").write_text("mine")

    given = ("--spectrum", made / "spectrum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "finetune", trained)
        assert call("sft", *training(data, output, *given)) == 2
    assert "holds 'README.md', which hrp did not write" in capsys.readouterr().err
    assert (output / "README.md").read_text() == "mine"
    (output / "README.md").unlink()
    assert call("sft", *training(data, output, *given, "--resume")) == 0
    assert_same_adapter(output, made / "adapter")


@fault(
    "Kills and interrupts",
    "killed between saving the spectrum and removing preheating's checkpoints",
    command="sft, preheat",
    outcome="the next run removes them",
)
def test_no_optimizer_state_of_preheating_is_left_by_a_kill_right_after_saving(
    finished, data, tmp_path, monkeypatch
):
    from hrp.preheating.checkpoints import Checkpoints

    def killed(_):
        raise KeyboardInterrupt

    output = tmp_path / "run"
    for command, folder in (("sft", output), ("preheat", tmp_path / "spectrum")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "remove", killed)
            assert call(command, *training(data, folder)) == 130
        assert list(tmp_path.rglob("*/checkpoint-4/optimizer.pt"))
        assert call(command, *training(data, folder, "--resume")) == 0
        left = [path for path in tmp_path.rglob("optimizer.pt") if path.parent.parent != output]
        assert left == []
    assert_same_adapter(output, finished)


class NetworkError(Exception):
    """Stands for an error of the hub's network library."""


class Hub:
    """Stands for the hub: fails at first, then takes what it is given."""

    def __init__(self, failures: int) -> None:
        self.failures, self.pushed = failures, []

    def __call__(self, token=None):
        return self

    def create_repo(self, name, private, exist_ok):
        return type("Repo", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, repo_id, folder_path, ignore_patterns, **_):
        if self.failures:
            self.failures -= 1
            raise (ConnectionError, NetworkError)[self.failures]("the hub cannot be reached")
        self.pushed.append((repo_id, Path(folder_path), ignore_patterns))


@fault(
    "Kills and interrupts",
    "the push to the hub fails",
    command="sft, finetune",
    outcome="the output is finished; the same command pushes it again",
)
def test_a_finished_run_whose_push_failed_is_pushed_again(
    made, data, tmp_path, monkeypatch, capsys
):
    from transformers import Trainer

    from hrp.cli import running

    hub = Hub(failures=2)
    monkeypatch.setattr(running, "HfApi", hub)
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *_: None)
    output = tmp_path / "run"
    flags = training(data, output, "--spectrum", made / "spectrum", "--push_to_hub")
    for _ in range(2):
        assert call("sft", *flags) == 2
        message = capsys.readouterr().err
        assert "is finished, but could not be pushed to 'run' (the hub cannot be" in message
        assert "run the same command again to push it" in message
    stamp = (output / "adapter_model.safetensors").stat().st_mtime_ns
    for _ in range(2):
        assert call("sft", *flags) == 0
    assert hub.pushed == [("me/run", output, ["_*", "checkpoint-*/**", ".hrp-*/**"])]
    assert (output / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_files_that_hf_trainer_copies_for_a_push_do_not_stop_the_run(
    made, data, tmp_path, monkeypatch
):
    from transformers import Trainer

    from hrp.cli import running

    def copied(self, checkpoint):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(Path(checkpoint) / name, Path(self.args.output_dir) / name)

    monkeypatch.setattr(running, "HfApi", Hub(failures=0))
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", copied)
    flags = training(data, tmp_path / "run", "--spectrum", made / "spectrum", "--push_to_hub")
    assert call("sft", *flags) == 0
    assert_same_adapter(tmp_path / "run", made / "adapter")
