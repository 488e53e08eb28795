"""Write the tables of docs/performance.md from the JSON under results/.

    python benchmarks/report.py            write them
    python benchmarks/report.py --check    end with 1 if the page does not say what the JSON gives

A table stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``; all other text is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import run
import seven_b
from cases import CASES, TARGETS
from measure import figure

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
RESULTS = HERE / "results"
SHAPE = "smollm2-135m"
OTHER = "avx2"  # a folder of results like the others, of another machine


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell for cell in line) + " |" for line in lines)


def origin(result: dict[str, Any]) -> str:
    """On what, with what and when."""
    where = result["machine"]
    versions: dict[str, str] = {}
    for held in result.get("contenders", {}).values():
        versions |= held["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{where['cpu']}, {where['threads']} of {where['cores']} cores, {where['system']}, Python {where['python']}"
        f"{', ' + told if told else ''}; {where['when'][:10]}."
    )


def case_section(case: str, results: Path) -> str:
    result = read(results / SHAPE / f"{case}.json")
    if result is None:
        return "Not measured yet."
    said = "".join(f"* {line}\n" for line in run.remarks(result))
    return f"{markdown(*run.cells(result))}\n\n{said}{result['rounds']} rounds. {origin(result)}"


def seven_section(results: Path) -> str:
    result = read(results / "llama-2-7b.json")
    if result is None:
        return "Not measured yet."
    said = "".join(f"* {line}\n" for line in run.remarks(result))
    return f"{markdown(*seven_b.cells(result))}\n\n{said}One step each. {origin(result)}"


def target_rows(results: Path) -> list[tuple[str, str, float | None, str]]:
    """What, target, figure and verdict of every target."""
    rows: list[tuple[str, str, float | None, str]] = []
    for target in TARGETS:
        result = read(results / SHAPE / f"{target.case}.json")
        value = None if result is None else figure(result, target)
        rows.append((target.says, run.wanted(target), value, run.verdict(target, value)))
    seven = read(results / "llama-2-7b.json")
    for says, wanted, value, met in seven_b.targets(seven):
        rows.append((says, wanted, value, "" if met is None else "met" if met else "missed"))
    return rows


def target_section(results: Path) -> str:
    """Every target, what was measured last, and what another machine gave."""
    rows = []
    for here, there in zip(target_rows(results), target_rows(results / OTHER), strict=True):
        row = list(here[:2])
        for _, _, value, verdict in (here, there):
            row += ["not measured" if value is None else run.show(value), verdict]
        rows.append(row)
    return markdown(["what", "target", "AVX-512", "", "AVX2", ""], rows)


def scaling_section(results: Path) -> str:
    result = read(results / "scaling.json")
    if result is None:
        return "Not measured yet."
    rows = []
    for name, axis in result["axes"].items():
        work, powers = axis["work"], axis["exponents"]
        row = [name, f"{work[0]:,} to {work[-1]:,}"]
        for key, unit in (("seconds", 1), ("bytes", 1e6)):
            if powers[key] is None:
                row += ["unknown", "unknown"]
            else:
                row += [f"{run.show(axis[key][0] / unit)} to {run.show(axis[key][-1] / unit)}", f"{powers[key]:.2f}"]
        rows.append(row)
    headings = ["what grows", "from, to", "s a step", "power", "MB beyond the libraries", "power"]
    return f"{markdown(headings, rows)}\n\n{origin(result)}"


SECTIONS: dict[str, Callable[[Path], str]] = {
    "targets": target_section,
    **{case: lambda results, case=case: case_section(case, results) for case in CASES},
    "llama-2-7b": seven_section,
    "scaling": scaling_section,
}


def render(page: str, results: Path = RESULTS) -> str:
    """The page with every section written anew.

    Raises
    ------
    ValueError
        If a section has no place in it.
    """
    for name, section in SECTIONS.items():
        place = re.compile(rf"(<!-- begin: {re.escape(name)} -->\n).*?(<!-- end: {re.escape(name)} -->)", re.DOTALL)
        text = section(results)
        page, found = place.subn(lambda m, text=text: f"{m[1]}\n{text}\n\n{m[2]}", page)
        if found != 1:
            raise ValueError(f"the page has {found} places for the section {name!r}; it needs one begin and one end")
    return page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of docs/performance.md from the JSON.")
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(arguments)
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if args.check:
        if new != old:
            print(f"{PAGE.name} does not say what the JSON gives; run: python benchmarks/report.py")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
