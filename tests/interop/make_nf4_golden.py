"""Writes tests/golden/nf4.json with bitsandbytes: ``python tests/interop/make_nf4_golden.py``, once for each format.

Weights are recorded by their seed and the sha256 of their bytes, since a golden test of the generator is not meant.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as F
import numpy as np
import torch

SHAPES = [[1], [2], [31], [64], [65], [7, 9], [96, 64], [48, 80], [3, 5, 67], [16, 1024], [1, 4097], [520, 130]]

# One thread's order of summation: all remainders of rows, registers and lanes, and all four levels of the cascade.
MEANS = [1, 5, 7, 8, 31, 32, 33, 512, 1057, 8191, 16391, 32768, 147456]


def weight(seed: int, shape: list[int], dtype: str) -> np.ndarray:
    """Normal, times a power of two that differs with the seed, so that small and large scales occur."""
    x = np.random.default_rng(seed).standard_normal(shape) * 2.0 ** (seed % 7 - 6)
    return x.astype(dtype)


def case(seed: int, shape: list[int], dtype: str, block_size: int, double: bool) -> dict:
    w = weight(seed, shape, dtype)
    packed, state = F.quantize_4bit(
        torch.from_numpy(w), blocksize=block_size, compress_statistics=double, quant_type="nf4"
    )
    parts = {"packed": packed, "absmax": state.absmax}
    if double:
        parts |= {"absmax2": state.state2.absmax, "offset": state.offset.reshape(1)}
    entry = {"seed": seed, "shape": shape, "dtype": dtype, "block_size": block_size, "double": double}
    entry["weight_sha256"] = hashlib.sha256(w.tobytes()).hexdigest()
    for name, part in parts.items():
        data = part.numpy().tobytes()
        entry[name] = data.hex() if len(data) <= 256 else "sha256:" + hashlib.sha256(data).hexdigest()
    return entry


def main() -> None:
    torch.set_num_threads(1)
    cases = []
    for i, shape in enumerate(SHAPES):
        for j, dtype in enumerate(["float32", "float16"]):
            for k, block_size in enumerate([64, [32, 128, 256, 512, 1024, 2048, 4096][i % 7]]):
                for double in (False, True):
                    cases.append(case(1000 * i + 100 * j + 10 * k + double, shape, dtype, block_size, double))
    means = {n: torch.from_numpy(np.random.default_rng(n).random(n, dtype=np.float32)).mean().item() for n in MEANS}
    text = {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__, "cases": cases, "means": means}
    path = Path(__file__).parents[1] / "golden" / "nf4.json"
    path.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
