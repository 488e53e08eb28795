"""The CUDA backend without a card: the whole flow with a stand-in for CuPy, its kernels run by g++.

What the stand-in refuses (a NumPy array among its own, a silent copy to the host), a card would refuse, too.
"""

from __future__ import annotations

import gc
import inspect

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes (bfloat16 for NumPy) is not installed")

from needs import needs_compiler  # noqa: E402

import tinyllm  # noqa: E402
from tests.fake_cupy import OutOfMemoryError, cupy, pool, the_device  # noqa: E402
from tinyllm.backend import BACKENDS  # noqa: E402
from tinyllm.backend.cuda import overrides as cuda  # noqa: E402
from tinyllm.backend.cuda import single  # noqa: E402
from tinyllm.backend.cuda.gemm import stacked_matmul  # noqa: E402
from tinyllm.backend.device import to_host  # noqa: E402
from tinyllm.backend.ghost import haunted  # noqa: E402
from tinyllm.cli import main  # noqa: E402
from tinyllm.data import (  # noqa: E402
    Dataset,
    Example,
    Loader,  # noqa: E402
)
from tinyllm.frozen.weight import TILE_BYTES  # noqa: E402
from tinyllm.generate import generate  # noqa: E402
from tinyllm.inspect.memory import card_peak  # noqa: E402
from tinyllm.inspect.plan import plan  # noqa: E402
from tinyllm.lora import apply_lora, merge_lora, unmerge_lora  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import DecoderConfig, llama_shape  # noqa: E402
from tinyllm.qlora import apply_qlora  # noqa: E402
from tinyllm.train import (  # noqa: E402
    NonFiniteLoss,  # noqa: E402
    TrainConfig,
    train,
)
from tinyllm.train.loss_scale import LossScale  # noqa: E402

pytestmark = needs_compiler
VOCAB, TIME = 29, 16
EPS = np.finfo(np.float32).eps
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LLAMA = llama_shape(num_kv_heads=1)
GPT2 = {"norm": "layer_norm", "positions": "learned", "activation": "gelu_tanh", "bias": True}


def make(shape=LLAMA, **settings):
    return DecoderModel(VOCAB, 64, 2, 2, seed=1, max_seq_len=TIME, **shape, **settings)


def loader(batch_size=2):
    rng = np.random.default_rng(0)
    made = [rng.integers(0, VOCAB, rng.integers(5, TIME)) for _ in range(6)]
    return Loader(Dataset(tuple(Example(ids, np.append(ids[1:], -100)) for ids in made)), batch_size, TIME)


def trained(method, shape=LLAMA, checkpointing=False, steps=3, config=None, **settings):
    """Records, result and model of a short run with dropout on the adapters, on the device in use."""
    tinyllm.manual_seed(5)
    model = make(shape, **settings)
    method(model, 4, dropout=0.2, target_modules="all-linear", verbose=False)
    model.checkpointing = checkpointing
    log = []
    result = train(
        model, loader(), None, TrainConfig(steps=steps, lr=1e-2, warmup=0, **(config or {})), report=log.append
    )
    return log, result, model


@pytest.mark.parametrize("shape", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("method", [apply_lora, apply_qlora])
def test_training_and_generation_are_the_cpus_to_rounding(method, shape):
    log, _, model = trained(method, shape)
    tokens = generate(model, [1, 2, 3], 6)
    with the_device():
        launches = cupy.launches
        card_log, _, card = trained(method, shape)
        assert cupy.launches > launches + 100  # the kernels were at work, not the specification
        assert all(type(p.data).__module__ == "cupy" for p in card.parameters())
        assert generate(card, [1, 2, 3], 6) == tokens
        state = {name: p.numpy() for name, p in card.named_parameters() if p.requires_grad}
    for a, b in zip(
        log, card_log, strict=True
    ):  # dropout's masks are the same, or these would differ in the first digit
        assert abs(a["loss"] - b["loss"]) <= 64 * EPS * a["loss"]
        assert abs(a["grad_norm"] - b["grad_norm"]) <= 256 * EPS * a["grad_norm"]
    moved = [np.abs(p.data - state[name]).max() for name, p in model.named_parameters() if p.requires_grad]
    assert max(moved) <= 1e-3  # three steps of 1e-2: Adam divides by small gradients, which magnifies rounding


@pytest.mark.parametrize("grad_accum", [1, 3])
def test_a_step_waits_for_the_card_once(grad_accum):
    with the_device():
        counted = []
        tinyllm.manual_seed(0)
        model = make()
        apply_qlora(model, 4, verbose=False)
        train(
            model,
            loader(),
            None,
            TrainConfig(steps=4, grad_accum=grad_accum),
            report=lambda _: counted.append(cupy.synchronisations),
        )
        assert np.diff(counted).tolist() == [1, 1, 1]


def test_checkpointing_changes_nothing_and_holds_less():
    with the_device():
        plain, result = trained(apply_lora)[:2]  # the model is gone before the next one is made
        again, less = trained(apply_lora, checkpointing=True)[:2]
        assert [r["loss"] for r in plain] == [r["loss"] for r in again]
        assert less["peak_memory"] < result["peak_memory"]


def test_reading_onto_a_card_holds_no_second_copy(tmp_path):
    make().save_pretrained(tmp_path)
    with the_device():
        gc.collect()
        before = pool.used
        with card_peak() as peak:
            model = DecoderModel.from_pretrained(tmp_path, dtype="bfloat16")
            most = peak()
        held = sum(p.data.nbytes for p in model.parameters())
        assert held <= most - before <= held + 4 * max(p.data.nbytes for p in model.parameters())
        assert model.norm.weight.dtype == np.float32 and model.embed_tokens.weight.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_plan_of_a_run_on_a_card_is_of_its_dtype_and_of_nothing_but_the_card(method, dtype):
    shape = dict(LLAMA, max_seq_len=TIME)
    with the_device():
        apply = {"lora": apply_lora, "qlora": apply_qlora, "full": lambda model, *_, **__: model}[method]
        peak = trained(apply, dtype=HALVES.get(dtype, np.float32))[1]["peak_memory"]
        planned = plan(
            DecoderConfig(VOCAB, 64, 2, 2, **shape), method, rank=4, dropout=0.2, target_modules="all-linear",
            batch_size=2, seq_len=TIME, dtype=dtype, storage="nf4" if method == "qlora" else None,
        )  # fmt: skip
        assert planned.library == 0 and 0.98 * peak <= planned.peak <= 1.6 * peak, (peak, planned)


def test_ghosts_are_cut_as_the_device_cuts():
    """Eight MB of a weight are several tiles of a CPU, and one of a card."""
    with haunted():
        assert len(BACKENDS["ghost"].pieces(4096, 2048, TILE_BYTES)) > 1
    with the_device(), haunted():
        assert BACKENDS["ghost"].pieces(4096, 2048, TILE_BYTES) == [slice(0, 4096)]


def test_the_command_plans_what_the_card_will_hold(tmp_path, monkeypatch, capsys):
    """The embedded base has 1,624,800 weights, of two bytes each in bfloat16."""

    def enough(*_, **__):
        raise ValueError("enough")

    monkeypatch.setattr(DecoderModel, "from_pretrained", enough)
    with the_device():
        assert main(["finetune", "--device", "cuda", "--dtype", "bfloat16", "--out", str(tmp_path / "out")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("memory of the GPU: about") and "base weights 3.25 MB" in said
    assert "the process itself" not in said


@pytest.mark.parametrize(
    "variant", ["dora", "bias", "head", "modules_to_save", "everything", "a folder", "an NF4 folder"]
)
def test_other_ways_to_train_take_a_step_on_the_card(variant, tmp_path):
    """For what touches arrays outside the table of primitives: the loss after one step is the CPU's."""
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    make(storage="nf4" if variant == "an NF4 folder" else "float32").save_pretrained(tmp_path)

    def after_one_step():
        tinyllm.manual_seed(3)
        if "folder" in variant:
            storage = "nf4" if variant == "a folder" else None
            model = apply_lora(DecoderModel.from_pretrained(tmp_path, storage=storage), 4, verbose=False)
        else:
            model = make({**LLAMA, "bias": True, "tie_embeddings": False})
        options = {
            "dora": {"use_dora": True},
            "bias": {"bias": "all"},
            "head": {"target_modules": ["lm_head"]},
            "modules_to_save": {"modules_to_save": ["lm_head"]},
        }.get(variant)
        if options is not None:
            apply_lora(model, 4, verbose=False, **options)
        optimizer = tinyllm.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        first = model.loss(ids, ids)
        first.backward()
        optimizer.step()
        return first.item(), model(ids[:1, :3])[np.array([0, 0])].sum().item(), model.loss(ids, ids).item()

    on_cpu = after_one_step()
    with the_device():
        on_card = after_one_step()
    assert abs(on_card[0] - on_cpu[0]) <= 32 * EPS * on_cpu[0]
    assert abs(on_card[2] - on_cpu[2]) <= 1e-4 and on_cpu[2] != on_cpu[0]  # Adam magnifies what rounding left


def test_what_is_saved_and_merged_on_the_card_comes_back(tmp_path):
    with the_device():
        _, _, model = trained(apply_qlora)
        before = generate(model, [4, 5], 4)
        weights = {name: w.data.get() for name, w in model.named_parameters()}
        merge_lora(model)
        assert len(generate(model, [4, 5], 4)) == 4
        unmerge_lora(model)
        assert generate(model, [4, 5], 4) == before
        tinyllm.save(model.state_dict(), tmp_path / "all.safetensors")
        for p in model.parameters():
            p.data *= 0
        model.load_state_dict(tinyllm.load(tmp_path / "all.safetensors"))
        for name, p in model.named_parameters():
            np.testing.assert_array_equal(p.data.get(), weights[name])
        assert generate(model, [4, 5], 4) == before
        tinyllm.save_adapter(model, tmp_path / "adapter")
        other = apply_qlora(make(), 4, verbose=False, target_modules="all-linear")
        tinyllm.load_adapter(other, tmp_path / "adapter", "other")


# ------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("storage", ["float32", "nf4", "same"])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_trains_float32_adapters(dtype, storage):
    log, _, _ = trained(apply_lora, storage="nf4" if storage == "nf4" else "float32")
    with the_device():
        card_log, _, model = trained(apply_lora, storage=dtype if storage == "same" else storage, dtype=HALVES[dtype])
        assert model.hidden(np.array([[1, 2]])).dtype.name == dtype
        assert model.loss(np.array([[1, 2]]), np.array([[2, 3]])).dtype == np.float32
        for name, weight in model.named_parameters():
            assert weight.dtype.name == ("float32" if "lora" in name or "norm" in name else dtype), name
            assert weight.grad is None or weight.grad.dtype == np.float32
        assert len(generate(model, [1, 2, 3], 4)) == 4
    # A loss of about ln(29) = 3.4 from logits rounded to half; later steps differ by what was learned, too.
    off = [abs(a["loss"] - b["loss"]) for a, b in zip(log, card_log, strict=True)]
    assert off[0] <= {"float16": 2.0**-8, "bfloat16": 2.0**-6}[dtype]
    assert max(off) <= {"float16": 2.0**-7, "bfloat16": 2.0**-5}[dtype]
    # Adam forgives a gradient of the wrong length, so it is looked at.
    assert abs(card_log[0]["grad_norm"] / log[0]["grad_norm"] - 1) <= {"float16": 2.0**-7, "bfloat16": 2.0**-4}[dtype]


@pytest.mark.parametrize("longest", [1e-3, 1e3])
def test_the_optimiser_sees_gradients_without_the_loss_scale(longest, monkeypatch):
    seen = []
    plain = tinyllm.optim.AdamW.step

    def step(self):
        params = [p for group in self.groups for p in group["params"]]
        seen.append(sum(float((p.grad.astype(np.float64) ** 2).sum()) for p in params) ** 0.5)
        plain(self)

    monkeypatch.setattr(tinyllm.optim.AdamW, "step", step)
    with the_device():
        log = trained(apply_lora, dtype=np.float16, config={"max_grad_norm": longest})[0]
    for record, norm in zip(log, seen, strict=True):
        assert abs(norm / min(longest, record["grad_norm"]) - 1) <= 64 * EPS


def test_half_precision_is_for_a_card():
    with the_device():
        assert make(dtype="bfloat16").dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="dtype must be float32 or float64, not float16; .* a GPU"):
        make(dtype=np.float16)


def test_the_loss_scale_halves_at_an_overflow_leaves_that_step_out_and_grows_again(monkeypatch):
    scale = LossScale(np.dtype(np.float16), patience=2)
    assert scale.value == 2**16 and scale.overflowed() and scale.value == 2**15
    scale.went_well(), scale.went_well()
    assert scale.value == 2**16
    assert not LossScale(np.dtype(np.float32)).overflowed()
    while scale.overflowed():
        assert scale.value >= 1
    with the_device():
        monkeypatch.setattr(
            LossScale,
            "__init__",
            lambda self, dtype: self.__dict__.update(needed=True, patience=99, value=2.0**40, calm=0),
        )
        log, _, _ = trained(apply_lora, dtype=np.float16, steps=40)
        skipped = [r["grad_norm"] == -1 for r in log]
        assert skipped[0] and skipped.count(False) > 5 and all(np.isfinite(r["loss"]) for r in log)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_bias_trains_in_float32_beside_half_precision(dtype, dora):
    with the_device():
        both = lambda model, *args, **kwargs: apply_lora(model, *args, bias="all", use_dora=dora, **kwargs)
        log, _, model = trained(both, GPT2, dtype=HALVES[dtype])
        biases = {name: p for name, p in model.named_parameters() if "trained_bias" in name}
        assert biases and all(p.dtype == np.float32 and np.abs(p.data.get()).max() > 0 for p in biases.values())
        assert all(step["grad_norm"] > 0 for step in log)  # -1: float16 overflowed, and the step was left out


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_stacked_products_of_every_layout(dtype):
    rng = np.random.default_rng(0)
    kind = np.dtype(HALVES.get(dtype, np.float32))

    def draw(*shape):
        return rng.standard_normal(shape).astype(kind)

    def layouts(*stack, rows, columns):
        yield draw(*stack, rows, columns)
        yield draw(*stack, columns, rows).swapaxes(-1, -2)
        yield draw(*stack, rows, columns + 3)[..., 1 : columns + 1]
        yield draw(*stack, 2 * rows, columns)[..., ::2, :]
        yield draw(stack[0], rows, *stack[1:], columns).transpose(0, 2, 1, 3)
        yield draw(*stack, rows, 2 * columns)[..., ::2]  # along neither axis: copied
        yield np.broadcast_to(draw(*stack, 1, columns), (*stack, rows, columns))  # every row the same memory

    for m, k, n in ((3, 5, 4), (1, 4, 1), (2, 1, 3), (1, 1, 1)):
        for a in layouts(2, 3, rows=m, columns=k):
            for b in layouts(2, 3, rows=k, columns=n):
                for wanted in {kind, np.dtype(np.float32)}:
                    y = stacked_matmul(cupy, _view(a), _view(b), wanted)
                    exact = a.astype(np.float64) @ b.astype(np.float64)
                    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
                    ulp = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[wanted.name]
                    assert (
                        y.dtype == wanted
                        and (np.abs(y.get() - exact) <= (k + 1) * 2.0**-24 * size + ulp * np.abs(exact)).all()
                    )


def _view(a):
    """An array of the card in just this layout (``asarray`` would copy it into C order)."""
    from tests.fake_cupy import ndarray

    return ndarray(a)


# ----------------------------------------------------------------------------------------- replacing what is fused


@pytest.mark.parametrize(
    "part, call",
    [
        ("softmax", lambda be, x: be.attention(x, x, x, 1.0, None)),
        ("softmax", lambda be, x: be.attention_backward(x, x, x, x, 1.0, None)[0]),
        ("softmax_backward", lambda be, x: be.attention_backward(x, x, x, x, 1.0, None)[0]),
        ("sigmoid", lambda be, x: be.silu_mul(x, x)),
        ("sigmoid", lambda be, x: be.silu_mul_backward(x, x, x)[0]),
        ("erf", lambda be, x: be.gelu(x, False)),
        ("erf", lambda be, x: be.gelu_backward(x, x, False)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, *HALVES.values()])
def test_a_fused_override_steps_aside_for_a_replaced_part(part, call, dtype):
    plain = BACKENDS["numpy"].table[part]
    with the_device():
        x = cupy.asarray(np.random.default_rng(0).standard_normal((1, 1, 5, 8)).astype(dtype))
        before = call(BACKENDS["cuda"], x).get()

        def doubled(xp, *args):
            return plain(xp, *args) * 2

        doubled.__signature__ = inspect.signature(plain)
        with tinyllm.use(**{part: doubled}):
            within = call(BACKENDS["cuda"], x)
            assert within.dtype == dtype and np.abs(within.get() - before).max() > 0.01
        np.testing.assert_array_equal(call(BACKENDS["cuda"], x).get(), before)


def test_a_replacement_is_not_blamed_for_an_input_that_is_no_number():
    plain = cuda.SPECIFICATION["softmax"]

    def writes(xp, x):
        y = plain(xp, x)
        x *= 2
        return y

    with the_device():
        be, x = BACKENDS["cuda"], cupy.asarray(np.array([[1.0, np.nan, 2.0]], np.float32))
        with tinyllm.use(softmax=plain):
            assert np.isnan(be.softmax(x).get()).all()
        with tinyllm.use(softmax=writes), pytest.raises(ValueError, match="softmax writes into its input x"):
            be.softmax(x)


def test_every_override_has_a_specification_with_its_parameters():
    for name, function in cuda.OVERRIDES.items():
        if name == "matmul":  # chosen for every dtype, by nothing in between
            own = inspect.unwrap(function, stop=lambda f: f.__code__.co_filename == single.__file__)
            assert own.__code__.co_varnames[:4] == ("xp", "a", "b", "out")
            continue
        own = function.__closure__[[*function.__code__.co_freevars].index("function")].cell_contents
        assert list(inspect.signature(own).parameters) == list(
            inspect.signature(cuda.SPECIFICATION[name]).parameters
        ), name


# ------------------------------------------------------------------------------------------------- bad news in words


def test_a_loss_that_is_not_finite_is_traced_to_its_layer():
    with the_device():
        tinyllm.manual_seed(0)
        model = make()
        apply_lora(model, 4, verbose=False)
        model.layers[1].input_layernorm.weight.data *= np.float32(3e38)
        with pytest.raises(NonFiniteLoss, match=r"step 1: not finite, first in layers\.1\.input_layernorm;"):
            train(model, loader(), None, TrainConfig(steps=2))


def test_a_full_card_is_told_with_what_it_holds():
    with the_device():
        tinyllm.manual_seed(0)
        model = make()
        apply_lora(model, 4, verbose=False)
        gc.collect()
        pool.limit = pool.used + 10_000
        try:
            with pytest.raises(
                MemoryError, match=r"is full: the frozen base 0.5 MiB, trained .*; keep it in fewer"
            ) as caught:
                train(model, loader(), None, TrainConfig(steps=2))
        finally:
            pool.limit = 1 << 62
        assert not isinstance(caught.value, OutOfMemoryError) and not pool.hooks


def test_the_stand_in_is_as_strict_as_cupy():
    x, y = cupy.asarray(np.ones(3, np.float32)), np.ones(3, np.float32)
    for bad in (
        lambda: x + y,
        lambda: y + x,
        lambda: np.exp(x),
        lambda: np.asarray(x),
        lambda: cupy.exp(y),
        lambda: x[y > 0],
    ):
        with pytest.raises(TypeError):
            bad()
    before = cupy.synchronisations
    assert float(x.sum()) == 3 and bool((x > 0).all()) and cupy.synchronisations == before + 2
    assert x.sum().shape == () and type(x.sum()) is type(x)


def test_masks_are_the_same_on_both_devices():
    on_cpu = BACKENDS["numpy"].dropout_mask((7, 9), (3, 50), 0.4, np.float32)
    with the_device():
        np.testing.assert_array_equal(to_host(BACKENDS["cuda"].dropout_mask((7, 9), (3, 50), 0.4, np.float32)), on_cpu)
