"""What is freed is kept for the next arrays: counted in pages the system has to give, where malloc is glibc's."""

import platform
import subprocess
import sys

import pytest

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
