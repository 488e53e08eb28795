"""The plan is what happens: to the byte for what is kept, to a hair for what is allocated, whatever the method."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyllm
from tinyllm import frozen
from tinyllm.backend.ghost import Ghost, haunted
from tinyllm.backend.ghost.backend import GhostBackend
from tinyllm.backend.table import Backend
from tinyllm.cli import build_parser, finetune, main, memory, options
from tinyllm.inspect.plan import Plan, _train, ghost_model, plan
from tinyllm.lora import apply_lora
from tinyllm.lora.config import LoRAConfig
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.folder import load_config
from tinyllm.models.config import DecoderConfig, llama_shape
from tinyllm.models.head import chunk_rows

STORAGES = ["float32", "float16", "bfloat16", "nf4"]


@st.composite
def configs(draw, largest=3):
    """Either layout, with every option that changes what is kept."""
    heads, kv = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]))
    shape = {"intermediate_size": draw(st.sampled_from([48, 80])), "dropout": draw(st.sampled_from([0.0, 0.1]))}
    if draw(st.booleans()):
        shape = llama_shape(num_kv_heads=kv, tie_embeddings=draw(st.booleans()), **shape)
    vocab = draw(st.sampled_from([101, 256]))
    return DecoderConfig(vocab, 16 * heads, draw(st.integers(1, largest)), heads, **shape)


@given(configs(), st.sampled_from(["full", "lora", *STORAGES]), st.booleans(), st.integers(1, 3), st.integers(1, 20))
def test_what_is_kept_is_equal_to_the_byte(config, how, checkpointing, batch, time):
    storage = how if how in STORAGES else "float32"
    ids = np.zeros((batch, time), np.int64)

    def total(model):
        model.checkpointing = checkpointing
        if how != "full":
            apply_lora(model, 4, target_modules="all-linear", dropout=0.1, verbose=False)
        return tinyllm.kept(model.loss(ids, ids), model).total

    real = total(DecoderModel(**vars(config), seed=0, storage=storage))
    with haunted():
        assert total(ghost_model(config, storage)) == real


@pytest.fixture
def threads(request):
    before = tinyllm.get_num_threads()
    tinyllm.set_num_threads(request.param)
    yield request.param
    tinyllm.set_num_threads(before)


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "method, storage", [("full", "float32"), ("lora", "float32"), ("lora", "bfloat16"), ("qlora", "nf4")]
)
def test_the_peak_is_what_is_really_allocated(method, storage, checkpointing, threads):
    planned, peak = planned_and_measured(method, storage, checkpointing)
    assert abs(planned - peak) <= 0.01 * peak + SMALL


@pytest.mark.parametrize("threads", [2, 3], indirect=True)
@pytest.mark.parametrize("storage", ["bfloat16", "nf4"])
def test_several_threads_need_at_most_the_plan(storage, threads, monkeypatch):
    """What it says is needed if all are at their fullest at once, and chance says whether they are."""
    monkeypatch.setattr("tinyllm.frozen.weight.TILE_BYTES", 256 << 10)  # several tiles for each thread ...
    # ... of a matrix so wide that the peak is where each has a sum and a product of its own.
    planned, peak = planned_and_measured("lora" if storage == "bfloat16" else "qlora", storage, True, 4096)
    assert peak <= 1.01 * planned + SMALL


SMALL = 100e3  # bytes that Python's own objects take, graph nodes above all


def planned_and_measured(method, storage, checkpointing, intermediate_size=384):
    shape = llama_shape(num_kv_heads=2, intermediate_size=intermediate_size, max_seq_len=512)
    config = DecoderConfig(2000, 128, 3, 4, **shape)
    planned = plan(
        config, method, storage=storage, target_modules="all-linear" if method != "full" else None, batch_size=4,
        seq_len=160, checkpointing=checkpointing,
    )  # fmt: skip
    _steps(DecoderModel(2000, 128, 1, 4, **shape, seed=0, storage=storage), method)  # tables that are made once
    gc.collect()
    tracemalloc.start()
    model = DecoderModel(**vars(config), seed=0, storage=storage)
    tracemalloc.reset_peak()  # building is another moment
    model.checkpointing = checkpointing
    _steps(model, method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return planned.peak - planned.library, peak


def _steps(model, method):
    if method != "full":
        apply_lora(model, 8, target_modules="all-linear", verbose=False)
    _train(model, 4, 160)


@given(configs(2), st.sampled_from(STORAGES))
def test_weights_and_adapters_are_counted_exactly(config, storage):
    planned = plan(config, "lora", storage=storage, rank=3, seq_len=4)
    model = DecoderModel(**vars(config), seed=0, storage=storage)
    weights = [w for _, w in model.named_weights()]
    base = sum(getattr(w, "nbytes", None) or w.data.nbytes for w in weights)
    # Double quantisation keeps one number that is no array, the offset.
    base -= 4 * sum(isinstance(w, frozen.NF4Weight) for w in weights)
    assert planned.base == base and planned.parameters == model.num_parameters()
    apply_lora(model, 3, verbose=False)
    trains = model.num_parameters(trainable_only=True)
    assert planned.adapters == 4 * trains == 4 * planned.trainable and planned.total == model.num_parameters()
    assert planned.optimizer >= 2 * planned.adapters


def test_full_training_holds_four_floats_a_weight():
    config = DecoderConfig(400, 64, 6)
    planned = plan(config, "full", seq_len=2)
    assert planned.gradients == planned.base == 4 * planned.trainable == 4 * planned.parameters
    assert 2 * planned.base <= planned.optimizer < 2.6 * planned.base  # the update of one weight is being made
    assert planned.adapters == 0 and planned.share == 1
    assert min(planned.by_category().values()) >= 0  # no byte is counted in two places


@pytest.mark.parametrize("threads", [1], indirect=True)
def test_logits_and_unpacked_tiles_are_counted_as_such(threads):
    config = DecoderConfig(9000, 64, 1, max_seq_len=400, **llama_shape(tie_embeddings=False))
    planned = plan(config, "lora", storage="bfloat16", batch_size=2, seq_len=400)
    logits = 4 * 9000 * chunk_rows(800, 9000, 4)
    assert planned.tiles == 4 * 9000 * 64 and logits < planned.head < 1.1 * logits
    assert planned.activations < logits / 4


def test_a_float_copy_of_a_frozen_layer_would_be_noticed(monkeypatch):
    config = DecoderConfig(256, 64, 4, intermediate_size=2048)
    before = plan(config, "qlora", seq_len=4)
    copies = []

    def keep(self, spans=None):
        copies.append(self.dense())
        yield slice(0, self.shape[0]), copies[-1]

    monkeypatch.setattr(frozen.NF4Weight, "tiles", keep)
    after = plan(config, "qlora", seq_len=4)
    assert after.peak - before.peak > 4 * 8 * 64 * 2048
    copies.clear()


def test_checkpointing_and_longer_rows_say_what_they_cost():
    config = DecoderConfig(256, 64, 8, **llama_shape())
    plans = {c: plan(config, "lora", seq_len=64, batch_size=4, checkpointing=c) for c in (False, True)}
    assert plans[True].activations < 0.4 * plans[False].activations
    assert plan(config, "lora", seq_len=128, batch_size=4).activations > 1.8 * plans[False].activations


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method, storage", [("lora", "float16"), ("qlora", "nf4")])
def test_each_further_layer_adds_the_same(method, storage, checkpointing):
    config = DecoderConfig(500, 64, 9, 2, **llama_shape())
    options = {"rank": 4, "batch_size": 2, "seq_len": 48, "checkpointing": checkpointing}
    whole = plan(config, method, storage=storage, **options)
    guess = memory._beside_the_library(config, method, storage, options)
    assert abs(guess - (whole.peak - whole.library)) <= 2e-3 * guess


def test_the_plan_draws_no_random_numbers():
    tinyllm.manual_seed(3)
    before = tinyllm.backend.random.default.state
    plan(DecoderConfig(64, 32, 1, dropout=0.5), "lora", dropout=0.5)
    assert tinyllm.backend.random.default.state == before


@pytest.mark.parametrize(
    "bad, said", [({"method": "prefix"}, "no method"), ({"method": "full", "storage": "nf4"}, "frozen")]
)
def test_what_cannot_be_planned(bad, said):
    with pytest.raises(ValueError, match=said):
        plan(DecoderConfig(64, 32, 1), **bad)


# The guide's table -------------------------------------------------------------------------------------------------


def table(capsys, *options):
    assert main(["memory", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_guides_table(capsys):
    attention = ["--target-modules", "q_proj", "k_proj", "v_proj", "out_proj"]
    options = ["--storage", "float16", "--batch-size", "1", "--checkpointing", *attention]
    said = table(capsys, "--model", "llama-2-7b", *options)["methods"]
    base = {m: said[m]["base"] / 1e9 for m in said}
    assert said["full"]["parameters"] == 6_738_415_616
    assert [round(base[m], 2) for m in ("full", "lora", "qlora")] == [26.95, 13.48, 3.87]
    # What this process had before, other tests' arrays too, is not the model's.
    peak = {m: said[m]["peak"] - said[m]["library"] for m in said}
    assert peak["lora"] < 14.4e9 and peak["qlora"] < 4.4e9
    assert said["full"]["peak"] > 100e9
    assert said["qlora"]["longest_row_on_a_card_of_gb"]["8"] >= 512
    assert said["full"]["longest_row_on_a_card_of_gb"] == {"8": None, "16": None, "24": None}


def test_thirteen_billion(capsys):
    said = table(capsys, "--model", "llama-2-13b", "--method", "qlora")["methods"]["qlora"]
    assert said["parameters"] == 13_015_864_320
    assert 7.2e9 < said["base"] < 7.4e9


def test_a_folder(capsys, tmp_path):
    DecoderModel(80, 64, 2, **llama_shape(), seed=1).save_pretrained(tmp_path)
    said = table(capsys, "--model", str(tmp_path), "--method", "lora", "--storage", "float32")
    assert said["methods"]["lora"]["base"] == 4 * said["methods"]["lora"]["parameters"]


# Quick, and what finetune would run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_memory_plans_what_finetune_would_run(method, capsys, tmp_path):
    """With no other option; of the bytes, all but those of the process, which has the data by then."""
    found = table(capsys, "--method", method)["methods"][method]
    given = {"finetune": build_parser().parse_args(["finetune"]), "memory": build_parser().parse_args(["memory"])}
    for option in ("model", "rank", "dropout", "dora", "target_modules", "batch_size", "max_seq_len", "checkpointing"):
        assert getattr(given["memory"], option) == getattr(given["finetune"], option), option
    args = given["finetune"]
    adapter = {**options.chosen(args, LoRAConfig), "target_modules": options.targets_of(args.target_modules)}
    folder = options.model_folder(args.model)
    planned = finetune.plan_of(
        folder, load_config(folder), method, finetune.storage_of(method, args.block_size), adapter,
        batch_size=args.batch_size, seq_len=args.max_seq_len, checkpointing=args.checkpointing,
    )  # fmt: skip
    assert found["peak"] - found["library"] == planned.peak - planned.library


def test_a_model_in_four_bits_is_planned_in_them(capsys, tmp_path):
    DecoderModel(80, 64, 2, **llama_shape(), seed=1, storage="nf4").save_pretrained(tmp_path)
    found = table(capsys, "--model", str(tmp_path))["methods"]
    assert {m: found[m]["storage"] for m in found} == {"full": "float32", "lora": "nf4", "qlora": "nf4"}


@settings(max_examples=12)
@given(st.integers(1, 400), st.integers(1, 2), st.sampled_from([(2, 1), (4, 4)]), st.booleans())
def test_few_of_attentions_tiles_tell_as_much_as_all(time, batch, heads, checkpointing):
    """Lengths with and without a ragged last tile; one thread or several, the peak is the same to the byte."""
    shape = llama_shape(num_kv_heads=heads[1], intermediate_size=16)
    config = DecoderConfig(64, 16 * heads[0], 1, heads[0], max_seq_len=512, **shape)

    def peaks():
        found = [plan(config, m, seq_len=time, batch_size=batch, checkpointing=checkpointing) for m in ("full", "lora")]
        return [p.peak - p.library for p in found]

    few = peaks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GhostBackend, "in_turn", Backend.in_turn)
        assert few == peaks()


def test_longer_rows_take_no_longer_to_plan(monkeypatch):
    config = DecoderConfig(64, 32, 2, max_seq_len=8192, **llama_shape())
    made = []
    become = Ghost._become
    monkeypatch.setattr(Ghost, "_become", lambda *args: made.append(0) or become(*args))

    def ghosts(time):
        made.clear()
        plan(config, seq_len=time)
        return len(made)

    assert ghosts(8192) < 1.5 * ghosts(1024)


@pytest.mark.parametrize("cards", [(8, 16, 24), (0.004, 0.03, 0.06), (0.015, 0.016, 0.09), (0.001, 0.0012, 0.0014)])
def test_the_rows_that_fit_are_the_longest_of_those_named(cards, monkeypatch):
    monkeypatch.setattr(memory, "CARDS", cards)
    config = DecoderConfig(500, 64, 2, 2, max_seq_len=2048 + 7, **llama_shape())
    bytes_of, asked = memory._beside_the_library, []
    monkeypatch.setattr(memory, "_beside_the_library", lambda *args: asked.append(0) or bytes_of(*args))
    options = {"batch_size": 2}
    fits = memory.longest(config, "lora", "float32", plan(config), options)
    assert len(asked) <= 6 and memory.lengths(config) == [64, 128, 256, 512, 1024, 2048]
    for card, found in fits.items():
        right = [
            n
            for n in memory.lengths(config)
            if bytes_of(config, "lora", "float32", {**options, "seq_len": n}) <= card * 1e9
        ]
        assert found == (right[-1] if right else None)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("model", ["base", "llama-2-7b"])
def test_the_table_fits_the_window(model, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["memory", "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and not any("…" in line for line in lines)
    assert any("rows that fit 24 GB" in line for line in lines) and "rows that fit: the most tokens" in "\n".join(lines)


@given(st.lists(st.integers(0, 10**13), min_size=8, max_size=8))
def test_the_plans_lines_fit_80_columns_and_part_no_amount(values):
    text = memory.estimate(Plan(*values, parameters=1, total=1, trainable=1))
    assert max(map(len, text.splitlines())) <= 80
    for name, n in zip(memory.EXPLAINED, values, strict=True):
        amount = f"{memory.EXPLAINED[name]} {options.megabytes(n)}"
        assert not n or sum(amount in line for line in text.splitlines()) == 1


MEASURED = """
import sys
from tinyllm.inspect.plan import _train, plan
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import DecoderConfig, llama_shape
method, storage, checkpointing = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
config = DecoderConfig(16000, 384, 8, 6, **llama_shape(intermediate_size=1024))
planned = plan(config, method, storage=storage, batch_size=4, seq_len=128, checkpointing=checkpointing)
model = DecoderModel(**vars(config), seed=0, storage=storage)
model.checkpointing = checkpointing
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak so far was that of building, which is another moment
if method != "full":
    apply_lora(model, 8, verbose=False)
_train(model, 4, 128)
with open("/proc/self/status") as file:
    print(planned.peak, 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="not run: peak memory is measured on Linux")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method, storage", [("full", "float32"), ("lora", "float32"), ("qlora", "nf4")])
def test_the_peak_of_a_whole_process(method, storage, checkpointing):
    command = [sys.executable, "-c", MEASURED, method, storage, str(checkpointing)]
    # glibc keeps freed arrays of up to 32 MB for later, which a model this small notices; told so, it gives them back.
    said = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=said)
    planned, measured = map(int, done.stdout.split())
    assert abs(planned / measured - 1) < 0.05, f"planned {planned / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"
