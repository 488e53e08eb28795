"""Chat templates: rendered as written, learned where the assistant writes, one beginning, one end, and no way out."""

from __future__ import annotations

import json
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from chat_templates import CASES, CHATML, DOG, GENERATION, HI, IM, QWEN3, TURNS, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from tinyllm.cli import main
from tinyllm.data import IGNORE, load_text
from tinyllm.data.messages import ROLES
from tinyllm.data.tokenizer import Tokenizer

jinja2 = pytest.importorskip("jinja2", reason="not run: jinja2 is not installed")

TOKENIZERS = {
    name: Tokenizer(case.inner(), {**case.config, "chat_template": case.template}) for name, case in CASES.items()
}
INNER = byte_level(IM)
every = pytest.mark.parametrize("name", CASES)


def with_template(template, inner=INNER, **config):
    return Tokenizer(inner, {"eos_token": "<|im_end|>", "chat_template": template, **config})


def learned(segments):
    return tuple(text for text, trainable in segments if trainable)


def examples(folder, tokenizer, *conversations):
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations), encoding="utf-8")
    return load_text(file, tokenizer)


# What is learned


@every
def test_the_answers_and_their_end_are_learned_and_nothing_else(name):
    tokenizer = TOKENIZERS[name]
    segments = tokenizer.apply_chat(TURNS)
    assert learned(segments) == CASES[name].learned
    text, _ = tokenizer._template.render(TURNS)
    assert "".join(piece for piece, _ in segments) == text
    assert all(piece for piece, _ in segments)
    assert all(a != b for (_, a), (_, b) in zip(segments, segments[1:], strict=False))


@every
def test_a_prompt_in_training_is_the_prompt_in_use(name):
    """What stands before the last answer is, token for token, what generation starts from."""
    tokenizer = TOKENIZERS[name]
    prompt, _ = tokenizer.encode_segments(tokenizer.apply_chat(TURNS[:-1], add_generation_prompt=True))
    ids, live = tokenizer.encode_segments(tokenizer.apply_chat(TURNS))
    assert ids[: len(prompt)] == prompt
    assert live[len(prompt)] and not live[len(prompt) - 1]


@every
def test_labels_of_a_file(tmp_path, name):
    case, tokenizer = CASES[name], TOKENIZERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (example,) = examples(tmp_path, tokenizer, TURNS)
    text, _ = tokenizer._template.render(TURNS)
    assert example.ids.tolist() == tokenizer.encode(text)  # the template alone: nothing added, nothing twice
    assert np.count_nonzero(example.ids == (-1 if tokenizer.bos_id is None else tokenizer.bos_id)) == (
        case.bos if name != "smollm2" else 5  # its beginning of text is <|im_start|>
    )
    live = example.labels[example.labels != IGNORE]
    assert "".join(tokenizer.decode(live).split()) == "".join("".join(case.learned).split())
    ends = [int(id) for id in live if tokenizer.is_unit(int(id))]
    assert len(ends) == len(case.learned)
    assert set(ends) <= set(tokenizer.stop_ids)


@every
def test_pieces_are_whole(name):
    """Where special tokens part the pieces, encoding them one by one gives the same: only SentencePiece does not."""
    tokenizer = TOKENIZERS[name]
    segments = tokenizer.apply_chat(TURNS)
    ids, live = tokenizer.encode_segments(segments)
    assert ids == tokenizer.encode("".join(text for text, _ in segments))
    one_by_one = [tokenizer.encode(text) for text, _ in segments]
    if CASES[name].kind == "bytes" and not CASES[name].rstrip:
        assert ids == [id for piece in one_by_one for id in piece]
        flags = [trainable for (_, trainable), piece in zip(segments, one_by_one, strict=True) for _ in piece]
        assert live == flags


contents = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|"), max_size=12)


@given(
    st.lists(st.tuples(contents, contents), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["smollm2", "generation"]),
)
def test_any_conversation(pairs, system, name):
    tokenizer = TOKENIZERS[name]
    turns = [{"role": "system", "content": "x"}] * system
    for question, answer in pairs:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    segments = tokenizer.apply_chat(turns)
    assert learned(segments) == tuple(answer + "<|im_end|>" for _, answer in pairs)
    text = "".join(piece for piece, _ in segments)
    ids, live = tokenizer.encode_segments(segments)
    assert ids == tokenizer.encode(text)
    assert sum(live) == sum(len(tokenizer.encode(answer)) + 1 for _, answer in pairs) or any(
        a[:1].isspace() for _, a in pairs
    )


def test_tokens_across_a_boundary():
    """Offsets decide: a token with one learned character is learned, a special token from before is not."""
    inner = byte_level(("<e>", "<h>"))
    inner.add_special_tokens([AddedToken("<r>", special=True, normalized=False, rstrip=True)])
    trimmed, inner.post_processor = inner.post_processor, processors.ByteLevel(trim_offsets=False)
    assert inner.encode("<r>  the", add_special_tokens=False).offsets[0] == (0, 5)  # the spaces belong to the marker
    tokenizer = Tokenizer(inner, {"eos_token": "<e>"})
    ids, live = tokenizer.encode_segments([("<r>", False), ("  the", True), ("<e>", False)])
    assert not live[0] and live[1] and not live[-1]
    inner.post_processor = trimmed
    assert inner.encode("a <e>", add_special_tokens=False).offsets[1] == (2, 2)  # a space alone has no offsets
    assert tokenizer.encode_segments([("a", False), (" ", True), ("<e>", False)])[1] == [False, True, False]
    ids, live = tokenizer.encode_segments([("the ", False), ("cat", True), (" sat", False)])
    at = [tokenizer.decode([id]) for id, on in zip(ids, live, strict=True) if on]
    assert at and at[0].startswith(" ")  # " cat" is one token
    ids, live = tokenizer.encode_segments([("a", False), ("你", True), ("b", False)])
    assert live == [False] + [True] * (len(ids) - 2) + [False]
    assert tokenizer.encode_segments([]) == ([], [])


def test_rewritten_turns_are_context_and_said_so(tmp_path):
    tokenizer = TOKENIZERS["qwen3"]
    with pytest.warns(UserWarning, match="rewrites earlier turns .* 1 of 2 answers.*conversation that ends with it"):
        data = examples(tmp_path, tokenizer, TURNS, TURNS[:2])
    assert len(data.notes) == 1
    thinking = [TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"}]
    for last in (thinking[1], {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}):
        assert learned(tokenizer.apply_chat([TURNS[0], last])) == ("<think>\nhm\n</think>\n\nHi<|im_end|>",)
    assert learned(tokenizer.apply_chat([*thinking, *TURNS[2:]])) == CASES["qwen3"].learned
    with pytest.raises(ValueError, match="rewrites every answer of this conversation once more follows.*end the conv"):
        tokenizer.apply_chat(TURNS[:3])
    system = [{"role": "system", "content": "Be brief."}, *TURNS]  # which it writes into the last question, or nowhere
    with pytest.raises(ValueError, match=r"text that the answer's turn does not have \('Be brief"):
        TOKENIZERS["mistral"].apply_chat(system)


def test_what_cannot_be_told_is_refused():
    no_prompt = CHATML.partition("{% if add_generation_prompt")[0]
    with pytest.raises(ValueError, match=r"writes '<\|im_start\|>assistant\\n' before an answer, but not as a prompt"):
        with_template(no_prompt).apply_chat(TURNS)
    opens = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
    with pytest.raises(ValueError, match="prompts for an answer with text that the answer's turn does not have"):
        with_template(opens).apply_chat(TURNS)
    with pytest.raises(ValueError, match="does not write the assistant's answers as they are"):
        with_template("{% for m in messages %}{{ m.content|upper }}{% endfor %}").apply_chat(TURNS)
    with pytest.raises(ValueError, match="message 2 has no prompt to answer: .* even"):
        with_template("{{ raise_exception('even') if messages|length == 1 }}").apply_chat(TURNS)
    for name in ("qwen2.5", "smollm2"):
        with pytest.raises(ValueError, match="the only answer begins the conversation.*put a question first"):
            TOKENIZERS[name].apply_chat(TURNS[1:2])
        tokenizer = with_template(CASES[name].template)
        assert learned(tokenizer.apply_chat(TURNS[1:])) == (DOG + "<|im_end|>",)
        assert ["begins a conversation" in note for note in tokenizer.chat_notes] == [True]


# Where an answer ends


def test_an_end_marker_is_written_once(tmp_path):
    """A template that writes none gets the end of text, once, after the last answer alone."""
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
    tokenizer = with_template(bare.replace("assistant: ", "{{ 'assistant: ' }}"))
    (example,) = examples(tmp_path, tokenizer, TURNS)
    ends = np.flatnonzero(example.ids == tokenizer.eos_id)
    assert ends.tolist() == [len(example) - 1]
    assert example.labels[-2] == tokenizer.eos_id
    for name in ("smollm2", "llama2", "zephyr"):
        tokenizer = TOKENIZERS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (example,) = examples(tmp_path, tokenizer, TURNS)
        text, _ = tokenizer._template.render(TURNS)
        eos = tokenizer.token(tokenizer.eos_id)
        assert np.count_nonzero(example.ids == tokenizer.eos_id) == text.count(eos)


def test_an_end_marker_that_the_vocabulary_splits(tmp_path):
    tokenizer = with_template(CHATML, byte_level(("<|endoftext|>",)), eos_token="<|endoftext|>")
    with pytest.warns(UserWarning, match=r"'<\|im_end\|>\\n', no token of this vocabulary"):
        (example,) = examples(tmp_path, tokenizer, TURNS)
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    assert example.labels[-2] == tokenizer.eos_id


def test_a_generation_block_without_the_end(tmp_path):
    template = GENERATION.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    with pytest.warns(UserWarning, match=r"ends before the end marker <\|im_end\|>.*does not learn to stop"):
        examples(tmp_path, with_template(template), TURNS)
    inside = "{% set x %}{% generation %}a{% endgeneration %}{% endset %}b{{ x }}"
    with pytest.raises(ValueError, match="generation %} stands inside a macro or a {% set %}"):
        with_template(inside).apply_chat(TURNS)


# Messages


def test_contents_and_roles():
    tokenizer = TOKENIZERS["smollm2"]
    parts = [{"type": "text", "text": "Hi! "}, {"type": "text", "text": "The cat sat."}]
    assert tokenizer.apply_chat([TURNS[0], {**TURNS[1], "content": parts}]) == tokenizer.apply_chat(TURNS[:2])
    for turn, message in [
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "message 1 is a tool call, which is not supported"),
        ({"role": "tool", "content": "4"}, "message 1 is a tool call"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "message 1 has parts other than text"),
        ({"role": "user", "content": [{"type": "text"}]}, "message 1 has parts other than text"),
        ({"role": "user", "content": None}, "must be a string, not NoneType"),
        ({"role": "asistant", "content": "x"}, "unknown role 'asistant'"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer.apply_chat([turn])
    assert set(ROLES) == {"system", "user", "assistant"}


def test_the_template_refuses_in_its_own_words(tmp_path):
    with pytest.raises(ValueError, match="refuses this conversation: Conversation roles must alternate user"):
        TOKENIZERS["gemma"].apply_chat(TURNS[1:])
    with pytest.raises(ValueError, match="line 1: the chat template refuses .* System role not supported"):
        examples(tmp_path, TOKENIZERS["gemma"], [{"role": "system", "content": "x"}, *TURNS])
    with pytest.raises(ValueError, match=r"has an error in line 2: .*'endfor'"):
        with_template("{% for m in messages %}\nx{% endif %}").apply_chat(TURNS)
    with pytest.raises(ValueError, match="fails on this conversation: .* has no attribute 'x'"):
        with_template("{{ messages[0].x.y }}").apply_chat(TURNS)


def test_without_jinja(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "tinyllm.data.sandbox", raising=False)
    monkeypatch.delitem(sys.modules, "tinyllm.data.budget", raising=False)
    monkeypatch.delattr("tinyllm.data.sandbox", raising=False)
    tokenizer = with_template(CHATML)
    with pytest.raises(ImportError, match=r'jinja2 3.1.6.*pip install "tinyllm-engine\[chat\]".*chat_template = None'):
        tokenizer.apply_chat(TURNS)
    tokenizer.chat_template = None
    assert learned(tokenizer.apply_chat(TURNS)) == (" " + HI, " " + DOG)


def test_white_space_around_blocks_is_nothing():
    template = "  {% if true %}\n  a\n\t{% endif %}\n  b\n{% set x = 1 %}\n"
    assert with_template(template).apply_chat(TURNS[:1]) == [("  a\n  b\n", False)]


def test_a_template_can_be_changed():
    tokenizer = with_template("{{ messages[0].content }}")
    question = TURNS[:1]
    assert tokenizer.apply_chat(question) == [("Hello there", False)]
    tokenizer.chat_template = "{{ messages[0].role }}"
    assert tokenizer.apply_chat(question) == [("user", False)]


# Templates that mean harm

DOUBLING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x %s }}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "class by attr": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('x') }}",
    "globals of raise": "{{ raise_exception.__globals__ }}",
    "globals of a method": "{{ messages[0].items.__self__.__class__ }}",
    "init of namespace": "{{ namespace.__init__.__globals__ }}",
    "frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format width": "{{ '{:>999999999}'.format(1) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "underscore": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "self": "{{ self.__init__.__globals__ }}",
    "config": "{{ self._TemplateReference__context.environment }}",
    "change": "{{ messages.append(1) }}",
    "clear": "{{ messages[0].clear() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",  # noqa: E501
    "filtered loops": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "two calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "times of a list": "{{ [1] * 10**9 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power by steps": "{% set ns = namespace(x=10) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x > 1 }}",  # noqa: E501
    "percent": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent names": "{% set a = 'a' * 1000000 %}{{ ('%(a)s' * 1000) % {'a': a} }}",
    "shift": "{{ 'x'.ljust(10**9) }}{{ 'x'.zfill(10**9) }}{{ 'x'.center(10**9) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "center": "{{ 'x'|center(10**9) }}",
    "indent": "{{ 'x\ny'|indent(10**9) }}",
    "indent by text": "{% set a = 'a' * 1000000 %}{{ ('x\n' * 1000)|indent(a) }}",
    "json indent": "{{ messages|tojson(indent=10**9) }}",
    "json separators": "{% set a = 'a' * 1000000 %}{{ range(99999)|list|tojson(separators=(a, a)) }}",
    "replace": "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "replace filter": "{% set a = 'a' * 1000000 %}{{ a|replace('', a) }}",
    "join": "{% set a = 'a' * 1000000 %}{{ a.join(range(99999)|map('string')) }}",
    "join filter": "{% set a = 'a' * 1000000 %}{{ range(99999)|join(a) }}",
    "date": "{{ strftime_now('%999999999d') }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "lorem": "{{ lipsum(n=10**9) }}",
    "round": "{{ 1|round(10**9, 'ceil') }}",
    "sum of lists": "{% set a = [[1] * 1000] * 100 %}{{ a|sum(start=[]) }}",
    "tilde": DOUBLING % ("'ab'", "ns.x ~ ns.x", "|length"),
    "tilde line by line": "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60,
    "lists line by line": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "plus": DOUBLING % ("'ab'", "ns.x + ns.x", "|length"),
    "lists": DOUBLING % ("[1]", "[ns.x, ns.x]", ""),
    "tuples": DOUBLING % ("[1]", "(ns.x, ns.x)", "|string"),
    "dicts": DOUBLING % ("[1]", "{1: ns.x, 2: ns.x}", "|tojson"),
    "dict calls": DOUBLING % ("[1]", "dict(a=ns.x, b=ns.x)", ""),
    "namespaces": DOUBLING % ("[1]", "namespace(a=ns.x, b=ns.x)", ""),
    "sum of lists by plus": DOUBLING % ("[1]", "ns.x + ns.x", ""),
    "set blocks": "{% set a %}ab{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "macros": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLING % ("'ab'", "f(ns.x)", "|length"),
    "filter blocks": "{% set a = 'ab' %}"
    + "{% set a %}{% filter upper %}{{ a }}{{ a }}{% endfilter %}{% endset %}" * 60,
    "slices": "{% set a = range(99999)|list %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "compare": "{% set a = 'a' * 1000000 %}{% set b = 'a' * 999999 + 'b' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' if a == b }}{% endfor %}{% endfor %}",
    "a hoard": "".join(f"{{% set a{i} = ('a' ~ {i}) * 300000 %}}" for i in range(3000)),
    "cycle": "{% set ns = namespace() %}{% set ns.x = ns %}{% set y = [ns, 1] %}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "loops in loops": "{% for i in messages %}" * 40 + "{% endfor %}" * 40,
    "length": "x" * 300_000,
    "a long message": "{{ raise_exception('x' * 1000000) }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{{ }",
    "unknown tag": "{% exec %}",
    "escaping": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr("tinyllm.data.budget.SECONDS", 1.0)
    tokenizer = with_template(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="chat template") as caught:
            tokenizer.apply_chat(TURNS[:1])
        assert tracemalloc.get_traced_memory()[1] < 250e6
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 500


scraps = st.sampled_from(
    ["{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{% if m %}", "{% endif %}", "{% set x = ", "x ~ x",
     " %}", "{{ ", " }}", "messages", "[0]", ".role", "['content']", "|trim", "|tojson", "|list", "range(9)", "'a'",
     " * 99999", " + ", "namespace(a=x)", "{% macro f() %}", "{% endmacro %}", "f()", ".__class__", "[1:]", "{#", "-%}",
     "{% generation %}", "{% endgeneration %}", "{% break %}", "raise_exception('no')", "<|im_end|>", "\n", "9**9**9"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(scraps | st.text(max_size=5), max_size=25).map("".join))
def test_any_template_renders_or_says_why(template):
    tokenizer = with_template(template)
    try:
        segments = tokenizer.apply_chat(TURNS[:2])
    except ValueError as error:
        assert "chat template" in str(error) or "no prompt to answer" in str(error)
        return
    assert "".join(piece for piece, _ in segments) == tokenizer._template.render(TURNS[:2])[0]


def test_honest_work_is_not_too_much():
    """A thousand turns, a long text, and a template that looks at all of them for each."""
    tokenizer = TOKENIZERS["qwen3"]
    turns = (TURNS[:2] * 100)[:-1] + [{"role": "assistant", "content": "x" * 1_000_000}]
    text, _ = tokenizer._template.render(turns)
    assert text.count("<|im_end|>") == 200
    many = [{"role": "user", "content": "x"}] * 2000
    quadratic = "{% for m in messages %}{% for n in messages[:loop.index] %}{% if loop.last %}{{ n.content }}{% endif %}{% endfor %}{% endfor %}"  # noqa: E501
    text, _ = with_template(quadratic)._template.render(many[:500])
    assert text == "x" * 500


def test_qwen3_is_not_taken_for_a_template_that_is_right_everywhere():
    assert QWEN3.count("<think>") >= 1 and learned(TOKENIZERS["qwen3"].apply_chat(TURNS)) != (HI, DOG)


def test_data_show_proves_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    TOKENIZERS["llama3"].save(tmp_path / "model")
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": TURNS}) + "\n", encoding="utf-8")
    assert main(["data", "show", str(file), "--model", str(tmp_path / "model"), "--max-seq-len", "300"]) == 0
    said = capsys.readouterr().out
    assert "written in the tokenizer's chat template" in said
    assert "beginnings of text: 1; turn 1: " in said and "labels up to '<|eot_id|>'; turn 2: " in said
    TOKENIZERS["qwen3"].save(tmp_path / "model")
    assert main(["data", "show", str(file), "--model", str(tmp_path / "model"), "--max-seq-len", "300"]) == 0
    assert "note: the chat template rewrites earlier turns" in capsys.readouterr().out
