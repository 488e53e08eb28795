"""What the figures say and draw in a browser, at several settings of their controls, against the engine's numbers."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT
from test_touch import said

sys.path.append(str(ROOT / "tests" / "course"))
from figure_cases import FIGURES, LOSSES, MODELS, ledger, merges, xray  # noqa: E402

UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
PARTS = {"base": "base weights", "optimizer": "optimiser", "head": "head and loss"}


def opened(tab, figure, folder):
    tab.goto(figure.save(folder).as_uri())
    tab.click("summary")
    return figure.data


def control_of(tab, label: str):
    return tab.locator("#controls label", has_text=label).locator("input, select").first


def set_to(tab, label: str, value: int) -> None:
    control_of(tab, label).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", value)


def rows(tab) -> list[list[str]]:
    return [row.locator("td").all_text_contents() for row in tab.locator("#numbers tr").all()[1:]]


def close(text: str, number: float) -> bool:
    return abs(float(text.split()[0]) - number) <= 0.006 * abs(number) + 1e-12


@pytest.mark.parametrize("matrix", [0, 1])
@pytest.mark.parametrize("r", [0, 1, 3, 5, 7])
def test_xray(tab, tmp_path, matrix, r):
    data = opened(tab, xray(), tmp_path)
    set_to(tab, "Matrix", matrix)
    set_to(tab, "Directions kept", r)
    m = data["matrices"][matrix]
    held = 100 * m["share"][r - 1] if r else 0
    told = said(tab)
    assert told.startswith(f"{m['name']} (7 x {9 + matrix}) changed in 7 directions. The {r} largest hold ")
    assert close(told.split(" largest hold ")[1], held)
    assert f"in {r * (16 + matrix)} numbers instead of {7 * (9 + matrix)}." in told
    rank = max(k for k in LOSSES if k <= r)
    assert f"With {rank} directions of every matrix the loss is {LOSSES[rank]:g}." in told
    assert tab.locator("#drawing rect[fill='var(--blue)']").count() == r
    assert [close(cells[1], v) for cells, v in zip(rows(tab), m["values"], strict=True)] == [True] * 7


@pytest.mark.parametrize("model", [0, 1])
def test_ledger(tab, tmp_path, model):
    data = opened(tab, ledger(), tmp_path)
    set_to(tab, "Model", model)
    for k, method in enumerate(data["methods"]):
        set_to(tab, "Training", k)
        held = data["models"][model]["held"][method["key"]]
        assert said(tab).startswith(list(MODELS)[model])
        total, largest = sum(held.values()), max(held, key=held.get)
        sentence = said(tab).split(f", {method['name']}, a step of 2 x 16 tokens: ")[1]
        whole, most = sentence.removesuffix(". It fits into a laptop, 8 GB.").split(". Its largest part is ")
        part, size = most.split(", ")
        assert part == PARTS.get(largest, largest)
        assert close(whole, total / UNITS[whole.split()[1]]) and close(size, held[largest] / UNITS[size.split()[1]])
        for cells, n in zip(rows(tab), [*held.values(), sum(held.values())], strict=True):
            assert close(cells[k + 1], n / UNITS[cells[k + 1].split()[1]])


# Nothing is planned here: the verdict is the page's, and sums on both sides of each room tell it.
@pytest.mark.parametrize(
    "gigabytes, verdict",
    [
        (8, "It fits into a laptop, 8 GB."), (8.01, "It fits into a card, 24 GB."), (24, "It fits into a card, 24 GB."),
        (24.01, "It fits into a card, 80 GB."), (80, "It fits into a card, 80 GB."),
        (80.01, "It fits into none of the three machines."),
    ],
)  # fmt: skip
def test_the_ledger_says_what_fits(tab, tmp_path, gigabytes, verdict):
    figure = ledger()
    held = {m["key"]: {"base": int(1e9 * gigabytes) - 5, "head": 5} for m in figure.data["methods"]}
    figure.data["models"][:] = [{"name": "x", "parameters": 1, "held": held}]
    opened(tab, figure, tmp_path)
    assert said(tab).endswith(verdict)


def test_merges(tab, tmp_path):
    data = opened(tab, merges(), tmp_path)
    for k, row in enumerate(data["ways"]):
        for i in (0, 17, 255):
            set_to(tab, "Merged into", k)
            set_to(tab, "Weight", i)
            told = said(tab)
            assert close(told.split(" was ")[1], data["base"][i]) and row["name"] in told
            assert close(told.split("with the update it is ")[1].split(". ")[0].rstrip("."), data["exact"][i])
            assert all(close(cells[1], w["weights"][i]) for cells, w in zip(rows(tab), data["ways"], strict=True))
            assert tab.inner_text("pre") == row["text"]
            if k:
                assert ("writes the same text" in told) == (row["text"] == data["ways"][0]["text"])


def test_barriers(tab, tmp_path):
    if "barriers" not in FIGURES:
        pytest.skip("not run: there is no C++ compiler")
    opened(tab, FIGURES["barriers"](), tmp_path)
    assert "No two of them meet here without an order. In all stretches 0 pairs race." in said(tab)
    set_to(tab, "Kernel", 1)
    set_to(tab, "Stretch", 1)
    for t, other in ((0, 2), (3, 1)):
        set_to(tab, "Thread", t)
        low, high = sorted((t, other))
        assert f"thread {low} reads place {high} in line 8, thread {high} writes it" in said(tab)
    assert "In all stretches 4 pairs race." in said(tab)
    assert tab.locator("#drawing rect[stroke-width='4']").count() == 7  # one write is in two pairs
    assert sum(cells[-1] == "yes" for cells in rows(tab)) == 7
