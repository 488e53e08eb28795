"""Chat templates against transformers: the same text, the same ids, the same assistant masks, an error for an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
pytest.importorskip("jinja2", reason="not run: jinja2 is not installed")

sys.path.insert(0, str(Path(__file__).parent.parent))
from chat_templates import CASES, IM, TURNS, byte_level  # noqa: E402

from tinyllm.data.tokenizer import Tokenizer  # noqa: E402

SYSTEM = [{"role": "system", "content": " Be brief. "}, *TURNS]
THOUGHT = [TURNS[0], {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}]
CONVERSATIONS = {"turns": TURNS, "question": TURNS[:1], "system": SYSTEM, "answer first": TURNS[1:], "thought": THOUGHT}
EDGES = {
    "json": "{{ messages|tojson }}{{ messages[0]|tojson(indent=2, sort_keys=true) }}{{ '<é>'|tojson }}",
    "undefined": "{{ bos_token }}{{ nothing }}{% if tools is not none %}x{% endif %}{{ documents }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "loops": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ loop.last }}{{ loop.length }}"
    "{{ loop.previtem.role }}{{ loop.nextitem.role }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}",
    "items": "{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v }}{% endfor %}{{ dict(a=1) }}{{ messages[-1]['role'] }}",  # noqa: E501
    "slices": "{{ messages[1:]|length }}{{ 'abc'[::-1] }}{{ (1, 2, 3)[1:] }}{{ ['a', messages[0].role] }}",
    "macros": "{% macro f(m, end='!') %}<{{ m.role }}{{ end }}>{% endmacro %}{% for m in messages %}{{ f(m) }}"
    "{% endfor %}{% set x %}\n  in {{ f(messages[0], end='?') }}\n{% endset %}{{ x|trim }}",
    "white space": "  {% if true %}\n    a\n  {% endif %}\n  {#- no -#}  b\n\n{{- 'c' }}\n",
    "arithmetic": "{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 8 }} {{ 1 / 4 }} {{ '%s-%02d' % ('a', 3) }} {{ 'ab' * 3 }} {{ [1] + [2] }}",  # noqa: E501
    "filters": "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"  # noqa: E501
    "{{ ' a '|trim|upper }}{{ 'a\nb'|indent(2) }}{{ 'aXa'|replace('X', 'yy') }}{{ [3, 1]|sort|first }}{{ '<'|e }}",
    "safe": "{{ '<'|safe }}{{ ('<b>'|safe) ~ '<' }}{{ ('<b>'|safe) + '<' }}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "raises": "{{ raise_exception('no') }}",
    "fails": "{{ messages[0].a.b }}",
    "syntax": "{% for %}",
    "class": "{{ ''.__class__.__mro__ }}",
    "append": "{{ messages.append(1) }}",
}  # fmt: skip


def both(inner, config, template):
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, **{k: v for k, v in config.items() if k != "add_bos_token"}
    )
    theirs.chat_template = template
    return Tokenizer(inner, {**config, "chat_template": template}), theirs


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", CASES)
def test_text_and_ids(name, turns, prompt):
    case, turns = CASES[name], CONVERSATIONS[turns]
    ours, theirs = both(case.inner(), case.config, case.template)
    try:
        text = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    except Exception:
        with pytest.raises(ValueError, match="chat template"):
            ours.apply_chat(turns, prompt)
        return
    assert ours._template.render(turns, prompt)[0] == text
    try:
        segments = ours.apply_chat(turns, prompt)
    except ValueError as error:  # a conversation one can prompt with, but not learn from
        assert not prompt
        assert name == "mistral" and "answer's turn does not have" in str(error)
        return
    assert "".join(piece for piece, _ in segments) == text
    ids, learned = ours.encode_segments(segments)
    answer = theirs.apply_chat_template(
        turns, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == answer["input_ids"]
    if "{% generation %}" in case.template and not prompt:
        assert [int(on) for on in learned] == answer["assistant_masks"]
        assert any(learned) == any(turn["role"] == "assistant" for turn in turns)


@pytest.mark.parametrize("name", EDGES)
def test_the_dialect(name):
    ours, theirs = both(byte_level(IM), {"eos_token": IM[2]}, EDGES[name])
    try:
        text = theirs.apply_chat_template(SYSTEM, tokenize=False)
    except Exception:
        text = None
    if text is None:
        with pytest.raises(ValueError, match="chat template"):
            ours._template.render(SYSTEM)
    else:
        assert ours._template.render(SYSTEM)[0] == text


def test_a_folder_of_theirs_is_read_here_and_ours_there(tmp_path):
    case = CASES["qwen3"]
    ours, theirs = both(case.inner(), case.config, case.template)
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").is_file()
    text = theirs.apply_chat_template(TURNS, tokenize=False)
    assert Tokenizer.load(tmp_path / "theirs")._template.render(TURNS)[0] == text
    ours.save(tmp_path / "ours")
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "ours")
    assert again.apply_chat_template(TURNS, tokenize=False) == text
