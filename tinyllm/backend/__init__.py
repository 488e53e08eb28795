"""Everything that touches raw arrays: NumPy is the specification; threads and CUDA are overrides.

`table.py` has the Backend, `replacement.py` has `use`, `primitives.py` the functions, `random.py` the generator,
`device.py` where arrays are made. Weights in fewer bits are `half.py`, `nf4.py` and, for the scales of NF4,
`double_quant.py` with `torch_sum.py`; `names.py` has words for messages. `cpu/` has how cores share the functions,
`cuda/` the kernels, `ghost/` arrays without content.
"""

from __future__ import annotations

import numpy

from tinyllm.backend.cpu.backend import CPU
from tinyllm.backend.cpu.overrides import OVERRIDES, SPECIFICATION
from tinyllm.backend.replacement import use
from tinyllm.backend.table import BACKENDS, Backend, of

BACKENDS["numpy"] = CPU("numpy", numpy, {**SPECIFICATION, **OVERRIDES})

__all__ = ["BACKENDS", "Backend", "of", "use"]
