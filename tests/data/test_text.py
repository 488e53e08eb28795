"""One text, one encoding: what is learned and what is asked have the same ids; no data is changed without a word."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tokenizers
from chat_templates import CASES, CHATML, GENERATION, IM, TURNS, byte_level
from hypothesis import given
from hypothesis import strategies as st
from test_data import write
from tokenizer_kinds import KINDS, PAIRS, greedy_end, two_at_the_start
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tinyllm.data import IGNORE, Dataset, Example, Loader, fit, load_text, split
from tinyllm.data.records import Record
from tinyllm.data.text import _label, refuse_ids_beyond
from tinyllm.data.tokenizer import Tokenizer

TOKENIZERS = {name: Tokenizer(inner(), config) for name, (inner, config) in KINDS.items()}
GPT2, LLAMA2, LLAMA3 = TOKENIZERS["gpt-2"], TOKENIZERS["llama 2"], TOKENIZERS["llama 3"]
CHAT = Tokenizer(byte_level(IM), {"eos_token": "<|im_end|>", "chat_template": CHATML})
every = pytest.mark.parametrize("name", KINDS)


def loaded(folder, tokenizer, *records, **options):
    """The data, and the notes on it; each is told once, as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_text(write(folder, *records), tokenizer, **options)
    assert [str(warning.message).partition(": ")[2] for warning in caught] == list(data.notes)
    return data


def learned(tokenizer, example):
    return tokenizer.decode(example.labels[example.labels != IGNORE])


def labelled(tokenizer, prompt, completion):
    return _label(Record([(prompt, False), (completion, True)], False, ""), tokenizer)


# The ids of a text


def by_hand(*words, normal=None, cut=None) -> Tokenizer:
    """A vocabulary of characters and these words, each merged from its beginning on, so that ids are known."""
    units, merges = ["<unk>", "<s>", "</s>", *sorted(set("".join(words)))], []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in units:
                units.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    ids = {unit: id for id, unit in enumerate(units)}
    inner = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    if normal is not None:
        inner.normalizer = normal
    if cut is not None:
        inner.pre_tokenizer = cut
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(inner, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})


NORMAL = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


@pytest.mark.parametrize("how", [{"normal": NORMAL}, {"cut": METASPACE}])
@pytest.mark.parametrize(
    ("prompt", "completion", "asked", "answer"),
    [
        ("Q:", " yes", "<s> ▁Q :", "▁yes </s>"),
        ("Q: ", "yes", "<s> ▁Q :", "▁yes </s>"),
        ("Q:\n", "yes", "<s> ▁Q : \n", "yes </s>"),
        ("Q", ": yes", "<s> ▁Q", ": ▁yes </s>"),
        ("", "yes", "<s>", "▁yes </s>"),
        ("Q:", "", "<s> ▁Q :", "</s>"),
        ("Q:", " yes</s>", "<s> ▁Q :", "▁yes </s>"),
    ],
)
def test_sentencepieces_space_is_not_put_before_a_completion(how, prompt, completion, asked, answer):
    tokenizer = by_hand("▁Q", ":", "▁yes", "yes", "\n", **how)
    example = labelled(tokenizer, prompt, completion)
    pieces = [tokenizer.token(id) for id in example.ids]
    assert pieces == [*asked.split(" "), *answer.split(" ")]
    assert [tokenizer.token(id) for id in example.labels if id != IGNORE] == answer.split(" ")


@every
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_a_record_is_encoded_as_one_text(name, prompt, completion):
    tokenizer = TOKENIZERS[name]
    example = labelled(tokenizer, prompt, completion)
    whole = prompt + completion + ("" if completion.endswith("</s>") else "</s>")
    assert example.ids.tolist() == [*tokenizer.begin_ids, *tokenizer.encode(whole)]


words = st.lists(st.sampled_from(["the", " cat", " ", "Q:", "\n", "sat", "你", "é ", "  ", ".", "12"]), max_size=6)


@given(st.sampled_from(sorted(KINDS)), words.map("".join), words.map("".join))
def test_labels_begin_where_the_completion_does(name, prompt, completion):
    """By what tokens spell, not by offsets: the first learned token is the one with the completion's first letter."""
    tokenizer = TOKENIZERS[name]
    example = labelled(tokenizer, prompt, completion)
    live = np.flatnonzero(example.labels != IGNORE)
    begin = len(tokenizer.begin_ids)
    assert live.tolist() == list(range(live[0], len(example) - 1)) if len(live) else len(example) == 1
    assert example.labels[live].tolist() == example.ids[live + 1].tolist()
    if not len(live):
        return
    first, ids = int(live[0]) + 1, example.ids[begin:].tolist()
    if first <= begin or first == 1:  # learned from the start, or the first token has nothing before it
        return
    if tokenizer.token(ids[first - begin]).startswith("<0x"):  # unigram has one place for unknown letters in a row
        return
    if not prompt.strip(" "):  # the stripping below would leave nothing of it to tell by
        return
    # Metaspace takes a text's own first space for the one that it puts there.
    before = tokenizer.decode(ids[: first - begin]).rstrip("\ufffd").lstrip(" ")
    after = tokenizer.decode(ids[: first - begin + 1]).lstrip(" ")
    assert prompt.lstrip(" ").startswith(before)
    assert len(after) > len(prompt.lstrip(" ")) or "\ufffd" in after or not completion.strip()


@every
def test_the_end_of_text_is_learned_after_a_prompt_of_a_space(name):
    example = labelled(TOKENIZERS[name], " ", "")
    assert [TOKENIZERS[name].token(id) for id in example.labels[example.labels != IGNORE]] == ["</s>"]


@every
def test_a_prompt_is_asked_as_it_was_learned(name):
    tokenizer = TOKENIZERS[name]
    for prompt, completion in PAIRS:
        asked = tokenizer.encode_prompt(prompt)
        example = labelled(tokenizer, prompt, completion)
        if prompt.strip() and not prompt.endswith(" ") and not completion[:1].isalnum():
            assert example.ids[: len(asked)].tolist() == asked
    assert tokenizer.encode_prompt("the cat") == [*tokenizer.begin_ids, *tokenizer.encode("the cat")]
    question = [{"role": "user", "content": "the cat?"}]
    both = [*question, {"role": "assistant", "content": "sat"}]
    ids, on = tokenizer.encode_segments(tokenizer.apply_chat(both), templated=False)
    asked = tokenizer.encode_chat(question)
    assert ids[: len(asked)] == asked and on == [False] * len(asked) + [True] * (len(ids) - len(asked))


def test_what_texts_begin_with(tmp_path):
    begins = {name: [tokenizer.token(id) for id in tokenizer.begin_ids] for name, tokenizer in TOKENIZERS.items()}
    without = {"gpt-2": [], "byte-level without": [], "llama 2, no beginning": [], "only named": [], "greedy end": []}
    two = {"two at the start": ["[gMASK]", "<sop>"]}
    assert begins == {name: ["<s>"] for name in KINDS} | without | two
    for name, tokenizer in TOKENIZERS.items():
        assert tokenizer.adds_bos == (tokenizer.begin_ids == (tokenizer.bos_id,))
        tokenizer.save(tmp_path / name)
        again = Tokenizer.load(tmp_path / name)
        assert again.begin_ids == tokenizer.begin_ids
        # The saved post-processor does the same: other programs ask it, not add_bos_token.
        whole = again._inner.encode("the cat", add_special_tokens=True).ids
        assert whole == again.encode_prompt("the cat")
    added = Tokenizer(two_at_the_start(), {"bos_token": "</s>", "add_bos_token": True})
    assert [added.token(id) for id in added.begin_ids] == ["</s>", "[gMASK]", "<sop>"]


def test_a_running_text_begins_as_all_texts_do():
    for tokenizer in (LLAMA2, LLAMA3, GPT2):
        data = load_text("the cat sat on the mat", tokenizer)
        assert [int(data[0].ids[0]), *data[0].labels.tolist()] == tokenizer.encode_prompt("the cat sat on the mat")


def test_a_named_special_token_is_one_token_in_every_text():
    tokenizer = TOKENIZERS["only named"]
    assert tokenizer.encode("a</s>b<s>")[1::2] == [tokenizer.eos_id, tokenizer.bos_id]
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    assert Tokenizer(words, {"eos_token_id": 1}).encode("</s>") == [1]
    assert not Tokenizer(words, {"pad_token_id": 0}).is_unit(0)  # an ordinary word stays one


def test_the_end_takes_no_text_along():
    """An end of text that swallows the newline after it, in the middle of a conversation as at the end."""
    tokenizer = Tokenizer(greedy_end(), {"eos_token": "</s>"})
    ids, on = tokenizer.encode_segments(tokenizer.apply_chat(TURNS), templated=False)
    assert [id for id, live in zip(ids, on, strict=True) if live].count(tokenizer.eos_id) == 2
    assert ids == tokenizer.encode("User: Hello there\nAssistant: Hi! The cat sat.</s>\nUser:  and the dog?\n\n"
                                   "Assistant: The dog sat\non the mat 你好</s>")  # fmt: skip


def test_a_continuation_keeps_its_space():
    for tokenizer in TOKENIZERS.values():
        whole = tokenizer.encode("Q: the cat sat on 你好")
        for at in range(len(whole) + 1):
            prompt = tokenizer.decode(whole[:at])
            if "\ufffd" not in prompt:
                assert prompt + tokenizer.decode_after(whole[:at], whole[at:]) == "Q: the cat sat on 你好"
    assert LLAMA2.decode(LLAMA2.encode("Q: the")[-1:]) == "the"  # what is lost without the prompt


# The chat template and prompts


def test_prompts_and_completions_of_a_chat_model_are_a_question_and_its_answer(tmp_path):
    turns = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat"}]
    for name, case in CASES.items():
        tokenizer = Tokenizer(case.inner(), {**case.config, "chat_template": case.template})
        (record,) = loaded(tmp_path, tokenizer, {"prompt": "the cat?", "completion": "sat"})
        (conversation,) = loaded(tmp_path, tokenizer, {"messages": turns})
        assert record.ids.tolist() == conversation.ids.tolist(), name
        assert record.labels.tolist() == conversation.labels.tolist()
        asked = tokenizer.encode_chat(turns[:1])
        assert record.ids[: len(asked)].tolist() == asked
    data = loaded(tmp_path, CHAT, {"prompt": "the cat?", "completion": "sat"})
    assert data.forms == ("prompts and completions are written in the tokenizer's chat template",)


def test_the_template_can_be_left_out(tmp_path):
    record = {"prompt": "the cat?", "completion": " sat"}
    data = loaded(tmp_path, CHAT, record, template=False)
    assert CHAT.decode(data[0].ids) == "the cat? sat<|im_end|>"
    assert data.forms == ("prompts and completions are joined as they are",)
    data = loaded(tmp_path, CHAT, {"messages": TURNS[:2]}, {"text": "the cat"}, template=False)
    assert CHAT.decode(data[0].ids) == "User: Hello there\nAssistant: Hi! The cat sat.<|im_end|>"
    assert data.forms == ("conversations are written in the plain User:/Assistant: form", "texts stand as they are")
    assert CHAT.chat_template == CHATML  # the tokenizer keeps it


def test_a_prompt_with_the_markers_stands_as_it_is(tmp_path):
    spelled = {"prompt": "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n", "completion": "sat"}
    data = loaded(tmp_path, CHAT, {"prompt": "the cat?", "completion": "sat"}, spelled)
    assert CHAT.decode(data[1].ids) == spelled["prompt"] + "sat<|im_end|>"
    assert CHAT.decode(data[0].ids) != spelled["prompt"] + "sat<|im_end|>" and len(data.forms) == 2
    assert ["in line 2 the prompt spells out <|im_" in note for note in data.notes] == [True]


HEAD, TAIL = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}", "{% endfor %}"
ASKS = TAIL + "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
)
UNENDED = {
    "nothing": HEAD + ASKS,
    "newlines": HEAD + "{{ '\\n\\n' }}" + ASKS,
    "before the next question": HEAD.replace("{{ '<'", "{{ (eos_token if m.role == 'user' and not loop.first else '')"
                                             " + '<'") + ASKS,
    "within generation": MARKED + ASKS,
    "a line within generation": MARKED.replace("{% endgeneration %}", "\n{% endgeneration %}") + ASKS,
}  # fmt: skip


@pytest.mark.parametrize("name", UNENDED)
def test_a_template_that_ends_no_answer_is_noted(tmp_path, name):
    tokenizer = Tokenizer(byte_level(IM), {"eos_token": "<|im_end|>", "chat_template": UNENDED[name]})
    data = loaded(tmp_path, tokenizer, {"messages": TURNS})
    assert ["the model does not learn to stop" in note for note in data.notes] == [True]


def test_templates_that_end_their_answers_are_not():
    ends = {"eos": HEAD + "{{ eos_token }}" + ASKS, "eos and line": HEAD + "{{ eos_token + '\\n' }}" + ASKS,
            "generation": MARKED.replace("{% endgeneration %}", "<|im_end|>{% endgeneration %}") + ASKS,
            "generation with a line": GENERATION.replace("<|im_end|>{% end", "<|im_end|>\n{% end"),
            **{name: case.template for name, case in CASES.items()}}  # fmt: skip
    for name, template in ends.items():
        case = CASES.get(name)
        inner, config = (case.inner(), case.config) if case else (byte_level(IM), {"eos_token": "<|im_end|>"})
        tokenizer = Tokenizer(inner, {**config, "chat_template": template})
        tokenizer.apply_chat(TURNS)
        assert not [note for note in tokenizer.chat_notes if "to stop" in note], name


# Keys that say what is learned


def chat(**marks):
    bad = {"role": "assistant", "content": "Hi! The cat sat.", **marks}
    return [TURNS[0], bad, *TURNS[2:]]


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "learn"])
@pytest.mark.parametrize("value", [0, 0.0, False, 1, True, None])
@pytest.mark.parametrize("name", ["plain", "smollm2", "llama2", "llama3", "generation"])
def test_an_answer_that_is_not_to_be_learned_is_context(tmp_path, key, value, name):
    case = CASES.get(name)
    tokenizer = Tokenizer(case.inner(), {**case.config, "chat_template": case.template}) if case else LLAMA2
    (whole,) = loaded(tmp_path, tokenizer, {"messages": TURNS})
    data = loaded(tmp_path, tokenizer, {"messages": chat(**{key: value})})
    assert data[0].ids.tolist() == whole.ids.tolist()
    if value is None or value:
        assert data[0].labels.tolist() == whole.labels.tolist() and data.masked == 0
        return
    assert data.masked == 1 and "1 answer left unlearned, as asked" in data.report()
    assert "Hi" not in learned(tokenizer, data[0]) and "Hi" in learned(tokenizer, whole)
    assert learned(tokenizer, whole).endswith(learned(tokenizer, data[0]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": chat(weight=0.5)}, 'message 2 has 0.5 as its "weight", and 0 .not learned. and 1'),
        ({"messages": chat(train="no")}, "message 2 has 'no' as its \"train\""),
        ({"messages": chat(weight=float("nan"))}, 'message 2 has nan as its "weight"'),
        ({"messages": chat(mask=True)}, 'message 2 has "mask", which says what is learned in a way'),
        ({"messages": chat(training_detail=[])}, 'message 2 has "training_detail"'),
        ({"messages": chat(masked=True)}, 'message 2 has "masked"'),
        ({"messages": chat(loss_scale=0)}, 'message 2 has "loss_scale"'),
        ({"messages": [{**TURNS[0], "train": True}, TURNS[1]]}, 'message 1 asks to be learned ."train".'),
        ({"messages": chat(function_call={"name": "f"})}, "message 2 is a tool call"),
        ({"messages": TURNS, "weight": 2}, 'the record has 2 as its "weight"'),
        ({"prompt": "a", "completion": "b", "loss_mask": [0, 1]}, 'the record has "loss_mask"'),
        ({"messages": TURNS, "tools": [{"name": "f"}]}, 'the record has "tools", which is not supported'),
        ({"messages": TURNS, "chat_template_kwargs": {"x": 1}}, 'has "chat_template_kwargs"'),
        ({"prompt": "a", "completion": "b", "completion_mask": [0, 1]}, 'has "completion_mask"'),
        (
            {"prompt": "a", "completion": "b", "system": "Be brief."},
            '"system" has no place where prompt and completion',
        ),
        ({"text": "a", "system": "Be brief."}, '"system" has no place beside "text"'),
        ({"messages": TURNS, "system": 3}, '"system" must be a string, not int'),
        (
            {"messages": [{"role": "system", "content": "x"}, *TURNS], "system": "Be brief."},
            '"system" and a system message: leave one',
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, record, message):
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        loaded(tmp_path, GPT2, {"text": "the cat"}, record)


def test_generation_blocks_that_are_not_one_an_answer(tmp_path):
    twice = MARKED.replace(
        "{{ m.content }}{% endg", "{{ m.content }}{% endgeneration %}-{% generation %}{{ eos_token }}{% endg"
    )  # noqa: E501
    tokenizer = Tokenizer(byte_level(IM), {"eos_token": "<|im_end|>", "chat_template": twice + ASKS})
    assert loaded(tmp_path, tokenizer, {"messages": TURNS})[0].live
    with pytest.raises(ValueError, match="has 4 {% generation %} blocks for 2 answers"):
        loaded(tmp_path, tokenizer, {"messages": chat(weight=0)})


def test_a_record_that_is_not_to_be_learned_is_left_out_and_counted(tmp_path):
    keep = {"prompt": "the", "completion": " cat"}
    off = [{**keep, "weight": 0}, {"text": "the", "train": False}, {"messages": TURNS, "loss": 0}]
    off += [{"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}]
    for tokenizer in (GPT2, CHAT):
        data = loaded(tmp_path, tokenizer, keep, *off)
        assert (len(data), data.dropped, data.masked, data.notes) == (1, 4, 5, ())
        assert "4 dropped with nothing left to learn; 5 answers left unlearned, as asked" in data.report()
    with pytest.raises(ValueError, match="no assistant turn to learn from"):
        loaded(tmp_path, GPT2, {"messages": TURNS[:1]})


def test_nothing_is_left_to_learn(tmp_path):
    off = {"prompt": "the", "completion": " cat", "weight": 0}
    with pytest.raises(ValueError, match="every answer is left unlearned, as its keys ask; take them away"):
        loaded(tmp_path, GPT2, off, off)
    for twice in ('{"text": "the", "text": "cat"}', '{"messages": [{"role": "user", "content": "a", "content": "b"}]}'):
        with pytest.raises(ValueError, match='line 2: "(text|content)" stands twice in one object'):
            loaded(tmp_path, GPT2, {"text": "the"}, twice)


def test_a_first_answer_that_nothing_asks_for_beside_one_that_is_not_learned(tmp_path):
    data = loaded(tmp_path, CHAT, {"text": "the"}, {"messages": [TURNS[1], TURNS[0], {**TURNS[1], "weight": 0}]})
    assert (len(data), data.dropped) == (1, 1)


def test_a_system_of_the_records_is_used(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    for tokenizer in (GPT2, CHAT):
        (whole,) = loaded(tmp_path, tokenizer, {"messages": [*system, *TURNS]})
        data = loaded(tmp_path, tokenizer, {"messages": TURNS, "system": "Be brief."})
        assert data[0].ids.tolist() == whole.ids.tolist() and "Be brief." in tokenizer.decode(whole.ids)
        assert data.notes == ()
        for nothing in ("", None):
            data = loaded(tmp_path, tokenizer, {"messages": TURNS, "system": nothing})
            assert data[0].ids.tolist() == loaded(tmp_path, tokenizer, {"messages": TURNS})[0].ids.tolist()
    (record,) = loaded(tmp_path, CHAT, {"prompt": "Hello there", "completion": "Hi", "system": "Be brief."})
    turns = [TURNS[0], {"role": "assistant", "content": "Hi"}]
    assert record.ids.tolist() == loaded(tmp_path, CHAT, {"messages": [*system, *turns]})[0].ids.tolist()


# What is said


def test_a_note_is_of_its_own_file(tmp_path):
    """A tokenizer goes from file to file, and what its template left open in one is nothing in the next."""
    first = {"messages": [TURNS[1], *TURNS]}
    CHAT.apply_chat(first["messages"])
    for rows in ([first], [{"messages": TURNS}], [first]):
        notes = loaded(tmp_path, CHAT, *rows).notes
        assert ["begins a conversation" in note for note in notes] == [True] * (rows == [first])


def test_keys_that_change_nothing_are_named_once(tmp_path):
    rows = [{"text": "the", "id": 3}, {"text": "cat", "id": 4, "source": None, "quality": "good"}]
    talk = {"messages": [{**TURNS[0], "name": "Eve"}, {**TURNS[1], "thinking": "hm"}]}
    notes = loaded(tmp_path, GPT2, *rows, talk).notes
    named = '"id" (line 1), "quality" (line 2), "messages: name" (line 3), "messages: thinking" (line 3)'
    assert notes == (f"keys that change nothing here: {named}",)
    many = loaded(tmp_path, GPT2, {"text": "the", **{f"k{i}": i for i in range(20)}}).notes
    assert many[0].endswith('"k7" (line 1) and 12 more')
    thinks = Tokenizer(byte_level(IM), {"eos_token": "<|im_end|>", "chat_template": CASES["qwen3"].template})
    assert loaded(tmp_path, thinks, {"messages": [TURNS[0], {**TURNS[1], "reasoning": "hm"}]}).notes == ()


def test_what_the_template_does_not_write_is_noted(tmp_path):
    deaf = CHATML.replace("{{'<|im_start|>' +", "{% if message.role != 'system' %}{{'<|im_start|>' +")
    deaf = deaf.replace("+ '\n'}}{% endfor %}", "+ '\n'}}{% endif %}{% endfor %}")
    tokenizer = Tokenizer(byte_level(IM), {"eos_token": "<|im_end|>", "chat_template": deaf})
    assert loaded(tmp_path, tokenizer, {"messages": TURNS}).notes == ()
    system = {"prompt": "the", "completion": "cat", "system": "Be brief."}
    talk = {"messages": [{"role": "system", "content": "Be brief."}, *TURNS]}
    (note,) = loaded(tmp_path, tokenizer, {"messages": TURNS}, system, talk).notes
    assert note == "in 2 lines (the first is 2) the chat template leaves out or changes what the system writes"
    assert loaded(tmp_path, CHAT, system, talk).notes == ()
    for name, case in CASES.items():
        other = Tokenizer(case.inner(), {**case.config, "chat_template": case.template})
        assert not [note for note in loaded(tmp_path, other, {"messages": TURNS}).notes if "leaves out" in note], name


def test_characters_that_the_vocabulary_lacks_are_noted(tmp_path):
    tokenizer = by_hand("▁the", "▁cat", "cat", normal=NORMAL)
    assert tokenizer.unk_id is None  # nothing says that it is one
    tokenizer = Tokenizer(tokenizer._inner, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    (note,) = loaded(tmp_path, tokenizer, {"text": "the"}, {"text": "the cät"}).notes
    assert note == "in line 2 the text has characters that the vocabulary lacks: each is learned as <unk>"
    with pytest.warns(UserWarning, match="the text has characters that the vocabulary lacks"):
        load_text("the cat cät", tokenizer)


def test_a_space_at_the_end_of_a_prompt_is_noted(tmp_path):
    right, wrong = {"prompt": "the", "completion": " cat"}, {"prompt": "the ", "completion": "cat"}
    for tokenizer in (GPT2, by_hand("▁the", "▁cat", "cat", normal=NORMAL), LLAMA3):
        assert loaded(tmp_path, tokenizer, right).notes == ()
        (note,) = loaded(tmp_path, tokenizer, right, wrong).notes
        assert note.startswith("in line 2 the end of the prompt and the beginning of the answer are one token")
        (note,) = loaded(tmp_path, tokenizer, right, wrong, wrong).notes
        assert note.startswith("in 2 lines (the first is 2) the end of the prompt")


def test_a_beginning_of_text_that_is_spelled_out_besides_is_noted(tmp_path):
    for tokenizer in (LLAMA2, LLAMA3):
        (note,) = loaded(tmp_path, tokenizer, {"text": "the"}, {"text": "<s>the"}).notes
        assert note.startswith("in line 2 the text begins with <s> twice: the tokenizer puts it before every text")
        assert loaded(tmp_path, GPT2, {"text": "<s>the"}).notes == ()
    with pytest.warns(UserWarning, match="the text begins with <s> twice"):
        load_text("<s>the cat sat", LLAMA3)


def test_a_token_beyond_the_model_is_named_with_its_line(tmp_path):
    inner = byte_level(("</s>",))
    size = inner.get_vocab_size()
    inner.add_special_tokens(["<|new|>"])
    tokenizer = Tokenizer(inner, {"eos_token": "</s>"})
    rows = [{"prompt": "the", "completion": " cat"}] * 3 + [{"prompt": "the", "completion": " <|new|>"}]
    with pytest.raises(ValueError, match=rf"line 4: the text has the token '<\|new\|>', whose id {size} is beyond the"):
        loaded(tmp_path, tokenizer, *rows, vocab_size=size)
    assert loaded(tmp_path, tokenizer, *rows, vocab_size=size + 1).notes == ()
    (note,) = loaded(tmp_path, tokenizer, *rows[:3], vocab_size=size).notes
    assert note.startswith(f"the tokenizer has {size + 1} tokens and the model {size}: a text with one of the others")
    with pytest.raises(ValueError, match=r"the text: the text has the token '<\|new\|>'.*tokens \(0 to"):
        load_text("the cat <|new|>", tokenizer, vocab_size=size)
    ends = Tokenizer(inner, {"eos_token": "<|new|>"})  # what is put after an answer counts, too
    with pytest.raises(ValueError, match=r"line 1: the text has the token '<\|new\|>'"):
        loaded(tmp_path, ends, *rows, vocab_size=size)
    refuse_ids_beyond([0, size - 1], tokenizer, size)
    refuse_ids_beyond([size], tokenizer, None)


# What is held out


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.floats(0, 0.9), st.integers(1, 8), st.integers(0, 5))
def test_what_is_held_out_can_be_measured(starts, fraction, max_seq_len, seed):
    """Each record's answer begins at `start`: those beyond the length have nothing to learn, on either side."""
    rows = [Example(np.arange(14), np.where(np.arange(14) >= start, 1, IGNORE)) for start in starts]
    left = sum(start < max_seq_len for start in starts)
    if not left:
        with pytest.raises(ValueError, match="every answer starts beyond the first"):
            split(rows, fraction, seed, max_seq_len)
        return
    if left < 2 and fraction:
        with pytest.raises(ValueError, match="too little data to hold some out"):
            split(rows, fraction, seed, max_seq_len)
        return
    train, rest = split(rows, fraction, seed, max_seq_len)
    assert len(train) + len(rest) == left and bool(rest) == bool(fraction)
    assert all(example.live for example in (*train, *rest))
    assert train.dropped == len(starts) - left
    for part in (train, rest):
        if part:
            Loader(part, 2, max_seq_len)


def test_too_little_is_left_to_hold_some_out():
    rows = [Example(np.arange(9), np.where(np.arange(9) >= start, 1, IGNORE)) for start in (1, 8, 8)]
    with pytest.raises(ValueError, match=r"hold some out \(1 left of 3, the others have nothing to learn\): add more"):
        split(rows, 0.1, max_seq_len=5)


def test_a_running_text_is_parted_as_before():
    text = Dataset((Example(np.arange(40), np.arange(1, 41)),), plain=True)
    for a, b in zip(split(text, 0.1, 0, 8), split(text, 0.1), strict=True):
        assert [example.ids.tolist() for example in a] == [example.ids.tolist() for example in b]
    assert len(fit(split(text, 0.1, 0, 8)[1], 8)) == 1
