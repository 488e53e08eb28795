"""The data laws: labels are next tokens, nothing is lost or learned twice, and the order is a function of the step."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import train_bpe

from tinyllm.cli.data import describe
from tinyllm.data import IGNORE, Dataset, Example, Loader, batches, fit, load_text, pack, split
from tinyllm.data.tokenizer import Tokenizer

EOS = "<|endoftext|>"
CORPUS = ["the cat sat on the mat. the dog sat on the cat."]


TOKENIZER = Tokenizer(train_bpe([EOS], CORPUS))
WITH_BOS = Tokenizer(train_bpe([EOS, "<s>"], CORPUS), {"bos_token": "<s>", "add_bos_token": True})

seeds = st.integers(0, 2**70)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<\r"), max_size=30)
lengths = st.integers(1, 12)


@st.composite
def datasets(draw, max_length=12):
    """Records whose ids are all different, so that every label can be told from every other."""
    examples, start = [], 1
    for n in draw(st.lists(st.integers(2, max_length), min_size=1, max_size=20)):
        ids = np.arange(start, start + n)
        learned = np.array(draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1)) + [False])
        learned[-2] = True
        examples.append(Example(ids, np.where(learned, ids + 1, IGNORE)))
        start += n
    return Dataset(tuple(examples))


def write(folder, *records):
    file = folder / "data.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def live(arrays):
    return sorted(int(label) for array in arrays for label in array.labels.ravel() if label != IGNORE)


# Plain text


@given(texts.filter(lambda text: len(TOKENIZER.encode(text)) > 1 and text.strip()), lengths)
def test_windows_rebuild_the_text(folder, text, max_seq_len):
    file = folder / "plain.txt"
    file.write_bytes(text.encode())
    data = load_text(file, TOKENIZER, max_seq_len)
    tokens = TOKENIZER.encode(text)
    assert np.concatenate([window.ids for window in data]).tolist() == tokens[:-1]
    assert np.concatenate([window.labels for window in data]).tolist() == tokens[1:]
    assert all(len(window) == max_seq_len for window in data[:-1])
    assert 1 <= len(data[-1]) <= max_seq_len
    assert (data.plain, data.truncated, data.dropped) == (True, 0, 0)
    assert TOKENIZER.decode([tokens[0], *np.concatenate([window.labels for window in data])]) == text


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "A.TXT"])
def test_every_plain_form_reads_the_same(tmp_path, name):
    text = "the cat\nsat on the mat"
    content = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    expected = TOKENIZER.encode(text)[:-1]
    for source in (tmp_path / name, str(tmp_path / name), text):
        assert load_text(source, TOKENIZER)[0].ids.tolist() == expected


def test_a_file_of_another_name_may_not_be_read_as_text(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"data.csv is of no known kind: give a .jsonl, .txt or .md"):
        load_text(str(tmp_path / "data.csv"), TOKENIZER)
    with pytest.raises(FileNotFoundError, match=r"there is no file corpus.csv"):
        load_text("corpus.csv", TOKENIZER)
    with pytest.raises(FileNotFoundError, match="there is no file my corpus.txt"):
        load_text("my corpus.txt", TOKENIZER)
    with pytest.raises(ValueError, match="is a folder"):
        load_text(tmp_path, TOKENIZER)


# Records


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.sampled_from([TOKENIZER, WITH_BOS]))
def test_only_the_completion_and_its_end_are_learned(folder, pairs, tokenizer):
    pairs = [(prompt + "\n", completion) for prompt, completion in pairs]  # no token of this vocabulary crosses that
    pairs.append(("the cat", " sat"))
    data = load_text(write(folder, *({"prompt": p, "completion": c} for p, c in pairs)), tokenizer)
    expected = []
    for prompt, completion in pairs:
        start = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(prompt)
        answer = [*tokenizer.encode(completion), tokenizer.eos_id]
        labels = [IGNORE] * len(start) + answer
        if any(label != IGNORE for label in labels[1:]):
            expected.append((start + answer, [*labels[1:], IGNORE]))
    assert [(example.ids.tolist(), example.labels.tolist()) for example in data] == expected
    assert data.dropped == len(pairs) - len(expected)
    for example in data:
        here = np.flatnonzero(example.labels != IGNORE)
        assert (example.labels[here] == example.ids[here + 1]).all()
        assert example.labels[-2] == tokenizer.eos_id


def test_end_of_text_in_a_prompt_is_masked_and_after_an_answer_is_learned(tmp_path):
    record = {"prompt": f"cat{EOS}the", "completion": f" dog{EOS} sat"}
    (example,) = load_text(write(tmp_path, record), TOKENIZER)
    ends = np.flatnonzero(example.ids == TOKENIZER.eos_id)
    assert (example.labels[ends - 1] != IGNORE).tolist() == [False, True, True]


def test_every_turn_of_the_assistant_is_learned(tmp_path):
    turns = ["user", "assistant", "user", "assistant"]
    record = {"messages": [{"role": role, "content": f"the cat {i}"} for i, role in enumerate(turns)]}
    (example,) = load_text(write(tmp_path, record), TOKENIZER)
    assert TOKENIZER.decode(example.labels[example.labels != IGNORE]) == f" the cat 1{EOS} the cat 3{EOS}"
    text = f"User: the cat 0\nAssistant: the cat 1{EOS}\nUser: the cat 2\nAssistant: the cat 3{EOS}"
    assert TOKENIZER.decode(example.ids) == text


def test_a_text_record_is_learned_whole(tmp_path):
    (example,) = load_text(write(tmp_path, "", {"text": "the\u2028cat", "source": 3}, "  "), TOKENIZER)
    assert example.ids.tolist() == [*TOKENIZER.encode("the\u2028cat"), TOKENIZER.eos_id]
    assert example.labels.tolist() == [*example.ids[1:].tolist(), IGNORE]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    file = write(tmp_path, '{"text": "the\u2028cat"}')
    assert "\u2028" in file.read_text(encoding="utf-8")
    assert len(load_text(file, TOKENIZER)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "not valid JSON .* at column 13.*: write one JSON object a line"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ("[1]", "this is a JSON list: write one JSON object a line"),
        ('{"question": "x"}', r"has the keys \['question'\]: write"),
        ('{"prompt": "x"}', 'lacks "completion": add it'),
        ('{"completion": "x"}', 'lacks "prompt": add it'),
        ('{"prompt": "x", "completion": 3}', '"completion" must be a string, not int: write it as plain text'),
        ('{"text": null}', '"text" must be a string, not NoneType'),
        ('{"text": "x", "prompt": "y"}', '"prompt" and "text", so what to learn is unclear: write only one'),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"messages": {}}', '"messages" must be a list'),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "unknown role 'robot': use system, user, assistant"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "must be a string, not list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant turn to learn from: add one"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path, line, message):
    file = write(tmp_path, {"text": "the cat"}, "", line)
    with pytest.raises(ValueError, match=rf"data.jsonl, line 3: .*({message})"):
        load_text(file, TOKENIZER)


def test_bad_files(tmp_path):
    file = tmp_path / "a.txt"
    for content in (b"", b" \n"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.txt is empty: put some text into it"):
            load_text(file, TOKENIZER)
    file.write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(ValueError, match=r"a.txt, line 3: byte 0xe9 is not valid UTF-8: save the file as UTF-8"):
        load_text(file, TOKENIZER)
    file.write_bytes(b"a")
    with pytest.raises(ValueError, match=r"a.txt: there is nothing to learn from: give a longer text"):
        load_text(file, TOKENIZER)
    whole = gzip.compress(b"the cat sat on the mat")
    for content in (b"no gzip", whole[:-9], whole[:12] + b"\xff\xff\xff" + whole[15:]):
        (tmp_path / "b.txt.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b.txt.gz is not a whole gzip file"):
            load_text(tmp_path / "b.txt.gz", TOKENIZER)
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_text(write(tmp_path, {"text": "x"}), Tokenizer(train_bpe(["<other>"], CORPUS)))


# Cutting and splitting


@given(datasets(), lengths)
def test_cutting_counts_what_it_loses(data, max_seq_len):
    heads = [example.labels[:max_seq_len] for example in data]
    left = [int((head != IGNORE).sum()) for head in heads]
    if not any(left):
        with pytest.raises(ValueError, match="every answer starts beyond .* raise max_seq_len"):
            fit(data, max_seq_len)
        return
    cut = fit(data, max_seq_len)
    kept = [head.tolist() for head, n in zip(heads, left, strict=True) if n]
    assert [example.labels.tolist() for example in cut] == kept
    assert cut.dropped == left.count(0)
    assert cut.truncated == sum(0 < n < example.live for n, example in zip(left, data, strict=True))
    again = fit(cut, max_seq_len)
    assert (len(again), again.truncated, again.dropped) == (len(cut), cut.truncated, cut.dropped)
    assert ("truncated" in cut.report()) == (cut.truncated > 0)
    assert ("dropped" in cut.report()) == (cut.dropped > 0)


@given(datasets(), st.floats(0, 0.99), seeds)
def test_a_split_of_records_is_disjoint_and_complete(data, fraction, seed):
    if fraction and len(data) < 2:
        with pytest.raises(ValueError, match="too little data"):
            split(data, fraction, seed)
        return
    train, held = split(data, fraction, seed)
    assert {id(e) for e in train}.isdisjoint(id(e) for e in held)
    assert sorted([*map(id, train), *map(id, held)]) == sorted(map(id, data))
    assert abs(len(held) - fraction * len(data)) <= 1
    assert bool(held) == bool(fraction)
    assert train
    again = split(data, fraction, seed)
    assert [list(map(id, part)) for part in again] == [list(map(id, train)), list(map(id, held))]


@given(st.integers(2, 60), st.one_of(st.none(), lengths), st.floats(0.01, 0.99))
def test_a_split_of_a_text_holds_out_its_tail(n, max_seq_len, fraction):
    whole = fit(Dataset((Example(np.arange(n), np.arange(1, n + 1)),), plain=True), max_seq_len)
    train, held = split(whole, fraction)
    head = np.concatenate([e.ids for e in train])
    tail = np.concatenate([e.ids for e in held])
    assert np.concatenate([head, tail]).tolist() == list(range(n))
    assert live(train) + live(held) == list(range(1, n + 1))
    assert abs(len(tail) - fraction * n) <= 1
    assert held.plain


def test_different_seeds_hold_out_different_records():
    data = Dataset(tuple(Example([i, i + 1], [i + 1, IGNORE]) for i in range(100)))
    assert live(split(data, 0.2, 0)[1]) != live(split(data, 0.2, 1)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_is_a_fraction(fraction):
    with pytest.raises(ValueError, match="held-out fraction"):
        split([Example([1, 2], [2, IGNORE])] * 3, fraction)


# Packing and batching


@given(datasets(), st.integers(12, 30))
def test_packing_keeps_every_example_whole_and_once(data, max_seq_len):
    rows = pack(data, max_seq_len)
    seen = []
    for row in rows:
        assert 0 < len(row) <= max_seq_len
        steps = np.diff(row.segment_ids, prepend=0)
        assert set(steps.tolist()) <= {0, 1}  # contiguous, counted from 1
        for segment in range(1, row.segment_ids[-1] + 1):
            here = row.segment_ids == segment
            seen.append((row.ids[here].tolist(), row.labels[here].tolist()))
    assert sorted(seen) == sorted((e.ids.tolist(), e.labels.tolist()) for e in data)
    assert live(rows) == live(data)


@given(datasets(), st.integers(12, 30))
def test_packing_is_first_fit(data, max_seq_len):
    expected: list[list[int]] = []
    for example in data:
        for row in expected:
            if len(row) + len(example) <= max_seq_len:
                break
        else:
            expected.append(row := [])
        row += example.ids.tolist()
    assert [row.ids.tolist() for row in pack(data, max_seq_len)] == expected


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="example 0 has 3 tokens, more than max_seq_len 2"):
        pack([Example([1, 2, 3], [2, 3, IGNORE])], 2)


@given(datasets(), st.integers(1, 5), st.integers(2, 30), seeds, st.integers(0, 5), st.booleans())
def test_an_epoch_shows_every_live_label_once(data, batch_size, max_seq_len, seed, epoch, packed):
    try:
        expected = fit(data, max_seq_len)
    except ValueError:
        return
    shown = list(batches(data, batch_size, max_seq_len, seed, epoch, packed))
    assert live(shown) == live(expected)
    assert sum(batch.live for batch in shown) == len(live(expected))
    for batch in shown:
        assert batch.ids.shape == batch.labels.shape == batch.segment_ids.shape
        assert {array.dtype for array in (batch.ids, batch.labels, batch.segment_ids)} == {np.dtype(np.int64)}
        assert batch.ids.shape[0] <= batch_size
        assert batch.ids.shape[1] <= max_seq_len
        padding = batch.segment_ids == 0
        assert (batch.labels[padding] == IGNORE).all()
        assert (np.diff(padding.astype(int), axis=1) >= 0).all()  # on the right
        assert (~padding).any(axis=0).all()  # no wider than needed
        learned = batch.labels != IGNORE
        assert (batch.labels[learned] == batch.ids[learned] + 1).all()  # ids run on within an example, and only there
        inside = learned[:, :-1] & (batch.segment_ids[:, :-1] == batch.segment_ids[:, 1:])
        assert (batch.labels[:, :-1][inside] == batch.ids[:, 1:][inside]).all()
        if not packed:
            assert batch.segment_ids.max() == 1


@given(datasets(), st.integers(1, 5), seeds, st.integers(0, 3))
def test_the_batch_is_a_function_of_the_step(data, batch_size, seed, epoch):
    loader = Loader(data, batch_size, 16, seed)
    n = len(loader)
    for index, batch in reversed(list(enumerate(batches(data, batch_size, 16, seed, epoch)))):
        loader.order(epoch + 1)
        again = loader.batch(epoch * n + index)
        for field in dataclasses.fields(batch):
            np.testing.assert_array_equal(getattr(batch, field.name), getattr(again, field.name))
    assert sorted(loader.order(epoch)) == list(range(len(loader.rows)))


def test_the_order_differs_between_epochs_and_seeds():
    data = [Example([i, i + 1], [i + 1, IGNORE]) for i in range(100)]
    loader = Loader(data, 4, 2, seed=3)
    orders = [loader.order(epoch).tolist() for epoch in range(5)] + [Loader(data, 4, 2, seed=4).order(0).tolist()]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert len(loader) == 25


def test_the_order_is_the_same_everywhere():
    data = [Example([i, i + 1], [i + 1, IGNORE]) for i in range(8)]
    assert Loader(data, 4, 2, seed=0).order(0).tolist() == [1, 6, 0, 7, 3, 5, 4, 2]


def test_the_loader_refuses_nonsense():
    data = [Example([1, 2], [2, IGNORE])]
    with pytest.raises(ValueError, match="batch size"):
        Loader(data, 0, 2)
    with pytest.raises(ValueError, match="max_seq_len must be at least 1"):
        Loader(data, 1, 0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        Loader([], 1, 2)
    with pytest.raises(ValueError, match="steps count from 0"):
        Loader(data, 1, 2).batch(-1)
    with pytest.raises(ValueError, match="equally long"):
        Example([1, 2], [2])


def test_describe_spells_out_a_batch(tmp_path):
    records = {"prompt": "the", "completion": " cat"}, {"prompt": "the", "completion": " 你 dog and more"}
    data = load_text(write(tmp_path, *records), TOKENIZER)
    rows = describe(Loader(data, 2, 64, pack=False).batch(0), TOKENIZER)
    short = next(row for row in rows if row[-1].segment == 0)
    assert [cell for cell in short if cell.segment] == [("the", True, 1), (" cat", True, 1), (EOS, False, 1)]
    assert set(short[3:]) == {("", False, 0)}
    assert all(cell.text and "\ufffd" not in cell.text for row in rows for cell in row if cell.segment)
    assert [cell.segment for cell in describe(Loader(data, 2, 64).batch(0), TOKENIZER)[0]][:4] == [1, 1, 1, 2]


@given(datasets(), seeds)
def test_the_fingerprint_is_of_the_rows(data, seed):
    loader = Loader(data, 2, 16, seed)
    assert loader.fingerprint() == Loader(Dataset(data.examples), 3, 16, seed + 1).fingerprint()
    seen = {loader.fingerprint(), Loader(data, 2, 16, pack=False).fingerprint()}
    assert len(seen) == 1 + (len(loader.rows) < len(data))
    for field in ("ids", "labels", "segment_ids"):
        changed = Loader(data, 2, 16, seed)
        getattr(changed.rows[-1], field)[0] += 1
        assert changed.fingerprint() not in seen
