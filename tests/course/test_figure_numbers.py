"""The numbers in the figures one can touch, against the engine and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from figure_cases import CHANGES, LOSSES, MODELS, SUMS, UP, barriers, ledger, mean_of, merges, tuned, xray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tinyllm
from tinyllm.backend.ghost import haunted
from tinyllm.course import figures, kit
from tinyllm.course.cuda_on_cpu import launch
from tinyllm.course.cuda_on_cpu.library import compiler
from tinyllm.course.cuda_on_cpu.raw import RawKernel
from tinyllm.course.figures.ledger import PUBLISHED, published
from tinyllm.frozen.nf4 import dequantize_nf4, quantize_nf4
from tinyllm.inspect.plan import ghost_model, plan

needs_compiler = pytest.mark.skipif(compiler() is None, reason="not run: there is no C++ compiler")

# ------------------------------------------------------------------------------------------------ xray


@given(arrays(np.float64, (4, 6), elements=st.floats(-9, 9)).filter(lambda x: abs(x).max() > 1e-3))
def test_the_share_is_what_the_best_product_of_that_rank_holds(change):
    (matrix,) = figures.xray({"w": change}).data["matrices"]
    u, s, v = np.linalg.svd(change, full_matrices=False)
    for r, share in enumerate(matrix["share"], 1):
        left = change - (u[:, :r] * s[:r]) @ v[:r]
        assert abs(share - (1 - (left**2).sum() / (change**2).sum())) < 1e-5  # six digits are kept
    assert np.allclose(matrix["values"], s, rtol=1e-4, atol=1e-4 * s[0])


def test_xray_has_each_matrix_and_each_loss():
    data = xray().data
    assert [m["name"] for m in data["matrices"]] == list(CHANGES) and dict(map(tuple, data["losses"])) == LOSSES
    assert [tuple(m["shape"]) for m in data["matrices"]] == [c.shape for c in CHANGES.values()]


# ------------------------------------------------------------------------------------------------ ledger


def test_the_ledger_is_the_plan():
    for (name, config), row in zip(MODELS.items(), ledger().data["models"], strict=True):
        assert row["name"] == name
        for method, held in row["held"].items():
            planned = plan(config, method, batch_size=2, seq_len=16, checkpointing=True)
            assert held == {k: v for k, v in planned.by_category().items() if k != "library"}
            assert row["parameters"] == planned.parameters


# As their pages on Hugging Face have them.
COUNTS = {
    "SmolLM2-135M": 134_515_008, "SmolLM2-360M": 361_821_120, "TinyLlama-1.1B": 1_100_048_384,
    "SmolLM2-1.7B": 1_711_376_384, "Llama-3.2-3B": 3_212_749_824, "Llama-2-7B": 6_738_415_616,
}  # fmt: skip


def test_published_models_have_their_number_of_parameters():
    for name in PUBLISHED:
        with haunted():
            assert ghost_model(published(name)).num_parameters() == COUNTS[name], name


# ------------------------------------------------------------------------------------------------ merges


def test_the_ways_hold_what_they_say_and_the_model_stays_as_it_was():
    model, before = tuned(), {name: np.array(w) for name, w in arrays_of(tuned())}
    data = merges().data
    assert {name: w.tobytes() for name, w in before.items()} == {n: np.array(w).tobytes() for n, w in arrays_of(model)}
    layer = model.get(UP)
    (A,), (B,) = (tuple(p.values()) for p in (layer.lora_A, layer.lora_B))
    base = layer.base_layer.weight.dense()
    update = layer.adapters["default"].scale * (B.data.astype("d") @ A.data.astype("d"))
    exact = (base + update).astype("f")
    trained, dequantized, original, requantized = data["ways"]
    eps = 8 * np.finfo("f").eps * abs(exact).max()
    for row, wanted in (
        (trained, exact),
        (dequantized, exact),
        (original, kit.base().get(UP).weight.data + update),
        (requantized, dequantize_nf4(*quantize_nf4(layer.fold(layer.base_layer.weight)), exact.shape)),
    ):
        first = np.array(row["weights"])
        # A weight next to where a level ends may fall to either side of it.
        room = eps if row is not requantized else 1e-3
        assert (abs(first - np.asarray(wanted).reshape(-1)[: first.size]) < room).all(), row["name"]
    assert np.allclose(data["base"], base.reshape(-1)[:256], atol=0) and np.allclose(data["exact"], trained["weights"])
    assert trained["away"] == dequantized["away"] == 0 < requantized["away"]
    assert abs(original["away"] - abs(kit.base().get(UP).weight.data - base).mean()) < 1e-3 * original["away"]
    assert requantized["bytes"] < dequantized["bytes"] / 7 and dequantized["bytes"] == exact.nbytes
    assert trained["loss"] == pytest.approx(mean_of(model), rel=1e-5)
    assert trained["text"] == f"mean <{mean_of(model):.3f}>"
    assert len({row["loss"] for row in data["ways"]}) >= 3


def test_a_loss_that_changes_its_model_does_no_harm():
    model = tuned()
    model.train()

    def loss(given):
        given.eval()
        for p in given.parameters():
            p.data[...] = 0
        return 1.0

    before = [p.data.copy() for p in model.parameters()]
    figures.merge_lab(model, kit.base().state_dict(), UP, loss)
    assert model.training and all((p.data == b).all() for p, b in zip(model.parameters(), before, strict=True))


def arrays_of(model):
    for name, p in model.named_parameters():
        yield name, p.data
    for _, layer in tinyllm.lora.lora_layers(model):
        yield f"{id(layer)} codes", layer.base_layer.weight.dense()


# ------------------------------------------------------------------------------------------------ barriers

PROGRAM = """
extern "C" __global__ void follow(const int* todo, int steps, int every, float* y) {
    __shared__ float part[4];
    int t = threadIdx.x;
    part[t] = 1;
    __syncthreads();
    float sum = 0;
    for (int s = 0; s < steps; s++) {
        int what = todo[t * steps + s];
        if (what > 0 && what <= 4) sum += part[what - 1];
        if (what > 4) part[what - 5] = t;
        if ((s + 1) % every == 0) __syncthreads();
    }
    y[t] = sum;
}
"""


@needs_compiler
@given(arrays(np.int32, (4, 4), elements=st.integers(0, 8)), st.integers(1, 5))
@settings(deadline=None)
def test_there_is_a_race_in_the_figure_where_the_runtime_finds_one(todo, every):
    args = (todo.reshape(-1), np.int32(4), np.int32(every), np.zeros(4, "f"))
    (version,) = figures.threads_between_barriers({"it": PROGRAM}, "follow", 4, args).data["versions"]
    try:
        RawKernel(PROGRAM, "follow")((1,), (4,), tuple(x.copy() for x in args))
        found = False
    except launch.KernelError as error:
        found = "a race" in str(error)
    assert found == any(version["races"])
    did = [[len(steps) for steps in stretch] for stretch in version["stretches"]]
    assert np.sum(did) == 4 + (todo > 0).sum()
    if not found:
        assert len(set(version["results"].values())) == 1


@needs_compiler
def test_the_sum_with_and_without_its_barrier():
    right, racing = barriers().data["versions"]
    assert set(right["results"].values()) == {"28"} and not any(right["races"])
    assert len(set(racing["results"].values())) > 1 and [len(r) for r in racing["races"]] == [0, 4]
    step = racing["stretches"][1][0][0]
    assert (step["verb"], step["place"], step["value"], step["line"]) == ("reads", 0, "0", 8) or step["place"] == 4
    assert "part[t] += part[t + half]" in step["text"]


def in_one_block(body: str) -> dict:
    text = 'extern "C" __global__ void go(float* y) {\n__shared__ float s[8];\nint t = threadIdx.x;\n' + body + "\n}"
    return figures.threads_between_barriers({"it": text}, "go", 4, (np.zeros(4, "f"),)).data["versions"][0]


@needs_compiler
@pytest.mark.parametrize(
    "body, races",
    [
        ("s[t] = 0; __syncthreads(); if (t == 0) atomicAdd(&s[3], 1.0f); if (t == 1) y[0] = s[3];", 1),
        ("s[t] = 0; __syncthreads(); atomicAdd(&s[3], 1.0f); __syncthreads(); y[t] = s[3];", 0),
        ("s[t] = t; float v = __shfl_sync(15, 1.0f, 0); y[t] = v + s[3 - t];", 4),
        ("s[t] = t; __syncwarp(15); y[t] = s[3 - t];", 0),
    ],
)
def test_what_orders_memory_and_what_does_not(body, races):
    assert sum(map(len, in_one_block(body)["races"])) == races


@needs_compiler
def test_a_kernel_that_is_stopped_is_shown_up_to_there():
    version = in_one_block("s[t] = t; y[t] = s[(t + 1) % 4];")
    assert "which no thread of the block has written yet" in version["stopped"]
    assert version["results"]["forward"] == "stopped" and version["stretches"][0][0][0]["verb"] == "writes"


# ------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    "wrong, error, said",
    [
        (lambda: figures.xray({}), ValueError, "an X-ray needs changes"),
        (lambda: figures.xray({"w": np.zeros((2, 2))}), ValueError, "the change of w must be a matrix"),
        (lambda: figures.xray({"w": np.ones(3)}), ValueError, "the change of w must be a matrix"),
        (lambda: figures.xray(CHANGES, {-1: 2.0}), ValueError, "whole numbers from 0 on"),
        (lambda: figures.ledger({}), ValueError, "the ledger needs models"),
        (lambda: figures.merge_lab(tuned(), {}, "layers.9"), ValueError, "no adapted layer of this model"),
        (lambda: figures.merge_lab(tuned(), {}, UP), ValueError, "base= has no"),
        (lambda: figures.threads_between_barriers({}, "sum", 8, ()), ValueError, "needs texts of the kernel"),
        (lambda: figures.threads_between_barriers(SUMS, "sum", 32, ()), ValueError, "2 to 16 threads"),
        (lambda: figures.threads_between_barriers(SUMS, "sum", 8, ()), ValueError, "must be an array"),
    ],
)  # fmt: skip
def test_wrong_use_is_told(wrong, error, said):
    with pytest.raises(error, match=said):
        wrong()


def test_without_a_compiler_kernels_are_not_shown(monkeypatch):
    monkeypatch.setattr(figures.barriers, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match="install one"):
        figures.threads_between_barriers(SUMS, "sum", 8, (np.zeros(1),))
