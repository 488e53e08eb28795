"""The benchmarks complete on small shapes, refuse unequal work, survive what breaks; the page says what the JSON says.

Nothing here asserts a time. Peers that are not installed are "not run"; with them in the environment they run too.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import cases  # noqa: E402
import gpu  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import scaling  # noqa: E402
import seven_b  # noqa: E402
import worker_tinyllm  # noqa: E402
from shapes import SHAPES, Numbers, llama_2_7b  # noqa: E402

from tinyllm.backend.cpu.threads import get_num_threads, set_num_threads, share  # noqa: E402

SMALL = replace(
    SHAPES["tiny"], vocab_size=128, hidden_size=64, num_layers=1, num_heads=1, intermediate_size=128, time=16
)


def contend(monkeypatch, **others):
    """tinyllm's LoRA step against other contenders, one round."""
    monkeypatch.setattr(cases, "CASES", {"lora": {"tinyllm": cases.OURS, **others}})
    monkeypatch.setattr(measure, "CASES", cases.CASES)
    return measure.run_case("lora", SMALL, 1, 1, say=lambda text: None)


def test_the_whole_benchmark_on_small_shapes(tmp_path, capfd):
    options = ["--shape", "tiny", "--ci", "--rounds", "1", "--threads", "1", "--no-compile"]
    assert run.main([*options, "--out", str(tmp_path)]) == 0
    for case in cases.CASES:
        result = json.loads((tmp_path / f"{case}.json").read_text(encoding="utf-8"))
        assert "tinyllm" in result["contenders"] and not result["failed"] and not result["refused"]
        assert {*result["contenders"], *result["not_run"]} == set(cases.CASES[case])
        for step in result["contenders"]["tinyllm"]["steps"]:
            assert all(np.isfinite(step[name]) and step[name] >= 0 for name in measure.measures(result))
    said = capfd.readouterr().out
    assert "targets" in said
    if find_spec("torch") is None:
        assert "torch: not run, torch is not installed" in said


@pytest.mark.parametrize(
    ("planted", "step"),
    [
        ({"seed": 1}, 1),
        ({"shape": replace(SMALL, alpha=32.0).fields()}, 2),
        ({"shape": replace(SMALL, rank=4).fields()}, 2),
    ],
    ids=["weights", "scale", "rank"],
)
def test_unequal_work_is_refused_with_the_two_numbers(monkeypatch, planted, step):
    result = contend(monkeypatch, same=cases.OURS, other={**cases.OURS, **planted})
    assert set(result["contenders"]) == {"tinyllm", "same"}
    losses = [s["check"] for s in result["contenders"]["tinyllm"]["warm_up"]]
    assert set(result["refused"]) == {"other"}
    assert f"at step {step} its loss is" in result["refused"]["other"]
    assert f"tinyllm's {losses[step - 1]:.6f}" in result["refused"]["other"]


def test_bfloat16_is_exempt(monkeypatch):
    result = contend(monkeypatch, other={**cases.OURS, "seed": 1, "dtype": "bfloat16"})
    assert "other" in result["contenders"] and not result["refused"]


def test_what_breaks_is_said_in_a_sentence_and_the_rest_goes_on(monkeypatch):
    result = contend(
        monkeypatch,
        absent={"worker": "import", "task": "import", "module": "no_such_module"},
        stillborn={**cases.OURS, "task": "no such task"},
        dying={"worker": "tinyllm", "task": "overhead", "shape": replace(SMALL, chain=0).fields()},
        same=cases.OURS,
    )
    assert result["not_run"] == {"absent": "no_such_module is not installed"}
    assert result["failed"]["stillborn"] == "ended with exit code 1: KeyError: 'no such task'"
    assert result["failed"]["dying"].startswith("ended with exit code 1: ZeroDivisionError")
    assert set(result["contenders"]) == {"tinyllm", "same"}


def test_a_failure_or_a_refusal_ends_with_one(monkeypatch, capsys):
    monkeypatch.setitem(run.SHAPES, "tiny", SMALL)
    for other in ({"task": "no such task"}, {"seed": 1}):
        one = {"lora": {"tinyllm": cases.OURS, "other": {**cases.OURS, **other}}}
        for module in (cases, measure, run):
            monkeypatch.setattr(module, "CASES", one)
        assert run.main(["lora", "--shape", "tiny", "--ci", "--rounds", "1", "--threads", "1"]) == 1
        assert "other: " in capsys.readouterr().out


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["lorra"])
    assert "there is no case 'lorra'" in capsys.readouterr().err


def peaks(**megabytes):
    held = {"library": 10_000_000, "steps": [{"seconds": 1.0}]}
    return {
        case.replace("_", "-"): {
            "case": case.replace("_", "-"), "contenders": {"tinyllm": {**held, "peak": (10 + peak) * 1_000_000}},
        }
        for case, peak in megabytes.items()
    }  # fmt: skip


def test_the_laws_of_memory():
    good = {"full": 40, "lora": 30, "qlora": 20, "qlora_checkpointing": 10}
    assert run.memory_laws(peaks(**good)) == []
    for worse in ("lora", "qlora", "qlora_checkpointing"):
        assert len(run.memory_laws(peaks(**{**good, worse: 45}))) >= 1
    with_peer = peaks(lora=30)
    with_peer["lora"]["contenders"]["torch"] = {"peak": 80_000_000, "steps": [{"seconds": 1.0}]}
    assert "is 0.50, not 0.45 or less" in run.memory_laws(with_peer)[0]


def test_the_weights_are_the_same_everywhere_and_exact_in_half_precision():
    w = Numbers().weight("layers.0.mlp.up_proj.weight", (128, 192))
    assert np.array_equal(w, Numbers().weight("layers.0.mlp.up_proj.weight", (128, 192)))
    assert np.array_equal(w, w.astype(np.float16).astype(np.float32))
    assert not np.array_equal(w, Numbers(1).weight("layers.0.mlp.up_proj.weight", (128, 192)))
    assert not np.array_equal(w, Numbers().weight("layers.1.mlp.up_proj.weight", (128, 192)))
    assert np.linalg.matrix_rank(Numbers().weight("w", (1500, 1000))) == 1000  # beyond one block of numbers


def test_a_sixteenth_of_the_7b_model():
    whole, part = llama_2_7b(), llama_2_7b(16)
    count = lambda s: seven_b.weight_bytes(s, "float16") / 2
    assert count(whole) == 6_738_415_616 - 65 * 4096  # all but the gains of the norms
    assert count(part) * 16 == count(whole)
    assert part.hidden_size % 64 == 0 == part.intermediate_size % 64
    assert seven_b.allowed("tinyllm nf4", whole) == pytest.approx(4.5e9)
    held = {"library": 40e6, "peak": 40e6 + 4 * count(part)}  # as if a float copy had been made
    for name in seven_b.MOST:
        assert len(seven_b.too_much({"shape": part.fields(), "contenders": {name: held}})) == 1
        fits = {**held, "peak": 40e6 + seven_b.weight_bytes(part, name.split()[1])}
        assert seven_b.too_much({"shape": part.fields(), "contenders": {name: fits}}) == []


def test_the_exponent_of_a_power_law():
    assert scaling.exponent([1, 2, 4, 8], [3 * w**1.5 for w in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_one_point_of_the_scaling_and_its_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="not run: matplotlib is not installed")
    point = scaling.measure_point(SMALL, 1, 1)
    assert point["seconds"] > 0
    axis = {"work": [1, 2], "seconds": [1.0, 2.0], "bytes": [1e6, 1e6], "exponents": {"seconds": 1.0, "bytes": 0.0}}
    scaling.draw({"axes": {"layers": axis}}, tmp_path / "a" / "b.png")
    assert (tmp_path / "a" / "b.png").stat().st_size > 0


def test_the_sampler_knows_a_matmul_when_it_stands_at_one():
    def both(a, b):
        c = a @ b
        d = np.matmul(a, b)
        return np.add(c, d * a)

    def at(wanted):
        return {
            worker_tinyllm.in_matmul(SimpleNamespace(f_code=both.__code__, f_lasti=i, f_lineno=line, f_back=None), {})
            for i, line in offsets
            if wanted == line - both.__code__.co_firstlineno
        }

    offsets = [(i, line) for begin, end, line in both.__code__.co_lines() if line for i in range(begin, end, 2)]
    assert True in at(1) and True in at(2)
    assert at(3) == {False}


@pytest.mark.parametrize("busy, wanted", [(lambda a: a @ a, True), (lambda a: np.add(a, a), False)])
def test_the_sampler_counts_waiting_for_anothers_product(busy, wanted):
    a, main, seen = np.ones((300, 300)), threading.get_ident(), []
    begun, enough = threading.Barrier(2), threading.Event()

    def work(piece):
        begun.wait(10)  # each thread has one of the two
        while threading.get_ident() != main and not enough.is_set():
            busy(a)

    def look():
        begun_at = time.monotonic()
        while time.monotonic() - begun_at < 0.5:
            seen.append(worker_tinyllm.multiplying(main, {}))
            time.sleep(0.001)
        enough.set()

    before = get_num_threads()
    set_num_threads(2)
    try:
        watcher = threading.Thread(target=look)
        watcher.start()
        share(work, range(2))
        watcher.join()
    finally:
        set_num_threads(before)
    assert any(seen) == wanted


def test_the_page_says_what_the_json_says():
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.render(page) == page, "run: python benchmarks/report.py"


def test_the_page_gives_a_reason_for_every_missed_target():
    page = report.PAGE.read_text(encoding="utf-8")
    reasons = page.partition("### What misses its target")[2].partition("\n## ")[0]
    for says, _, _, verdict in report.target_rows(report.RESULTS):
        assert verdict != "missed" or says in reasons, f"docs/performance.md should say why this is missed: {says}"


def test_the_speed_is_compared_within_each_round():
    ours, theirs = ({"steps": [{"seconds": t} for t in times]} for times in ((1, 2, 4, 8, 16), (3, 6, 12, 8, 16)))
    assert measure.speed(ours, theirs, "seconds") == 3  # the medians' ratio is 2


def test_a_changed_json_changes_the_page(tmp_path, monkeypatch):
    result = contend(monkeypatch, same=cases.OURS)
    monkeypatch.setattr(run, "CASES", cases.CASES)
    measure.write(result, tmp_path / report.SHAPE)
    page = report.render(report.PAGE.read_text(encoding="utf-8"), tmp_path)
    same, ours = (result["contenders"][name] for name in ("same", "tinyllm"))
    assert f"{measure.speed(ours, same, 'seconds'):.2f} x" in page
    with pytest.raises(ValueError, match="0 places for the section 'targets'"):
        report.render("an empty page", tmp_path)


@pytest.mark.parametrize("module", ["same_run", "ledger"])
def test_the_other_pages_say_what_their_json_says(module):
    made = importlib.import_module(module)
    found = made.committed()
    page = made.PAGE.read_text(encoding="utf-8")
    assert found and made.write_table(page, found) == page, f"run: python benchmarks/{module}.py --report"


def test_the_command_for_a_card_goes_on_after_a_part_that_dies(tmp_path, monkeypatch):
    """A part that kills its process, one that takes too long and one that no longer fits: each says so in its line."""
    needs_stand_in()
    (tmp_path / "gpu_parts.py").write_text(
        "import os, runpy, sys, time\n"
        "if sys.argv[1] == 'values': os.abort()\n"
        "if sys.argv[1] == 'kernels': time.sleep(60)\n"
        f"runpy.run_path({str(gpu.HERE / 'gpu_parts.py')!r}, run_name='__main__')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setitem(gpu.LIMITS, "kernels", 0.2)
    out = tmp_path / "card.jsonl"
    assert gpu.main(["--dry-run", "--only", "values,kernels,about,lora_135m", "--out", str(out)]) == 1
    values, kernels, about, lora = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert "failed" in values and "longer than 2 s" in kernels["failed"]
    assert "no time here means anything" in about["device"] and np.isfinite(lora["losses"]).all()
    assert gpu.main(["--dry-run", "--only", "about", "--budget", "1", "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == {
        "part": "about", "not_run": "the budget of seconds was spent",
    }  # fmt: skip


def test_the_command_for_a_card_runs_dry(tmp_path):
    """What needs no peer: every kernel, training and decoding, on tiny shapes with the kernels run by g++."""
    needs_stand_in()
    out = tmp_path / "card.jsonl"
    assert gpu.main(["--dry-run", "--only", "kernels,lora_135m,qlora_7b", "--out", str(out)]) == 0
    kernels, lora, large = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert {record["kernel"] for record in kernels["kernels"]} >= {"nf4_pack_v2", "nf4_unpack_v3", "cross_entropy"}
    for record in (lora, large["2 x 8"], large["8 x 8"]):
        assert np.isfinite(record["losses"]).all() and record["peak_bytes"] > 0
    assert large["decoding_base"]["tokens"] == large["decoding_adapters_beside"]["tokens"] == 3


def test_every_part_for_a_card_has_a_limit():
    import gpu_parts

    assert [part.__name__ for part in gpu_parts.PARTS if part.__name__ not in gpu.LIMITS] == []
    assert len(gpu.LIMITS) == len(gpu_parts.PARTS)


def needs_stand_in():
    pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes (bfloat16 for NumPy) is not installed")
    from tinyllm.course.cuda_on_cpu import compiler

    if compiler() is None:
        pytest.skip("not run: g++ is not installed")


def test_tests_that_were_skipped_have_not_passed(monkeypatch):
    import gpu_parts

    for said, fine in (("3 passed", True), ("3 passed, 2 skipped", False), ("4 skipped", False), ("", False)):
        done = SimpleNamespace(returncode=0, stdout=said, stderr="no pytest")
        monkeypatch.setattr(gpu_parts.subprocess, "run", lambda *a, done=done, **k: done)
        assert ("failed" not in gpu_parts.passed([], dry=True)) == fine


def test_the_page_says_what_the_card_gave():
    results = ROOT / "benchmarks" / "results"
    texts = [(results / name).read_text(encoding="utf-8") for name in ("h100.jsonl", "h100-second.jsonl")]
    first, second = ({record["part"]: record for record in map(json.loads, text.splitlines())} for text in texts)
    found = {**first, "lora_7b": second["lora_7b"]}
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    page = page.partition("## On a card")[2].partition("\n## ")[0]
    rows = {row.split("|")[1].strip(): row for row in page.splitlines() if row.startswith("| ")}
    large = found["qlora_7b"]
    for name, ours, peer in (
        ("135M, LoRA, 8 x 512", found["lora_135m"], found["peer_lora_135m"]),
        ("135M, QLoRA, 8 x 512", found["qlora_135m"], found["peer_qlora_135m"]),
        ("7B, QLoRA, 4 x 512", large["4 x 512"], found["peer_qlora_7b"]),
        ("7B, QLoRA, 16 x 512", large["16 x 512"], None),
        ("7B, LoRA over bfloat16, 4 x 512", found["lora_7b"], None),
    ):
        said = [cell.strip() for cell in rows[name].split("|")[2:-1]]
        seconds, memory = f"{ours['seconds_a_step']:.3f} s", f"{ours['peak_bytes'] / 1e9:.2f} GB"
        assert said[:4] == [seconds, f"{ours['busy_seconds']:.3f} s", f"{ours['launches']:,}", memory]
        if peer:
            ratio = f"{ours['seconds_a_step'] / peer['seconds_a_step']:.2f}"
            assert said[4:] == [f"{peer['seconds_a_step']:.3f} s", f"{peer['peak_bytes'] / 1e9:.2f} GB", ratio]
    for which in ("base", "adapters_beside"):
        assert f"{large['decoding_' + which]['tokens_a_second']:.1f}" in page
    for again in (second["lora_135m"], second["qlora_7b"]["4 x 512"]):
        assert f"{again['seconds_a_step']:.3f} s" in page
    assert found["about"]["device"] == second["about"]["device"] and second["about"]["device"] in page
    assert found["values"]["tests"].startswith("52 passed") and second["variants"]["tests"].startswith("103 passed")


def test_the_design_shows_what_the_styles_give():
    import operation_styles

    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert page.partition("<!-- begin: styles -->\n")[2].partition("\n<!-- end")[0] == operation_styles.report()
    x, w, g = np.random.default_rng(0).standard_normal((3, 4, 4))
    for style in operation_styles.NAMES:
        for found, right in zip(operation_styles.gradients(style, x, w, g), (g @ w, g.T @ x), strict=True):
            assert np.abs(found - right).max() < 1e-14
    assert operation_styles.kept("rules", frozen=True) == ["w"] and operation_styles.kept("class", True) == ["w", "x"]
