"""The stream of random words is Philox 4x64-10 on every machine, and its place in it can be kept and restored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES

from tinyllm.backend import BACKENDS, random
from tinyllm.backend.random import Generator, manual_seed, raw_words

MASK = 2**64 - 1
seed64 = st.integers(0, MASK)
sizes = st.integers(0, 40)


def philox(seed, position, n):
    """n words of Philox 4x64-10 from a block on (Salmon et al. 2011, section 3.3), in Python's integers."""
    words = []
    for block in range(position + 1, position + 1 + -(-n // 4)):  # NumPy counts before it computes
        x0, x1, x2, x3 = (block >> 64 * i & MASK for i in range(4))
        k0, k1 = seed, 0
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
            x0, x1, x2, x3 = b >> 64 ^ x1 ^ k0, b & MASK, a >> 64 ^ x3 ^ k1, a & MASK
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
        words += [x0, x1, x2, x3]
    return words[:n]


@given(seed64, sizes)
def test_words_are_numpys_philox_and_the_published_one(seed, n):
    words = Generator(seed).words(n)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, np.random.Philox(key=seed).random_raw(n))
    assert words.tolist() == philox(seed, 0, n)


@given(seed64, st.integers(0, 2**63), sizes)
def test_words_start_at_any_position(seed, position, n):
    assert raw_words((seed, position), n).tolist() == philox(seed, position, n)


@given(seed64, sizes, sizes)
def test_two_draws_never_overlap_and_a_state_brings_them_back(seed, n, m):
    generator = Generator(seed)
    first = generator.words(n).tolist()
    state = generator.state
    second = generator.words(m).tolist()
    whole = philox(seed, 0, -(-n // 4) * 4 + m)
    assert first == whole[:n] and second == whole[len(whole) - m :]
    generator.restore(state)
    assert generator.state == state and generator.words(m).tolist() == second


@given(seed64, st.integers(0, 200))
def test_a_permutation_is_one_and_sorts_the_words(seed, n):
    order = Generator(seed).permutation(n)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))
    words = philox(seed, 0, n)
    assert order.tolist() == sorted(range(n), key=words.__getitem__)


@given(seed64, st.integers(1, 50), st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.sampled_from(DTYPES))
def test_dropout_takes_four_elements_from_a_word_low_bits_first(seed, n, p, dtype):
    words = philox(seed, 3, -(-n // 4))
    bits = [words[i // 4] >> 16 * (i % 4) & 0xFFFF for i in range(n)]
    mask = BACKENDS["numpy"].dropout_mask((seed, 3), (n,), p, dtype)
    assert mask.dtype == dtype
    assert mask.tolist() == [0.0 if b < round(p * 65536) else float(dtype(1 / (1 - p))) for b in bits]


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_and_uniform_have_their_moments_and_dtype(dtype):
    n = 100_000
    x, u = Generator(1).normal((n,), std=2, dtype=dtype), Generator(1).uniform((n,), -1, 3, dtype=dtype)
    assert x.dtype == u.dtype == dtype
    assert abs(x.mean()) < 5 * 2 / n**0.5 and abs(x.std() - 2) < 5 * 2 / (2 * n) ** 0.5  # five standard errors
    assert u.min() >= -1 and u.max() <= 3 and abs(u.mean() - 1) < 5 * (4 / 12**0.5) / n**0.5


@given(seed64, st.integers(1, 30))
def test_samples_use_up_their_own_part_of_the_stream(seed, n):
    generator = Generator(seed)
    generator.normal((n,))
    assert generator.state == (seed, n)  # a block of four words for each number


def test_manual_seed_starts_the_default_generator_anew():
    before = random.default.state
    manual_seed(7)
    first = random.default.words(5)
    manual_seed(7)
    np.testing.assert_array_equal(random.default.words(5), first)
    random.default.restore(before)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="between 0 and 2"):
        Generator(seed)
