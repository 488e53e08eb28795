"""Threads between barriers: what each does in shared memory, and where two meet without an order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyllm.course.cuda_on_cpu.launch import ORDERS, Access, KernelError, settings
from tinyllm.course.cuda_on_cpu.library import compiler
from tinyllm.course.cuda_on_cpu.raw import RawKernel
from tinyllm.course.figures.figure import Figure

MOST = 16  # threads that one can look at together


def threads_between_barriers(versions: Mapping[str, str], kernel: str, threads: int, args: tuple) -> Figure:
    """Show one block of a kernel, thread by thread, and the races in it.

    Parameters
    ----------
    versions : mapping of str to str
        Texts of the kernel by name, ``{"with the barrier": SUM, "without": racing}``.
    kernel : str
        What the kernel is called in them.
    threads : int
        Of the one block, 2 to 16.
    args : tuple of arrays and NumPy scalars
        As for a launch; copies are used. The last array is the result.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If there are no versions, too many threads, or no array to hold a result.
    RuntimeError
        If there is no compiler.
    """
    if not versions:
        raise ValueError('the figure needs texts of the kernel by name, {"mine": SUM}')
    if not 2 <= threads <= MOST:
        raise ValueError(f"2 to {MOST} threads can be looked at together, not {threads}")
    if not any(isinstance(x, np.ndarray) for x in args):
        raise ValueError("one of args must be an array, which the kernel writes its result into")
    if compiler() is None:
        raise RuntimeError("kernels run here only where there is g++ or clang++: install one")
    shown = [_version(name, text, kernel, threads, args) for name, text in versions.items()]
    words = (
        "A row is a thread, and its boxes are what it does in shared memory between two barriers: r reads, w writes, "
        "and the number of the place. Whose boxes stand in one stretch may come in any order."
    )
    data = {"threads": threads, "versions": shown}
    return Figure("barriers", "Threads between barriers", words, data, lambda figure: _draw(figure, data), (7.0, 4.0))


def _version(name: str, text: str, kernel: str, threads: int, args: tuple) -> dict[str, Any]:
    """What each thread does in each stretch, which of it races, and the result in three orders."""
    stretches: list[list[list[dict]]] = []
    stopped = ""
    for thread in range(threads):
        steps: list[Access] = []
        _, said = _run(text, kernel, threads, args, trace=(0, thread), told=steps.append)
        stopped, at = stopped or said, 0
        for step in steps:
            while len(stretches) <= at:
                stretches.append([[] for _ in range(threads)])
            if not step.place:  # a shuffle or a vote parts nothing: it orders no memory
                at += step.verb.startswith(("__syncthreads", "__syncwarp"))
            elif step.shared is not None:
                first, size = step.shared
                did = {"verb": step.verb, "byte": first, "size": size, "place": first // size, "value": step.value}
                stretches[at][thread].append(did | {"line": step.line, "text": step.text, "races": False})
    while stretches and not any(stretches[-1]):
        stretches.pop()  # after the last barrier nothing happens in shared memory
    stretches = stretches or [[[] for _ in range(threads)]]
    races = [_races(stretch) for stretch in stretches]
    results = {}
    for order in ORDERS:
        result, said = _run(text, kernel, threads, args, order=order)
        results[order] = "stopped" if said else _shown(result)
    return {"name": name, "stretches": stretches, "races": races, "results": results, "stopped": stopped}


def _run(text: str, kernel: str, threads: int, args: tuple, **how: Any) -> tuple[np.ndarray, str]:
    """The result, and why the runtime stopped the kernel, if it did: a place was read before it was written, say."""
    own, said = tuple(x.copy() if isinstance(x, np.ndarray) else x for x in args), ""
    try:
        with settings(races=False, **how):
            RawKernel(text, kernel)((1,), (threads,), own)
    except KernelError as error:
        said = str(error)
    return [x for x in own if isinstance(x, np.ndarray)][-1], said


def _shown(result: np.ndarray) -> str:
    return ", ".join(f"{x:g}" for x in result.reshape(-1)[:MOST].tolist()) + (" ..." if result.size > MOST else "")


def _races(stretch: list[list[dict]]) -> list[list[int]]:
    """Pairs of accesses to one place by two threads, one of them a write: [thread, access, thread, access].

    Two atomic updates are no race: the hardware puts them one after the other.
    """
    found = []
    for a, own in enumerate(stretch):
        for i, one in enumerate(own):
            for b in range(a + 1, len(stretch)):
                for j, other in enumerate(stretch[b]):
                    apart = one["byte"] + one["size"] <= other["byte"] or other["byte"] + other["size"] <= one["byte"]
                    verbs = {one["verb"], other["verb"]}
                    if not apart and verbs not in ({"reads"}, {"updates"}):
                        one["races"] = other["races"] = True
                        found.append([a, i, b, j])
    return found


def _draw(figure: Any, data: dict[str, Any]) -> None:
    panels = figure.subplots(1, len(data["versions"]), sharey=True, squeeze=False)[0]
    for ax, version in zip(panels, data["versions"], strict=True):
        left = 0.0
        for stretch in version["stretches"]:
            for thread, steps in enumerate(stretch):
                for k, step in enumerate(steps):
                    edge = {"ec": "#d55e00", "lw": 2} if step["races"] else {"ec": "#0072b2"}
                    words = f"{step['verb'][0]}{step['place']}"
                    ax.text(left + k, thread, words, ha="center", va="center", fontsize=6, bbox={"fc": "white"} | edge)
            left += max(map(len, stretch)) + 0.5
            ax.axvline(left - 0.75, color="#444444", linewidth=2)
        ax.set(xlim=(-0.6, left), ylim=(data["threads"] - 0.4, -0.6), xticks=[], xlabel="time; dark lines are barriers")
        ax.set_title(f"{version['name']}: result {version['results']['forward']}", fontsize=8)
    panels[0].set(ylabel="thread")
