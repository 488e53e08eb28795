"""What is freed is kept for the next arrays: counted in pages the system has to give, where malloc is glibc's."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tinyllm.backend.cpu import malloc

COUNT = """
import resource
import numpy as np
from tinyllm.backend.cpu.malloc import keep_freed_memory

def pages(size, arrays):
    for times in (1, 3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            kept = [np.ones(size << 20, np.uint8) for _ in range(arrays)]
            del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = pages(3, 20)
keep_freed_memory()
print(given_back, pages(3, 20), pages(20, 5), pages(3, 750))  # MiB each; the last are 2.2 GiB at once
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not run: this is not glibc")
def test_what_is_freed_is_kept_for_the_next_arrays():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    given_back, *kept = map(int, done.stdout.split())
    assert given_back > 60  # 3 x 15,360 pages of 4 KiB, or as many large ones; none: the function would be needless
    assert max(kept) <= given_back / 50


def test_elsewhere_it_does_nothing(monkeypatch):
    import ctypes

    from tinyllm.backend.cpu.malloc import keep_freed_memory

    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", None)
    monkeypatch.setattr(sys, "platform", "win32")
    keep_freed_memory()


def test_the_command_says_so_and_the_library_does_not(monkeypatch, tmp_path):
    """A function that others import leaves their process's allocator alone."""
    from tinyllm.cli import main
    from tinyllm.data import Dataset, Example, Loader
    from tinyllm.models import DecoderModel
    from tinyllm.train import TrainConfig, train

    asked = []
    libc = SimpleNamespace(mallopt=lambda what, value: asked.append(what))
    monkeypatch.setattr(malloc, "ctypes", SimpleNamespace(CDLL=lambda name: libc))
    monkeypatch.setattr(malloc, "sys", SimpleNamespace(platform="linux"))
    ids = np.arange(8)
    loader = Loader(Dataset((Example(ids, np.append(ids[1:], -100)),)), 1, 8)
    train(DecoderModel(9, 16, 1, 2, seed=1, max_seq_len=8), loader, loader, TrainConfig(steps=1), tmp_path / "run")
    assert asked == []

    (tmp_path / "notes.txt").write_text("To be, or not to be, that is the question. " * 4)
    few = ["--data", str(tmp_path / "notes.txt"), "--steps", "1", "--max-seq-len", "32", "--out"]
    small = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--intermediate-size", "16"]
    assert main(["pretrain", *few, str(tmp_path / "model"), *small]) == 0
    assert asked == [malloc.M_MMAP_THRESHOLD, malloc.M_TRIM_THRESHOLD]
    asked.clear()
    assert main(["finetune", *few, str(tmp_path / "tuned"), "--model", str(tmp_path / "model")]) == 0
    assert asked == [malloc.M_MMAP_THRESHOLD, malloc.M_TRIM_THRESHOLD]
