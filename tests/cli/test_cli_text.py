"""What the commands do with texts: asked as they were learned, and nothing changed without a word."""

from __future__ import annotations

import io
import json
import sys

import pytest
from chat_templates import CHATML, IM, TURNS, byte_level
from tokenizer_kinds import KINDS

from tinyllm.cli import generate, main, samples
from tinyllm.data import load_text
from tinyllm.data.text import untemplated
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

RUN = ["--steps", "1", "--batch-size", "2", "--max-seq-len", "32", "--sample-tokens", "0", "--out", "out"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


def model(name="gpt-2", vocab_size=None, **config):
    """A tiny model in ./model, with the tokenizer of this kind."""
    inner, said = KINDS[name] if isinstance(name, str) else (lambda: name, {})
    tokenizer = Tokenizer(inner(), {**said, **config})
    tokenizer.save("model")
    size = vocab_size or tokenizer.vocab_size
    shape = llama_shape(num_kv_heads=2, intermediate_size=16, max_seq_len=64)
    DecoderModel(size, 16, 1, 2, **shape).save_pretrained("model")
    return tokenizer


def records(*rows):
    with open("data.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def run(capsys, *words, code=0):
    """What a command prints on both streams, in lines of any length."""
    assert main([*map(str, words)]) == code
    out, err = capsys.readouterr()
    return " ".join((out + err).split())


@pytest.mark.parametrize("name", ["gpt-2", "llama 2", "llama 3", "metaspace, first", "two at the start"])
def test_a_prompt_is_asked_as_it_was_learned(capsys, monkeypatch, name):
    tokenizer = model(name)
    asked = []
    real = generate.stream
    monkeypatch.setattr(generate, "stream", lambda m, ids, *a, **k: (asked.append(list(ids)), real(m, ids, *a, **k))[1])
    monkeypatch.setattr(samples, "generate", lambda m, ids, *a, **k: (asked.append(list(ids)), [])[1])
    records(*[{"prompt": "Q: the cat?", "completion": f" sat {i}"} for i in range(20)])
    learned = load_text("data.jsonl", tokenizer)[0].ids.tolist()
    run(capsys, "generate", "--model", "model", "--prompt", "Q: the cat?", "--max-new-tokens", 1)
    words = ["--prompt", "Q: the cat?", *RUN, "--sample-tokens", "1"]
    run(capsys, "finetune", "--model", "model", "--data", "data.jsonl", *words)
    assert len(asked) == 3
    for ids in asked:
        assert ids == learned[: len(ids)] == tokenizer.encode_prompt("Q: the cat?")
    run(capsys, "generate", "--model", "model", "--chat", "the cat?", "--max-new-tokens", 1)
    assert asked[-1] == tokenizer.encode_chat([{"role": "user", "content": "the cat?"}])
    assert asked[-1][: len(tokenizer.begin_ids)] == list(tokenizer.begin_ids)


def test_a_prompt_is_a_question_where_all_records_are_conversations(capsys, monkeypatch):
    tokenizer = model(byte_level(IM), eos_token="<|im_end|>", chat_template=CHATML)
    plain = untemplated(tokenizer)
    asked = []
    monkeypatch.setattr(samples, "generate", lambda m, ids, *a, **k: (asked.append(list(ids)), [65])[1])
    monkeypatch.setattr(generate, "stream", lambda m, ids, *a, **k: (asked.append(list(ids)), iter([65]))[1])
    question = [{"role": "user", "content": "the cat?"}]
    pair, talk, text = {"prompt": "a", "completion": " b"}, {"messages": TURNS}, {"text": "the cat"}
    job = ["finetune", "--model", "model", "--data", "data.jsonl", "--prompt", "the cat?", *RUN]
    own = tokenizer.encode_chat(question), tokenizer.encode_prompt("the cat?")
    none = plain.encode_chat(question), plain.encode_prompt("the cat?")
    for rows, template, ids in [
        ([pair, pair], "own", own[0]), ([talk, pair], "own", own[0]), ([talk, text], "own", own[1]),
        ([pair, pair], "none", none[1]), ([talk, talk], "none", none[0]), ([talk, pair], "none", none[1]),
    ]:  # fmt: skip
        records(*rows)
        said = run(capsys, *job, "--template", template, "--max-seq-len", 64, "--sample-tokens", 1)
        assert asked == [ids, ids], (rows, template)
        assert "sample after" in said and "the cat?" + " " * (ids in (own[0], none[0])) + tokenizer.decode([65]) in said
        asked.clear()
    for template, (ids, _) in (("own", own), ("none", none)):
        run(capsys, "generate", "--model", "model", "--chat", "the cat?", "--template", template)
        assert asked.pop() == ids


@pytest.mark.parametrize("name", KINDS)
def test_a_continuation_is_printed_with_its_space(monkeypatch, name):
    tokenizer = Tokenizer(KINDS[name][0](), KINDS[name][1])
    text = "Q: the cat 你 sat"
    ids = tokenizer.encode_prompt(text)
    prompt = tokenizer.encode_prompt("Q: the")
    assert ids[: len(prompt)] == prompt
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    assert generate.write(iter(ids[len(prompt) :]), tokenizer, prompt) == len(ids) - len(prompt)
    assert shown.getvalue() == " cat 你 sat\n"


def test_half_a_character_at_the_end_is_printed_too(monkeypatch):
    tokenizer = Tokenizer(KINDS["gpt-2"][0](), KINDS["gpt-2"][1])
    ids = tokenizer.encode("the ✓")
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    generate.write(iter(ids[:-1]), tokenizer, [])
    assert shown.getvalue() == tokenizer.decode(ids[:-1]) + "\n"


def test_what_was_done_to_the_data_is_said(capsys):
    model()
    rows = [{"prompt": "the " * (60 if i % 10 else 1), "completion": " cat sat" * 40} for i in range(100)]
    talk = [TURNS[0], {"role": "assistant", "content": "Hi", "weight": 0}, {"role": "user", "content": "a"}]
    rows += [{"messages": [*talk, {"role": "assistant", "content": "b"}], "id": 3}]
    records(*rows)
    said = run(capsys, "finetune", "--model", "model", "--data", "data.jsonl", *RUN, "--max-seq-len", 50)
    assert "to learn: 10 examples, " in said and "10 truncated; 90 dropped with nothing left to learn" in said
    assert "; 1 answer left unlearned, as asked; held out: 1 " in said
    assert "prompts and completions are joined as they are conversations are written in the plain User:" in said
    assert 'note: data.jsonl: keys that change nothing here: "id" (line 101)' in said and "UserWarning" not in said
    shown = run(capsys, "data", "show", "data.jsonl", "--model", "model", "--max-seq-len", 50, "--rows", 0)
    assert "truncated: 10 dropped: 90 answers left unlearned, as asked: 1 note: keys that" in shown


@pytest.mark.parametrize("seed", range(6))
def test_a_record_that_cannot_be_measured_is_not_held_out(capsys, seed):
    model()
    records(*[{"prompt": "the " * (60 if i < 3 else 1), "completion": " cat"} for i in range(6)])
    said = run(capsys, "finetune", "--model", "model", "--data", "data.jsonl", *RUN, "--seed", seed)
    assert "to learn: 2 examples, " in said and "3 dropped" in said and "held out: 1 " in said
    assert "held-out loss" in said


def test_a_token_beyond_the_model_is_said_before_anything_is_written(capsys, tmp_path):
    inner = byte_level(("</s>",))
    inner.add_special_tokens(["<|new|>"])
    size = inner.get_vocab_size()
    model(inner, size - 1, eos_token="</s>")
    rows = [{"prompt": "the", "completion": " cat"}] * 30
    records(*rows[:20], {"prompt": "the", "completion": " <|new|>"}, *rows)
    job = ["finetune", "--model", "model", "--data", "data.jsonl", *RUN]
    said = run(capsys, *job, code=1)
    assert "finetune: data.jsonl, line 21: the text has the token '<|new|>', whose id" in said
    records(*rows)
    prompt = ["--prompt", "the <|new|>", "--sample-tokens", 1]
    assert "the text has the token '<|new|>'" in run(capsys, *job, *prompt, code=1)
    assert not (tmp_path / "out").exists()
    assert f"the tokenizer has {size} tokens and the model {size - 1}" in run(capsys, *job)
    said = run(capsys, "generate", "--model", "model", "--prompt", "the <|new|>", code=1)
    assert "generate: the text has the token '<|new|>'" in said


def test_the_template_and_what_is_said_of_it(capsys):
    model(byte_level(IM), eos_token="<|im_end|>", chat_template=CHATML)
    records(*[{"prompt": "the cat?", "completion": " sat"}] * 20)
    job = ["finetune", "--model", "model", "--data", "data.jsonl", *RUN, "--max-seq-len", 64, "--method", "full"]
    show = ["data", "show", "data.jsonl", "--model", "model", "--max-seq-len", 64, "--rows", 1]
    for words in (job, show):
        said = run(capsys, *words)
        assert "prompts and completions are written in the tokenizer's chat template" in said
        assert "conversations" not in said
        said = run(capsys, *words, "--template", "none")
        assert "prompts and completions are joined as they are" in said and "template" not in said
    assert Tokenizer.load("out").chat_template == CHATML  # the model keeps what it came with
    assert "<|im_start|>" not in run(capsys, *show, "--template", "none")
    with open("plain.txt", "w", encoding="utf-8") as file:
        file.write("the cat sat on the mat " * 20)
    said = run(capsys, "data", "show", "plain.txt", "--model", "model")
    assert "the text stands as it is" in said and "conversations" not in said


def test_a_prompt_that_begins_twice_is_noted(capsys):
    model("llama 3")
    said = run(capsys, "generate", "--model", "model", "--prompt", "<s>the", "--max-new-tokens", 1)
    assert "the text begins with <s> twice" in said
    assert "twice" not in run(capsys, "generate", "--model", "model", "--prompt", "the", "--max-new-tokens", 1)
