"""What runs the lessons, makes their notebooks and finds the functions they name."""

from __future__ import annotations

import nbformat
import notebooks
import now_read
import plans
import pytest
import run_lessons

LESSON = "# %% [markdown]\n# # Lesson 1: Is it?\n\n# %%\n{}\n"


def lesson(folder, code, name="01_fine.py"):
    (folder / name).write_text(LESSON.format(code), encoding="utf-8")
    return folder


def test_a_lesson_runs_and_is_kept_with_its_outputs(tmp_path, capsys):
    pages = tmp_path / "pages"
    assert run_lessons.main([], lesson(tmp_path, "print('fine')"), pages) == 0
    assert "01_fine.py: " in capsys.readouterr().out
    kept = nbformat.read(pages / "01_fine.ipynb", 4)
    assert kept.cells[1].outputs[0].text == "fine\n"
    assert "{download}`the notebook <../../tutorials/notebooks/01_fine.ipynb>`" in kept.cells[0].source


def test_a_failing_cell_stops_it_and_is_shown(tmp_path, capsys):
    lesson(tmp_path, "assert 1 > 2, 'one is not more than two'", "01_fails.py")
    assert run_lessons.main([], lesson(tmp_path, "", "02_fine.py"), tmp_path / "pages") == 1
    said = capsys.readouterr().out
    assert "one is not more than two" in said and "02_fine.py" in said
    assert not (tmp_path / "pages" / "01_fails.ipynb").exists()


def test_a_lesson_over_its_time_stops_it(tmp_path):
    slow = lesson(tmp_path, "sum(i * i for i in range(10**6))")
    assert run_lessons.main(["--limit", "0"], slow, tmp_path / "pages") == 1


def test_no_lesson_is_no_success(tmp_path):
    assert run_lessons.main(["7"], tmp_path, tmp_path / "pages") == 1


def test_notebooks_are_in_step():
    assert notebooks.main(["--check"]) == 0


@pytest.mark.parametrize("what", ["changed", "missing", "stray"])
def test_a_notebook_that_is_not_in_step_is_noticed(tmp_path, capsys, what):
    lesson(tmp_path, "print(1)")
    notebooks.main([], tmp_path)
    assert notebooks.main(["--check"], tmp_path) == 0
    made = tmp_path / "notebooks" / "01_fine.ipynb"
    if what == "changed":
        lesson(tmp_path, "print(2)")
    elif what == "missing":
        made.unlink()
    else:
        (tmp_path / "notebooks" / "02_gone.ipynb").write_text("{}", encoding="utf-8")
    assert notebooks.main(["--check"], tmp_path) == 1
    assert "is not what its lesson makes: python tools/notebooks.py" in capsys.readouterr().out
    notebooks.main([], tmp_path)
    assert notebooks.main(["--check"], tmp_path) == 0


def test_a_notebooks_first_cell_does_nothing_where_all_is_there(tmp_path):
    text = notebooks.to_open(lesson(tmp_path, "print(1)") / "01_fine.py")
    cell = nbformat.reads(text, 4).cells[1]
    assert cell.cell_type == "code" and "made from 01_fine.py" in cell.source.lower()
    session: dict = {}
    exec(cell.source, session)
    assert session["missing"] == []


def test_a_function_is_found_with_its_lines():
    module, inner, first, last = now_read.place("tinyllm.lora.layer.LoRALinear.forward")
    lines = (now_read.ROOT / "tinyllm" / "lora" / "layer.py").read_text(encoding="utf-8").splitlines()
    assert (module, inner) == ("tinyllm.lora.layer", "LoRALinear.forward")
    assert lines[first - 1].strip().startswith("def forward(") and last > first
    assert now_read.place("tinyllm.frozen.NF4Weight.tiles")[:2] == ("tinyllm.frozen.weight", "FrozenWeight.tiles")
    assert now_read.place("tinyllm.kept")[0] == "tinyllm.inspect.kept"  # where it is defined
    assert now_read.place("tinyllm.backend.nf4.NF4_LEVELS")[2] > 1


def test_names_become_links_only_where_one_is_to_read_on():
    text = "`tinyllm.tensor.op` stays.\n\n## Now read\n\n- `tinyllm.tensor.op`: how"
    before, after = now_read.resolved(text).split("## Now read")
    assert before == "`tinyllm.tensor.op` stays.\n\n"
    assert '<a href="../_modules/tinyllm/tensor.html#op"><code>tinyllm.tensor.op</code></a>' in after
    assert "(tinyllm/tensor.py, lines " in after


def test_a_renamed_function_stops_it():
    with pytest.raises(AttributeError, match="gone"):
        now_read.resolved("## Now read\n- `tinyllm.tensor.gone`: no")


def test_the_plans_add_up():
    there = plans.lessons()
    rows = plans.table([8, 10]).splitlines()
    assert rows[-1].startswith(f"| together | | {there[8].minutes + there[10].minutes} | ")
    assert sum(there[8].exercises) >= 30 and "](lessons/08_lora)" in rows[2]
    assert len(plans.table().splitlines()) == 3 + len(there)
    with pytest.raises(KeyError):
        plans.table([99])
