"""Cost against work: time and memory of a LoRA step as one thing grows, and the exponent that fits.

    python benchmarks/scaling.py            a few minutes; writes results/scaling.json and docs/performance/scaling.png

A cost c that grows as work w to the power p is a straight line of slope p where both axes are logarithmic; the slope
is fitted by least squares. Needs matplotlib for the picture (`pip install "tinyllm-engine[plot]"`). tinyllm alone.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import linear_regression, mean, median
from typing import Any

from cases import OURS
from measure import machine, write
from protocol import Worker
from shapes import Shape

HERE = Path(__file__).resolve().parent
BASE = Shape("scaling", 4096, 256, 4, 4, 4, 768, batch=2, time=128)


def wide(hidden: int) -> Shape:
    return replace(
        BASE, hidden_size=hidden, intermediate_size=3 * hidden, num_heads=hidden // 64, num_kv_heads=hidden // 64
    )


def parameters(shape: Shape) -> int:
    """What a model of this shape has, norms left out; MHA and a tied embedding, as here."""
    per_layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    return shape.vocab_size * shape.hidden_size + shape.num_layers * per_layer


# What grows: where it is measured, the shape there, and the work on the axis.
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Shape], Callable[[Shape], int]]] = {
    "sequence length": ((128, 256, 512, 1024, 2048), lambda n: replace(BASE, batch=1, time=n), lambda s: s.time),
    "batch": ((1, 2, 4, 8, 16), lambda n: replace(BASE, batch=n), lambda s: s.batch),
    "layers": ((2, 4, 8, 16, 32), lambda n: replace(BASE, num_layers=n), lambda s: s.num_layers),
    "rank": ((4, 8, 16, 32, 64), lambda n: replace(BASE, rank=n), lambda s: s.rank),
    "parameters": ((128, 256, 512, 1024), wide, parameters),
}


def exponent(work: list[float], cost: list[float]) -> float:
    """The slope of log cost over log work, by least squares."""
    return linear_regression([log(w) for w in work], [log(c) for c in cost]).slope


def measure_point(shape: Shape, threads: int, steps: int) -> dict[str, Any]:
    """Median seconds of a step after two others, and peak bytes beyond the libraries, in a process of its own."""
    worker = Worker({"shape": shape.fields(), **OURS}, threads)
    try:
        worker.step(), worker.step()
        seconds = [worker.step()["seconds"] for _ in range(steps)]
        peak = worker.end()
    finally:
        if worker.process.poll() is None:
            worker.close()
    return {"seconds": median(seconds), "bytes": None if peak is None else peak - worker.ready["library"]}


def measure_axis(name: str, threads: int, steps: int, points: int | None = None) -> dict[str, Any]:
    """One thing grows, the rest stays."""
    values, shape_at, work_of = AXES[name]
    shapes = [shape_at(value) for value in values[:points]]
    measured = [measure_point(shape, threads, steps) for shape in shapes]
    axis = {"work": [work_of(shape) for shape in shapes], **{k: [m[k] for m in measured] for k in ("seconds", "bytes")}}
    axis["exponents"] = {k: None if None in axis[k] else exponent(axis["work"], axis[k]) for k in ("seconds", "bytes")}
    return axis


def draw(result: dict[str, Any], path: Path) -> None:
    """Two rows of panels, time above memory, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    axes = result["axes"]
    figure, panels = pyplot.subplots(2, len(axes), figsize=(3 * len(axes), 5.5), squeeze=False, layout="constrained")
    for row, (key, label, unit) in enumerate((("seconds", "s a step", 1), ("bytes", "MB beyond libraries", 1e6))):
        for panel, (name, axis) in zip(panels[row], axes.items(), strict=True):
            power, work = axis["exponents"][key], axis["work"]
            if power is None:
                continue
            cost = [c / unit for c in axis[key]]
            constant = exp(mean(log(c) - power * log(w) for w, c in zip(work, cost, strict=True)))
            panel.loglog(work, cost, "o", color="C0")
            panel.loglog(work, [constant * w**power for w in work], "-", color="C1", lw=1)
            panel.set_title(f"{name}: power {power:.2f}", fontsize=9)
            panel.set_xlabel(name)
            panel.set_ylabel(label)
            panel.set_xticks(work, [f"{w:,}" if w < 1e5 else f"{w / 1e6:.0f} M" for w in work], fontsize=7)
            panel.xaxis.set_minor_locator(ticker.NullLocator())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of a LoRA step against sequence length, batch, ...")
    parser.add_argument("--threads", type=int, default=0, help="0: the cores there are")
    parser.add_argument("--steps", type=int, default=5, help="that count, at each point (5)")
    parser.add_argument("--points", type=int, help="only the first so many of each axis")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the JSON goes")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "performance" / "scaling.png")
    args = parser.parse_args(arguments)
    threads = args.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    result = {"case": "scaling", "shape": BASE.fields(), "machine": machine(threads), "axes": {}}
    for name in AXES:
        axis = result["axes"][name] = measure_axis(name, threads, args.steps, args.points)
        powers = {key: "unknown" if power is None else f"{power:.2f}" for key, power in axis["exponents"].items()}
        print(f"{name}: time to the power {powers['seconds']}, memory to the power {powers['bytes']}", flush=True)
    write(result, args.out)
    draw(result, args.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
