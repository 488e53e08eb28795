"""Everything that touches raw arrays: NumPy is the specification; threads and CUDA are overrides.

`table.py` has the Backend and `use`, `primitives.py` the functions, `cpu.py` and `threads.py` how cores share them,
`random.py` the generator, `nf4.py` the packing of four-bit weights, `device.py` what to say when there is no GPU. Read
next: `table.py`.
"""

from __future__ import annotations

import numpy

from tinyllm.backend.cpu import overrides as cpu
from tinyllm.backend.table import BACKENDS, Backend, of, use

BACKENDS["numpy"] = Backend("numpy", numpy, {**cpu.SPECIFICATION, **cpu.OVERRIDES})

__all__ = ["BACKENDS", "Backend", "of", "use"]
