"""Whether a weight is finite, asked before it is stored in fewer bits."""

from __future__ import annotations

import numpy as np

from tinyllm.backend.table import of

CHECKED = 1 << 20  # elements at a time


def refuse_non_finite(array, name=None, because="a frozen weight must be finite"):
    """Raise ValueError if `array` holds a NaN or an infinity: how many, where the first is, and what to do."""
    if array.ndim > 1 and array.size > CHECKED:  # some rows at a time: a mask of a whole embedding would be 131 MB
        rows = max(1, CHECKED * len(array) // array.size)
        if all(of(array).xp.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows)):
            return
    finite = of(array).xp.isfinite(array).reshape(-1)
    bad = finite.size - int(finite.sum())
    if bad:
        first = np.unravel_index(int(finite.argmin()), array.shape)
        raise ValueError(
            f"{called(name)} has {bad} non-finite value{'s' * (bad > 1)}, the first at {[int(i) for i in first]} "
            f"({because}); repair the checkpoint, or keep this weight in float32"
        )


def called(name):
    """How an error names a weight."""
    return f"the weight {name!r}" if name else "the array"
