"""A folder has one writer at a time, and what a killed one left is free: its lock and its temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinyllm.formats import atomic, locks

posix = pytest.mark.skipif(sys.platform == "win32", reason="not run: Windows has no flock and no SIGKILL")
WAITING = "import sys, time\nfrom pathlib import Path\nfrom tinyllm.formats import atomic, locks\n"
WAITING += "folder = Path(sys.argv[1])\n{}\n    print('there', flush=True)\n    time.sleep(100)"


def other(folder: Path, block: str) -> subprocess.Popen:
    """Another process, inside of a `with` block."""
    script = WAITING.format(block)
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


@posix
def test_two_processes_exclude_each_other_and_a_killed_one_nobody(tmp_path):
    process = other(tmp_path, "with locks.alone_in(folder):")
    try:
        with (
            pytest.raises(RuntimeError, match=rf"another run \(process {process.pid}\) is writing into"),
            locks.alone_in(tmp_path),
        ):
            pass
    finally:
        kill(process)
    assert os.listdir(tmp_path) == [locks.LOCK]
    with locks.alone_in(tmp_path):
        assert (tmp_path / locks.LOCK).read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == []


def test_a_block_inside_another_is_part_of_it_but_a_thread_is_another(tmp_path):
    refused = []

    def intruder():
        try:
            with locks.alone_in(tmp_path):
                pass
        except RuntimeError as error:
            refused.append(str(error))

    with locks.alone_in(tmp_path):
        with locks.alone_in(tmp_path / "." / ".." / tmp_path.name):
            pass
        assert (tmp_path / locks.LOCK).exists()
        thread = threading.Thread(target=intruder)
        thread.start()
        thread.join()
    assert len(refused) == 1
    intruder()
    assert len(refused) == 1


def test_a_failure_inside_frees_the_folder(tmp_path):
    with pytest.raises(KeyError), locks.alone_in(tmp_path):
        raise KeyError
    with locks.alone_in(tmp_path):
        pass
    with pytest.raises(OSError, match="cannot write into"), locks.alone_in(tmp_path / "missing"):
        pass


@posix
def test_many_at_once_never_meet(tmp_path):
    """The lock file is removed and made anew all the time: who locks a removed one has locked nothing."""
    inside, most, done = [0], [0], [0]
    guard = threading.Lock()

    def work():
        for _ in range(200):
            try:
                with locks.alone_in(tmp_path):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(0)
                    with guard:
                        inside[0] -= 1
                        done[0] += 1
            except RuntimeError:
                time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and done[0] > 0


@posix
@pytest.mark.parametrize(
    "block",
    [
        "with atomic.write_whole(folder / 'x') as file:",
        "with atomic.temporary_in(folder) as path:\n    (path / 'shard').write_text('half')",
    ],
)
def test_a_killed_process_leaves_nothing_that_stays(block, tmp_path):
    process = other(tmp_path, block)
    try:
        left = os.listdir(tmp_path)
        assert len(left) == 1 and atomic.TEMPORARY.fullmatch(left[0])
        atomic.make_folder(tmp_path)  # it lives: nothing is taken from it
        assert os.listdir(tmp_path) == left
    finally:
        kill(process)
    assert os.listdir(tmp_path) == left
    atomic.make_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_is_not_ours_is_never_swept(tmp_path):
    target = tmp_path / "kept"
    target.write_text("mine")
    names = [".0123456789abcdeg.tmp", ".0123456789abcdef.tmp.txt", "0123456789abcdef.tmp", ".0123456789ABCDEF.tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    if sys.platform != "win32":
        (tmp_path / ".aaaaaaaaaaaaaaaa.tmp").symlink_to(target)
        names.append(".aaaaaaaaaaaaaaaa.tmp")
    (tmp_path / ".0123456789abcdef.tmp").write_text("left over")
    os.utime(tmp_path / ".0123456789abcdef.tmp", (0, 0))
    atomic.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "kept"]) and target.read_text() == "mine"
    atomic.sweep(tmp_path / "nowhere")


def test_a_drive_without_locks_keeps_nobody_out_and_sweeps_only_what_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "lock", lambda handle: None)
    with locks.alone_in(tmp_path):
        pass
    for age, name in ((0, ".0000000000000000.tmp"), (atomic.DAY + 60, ".1111111111111111.tmp")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    atomic.sweep(tmp_path)
    assert os.listdir(tmp_path) == [".0000000000000000.tmp"]
