"""Plain functions of the book that `tinyllm.use` replaces: each is felt, and an equal one changes no bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import tinyllm
from tinyllm import autograd, optim
from tinyllm import functional as F
from tinyllm.backend import double_quant, half
from tinyllm.backend.table import REPLACEABLE, is_own
from tinyllm.generate import generate
from tinyllm.lora import apply_lora, layer, merge_lora
from tinyllm.models import DecoderModel
from tinyllm.qlora import apply_qlora
from tinyllm.tensor import Parameter, Tensor

IDS = np.random.default_rng(0).integers(0, 40, (2, 9))


def gradients():
    x, bias = Parameter(np.ones((3, 2))), Parameter(np.arange(2.0))
    y = x * bias + bias
    (y * y).sum().backward()
    return [p.grad if p.grad is not None else np.zeros(2) for p in (x, bias)]


def clipped():
    p = Parameter(np.zeros(3))
    p.grad = np.array([3.0, 4.0, 0.0])
    optim.clip_grad_norm([p], 1.0)
    return [p.grad]


def written():
    return [np.array(generate(decoder(), [1, 2, 3], 6, temperature=1.0, seed=0))]


def decoder(storage="float32"):
    return DecoderModel(40, 32, 2, 2, seed=0, max_seq_len=32, storage=storage)


def logits(model):
    return [model.eval()(IDS).numpy()]


def adapted(apply=apply_lora, **options):
    tinyllm.manual_seed(0)
    model = apply(decoder(), rank=2, verbose=False, **options)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data + np.float32(0.1)
    return model


def merged():
    model = adapted()
    merge_lora(model)
    return logits(model)


# Where each is felt, and a replacement that differs.
FELT = {
    "topological": (gradients, lambda root: autograd.topological(root)[-1:]),
    "unbroadcast": (gradients, lambda g, shape: 2 * autograd.unbroadcast(g, shape)),
    "clip_factor": (clipped, lambda norm, max_norm: 1.0),
    "next_probabilities": (
        written,
        lambda logits, temperature=1.0, top_k=None, top_p=None: np.eye(len(logits))[-1],
    ),
    "to_bfloat16": (lambda: logits(decoder("bfloat16")), lambda w: half.to_bfloat16(w) & 0xFFF0),
    "from_bfloat16": (lambda: logits(decoder("bfloat16")), lambda bits: 2 * half.from_bfloat16(bits)),
    "quantize_absmax": (
        lambda: logits(adapted(apply_qlora)),
        lambda absmax: (lambda codes, *more: (codes // 2, *more))(*double_quant.quantize_absmax(absmax)),
    ),
    "dequantize_absmax": (
        lambda: logits(adapted(apply_qlora)),
        lambda codes, absmax2, offset: 2 * double_quant.dequantize_absmax(codes, absmax2, offset),
    ),
    "lora_update": (lambda: logits(adapted()), lambda x, A, B, scale: layer.lora_update(x, A, B, 2 * scale)),
    "lora_fold": (merged, lambda w, A, B, scale: w),
}


def equal(name):
    """The engine's own, in a function of the same parameters."""
    own = REPLACEABLE[name].__wrapped__
    return functools.wraps(own)(lambda *args, **named: own(*args, **named))


def test_every_part_is_tried_here():
    assert set(FELT) == set(REPLACEABLE)


@pytest.mark.parametrize("name", FELT)
def test_an_equal_part_changes_no_bit(name):
    compute, _ = FELT[name]
    before = compute()
    with tinyllm.use(**{name: equal(name)}):
        assert not is_own(REPLACEABLE[name])
        inside = compute()
    assert is_own(REPLACEABLE[name])
    for a, b in zip(before, inside, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FELT)
def test_another_part_is_felt_and_gone_afterwards(name):
    compute, other = FELT[name]
    before = compute()
    with tinyllm.use(**{name: other}):
        inside = compute()
    after = compute()
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(before, inside, strict=True))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("unbroadcast", lambda g, shape: None, "returned nothing"),
        ("unbroadcast", lambda g, shape: g.sum(), r"returned \(\) of float64"),
        ("unbroadcast", lambda g, shape: autograd.unbroadcast(g, shape).astype(np.float32), "of float32"),
        ("topological", lambda root: root, "returned a Node; it must return a list"),
        ("clip_factor", lambda norm, max_norm: np.ones(2), "returned a ndarray; it must return a number"),
    ],
)
def test_what_comes_back_is_looked_at(name, function, words):
    with pytest.raises((TypeError, ValueError), match=f"the replacement of {name} .*{words}"):
        with tinyllm.use(**{name: function}):
            (clipped if name == "clip_factor" else gradients)()


def test_a_tensor_comes_back_where_tensors_go_in():
    model = adapted()
    with pytest.raises(TypeError, match="the replacement of lora_update returned a ndarray; it must return a Tensor"):
        with tinyllm.use(lora_update=lambda x, A, B, scale: x.data @ A.data.T @ B.data.T * scale):
            logits(model)


def test_a_gradient_that_is_written_into_is_noticed():
    def writes(g, shape):
        g *= 2
        return autograd.unbroadcast(g, shape)

    with pytest.raises(ValueError, match="the replacement of unbroadcast writes into its input"):
        with tinyllm.use(unbroadcast=writes):
            gradients()


def test_a_misspelt_part_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'lora_update'"):
        with tinyllm.use(lora_udpate=lambda x, A, B, scale: x):
            pass


def test_a_part_has_parameters_of_its_own():
    with pytest.raises(TypeError, match=r"lora_update takes \(x, A, B, scale\), but the replacement takes \(x, a, b\)"):
        with tinyllm.use(lora_update=lambda x, a, b: x):
            pass


def test_the_layer_in_the_learners_words_trains_as_the_engines_does():
    def mine(x, A, B, scale):
        return (x @ A.transpose(1, 0)) @ B.transpose(1, 0) * scale

    def step():
        model = adapted()
        model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    before = step()
    with tinyllm.use(lora_update=mine):
        inside = step()
    for a, b in zip(before, inside, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


def test_the_form_of_a_mask_is_worked_out_once(monkeypatch):
    """A mask's counter changes from call to call, its shape does not: what is remembered does not grow."""
    table, calls = tinyllm.backend.BACKENDS["numpy"].own, []
    own = table["dropout_mask"]

    @functools.wraps(own)
    def counted(*args, **named):
        calls.append(1)
        return own(*args, **named)

    monkeypatch.setitem(table, "dropout_mask", counted)
    with tinyllm.use(dropout_mask=functools.wraps(own)(lambda *args, **named: own(*args, **named))):
        for _ in range(5):
            F.dropout(Tensor(np.ones((4, 4), np.float32)), 0.5, training=True)
    assert len(calls) == 1
