"""Names in messages: the first of many, and the nearest to a wrong one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.backend.names import few, nearest
from tinyllm.nn import Linear

words = st.text("abcdefghij", min_size=1, max_size=8)


@given(st.lists(words, min_size=1, max_size=12), st.integers(1, 6))
def test_few_shows_the_first_and_counts_the_rest(names, shown):
    head, _, rest = few(names, shown).partition(" and ")
    assert head.split(", ") == names[:shown]
    assert rest == (f"{len(names) - shown} more" if len(names) > shown else "")


@pytest.mark.parametrize(
    "name, known, options, hint",
    [
        ("q_prj", ["k_proj", "q_proj"], {}, " (did you mean q_proj?)"),
        ("q_prj", {"k_proj": 1, "q_proj": 2}, {"hint": "perhaps {!r}"}, "perhaps 'q_proj'"),
        ("xyz", ["k_proj", "q_proj"], {}, ""),
        ("abcdwxyz", ["abcd1234"], {}, ""),
        ("abcdwxyz", ["abcd1234"], {"cutoff": 0.4}, " (did you mean abcd1234?)"),
        ("{0}", ["{0}x"], {}, " (did you mean {0}x?)"),
        ("a", [], {}, ""),
    ],
)
def test_nearest(name, known, options, hint):
    assert nearest(name, known, **options) == hint


def test_a_layer_names_five_of_many():
    state = {f"wieght{i}": i for i in range(7)}
    expected = r"missing weight.*unexpected wieght0, wieght1, .*wieght4 and 2 more \(did you mean weight\?\)"
    with pytest.raises(KeyError, match=expected):
        Linear(2, 3, bias=False).load_state_dict(state)
