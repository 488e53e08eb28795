"""One text, one encoding: what is trained on and what is asked has transformers' ids for the whole text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

sys.path.insert(0, str(Path(__file__).parent.parent))
from tokenizer_kinds import KINDS, PAIRS, TEXTS  # noqa: E402

from tinyllm.data import load_text  # noqa: E402
from tinyllm.data.records import Record  # noqa: E402
from tinyllm.data.text import _label  # noqa: E402
from tinyllm.data.tokenizer import Tokenizer  # noqa: E402

every = pytest.mark.parametrize("name", KINDS)


def both(name, tmp_path):
    inner, config = KINDS[name]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=inner(), **config)
    ours = Tokenizer(inner(), config)
    ours.save(tmp_path)
    return ours, theirs, transformers.AutoTokenizer.from_pretrained(tmp_path)


@every
def test_prompts(name, tmp_path):
    ours, theirs, saved = both(name, tmp_path)
    for text in TEXTS:
        assert ours.encode_prompt(text) == theirs(text).input_ids == saved(text).input_ids, text


@every
def test_prompts_and_completions(name, tmp_path):
    ours, theirs, _ = both(name, tmp_path)
    for prompt, completion in PAIRS:
        whole = prompt + completion + ("" if completion.endswith("</s>") else "</s>")
        record = Record([(prompt, False), (completion, True)], False, "")
        assert _label(record, ours).ids.tolist() == theirs(whole).input_ids, (prompt, completion)


@every
def test_running_texts_and_conversations(name, tmp_path):
    ours, theirs, _ = both(name, tmp_path)
    for text in ("the cat sat on the mat", " the cat\n"):
        data = load_text(text, ours)
        assert [int(data[0].ids[0]), *data[0].labels.tolist()] == theirs(text).input_ids
    turns = [("user", "the cat?"), ("assistant", "sat"), ("user", "the dog?"), ("assistant", " too\n")]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = "User: the cat?\nAssistant: sat</s>\nUser: the dog?\nAssistant:  too\n</s>"
    ids, _ = ours.encode_segments(ours.apply_chat(messages), templated=False)
    assert ids == theirs(whole).input_ids
    assert ours.encode_chat(messages[:3]) == theirs(whole.removesuffix("  too\n</s>")).input_ids
