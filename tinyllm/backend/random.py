"""Counter-based randomness: the same numbers for the same seed on every machine, NumPy or CUDA.

A `Generator` is a key (the seed) and a position. Word number ``n`` of the stream is a function of those two alone
(Philox 4x64-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so a dropout mask need not be
kept for backward: its position is enough. The specification is ``numpy.random.Philox(key=seed).random_raw``.
"""

from __future__ import annotations

import numpy as np

from tinyllm.backend.names import is_whole

WORDS_PER_BLOCK = 4  # one Philox 4x64 call gives four 64-bit words


class Generator:
    """A stream of random numbers with a seed and a position.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64.

    Raises
    ------
    ValueError
        If the seed is out of range.
    TypeError
        If it is no whole number.
    """

    def __init__(self, seed: int = 0):
        if not is_whole(seed):
            raise TypeError(f"the seed must be a whole number, not {seed!r}")
        seed = int(seed)
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed must be between 0 and 2**64 - 1, not {seed}")
        self.seed = seed
        self.position = 0  # in blocks of four words

    @property
    def state(self) -> tuple[int, int]:
        """``(seed, position)``: all there is to restore."""
        return self.seed, self.position

    def restore(self, state: tuple[int, int]) -> None:
        """Go back (or forward) to a `state`."""
        self.seed, self.position = int(state[0]), int(state[1])

    def take(self, words: int) -> tuple[int, int]:
        """Reserve `words` 64-bit words and return the state at which they start."""
        start = self.state
        self.position += -(-words // WORDS_PER_BLOCK)
        return start

    def words(self, n: int) -> np.ndarray:
        """The next `n` words, uint64, ``(n,)``."""
        return raw_words(self.take(n), n)

    def _distribution(self, n: int) -> np.random.Generator:
        # One block a number is more than NumPy's samplers use (about 1.02 words a normal), so streams never overlap.
        seed, position = self.take(n * WORDS_PER_BLOCK)
        return np.random.Generator(np.random.Philox(key=seed, counter=position))

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype=np.float32) -> np.ndarray:
        """Uniform numbers in [low, high)."""
        unit = self._distribution(int(np.prod(shape))).random(shape)
        return (low + (high - low) * unit).astype(dtype)

    def normal(self, shape: tuple[int, ...], std: float = 1.0, dtype=np.float32) -> np.ndarray:
        """Normal numbers with mean 0 and standard deviation `std`."""
        drawn = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        y = self._distribution(int(np.prod(shape))).standard_normal(shape, dtype=drawn)
        y *= drawn(std)
        return y.astype(dtype, copy=False)

    def permutation(self, n: int) -> np.ndarray:
        """A random order of ``range(n)``, int64, ``(n,)``: the order that sorts `n` random words."""
        return np.argsort(self.words(n), kind="stable")


def raw_words(state: tuple[int, int], n: int) -> np.ndarray:
    """Words of the stream from `state` on, uint64, ``(n,)``."""
    seed, position = state
    return np.random.Philox(key=seed, counter=position).random_raw(n)


default = Generator(0)


def manual_seed(seed: int) -> None:
    """Start the default generator anew: initialisation and dropout repeat from here."""
    default.restore(Generator(seed).state)
