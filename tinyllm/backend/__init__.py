"""Everything that touches raw arrays: NumPy is the specification; threads and CUDA are overrides.

`table.py` has the Backend and `use`, `primitives.py` the functions, `random.py` the generator, `nf4.py` the packing of
four-bit weights, `device.py` what to say when there is no GPU. `cpu/` has how cores share the functions, `cuda/` the
kernels, `ghost/` arrays without content.
"""

from __future__ import annotations

import numpy

from tinyllm.backend.cpu.backend import CPU
from tinyllm.backend.cpu.overrides import OVERRIDES, SPECIFICATION
from tinyllm.backend.table import BACKENDS, Backend, of, use

BACKENDS["numpy"] = CPU("numpy", numpy, {**SPECIFICATION, **OVERRIDES})

__all__ = ["BACKENDS", "Backend", "of", "use"]
