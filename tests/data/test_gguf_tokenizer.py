"""A tokenizer rebuilt from a GGUF's metadata cuts, merges and decodes as the one that the metadata were taken from."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from gguf_files import SPECIAL, TEXT, byte_level, layout, spm_metadata, tiny, trained, write
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers

from tinyllm.cli import main
from tinyllm.data.gguf_tokenizer import CUTS, LLAMA3, QWEN2, TEKKEN, merges_of, rebuild
from tinyllm.data.tokenizer import Tokenizer

# As llama.cpp writes them (llama-vocab.cpp): what no expression matches is a piece, too.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CONTRACTED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
BETWEEN = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_CPP = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + BETWEEN],
    "qwen2": [CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + BETWEEN],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
texts = st.text(
    st.sampled_from(list("abZ'sSlLtéü  \t\n\r0123456789.,;-+$½²Ⅷ٣日本한\u00a0\u2003\u0301\u200d🙂")), max_size=40
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One rebuilt tokenizer a cut."""
    path = tmp_path_factory.mktemp("cuts") / "m.gguf"
    made = {}
    for pre in CUTS:
        path.write_bytes(layout(byte_level(pre), {}))
        made[pre] = Tokenizer.load(path)
    return made


def reference(*steps):
    tokens, merges = trained()
    inner = tokenizers.Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    return inner


def smollm():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return reference(digits, pre_tokenizers.ByteLevel(add_prefix_space=False))


def test_smollm_is_digits_and_byte_level(built):
    theirs = smollm()
    for text in (TEXT, "  12 345\n67", "<|im_start|>user\n10 + 2<|im_end|>", "½ ²3 Ⅷ ١٢٣ a1b2"):
        ids = built["smollm"].encode(text)
        assert ids == theirs.encode(text).ids
        assert built["smollm"].decode(ids) == text
    assert built["smollm"].encode("a 12") != built["gpt-2"].encode("a 12")  # or the test says nothing


@given(text=texts)
def test_smollm_on_any_text(built, text):
    assert built["smollm"].encode(text) == smollm().encode(text).ids


@pytest.mark.parametrize("pre", LLAMA_CPP)
@given(text=texts)
def test_texts_are_cut_as_llama_cpp_cuts_them(built, pre, text):
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in LLAMA_CPP[pre]]
    theirs = reference(*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    ours = built[pre]._inner
    cut = [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == [piece for piece, _ in theirs.pre_tokenizer.pre_tokenize_str(text)]


def test_numbers_are_cut_by_ones_and_threes():
    assert r"\p{N}{1,3}" in LLAMA3 and r"\p{N}{1,3}" not in QWEN2 and r"|\p{N}|" in QWEN2 and r"|\p{N}|" in TEKKEN


def test_qwen_composes_characters_first(built):
    assert built["qwen2"].encode("e\u0301") == built["qwen2"].encode("\u00e9")
    assert built["llama-bpe"].encode("e\u0301") != built["llama-bpe"].encode("\u00e9")


def test_special_tokens_and_template(built):
    tokenizer = built["smollm"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.adds_bos) == (1, 2, 2, False)
    assert "messages" in tokenizer.chat_template
    assert tokenizer.encode("<|im_start|>") == [1] and tokenizer.vocab_size == 600


def test_bos_is_added_where_the_file_says_so(tmp_path):
    path = tmp_path / "m.gguf"
    for pre, said, adds in (("smollm", True, True), ("smollm", None, False), ("llama-bpe", None, True)):
        metadata = byte_level(pre, **{"tokenizer.ggml.add_bos_token": said})
        path.write_bytes(layout(metadata, {}))
        tokenizer = Tokenizer.load(path)
        assert tokenizer.adds_bos == adds
        assert (tokenizer._inner.encode("a").ids[0] == 1) == adds  # what transformers does with the saved file


def test_saving_keeps_everything(built, tmp_path):
    for pre, tokenizer in built.items():
        tokenizer.save(tmp_path / pre)
        again = Tokenizer.load(tmp_path / pre)
        assert again.encode(TEXT[:2000]) == tokenizer.encode(TEXT[:2000])
        assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        assert again.chat_template == tokenizer.chat_template and again.adds_bos == tokenizer.adds_bos


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("pre", "martian", "cuts text as 'martian'; understood are gpt-2, smollm"),
        ("pre", None, "does not say how it cuts text"),
        ("model", "t5", "of kind 't5'; understood are 'gpt2'"),
        ("model", None, "of kind None"),
        ("tokens", None, "lacks tokenizer.ggml.tokens"),
        ("tokens", ["a", "b", "a"], "the same token twice"),
        ("merges", None, "lacks tokenizer.ggml.merges"),
        ("merges", ["zz yy"], "merges that do not fit its vocabulary"),
        ("merges", ["a b c d"], "merges that are not pairs"),
        ("token_type", np.ones(3, np.int32), "no one tokenizer.ggml.token_type for each token"),
        ("eos_token_id", 600, "eos_token_id = 600, which is not in its vocabulary"),
        ("add_eos_token", True, "asks for add_eos_token"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, key, value, said):
    metadata = byte_level("smollm", **{f"tokenizer.ggml.{key}": value})
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(metadata, {}))
    with pytest.raises(ValueError, match=said) as raised:
        Tokenizer.load(path)
    assert "\n" not in str(raised.value)


# SentencePiece


def sentencepiece(text, ids, scores):
    """The algorithm itself: of all pairs of neighbours that form a piece, join the best; the leftmost of equals."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [
            (-scores[ids[a + b]], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ids
        ]
        if not joins:
            return [ids[part] for part in parts]
        i = min(joins)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@given(
    st.lists(st.text("abc▁", min_size=2, max_size=4), max_size=12, unique=True),
    st.lists(st.text("abc ", max_size=14), min_size=1, max_size=5),
)
def test_scores_become_merges(tmp_path_factory, pieces, texts):
    """Exact where each piece is made of one pair; else ranks order the pairs of one piece, and scores do not."""
    _, tokens, scores = spm_metadata([*pieces, *"abc▁"])
    ids = {token: id for id, token in enumerate(tokens)}
    made = ["".join(pair) for pair in merges_of(ids, scores, [1] * len(tokens))]
    assume(len(made) == len(set(made)))
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    path.write_bytes(layout(spm_metadata([*pieces, *"abc▁"])[0], {}))
    tokenizer = Tokenizer.load(path)
    for text in filter(None, texts):
        assert tokenizer.encode(text) == sentencepiece(text, ids, scores)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_bytes_specials_and_prefix(tmp_path):
    path = tmp_path / "m.gguf"
    metadata, tokens, _ = spm_metadata(["▁hi", "hi", "▁", "h", "i", "<", "s", ">"])
    path.write_bytes(layout(metadata, {}))
    tokenizer = Tokenizer.load(path)
    at = tokens.index
    assert tokenizer.encode("hi") == [at("▁hi")] and tokenizer.encode(" hi") == [at("▁"), at("▁hi")]
    assert tokenizer.encode("é") == [at("▁"), at("<0xC3>"), at("<0xA9>")]
    assert tokenizer.decode(tokenizer.encode("hié hi")) == "hié hi"
    assert tokenizer.encode("<s>") == [1] and tokenizer.adds_bos and tokenizer._inner.encode("hi").ids == [1, at("▁hi")]
    path.write_bytes(layout({**metadata, "tokenizer.ggml.add_space_prefix": False}, {}))
    assert Tokenizer.load(path).encode("hi") == [at("hi")]


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("scores", None, "lacks tokenizer.ggml.scores"),
        ("scores", np.full(3, 1.0, np.float32), "no one finite tokenizer.ggml.scores"),
        ("precompiled_charsmap", "x", "precompiled_charsmap, which is not understood"),
    ],
)
def test_sentencepiece_refuses(tmp_path, key, value, said):
    metadata = spm_metadata(["a"], **{f"tokenizer.ggml.{key}": value})[0]
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({k: v for k, v in metadata.items() if v is not None}, {}))
    with pytest.raises(ValueError, match=said):
        rebuild(path)


# A file at the command line


@pytest.fixture
def file(tmp_path):
    vocabulary = byte_level("smollm", **{"tokenizer.chat_template": None})
    return write(tmp_path / "m.gguf", tiny("llama", vocab_size=600), "llama", vocabulary)


def test_a_file_generates_and_fine_tunes(file, tmp_path, capsys):
    assert main(["generate", "--model", str(file), "--prompt", "hello 12", "--max-new-tokens", "3"]) == 0
    data = tmp_path / "d.txt"
    data.write_text(TEXT[:3000], encoding="utf-8")
    out = tmp_path / "out"
    for method in ("lora", "qlora", "full"):
        run = ["--data", str(data), "--method", method, "--steps", "2", "--max-seq-len", "16", "--out", str(out)]
        assert main(["finetune", "--model", str(file), *run]) == 0, capsys.readouterr().err
        model = ["--adapter", str(out)] if method != "full" else ["--model", str(out)]
        assert main(["generate", *model, "--prompt", "a", "--max-new-tokens", "3"]) == 0, capsys.readouterr().err
    merged = tmp_path / "merged"
    assert (
        main(
            [
                "finetune",
                "--model",
                str(file),
                "--data",
                str(data),
                "--steps",
                "2",
                "--max-seq-len",
                "16",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert main(["merge", "--model", str(file), "--adapter", str(out), "--out", str(merged)]) == 0, (
        capsys.readouterr().err
    )
    assert Tokenizer.load(merged).encode("a 12") == Tokenizer.load(file).encode("a 12")


@pytest.fixture(scope="module")
def whole():
    return {
        "gpt2": layout(byte_level("smollm"), {}),
        "llama": layout(spm_metadata(["▁a", "ab", "a", "b", "▁"])[0], {}),
    }


@given(
    kind=st.sampled_from(["gpt2", "llama"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes(whole, tmp_path_factory, kind, flips):
    raw = bytearray(whole[kind])
    for at, byte in flips:
        raw[int(at * len(raw))] = byte
    path = tmp_path_factory.mktemp("flipped") / "m.gguf"
    path.write_bytes(raw)
    try:
        tokenizer = Tokenizer.load(path)
        tokenizer.decode(tokenizer.encode("a 12 é<s>"))
    except ValueError as error:
        assert "\n" not in str(error)
