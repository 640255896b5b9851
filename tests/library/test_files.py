"""Files and folders appear whole, survive kills between renames, and leave foreign files alone."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from helpers.faults import fault
from hrp import files
from hrp.cli.locks import INSIDE, held, lock_beside
from hrp.files import (
    check_replaceable,
    digests,
    follow_umask,
    read_folder,
    settle,
    staging,
    write_folder,
    write_text,
)

FORK = multiprocessing.get_context("fork")
RENAMES = ("rename", "replace")


def save(folder: Path, text: str, overwrite: bool = True) -> None:
    def write(staged: Path) -> None:
        (staged / "one").write_text(text)
        (staged / "two").write_text(text)

    write_folder(folder, write, overwrite)


def read(folder: Path) -> tuple[str, str]:
    return (folder / "one").read_text(), (folder / "two").read_text()


def dies_at(moment: int, job) -> bool:
    """Run ``job`` in a process that is killed before (even) or after (odd) its n-th rename."""

    def child() -> None:
        moments = iter(range(10**6))

        def killing(rename):
            def renamed(*args):
                if next(moments) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(*args)
                if next(moments) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            return renamed

        for name in RENAMES:
            setattr(os, name, killing(getattr(os, name)))
        job()

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@fault(
    "Kills and interrupts",
    "killed between the two renames of an overwrite",
    command="all that write a folder",
    outcome="the next reader or writer finishes it: the new result is there",
)
@pytest.mark.parametrize("name", ["out", "out[1]", "*", "spec.mybackup"])
def test_a_kill_at_any_rename_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    for moment in range(100):
        save(folder, "old")
        killed = dies_at(moment, lambda: save(folder, "new"))
        settle(folder)
        assert read(folder) in (("old", "old"), ("new", "new"))
        save(folder, "next")
        assert read(folder) == ("next", "next")
        assert os.listdir(tmp_path) == [name]
        if not killed:
            break
    assert moment >= 4  # two renames at least, each before and after


@pytest.mark.parametrize("name", ["record.json", "a?.txt"])
def test_a_kill_at_any_rename_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    for moment in range(100):
        write_text(path, "old")
        killed = dies_at(moment, lambda: write_text(path, "new"))
        assert path.read_text() in ("old", "new")
        write_text(path, "next")
        assert os.listdir(tmp_path) == [name]
        if not killed:
            break
    assert moment >= 2


@fault(
    "Kills and interrupts",
    "Ctrl-C or an I/O error at a rename",
    command="all that write a folder",
    outcome="the old or the new result is there",
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
@pytest.mark.parametrize("failing", range(4))
def test_an_error_at_any_rename_loses_no_folder(tmp_path, monkeypatch, error, failing):
    save(tmp_path / "out", "old")
    rename, calls = os.rename, iter(range(100))

    def fails(*args):
        if next(calls) == failing:
            raise error
        rename(*args)

    monkeypatch.setattr(files.os, "rename", fails)
    with contextlib.suppress(KeyboardInterrupt, OSError):
        save(tmp_path / "out", "new")
    monkeypatch.undo()
    settle(tmp_path / "out")
    assert read(tmp_path / "out") in (("old", "old"), ("new", "new"))
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", [".hrp-12345678", ".out.12345678", ".out.old.1234abcd", "out1"])
def test_a_neighbour_without_the_mark_is_kept(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out[1]", tmp_path / "*"):
        save(folder, "first")
        save(folder, "second")
    assert (tmp_path / name / "thesis").read_text() == "mine"


def test_the_staging_folder_of_a_living_writer_is_kept(tmp_path):
    with staging(tmp_path / "out") as mine:
        (mine / "half").write_text("mine")
        save(tmp_path / "out", "other")
        assert (mine / "half").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


def test_a_staging_folder_that_cannot_be_looked_into_is_left_to_its_owner(tmp_path, monkeypatch):
    with files.staging(tmp_path / "out") as container:

        def closed(path):
            if path.is_relative_to(container):
                raise PermissionError(path)
            return plain(path)

        plain = Path.is_file
        monkeypatch.setattr(Path, "is_file", closed)
        files.settle(tmp_path / "out")
        files.write_text(tmp_path / "out", "mine")
        monkeypatch.undo()
        assert container.is_dir()
        assert (tmp_path / "out").read_text() == "mine"


def test_the_staging_folder_of_another_target_is_kept(tmp_path, monkeypatch):
    assert dies_at(0, lambda: save(tmp_path / "out", "new"))
    (left,) = tmp_path.iterdir()
    save(tmp_path / "out1", "other")
    assert left.exists()
    save(tmp_path / "out", "new")
    assert not left.exists()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    def write(staged: Path) -> None:
        (staged / "deep").mkdir(mode=0o700)
        for path in (staged / "a", staged / "deep" / "b"):
            path.touch(mode=0o600)

    before = os.umask(mask)
    try:
        write_folder(tmp_path / "out", write)
        write_text(tmp_path / "text", "")
        (tmp_path / "later").mkdir(mode=0o700)
        (tmp_path / "later" / "c").touch(mode=0o600)
        follow_umask(tmp_path / "later")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~mask, path


def test_a_folder_that_shares_its_group_keeps_doing_so(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    save(shared / "out", "text")
    assert (shared / "out").stat().st_mode & stat.S_ISGID


@fault(
    "Two at once",
    "reading while another saves",
    command="`read_folder`",
    outcome="one save or the other",
)
def test_a_reader_sees_one_save_or_the_other(tmp_path):
    folder, seen, done = tmp_path / "out", set(), threading.Event()
    save(folder, "0")

    def write() -> None:
        for number in range(60):
            save(folder, str(number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen.add(read_folder(folder, read))
    writer.join()
    assert {first for first, _ in seen} == {second for _, second in seen}
    assert all(first == second for first, second in seen)


def test_a_reader_between_two_reads_is_given_the_newer_save(tmp_path):
    folder, rounds = tmp_path / "out", []
    save(folder, "old")

    def interrupted(place: Path) -> tuple[str, str]:
        first = (place / "one").read_text()
        if not rounds:
            rounds.append(save(folder, "new"))
        return first, (place / "two").read_text()

    assert read_folder(folder, interrupted) == ("new", "new")


def test_a_read_that_fails_by_itself_fails_once(tmp_path):
    calls = []
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        read_folder(tmp_path / "empty", lambda folder: calls.append(1) or read(folder))
    assert calls == [1]


def test_a_missing_folder_is_looked_for_a_few_times_and_then_missing(tmp_path):
    calls = []
    with pytest.raises(FileNotFoundError):
        read_folder(tmp_path / "none", lambda folder: calls.append(1) or read(folder))
    assert 1 < len(calls) < 10


def test_two_writers_leave_one_whole_folder_and_nothing_else(tmp_path):
    def write(text: str) -> None:
        for _ in range(30):
            save(tmp_path / "out", text)

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert read(tmp_path / "out") in (("a", "a"), ("b", "b"))
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_appears_while_another_is_written_is_not_replaced_unasked(tmp_path):
    def write(staged: Path) -> None:
        (staged / "one").write_text("late")
        save(tmp_path / "out", "first")

    with pytest.raises(FileExistsError, match="exists; choose another"):
        write_folder(tmp_path / "out", write)
    assert read(tmp_path / "out") == ("first", "first")


def test_a_link_is_followed_and_kept(tmp_path):
    save(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == ("new", "new")


def test_what_is_not_made_anew_is_named(tmp_path):
    save(tmp_path / "out", "old")
    (tmp_path / "out" / "deep").mkdir()
    (tmp_path / "out" / "deep" / "thesis").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 'deep' and 1 more besides"):
        save(tmp_path / "out", "new")
    with pytest.raises(FileExistsError, match="is a file and not replaced"):
        check_replaceable(tmp_path / "out" / "one", ())
    assert read(tmp_path / "out") == ("old", "old")


def test_digests_tell_the_content_of_every_file(tmp_path):
    save(tmp_path / "a", "same")
    save(tmp_path / "b", "same")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    (tmp_path / "b" / "two").write_text("other")
    differing = dict(digests(tmp_path / "a").items() ^ digests(tmp_path / "b").items())
    assert set(differing) == {"two"}


@pytest.mark.parametrize("beside", [True, False])
def test_a_second_holder_is_told_who_the_first_is_and_since_when(tmp_path, beside):
    output = tmp_path / "new" / "out"
    place = lock_beside(output) if beside else output / INSIDE
    with held(place, "hrp sft", output):
        since = json.loads((place / "holder.json").read_text())["since"]
        with pytest.raises(BlockingIOError) as refusal, held(place, "hrp init", output):
            pass
        assert f"'{output}' is being written by `hrp sft` (process {os.getpid()} on " in str(
            refusal.value
        )
        assert f" since {since}; wait for it" in str(refusal.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("output", ["out", "[1]", ".hidden"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, output):
    place = lock_beside(tmp_path / output)

    def die() -> None:
        with held(place, "hrp sft", tmp_path / output):
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert (place / "holder.json").exists()
    with held(place, "hrp preheat", tmp_path / output):
        assert json.loads((place / "holder.json").read_text())["command"] == "hrp preheat"
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_are_written_at_the_same_time(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with held(lock_beside(one), "hrp init", one), held(lock_beside(two), "hrp init", two):
        pass
    assert list(tmp_path.iterdir()) == []
