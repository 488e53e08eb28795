"""A file's fields are taken once, and what nobody took is refused unless it asks for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.formats.fields import LARGEST, Fields

names = st.sampled_from(["a", "b", "c.d", "e", "f", "g", "h"])
values = st.sampled_from([0, 1, 7, 2.5, True, False, None, "", "x", [], [1], {}, {"a": 1}])
GGUF = {"where": "m.gguf", "prefix": "llama.", "equals": " = ", "lacking": "; get it again"}


@given(st.dictionaries(names, st.tuples(values, st.sampled_from(["taken", "inert", "left"])), min_size=1))
def test_what_is_left_is_refused_by_name(drawn):
    given_fields = {name: value for name, (value, _) in drawn.items()}
    taken, inert = ([name for name, (_, fate) in drawn.items() if fate == kind] for kind in ("taken", "inert"))
    fields = Fields(given_fields)
    for name in taken:
        expected = given_fields.get(name)
        assert fields.take(name, "default") == ("default" if expected is None else expected)
        assert fields.take(name, "gone") == "gone"
    left = [n for n, v in given_fields.items() if n not in [*taken, *inert] and v not in (None, False, "", [], {})]
    if not left:
        fields.finish(inert)
        return
    with pytest.raises(ValueError, match="config.json has .*, which is not understood") as raised:
        fields.finish(inert)
    assert all(f"{name}={given_fields[name]!r}" in str(raised.value) for name in left[:5])
    assert (f"and {len(left) - 5} more" in str(raised.value)) == (len(left) > 5)


@pytest.mark.parametrize(
    "ask, value, sentence",
    [
        (lambda f: f.take("x"), None, "m.gguf lacks llama.x; get it again"),
        (lambda f: f.expect("x", 1, 2), 3, r"m.gguf has llama.x = 3, which is not understood here \(only 1, 2\)"),
        (lambda f: f.expect("x", 1), True, "llama.x = True"),
        (lambda f: f.expect("x", True), 1, "llama.x = 1"),
        (lambda f: f.whole("x"), 0, "llama.x = 0; it must be a whole number above 0"),
        (lambda f: f.whole("x"), LARGEST + 1, "must be a whole number"),
        (lambda f: f.whole("x"), True, "must be a whole number"),
        (lambda f: f.whole("x"), 2.0, "must be a whole number"),
        (lambda f: f.number("x"), True, "llama.x = True; it must be a number above 0"),
        (lambda f: f.number("x"), float("inf"), "must be a number above 0"),
        (lambda f: f.number("x", 1.0), None, "llama.x = None; it must be a number above 0"),
        (lambda f: f.flag("x", False), 1, "llama.x = 1; it must be true or false"),
        (lambda f: f.listed("x", list), "abc", "m.gguf lacks llama.x; get it again"),
        (lambda f: f.finish(ending="is odd"), "y" * 999, "^m.gguf has llama.x = 'y{79}, which is odd$"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(ask, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(Fields({"llama.x": value}, **GGUF))


def test_only_one_prefix_counts():
    fields = Fields({"llama.x": 1, "qwen2.y": 2, "general.z": 3}, **GGUF)
    assert fields.rest == {"x": 1} and fields.whole("x") == 1 and fields.whole("y", 5) == 5
    fields.finish()
