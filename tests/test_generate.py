"""Generation: the cache changes nothing, seeds repeat, and the distribution drawn from is what top-k and top-p say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tinyllm
from tinyllm import assets
from tinyllm.cli import main
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.generate import generate, next_probabilities, stream
from tinyllm.models import DecoderModel
from tinyllm.models.checkpoints.generation import recommended
from tinyllm.models.config import llama_shape

VOCAB = 50


def make(kind: str = "llama") -> DecoderModel:
    shape = llama_shape(num_kv_heads=1) if kind == "llama" else {}
    model = DecoderModel(VOCAB, 16, 2, 2, seed=3, dtype=np.float64, max_seq_len=24, tie_embeddings=False, **shape)
    # Nearly flat logits would make greedy choices ties.
    model.lm_head.weight.data *= 50
    model.embed_tokens.weight.data *= 50
    return model


logits = arrays(np.float64, st.integers(1, 12), elements=st.floats(-30, 30, width=32))


@given(logits, st.floats(0.05, 5), st.none() | st.integers(1, 15), st.none() | st.floats(0.01, 1))
def test_it_is_a_distribution_over_the_likeliest(x, temperature, k, top_p):
    p = next_probabilities(x, temperature, k, top_p)
    assert p.dtype == np.float64 and p.shape == x.shape and (p >= 0).all()
    assert abs(p.sum() - 1) <= 4 * len(x) * np.finfo(float).eps
    if k is not None:
        assert np.count_nonzero(p) <= k
    # Nobody left out is likelier than one kept. (Logits may differ where probabilities have rounded to a tie.)
    full = next_probabilities(x, temperature)
    assert full[p > 0].min() >= full[p == 0].max(initial=0)


@given(logits, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(x, top_p):
    full = np.exp(x - x.max())
    full /= full.sum()
    kept = next_probabilities(x, 1.0, None, top_p) > 0
    chosen = np.sort(full[kept])
    slack = 4 * len(x) * np.finfo(float).eps  # sums in another order
    assert chosen.sum() >= top_p - slack or kept.sum() >= np.count_nonzero(full)
    assert chosen[1:].sum() < top_p + slack  # without its least likely member it falls short


@given(logits, st.floats(0.1, 3))
def test_no_limits_is_the_softmax(x, temperature):
    e = np.exp((x - x.max()) / temperature)
    np.testing.assert_array_equal(next_probabilities(x, temperature), e / e.sum())


@given(logits)
def test_top_k_of_1_is_greedy(x):
    p, full = next_probabilities(x, 1.0, top_k=1), next_probabilities(x)
    assert p.max() == 1 and np.count_nonzero(p) == 1 and full[p.argmax()] == full.max()


def test_logits_that_round_to_a_tie():
    x = np.array([0.0, 1e-45])  # the second is larger, and exp cannot tell
    assert next_probabilities(x, top_k=1).tolist() == [1, 0]


@given(
    st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(0, 14), st.one_of(st.none(), st.floats(0.05, 1))
)
def test_limits_are_those_of_sorting_everything(x, top_k, top_p):
    """Ties too: of equally likely tokens the first ones stay."""
    full = next_probabilities(np.array(x, float))
    order = np.argsort(-full, kind="stable")
    keep = min(top_k or len(x), len(x))
    if top_p is not None:
        share = full[order[:keep]] / full[order[:keep]].sum()  # of what top-k left
        keep = sum(share[:i].sum() < top_p for i in range(keep))
        near = np.abs(np.cumsum(share) - top_p).min() < 1e-12  # another order of summing may decide otherwise
        assume(not near)
    kept = next_probabilities(np.array(x, float), 1.0, top_k, top_p) > 0
    assert set(np.flatnonzero(kept)) == set(order[:keep])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9}]
)
def test_the_cache_changes_no_token(kind, settings):
    model = make(kind)
    cached = generate(model, [1, 2, 3], 21, **settings)
    assert cached == generate(model, [1, 2, 3], 21, use_cache=False, **settings)
    assert len(cached) == 21 and len(set(cached)) > 2


def test_greedy_takes_the_argmax_of_the_whole_model():
    model, ids = make(), [5, 6]
    for token in generate(model, ids, 10):
        assert token == model(np.array([ids])).numpy()[0, -1].argmax()
        ids = [*ids, token]


def test_the_same_seed_draws_the_same_text():
    model = make()
    texts = [generate(model, [1], 20, temperature=3.0, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_draws_follow_the_distribution():
    model = make()
    p = next_probabilities(model(np.array([[7]])).numpy()[0, -1], 4.0)
    n = 300
    drawn = np.bincount([generate(model, [7], 1, temperature=4.0, seed=seed)[0] for seed in range(n)], minlength=VOCAB)
    # Each count is binomial; six standard deviations, and seeds are fixed, so this cannot flicker.
    assert (np.abs(drawn - n * p) <= 6 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_a_stop_id_ends_the_text_and_is_not_part_of_it():
    model = make()
    whole = generate(model, [1, 2], 15)
    cut = next(i for i in range(1, 15) if whole[i] not in whole[:i])
    assert generate(model, [1, 2], 15, stop=[whole[cut]]) == whole[:cut]
    assert generate(model, [1, 2], 15, stop=[whole[0]]) == []


def test_it_ends_where_the_context_ends():
    assert len(generate(make(), [1] * 20, 100)) == 4
    assert generate(make(), [1], 0) == []


def test_the_stream_is_lazy():
    model, calls = make(), []
    plain = model.hidden
    model.hidden = lambda *a, **k: calls.append(1) or plain(*a, **k)  # type: ignore[method-assign]
    tokens = stream(model, [1, 2], 10)
    assert not calls
    next(tokens), next(tokens)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 24, {}, "the prompt has 24 tokens, but the model's context is 24"),
        ([1], {"temperature": -1}, "temperature must be at least 0"),
        ([1], {"top_k": -1}, "top_k at least 1"),
        ([1], {"top_k": 3}, "give a temperature above 0"),
        ([1], {"top_p": 0.9}, "give a temperature above 0"),
        ([1], {"temperature": 1.0, "seed": -1}, "the seed must be"),
        ([1, VOCAB], {}, "outside the vocabulary"),
        ([1], {"top_p": 0.0}, "top_p in"),
        ([1], {"top_p": 1.5}, "top_p in"),
    ],
)
def test_bad_input_is_refused_at_once_and_not_at_the_first_token(prompt, settings, said):
    with pytest.raises(ValueError, match=said):
        stream(make(), prompt, 5, **settings)


def test_dropout_is_off_while_generating_and_the_mode_is_put_back():
    model = DecoderModel(VOCAB, 16, 2, 2, seed=3, dropout=0.5, max_seq_len=24)
    model.train()
    first = generate(model, [1, 2], 8)
    assert model.training and first == generate(model, [1, 2], 8)
    assert first == generate(model.eval(), [1, 2], 8) and not model.training


def test_a_step_that_fails_leaves_the_mode_as_it_was(monkeypatch):
    model = make().train()
    model.layers[1].eval()
    modes = [module.training for _, module in model.named_modules()]
    monkeypatch.setattr(model, "lm_head", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, [1], 3)
    assert [module.training for _, module in model.named_modules()] == modes[:-1]


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": None}, {"top_p": 1.0}, {"top_k": 0, "top_p": None}])
def test_limits_that_are_off(off):
    model = make()
    assert generate(model, [1], 12, temperature=2.0, **off) == generate(model, [1], 12, temperature=2.0)
    assert generate(model, [1], 12, **off) == generate(model, [1], 12)
    np.testing.assert_array_equal(next_probabilities([1.0, 2.0, 0.0], **off) > 0, True)


@pytest.mark.parametrize(
    "kind", [tuple, np.array, lambda ids: tinyllm.Tensor(np.array(ids)), lambda ids: map(int, ids)]
)
def test_a_prompt_is_any_row_of_ids(kind):
    assert generate(make(), kind([1, 2, 3]), 5) == generate(make(), [1, 2, 3], 5)


def test_the_tokens_of_a_text_decode_to_the_text():
    tokenizer = Tokenizer.load(assets.path("base"))
    text = ":hacker:\nOne who programs enthusiastically, even caf\u00e9 \u2192 \U0001f600."
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    model = make()
    model.norm.weight.data[0] = bad
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="the logits are not finite; check the check"):
        generate(model, [1], 3, temperature=temperature)
    with pytest.raises(ValueError, match="not finite"):
        next_probabilities([0.0, bad, 1.0])


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300])
def test_a_temperature_that_overflows_the_division_is_greedy(temperature):
    assert next_probabilities([700.0, 1.0, 699.0], temperature).tolist() == [1, 0, 0]
    assert generate(make(), [1], 8, temperature=temperature) == generate(make(), [1], 8)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_the_distribution_needs_a_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
        next_probabilities([1.0, 2.0], temperature)


@pytest.mark.parametrize(
    "settings, said",
    [({"temperature": np.nan}, "finite"), ({"temperature": np.inf}, "finite"), ({"max_new_tokens": -1}, "at least 0")],
)
def test_settings_that_mean_nothing(settings, said):
    with pytest.raises(ValueError, match=said):
        stream(make(), [1], **settings)


RECOMMENDED = [
    ({"eos_token_id": 2}, {"stop": (2,)}, []),
    ({"eos_token_id": [2, 5], "temperature": 0.6}, {"stop": (2, 5)}, []),  # it does not sample: it has no temperature
    ({"do_sample": True, "top_p": 0.9, "top_k": None}, {"stop": (), "temperature": 1.0, "top_p": 0.9}, []),
    ({"do_sample": True, "temperature": 0.6, "top_k": 0}, {"stop": (), "temperature": 0.6}, []),
    ({"do_sample": True, "top_k": 20, "repetition_penalty": 1.05}, {"stop": (), "temperature": 1.0, "top_k": 20},
     ["repetition_penalty=1.05"]),
    ({"repetition_penalty": 1.0, "num_beams": 4, "max_length": 20, "pad_token_id": 0}, {"stop": ()}, ["num_beams=4"]),
]  # fmt: skip


@pytest.mark.parametrize("said, settings, ignored", RECOMMENDED)
def test_what_a_folder_recommends(tmp_path, said, settings, ignored):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert recommended(tmp_path) == (settings, ignored)
    model = make("llama")
    stream(model, [1, 2], 3, **settings)  # every setting is one of its own


@pytest.mark.parametrize(
    "said", [{"eos_token_id": "2"}, {"eos_token_id": [2, None]}, {"eos_token_id": -1},
             {"do_sample": True, "top_k": 1.5}, {"do_sample": True, "temperature": "hot"},
             {"do_sample": True, "top_p": 0}]
)  # fmt: skip
def test_a_recommendation_that_is_none(tmp_path, said):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="generation_config.json"):
        recommended(tmp_path)


def test_no_recommendation(tmp_path):
    assert recommended(tmp_path) == ({}, [])


def test_the_command_line_follows_the_folder_unless_told_otherwise(tmp_path, capsys):
    folder = tmp_path / "m"
    shutil.copytree(assets.path("base"), folder)

    def says(*options):
        assert main(["generate", "--model", str(folder), "--max-new-tokens", "30", *options]) == 0
        return capsys.readouterr()

    greedy, hot = says().out, says("--temperature", "2", "--top-k", "7").out
    assert greedy != hot
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 2.0, "top_k": 7}))
    followed = says()
    assert followed.out == hot and "temperature 2.0, top_k 7" in followed.err
    told = says("--temperature", "0")
    assert told.out == greedy and told.err == ""
    ids = Tokenizer.load(folder).encode(greedy)
    start = len(Tokenizer.load(folder).encode(":hacker:\n"))
    eos = [99999, ids[start + 4], ids[start + 9]]  # any of them ends the text
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "repetition_penalty": 1.1}))
    short = says()
    assert greedy.startswith(short.out.rstrip("\n")) and len(short.out) < len(greedy)
    assert "repetition_penalty=1.1, which is not done here" in short.err
