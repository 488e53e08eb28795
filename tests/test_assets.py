"""The embedded texts are what their docstrings say, and the tokenizer loses nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_assets as build
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tinyllm import assets

TOKENIZER = Tokenizer.from_file(str(assets.path("base") / "tokenizer.json"))
TEXTS = {"plays": assets.plays(), "jargon": assets.jargon()}


def round_trip(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False)


@pytest.mark.parametrize("name, low, high", [("plays", 4_000_000, 5_000_000), ("jargon", 350_000, 450_000)])
def test_text_is_ascii_of_the_announced_size(name, low, high):
    text = TEXTS[name]
    assert text.isascii() and low < len(text) < high
    assert re.search(r"[^\n -~]", text) is None  # no tab, carriage return or control character
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_every_play_is_a_row_of_named_speeches():
    plays = TEXTS["plays"].split("\n\n\n\n")
    assert len(plays) == 38
    for play in plays:
        for speech in play.strip("\n").split("\n\n"):
            name, _, lines = speech.partition("\n")
            assert re.fullmatch(r"[A-Za-z][\w &,.'-]*:", name) and lines, speech


def test_no_markup_is_left_in_the_plays():
    assert re.search(r"[_*#<>\[\]{}|\\$]", TEXTS["plays"]) is None


def test_jargon_entries_are_sorted_unique_and_clean():
    entries = TEXTS["jargon"].strip("\n").split("\n\n")
    heads = [re.match(r":([^:\n]+):\n\S", entry)[1] for entry in entries]
    assert heads == sorted(set(heads), key=lambda h: (h.lower(), h)) and len(heads) > 1000
    assert sum(bool(re.fullmatch(r":.*:", line)) for line in TEXTS["jargon"].splitlines()) == len(heads)
    assert build.CRUDE.search(TEXTS["jargon"]) is None


def test_specials_and_vocabulary():
    assert TOKENIZER.get_vocab_size() == 1024
    assert [TOKENIZER.token_to_id(t) for t in ("<|endoftext|>", "<|pad|>")] == [0, 1]
    assert TOKENIZER.encode("a<|endoftext|>b").ids.count(0) == 1
    config = json.loads((assets.path("base") / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["eos_token"], config["pad_token"]) == ("<|endoftext|>", "<|pad|>")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))  # lone surrogates have no UTF-8
def test_any_text_round_trips(text):
    assert round_trip(text) == text


@pytest.mark.parametrize("name", sorted(TEXTS))
@given(data=st.data())
def test_samples_of_both_texts_round_trip_and_shrink(name, data):
    start = data.draw(st.integers(0, len(TEXTS[name]) - 4000))
    sample = TEXTS[name][start : start + 4000]
    assert round_trip(sample) == sample
    assert len(TOKENIZER.encode(sample).ids) < len(sample) / 1.8


def test_tokenizer_is_what_build_trains(tmp_path):
    build.write_tokenizer(list(TEXTS.values()), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_bytes()) == json.loads((assets.path("base") / name).read_bytes())


def test_texts_are_written_reproducibly(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        build.write_texts("A:\nb\n", ":c:\nd\n", folder)
    assert (folders[0] / "plays.txt.gz").read_bytes() == (folders[1] / "plays.txt.gz").read_bytes()
    assert (folders[0] / "plays.txt.gz").read_bytes()[4:8] == bytes(4)  # the header's time


def test_one_play_by_hand():
    markdown = (
        "# T\n\n## ACT I\n\n_Enter ANN_\n\n**ANN**  \nGood — _Aside_ day,  \n\\--and “night”.\n\n_Exit_\n\nMore.\n"
    )
    assert build.play_to_speeches(markdown) == 'ANN:\nGood -- day,\n--and "night".\nMore.'


def test_unknown_asset_says_what_there_is():
    with pytest.raises(FileNotFoundError, match="jargon.txt"):
        assets.path("nothing")


def test_folder_stays_small():
    folder = Path(assets.__file__).parent
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".safetensors", ".pyc"}]
    assert sum(p.stat().st_size for p in files) < 3_000_000
