"""The distribution that a token is drawn from is transformers': temperature, then top-k, then top-p of what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tinyllm.generate import next_probabilities


def theirs(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    x = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits)[None])
    x = TopKLogitsWarper(top_k)(None, x) if top_k else x
    x = TopPLogitsWarper(top_p)(None, x) if top_p is not None else x
    return torch.softmax(x, -1)[0].numpy()


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=40, unique=True),
    st.floats(0.2, 4), st.none() | st.integers(0, 50), st.none() | st.floats(0.05, 1),
)  # fmt: skip
def test_it_is_transformers(x, temperature, top_k, top_p):
    logits = np.array(x)
    full = np.sort(next_probabilities(logits, temperature, top_k))[::-1]
    if len(full) > 1:
        assume((-np.diff(full) > 1e-9)[full[1:] > 1e-9].all())  # transformers keeps all that tie with the k-th
    if top_p is not None:
        assume(np.abs(np.cumsum(full) - top_p).min() > 1e-9 or top_p == 1)
    np.testing.assert_allclose(
        next_probabilities(logits, temperature, top_k, top_p), theirs(logits, temperature, top_k, top_p), atol=1e-9
    )


@pytest.mark.parametrize("top_k, top_p, expected", [(2, 0.5, [0, 0, 0, 1]), (3, 0.5, [0, 0, 3 / 7, 4 / 7])])
def test_p_is_of_what_k_leaves(top_k, top_p, expected):
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(next_probabilities(logits, 1.0, top_k, top_p), expected, atol=1e-12)
    np.testing.assert_allclose(theirs(logits, 1.0, top_k, top_p), expected, atol=1e-12)
