"""The tokenizer wrapper: round trips, special tokens, the plain chat form, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import train_bpe
from tokenizers import models, normalizers, pre_tokenizers, processors

from tinyllm import assets
from tinyllm.data.pieces import may_be_cut
from tinyllm.data.tokenizer import Tokenizer

EOS = "<|endoftext|>"
CORPUS = ["the cat sat on the mat. the dog sat on the cat.", "User: hello\nAssistant: hello there", "über naïve 你好"]


TOKENIZER = Tokenizer(train_bpe([EOS], CORPUS))


@given(st.text())
def test_decode_undoes_encode(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text())
def test_save_and_load_change_nothing(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "saved"
    if not folder.exists():
        TOKENIZER.save(folder)
        assert sorted(os.listdir(folder)) == ["tokenizer.json", "tokenizer_config.json"]
    for path in (folder, folder / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.encode(text) == TOKENIZER.encode(text)
        assert (again.eos_id, again.bos_id, again.pad_id) == (TOKENIZER.eos_id, None, None)
        assert again.vocab_size == TOKENIZER.vocab_size


def test_nothing_is_added_and_nothing_is_cut(tmp_path):
    inner = train_bpe(["<s>", "</s>"], CORPUS)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (0, 1, True)
    text = "the cat sat on the mat and stayed"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert tokenizer.decode([0, *tokenizer.encode("cat"), 1], skip_special=True) == "cat"
    assert tokenizer.decode([0, *tokenizer.encode("cat"), 1]) == "<s>cat</s>"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").adds_bos


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": "<b>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<b>", "lstrip": False}}),
        ("special_tokens_map.json", {"eos_token": "<b>"}),
        ("config.json", {"eos_token_id": 1}),
        ("config.json", {"eos_token_id": [1, 0]}),
    ],
)
def test_where_the_end_of_text_token_is_named(tmp_path, name, content):
    train_bpe(["<a>", "<b>"], CORPUS).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).eos_id is None
    (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).eos_id == 1
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").eos_id == 1


def test_the_more_specific_file_wins_and_a_model_configuration_lends_only_special_tokens(tmp_path):
    train_bpe(["<a>", "<b>"], CORPUS).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<a>", "pad_token": "<absent>"}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, "bos_token_id": 1, "hidden_size": 8}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.adds_bos) == (0, 1, None, False)
    tokenizer.save(tmp_path / "again")
    assert "hidden_size" not in json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())


def test_vocab_size_covers_the_largest_id():
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    assert Tokenizer(inner).vocab_size == 8


def test_plain_chat():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Bye"},
    ]
    assert TOKENIZER.apply_chat(messages) == [
        ("System: Be brief.\nUser: Hello\nAssistant:", False),
        (" Hi!", True),
        ("\nUser: Bye\n", False),
    ]
    assert TOKENIZER.apply_chat(messages, add_generation_prompt=True)[-1] == ("\nUser: Bye\nAssistant:", False)
    assert TOKENIZER.apply_chat(messages[:3])[-1] == (" Hi!", True)


def test_a_prompt_in_training_is_the_prompt_in_use():
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    assert TOKENIZER.apply_chat(turns[:1], add_generation_prompt=True) == TOKENIZER.apply_chat(turns)[:1]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "list"),
        ("hello", "list"),
        (["hello"], "message 1 must be an object"),
        ([{"role": "user"}], "message 1 must be an object"),
        ([{"role": "robot", "content": "x"}], "unknown role 'robot': use system, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": 3}], "message 2 must be a string, not int"),
    ],
)
def test_malformed_messages(messages, message):
    with pytest.raises(ValueError, match=message):
        TOKENIZER.apply_chat(messages)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_chat_template_is_read_kept_and_never_ignored(tmp_path, where):
    TOKENIZER.save(tmp_path)
    if where == "chat_template.jinja":
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / where).write_text("{{ x }}")
    else:
        template = [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ x }}"}]
        (tmp_path / where).write_text(json.dumps({"chat_template": template}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template == "{{ x }}"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").chat_template == "{{ x }}"
    turn = [{"role": "user", "content": "x"}]
    tokenizer.chat_template = "{{ messages[0].role }}"
    assert tokenizer.apply_chat(turn) == [("user", False)]
    tokenizer.chat_template = None
    assert tokenizer.apply_chat(turn) == [("User: x\n", False)]


def test_which_chat_template_wins(tmp_path):
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert Tokenizer.load(tmp_path).chat_template == "json"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert Tokenizer.load(tmp_path).chat_template == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert Tokenizer.load(tmp_path).chat_template == "jinja"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="chat_template.jinja is not valid UTF-8"):
        Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "x"}]}')
    with pytest.raises(ValueError, match="templates are named rag, and none is the default"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.json").write_text("[]")
    with pytest.raises(ValueError, match="chat_template.json holds no JSON object"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "said, taken",
    [
        ({"default": "D", "tool_use": "T"}, "D"),
        ([{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        (None, None), ([], None), ({}, None), ("", ""), (5, ValueError), (True, ValueError), (["D"], ValueError),
        ({"tool_use": "T"}, ValueError), ({"default": 5}, ValueError),
        ([{"name": "default", "template": 5}], ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_a_chat_template_of_another_type_is_none_or_refused(tmp_path, said, taken):
    TOKENIZER.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": said}))
    if taken is ValueError:
        with pytest.raises(ValueError, match="chat_template is|none is the default"):
            Tokenizer.load(tmp_path)
        return
    assert Tokenizer.load(tmp_path).chat_template == taken
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["chat_template"]
    assert kept == said  # every one of several


EMBEDDED = Tokenizer.load(assets.path("base"))
scraps = st.sampled_from(
    ["a", "1", "I'll", ".", ",", " ", "  ", "\n", "\n\n", "\r", "\t", "\u00a0", "\x1c", "\u2028", "é", "你", EOS]
)


def merges_white_space() -> Tokenizer:
    """Runs of white space are single tokens where nothing parts them, so that a cut in the wrong place shows."""
    merges = [("Ċ", "Ċ"), ("Ġ", "Ċ"), ("Ċ", "Ġ"), ("Ġ", "Ġ"), ("ĊĊ", "ĊĊ")]
    units = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    inner = tokenizers.Tokenizer(models.BPE(vocab={unit: i for i, unit in enumerate(units)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(inner)


SPACED = merges_white_space()


@given(st.lists(scraps, max_size=40).map("".join), st.integers(1, 9))
def test_a_long_text_in_pieces_is_the_text_whole(text, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyllm.data.pieces.PIECE", piece)
        for tokenizer in (EMBEDDED, SPACED):
            assert tokenizer.encode(text) == tokenizer._inner.encode(text, add_special_tokens=False).ids


def test_the_embedded_text_in_many_pieces(monkeypatch):
    monkeypatch.setattr("tinyllm.data.pieces.PIECE", 10)
    text = assets.path("jargon.txt").read_text(encoding="utf-8")
    assert may_be_cut(EMBEDDED._inner)
    assert EMBEDDED.encode(text) == EMBEDDED._inner.encode(text, add_special_tokens=False).ids


def test_only_where_nothing_looks_across_the_cut_is_a_text_encoded_in_pieces():
    assert may_be_cut(TOKENIZER._inner)
    spaced = train_bpe([EOS], CORPUS)
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    composed = train_bpe([EOS], CORPUS)
    composed.normalizer = normalizers.NFC()
    greedy = train_bpe([tokenizers.AddedToken("<s>", rstrip=True)], CORPUS)
    other = train_bpe([EOS], CORPUS)
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    for inner in (spaced, composed, greedy, other):
        assert not may_be_cut(inner)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at .*absent: give a folder"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json in .*copy it there"):
        Tokenizer.load(tmp_path)
    for content in (b"{}", b"not json", b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ValueError, match="not a tokenizer.json file.*again"):
            Tokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<absent>"}')
    with pytest.raises(ValueError, match="'<absent>' as eos_token, which tokenizer.json does not have"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ValueError, match="tokenizer_config.json is not valid JSON"):
        Tokenizer.load(tmp_path)


def test_masked_labels_are_no_tokens():
    with pytest.raises(ValueError, match="-100 is not a token id"):
        TOKENIZER.decode([1, -100])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    TOKENIZER.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def fail(fd):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Tokenizer(train_bpe(["<other>"], CORPUS)).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_library_is_imported_only_when_needed():
    code = "import sys, tinyllm.data, tinyllm.data.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
