"""What a user hands to a card from the host, or the other way round; the tests hold on NumPy as well."""

from __future__ import annotations

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes (bfloat16 for NumPy) is not installed")

from tests.backends import running_on  # noqa: E402
from tests.train.runs import loader, make  # noqa: E402
from tinyllm import functional as F  # noqa: E402
from tinyllm.backend.device import to_device, to_host  # noqa: E402
from tinyllm.inspect.memory import card_peak  # noqa: E402
from tinyllm.lora import apply_lora, merge_lora  # noqa: E402
from tinyllm.models.head import linear_cross_entropy  # noqa: E402
from tinyllm.tensor import Tensor  # noqa: E402
from tinyllm.train import TrainConfig, train  # noqa: E402

HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
IDS = np.random.default_rng(0).integers(0, 23, (2, 6))


def drawn(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_a_layer_takes_positions_and_starts_of_the_host(backend):
    q, angle = drawn(2, 2, 5, 4), drawn(2, 1, 5, 2)
    starts = np.array([[0, 0, 2, 2, 4], [0, 1, 1, 1, 1]])
    turned = F.rope(Tensor(q), np.cos(angle), np.sin(angle))
    wanted = F.attention(turned, turned, turned, starts).data
    with running_on(backend):
        x = Tensor(to_device(q), requires_grad=True)
        turned = F.rope(x, np.cos(angle), np.sin(angle))
        y = F.attention(turned, turned, turned, starts)
        y.backward(np.ones(y.shape, np.float32))
        np.testing.assert_allclose(y.numpy(), wanted, atol=1e-6)
        assert type(x.grad) is type(x.data)


def test_a_tensor_is_compared_with_an_array_of_the_host(backend):
    with running_on(backend):
        ids = Tensor(to_device(IDS))
        np.testing.assert_array_equal((ids > IDS[:, ::-1].copy()).numpy(), IDS > IDS[:, ::-1])


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_picked_twice_get_both_gradients_in_half_precision(backend, dtype):
    """In float32: of 300 ones bfloat16's own sum is 256."""
    with running_on(backend):
        x = Tensor(to_device(np.ones((3, 2), HALVES[dtype])), requires_grad=True)
        x[np.array([0, 2, *[0] * 299])].backward(np.ones((301, 2), np.float32))
        assert x.grad.dtype == HALVES[dtype]
        np.testing.assert_array_equal(to_host(x.grad).astype(float), [[300, 300], [0, 0], [1, 1]])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layer", ["linear", "layer_norm", "broadcast"])
def test_what_all_rows_share_gets_its_gradient_summed_in_float32(backend, dtype, layer):
    """Of 3,001 ones float16's own sum is 2,048 and bfloat16's 256; the nearest that they have are 3,000 and 3,008."""
    rows, dtype = 3001, np.dtype(np.float32) if backend == "numpy" else HALVES[dtype]  # NumPy computes in no half
    with running_on(backend):
        x = Tensor(to_device(np.zeros((rows, 4), dtype)))
        w, b = (Tensor(to_device(value.astype(np.float32)), requires_grad=True) for value in (np.eye(4), np.zeros(4)))
        b_half = b.astype(dtype)
        y = {
            "linear": lambda: F.linear(x, w, b),
            "layer_norm": lambda: F.layer_norm(x, Tensor(w.data[0]), b),
            "broadcast": lambda: x + b_half,
        }[layer]()
        y.backward(np.ones(y.shape, np.float32))
        wanted = rows if layer != "broadcast" else float(np.float32(rows).astype(dtype))
        assert to_host(b.grad).tolist() == [wanted] * 4


@pytest.mark.parametrize("dtype", HALVES)
def test_a_heads_gradient_is_summed_over_its_pieces_in_float32(backend, dtype, monkeypatch):
    """A fifth is added 400 times; from 64 on bfloat16 would no longer see it."""
    dtype = np.dtype(np.float32) if backend == "numpy" else HALVES[dtype]
    monkeypatch.setattr("tinyllm.models.head.CHUNK_BYTES", 1)
    with running_on(backend):
        x, w = (to_device(value.astype(dtype)) for value in (np.ones((400, 2)), np.zeros((5, 2))))
        w = Tensor(w.astype(np.float32), requires_grad=True)
        (linear_cross_entropy(Tensor(x), w, np.zeros(400, np.int64)) * 400).backward()
        np.testing.assert_allclose(to_host(w.grad), np.array([[-320.0] * 2, *[[80.0] * 2] * 4]), rtol=2.0**-8)


def test_adapters_are_merged_into_weights_of_the_host(backend):
    base = {name: weight.numpy() for name, weight in make().named_parameters()}
    with running_on(backend):
        model = apply_lora(make(), 2, verbose=False)
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.1
        before = model(IDS).numpy()
        merge_lora(model, keep_base=False, base=base)
        np.testing.assert_allclose(model(IDS).numpy(), before, atol=1e-5)
        assert len({type(p.data) for p in model.parameters()}) == 1


def test_ids_targets_and_segments_may_be_on_the_card(backend):
    segments = np.array([[1, 1, 1, 2, 2, 2]] * 2)
    with running_on(backend):
        model = make(tie_embeddings=False)
        ids, targets, there = map(to_device, (IDS, IDS, segments))
        assert model.loss(ids, targets, there).item() == model.loss(IDS, IDS, segments).item()
        apply_lora(model, 2, target_modules=["lm_head"], verbose=False)  # a head in pieces cuts its targets
        assert model.loss(ids, targets, there).item() == model.loss(IDS, IDS, segments).item()


def test_the_peak_can_be_watched_around_a_run_that_watches_it(backend):
    with running_on(backend), card_peak() as peak:
        result = train(make(), loader(), None, TrainConfig(steps=1))
        assert peak() is None or peak() >= result["peak_memory"]
