"""NumPy's BLAS, kept to one thread while work is shared or many products follow one another.

A BLAS has threads of its own, which spin as they wait for each other: with a second busy program on the same cores they
are slower than one alone.
"""

from __future__ import annotations

import threading
from typing import Any

from threadpoolctl import ThreadpoolController


class _Blas:
    """The BLAS libraries loaded here, held to one thread inside ``with BLAS:``, by however many threads at once."""

    def __init__(self) -> None:
        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.threads = [library.num_threads for library in self.libraries]
        self.holders, self.lock = 0, threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.holders += 1
            if self.holders == 1:
                self.threads = [library.num_threads for library in self.libraries]
                self._set([1] * len(self.libraries))

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            if self.holders == 0:  # a process forked inside the block has let go already
                return
            self.holders -= 1
            if self.holders == 0:
                self._set(self.threads)

    def start_anew(self) -> None:
        """Let go of what was held, in a forked process: nobody will leave the blocks there."""
        self.lock = threading.Lock()
        if self.holders:
            self.holders = 0
            self._set(self.threads)

    def _set(self, numbers: list[int]) -> None:
        for library, n in zip(self.libraries, numbers, strict=True):
            library.set_num_threads(n)
            # threadpoolctl lets only the thread that set a limit first change it again, unless that one gives up.
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread()


BLAS = _Blas()
