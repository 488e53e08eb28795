"""Exercises of lesson 5: a tokenizer trained, bytes as letters, and the smallest set that reaches a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property
from tinyllm.course.exercises.runs import writes

Pair = tuple[str, str]

# ------------------------------------------------------------------------------------------------ 05-bpe


def train_bpe(words: dict[str, int], count: int) -> list[Pair]:
    pieces = {word: list(word) for word in words}
    merges: list[Pair] = []
    while len(merges) < count:
        found: dict[Pair, int] = {}
        for word, times in words.items():
            for pair in pairwise(pieces[word]):
                found[pair] = found.get(pair, 0) + times
        if not found:
            break
        most = max(found.values())
        best = min(pair for pair in found if found[pair] == most)
        merges.append(best)
        pieces = {word: join(own, best) for word, own in pieces.items()}
    return merges


def join(pieces: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def train_bpe_counter(words: dict[str, int], count: int) -> list[Pair]:
    texts = [(list(word), times) for word, times in words.items()]
    merges: list[Pair] = []
    for _ in range(count):
        pairs: Counter[Pair] = Counter()
        for own, times in texts:
            for pair in zip(own, own[1:], strict=False):
                pairs[pair] += times
        if not pairs:
            return merges
        merges.append(sorted(pairs, key=lambda pair: (-pairs[pair], pair))[0])
        for own, _ in texts:
            i = 0
            while i < len(own) - 1:
                if (own[i], own[i + 1]) == merges[-1]:
                    own[i : i + 2] = [own[i] + own[i + 1]]
                i += 1
    return merges


def _bpe(
    weight: Callable[[int], int] = lambda n: n,
    first: Callable[[list[Pair]], Pair] = min,
    joined: Callable[[list[str], Pair], list[str]] = join,
    least: int = 1,
) -> Any:
    def wrong(words: dict[str, int], count: int) -> list[Pair]:
        pieces = {word: list(word) for word in words}
        merges: list[Pair] = []
        while len(merges) < count:
            found: Counter[Pair] = Counter()
            for word, times in words.items():
                for pair in pairwise(pieces[word]):
                    found[pair] += weight(times)
            if not found or max(found.values()) < least:
                break
            best = first([pair for pair in found if found[pair] == max(found.values())])
            merges.append(best)
            pieces = {word: joined(own, best) for word, own in pieces.items()}
        return merges

    return wrong


def _in_text(pieces: list[str], pair: Pair) -> list[str]:
    """Joined as text with spaces between the pieces: "a b" is found in "ca b", too."""
    return " ".join(pieces).replace(" ".join(pair), "".join(pair)).split()


def _within(words: dict[str, int], count: int) -> list[Pair]:
    """Pairs across the ends of words."""
    return train_bpe({"".join(word * times for word, times in words.items()): 1}, count) if words else []


TEXT = st.text("abc", min_size=1, max_size=6)
ONE, FEW, OVER = "one word", "some words", "more merges than there are"
BPE = Exercise(
    id="05-bpe",
    minutes=20,
    importance=4,
    reference=train_bpe,
    wheats=(train_bpe, train_bpe_counter),
    properties=(
        Property(ONE, st.tuples(TEXT.map(lambda word: {word: 1}), st.integers(1, 2))),
        Property(
            FEW, st.tuples(st.dictionaries(TEXT, st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 8)), 2
        ),
        Property(
            OVER, st.tuples(st.dictionaries(st.text("ab", max_size=3), st.integers(1, 3), max_size=2), st.just(9))
        ),
    ),
    chaffs=(
        Chaff(
            "a word counted once", _bpe(weight=lambda n: 1), FEW, "A word that occurs five times has five of each pair."
        ),
        Chaff("the last in the alphabet", _bpe(first=max), ONE, "Of equally frequent pairs, which is taken?"),
        Chaff(
            "the first that was seen",
            _bpe(first=lambda pairs: pairs[0]),
            ONE,
            "Of equally frequent pairs: the alphabet.",
        ),
        Chaff("across the ends of words", _within, FEW, "A pair stands inside of a word."),
        Chaff(
            "joined inside of a longer piece",
            _bpe(joined=_in_text),
            FEW,
            "A pair is two whole pieces. What does your search find in the pieces ca and b?",
            "the (?<!\\S) in the code of Sennrich et al. 2016 is there for it",
        ),
        Chaff(
            "pairs that occur once left out", _bpe(least=2), OVER, "The exercise stops when nothing is left to join."
        ),
    ),
    hints=("Keep each word as a list of pieces, and count pairs anew after each merge.",),
    read="tinyllm.data.tokenizer.Tokenizer",
)

# ------------------------------------------------------------------------------------------------ 05-roundtrip


def to_letters(data: bytes) -> str:
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, extra = {}, 256
    for byte in range(256):
        if byte in kept:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(extra)
            extra += 1
    return "".join(letters[byte] for byte in data)


def to_letters_by_ranks(data: bytes) -> str:
    odd = [*range(33), *range(127, 161), 173]
    return "".join(chr(256 + odd.index(byte)) if byte in odd else chr(byte) for byte in data)


def _letters(odd: Callable[[int], bool], number: Callable[[int, list[int]], int]) -> Any:
    others = [byte for byte in range(256) if odd(byte)]
    return lambda data: "".join(chr(number(byte, others)) if byte in others else chr(byte) for byte in data)


def _odd(byte: int) -> bool:
    return byte < 33 or 127 <= byte < 161 or byte == 173


def _rank(byte: int, others: list[int]) -> int:
    return 256 + others.index(byte)


PRINTABLE, SPACES, EVERY = "letters and signs", "spaces and line ends", "bytes of any kind"
ROUNDTRIP = Exercise(
    id="05-roundtrip",
    minutes=10,
    importance=4,
    reference=to_letters,
    wheats=(to_letters, to_letters_by_ranks),
    properties=(
        Property(PRINTABLE, st.tuples(st.text("azAZ09!~", max_size=6).map(str.encode))),
        Property(SPACES, st.tuples(st.text(" \n\t\r\0", min_size=1, max_size=6).map(str.encode))),
        Property(EVERY, st.tuples(st.binary(max_size=8) | st.just(bytes(range(256)))), 2),
    ),
    chaffs=(
        Chaff(
            "256 more for each",
            _letters(_odd, lambda b, o: 256 + b),
            EVERY,
            "They are numbered in their order: 0 to 67.",
        ),
        Chaff(
            "the soft hyphen kept",
            _letters(lambda b: _odd(b) and b != 173, _rank),
            EVERY,
            "Look at 172, 173, 174.",
        ),
        Chaff(
            "Latin letters as they are", lambda data: data.decode("latin-1"), SPACES, "A space must become printable."
        ),
        Chaff(
            "text, not bytes",
            lambda data: to_letters(data.decode("utf-8", errors="replace").encode()),
            EVERY,
            "Bytes need not be text.",
        ),
        Chaff("the space alone", _letters(lambda b: b == 32, lambda b, o: 288), SPACES, "What becomes of a line end?"),
    ),
    hints=("Go through 0 to 255 once: who keeps the own number, and who gets the next of 256, 257 ...?",),
    read="tinyllm.data.tokenizer.Tokenizer",
)

# ------------------------------------------------------------------------------------------------ 05-topp


def nucleus(p: list[float], top_p: float) -> list[int]:
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    left: list[int] = []
    reached = 0.0
    for i in order:
        left.append(i)
        reached += p[i]
        if reached >= top_p:
            break
    return sorted(left)


def nucleus_by_removal(p: list[float], top_p: float) -> list[int]:
    left = list(range(len(p)))
    while len(left) > 1:
        least = min(left, key=lambda i: (p[i], -i))
        if sum(p[i] for i in left if i != least) < top_p:
            break
        left.remove(least)
    return left


def _nucleus(over: bool = False, last: bool = False, before: bool = False, unsorted: bool = False) -> Any:
    def wrong(p: list[float], top_p: float) -> list[int]:
        order = sorted(range(len(p)), key=lambda i: (-p[i], -i if last else i))
        left, reached = [], 0.0
        for i in order:
            if before and reached + p[i] > top_p:
                break
            left.append(i)
            reached += p[i]
            if (reached > top_p) if over else (reached >= top_p):
                break
        return left if unsorted else sorted(left)

    return wrong


def _threshold(p: list[float], top_p: float) -> list[int]:
    kept = nucleus(p, top_p)
    return [i for i, x in enumerate(p) if x >= min(p[k] for k in kept)]


@st.composite
def shares(draw: Any, equal: bool = False) -> tuple[list[float], float]:
    """Shares in sixteenths, so that sums are exact."""
    left, parts = 16, []
    while left:
        parts.append(draw(st.just(min(left, 4)) if equal else st.integers(1, left)))
        left -= parts[-1]
    p = draw(st.permutations(parts))
    return [x / 16 for x in p], draw(st.integers(1, 16)) / 16


ANY, TIES = "any shares", "equal shares"
TOPP = Exercise(
    id="05-topp",
    minutes=15,
    importance=4,
    reference=nucleus,
    wheats=(nucleus, nucleus_by_removal),
    properties=(Property(ANY, shares(), points=2), Property(TIES, shares(equal=True), points=2), writes()),
    chaffs=(
        Chaff("one too many", _nucleus(over=True), TIES, "0.25 and 0.25 reach 0.5."),
        Chaff(
            "it may be empty",
            _nucleus(before=True),
            ANY,
            "The one that crosses the line belongs to the set.",
        ),
        Chaff("of equal ones the last", _nucleus(last=True), TIES, "Of equal shares the first one is taken."),
        Chaff("all of the smallest share", _threshold, TIES, "The fewest: not all that are equal to the last one."),
        Chaff("in the order of their shares", _nucleus(unsorted=True), ANY, "The indices come sorted."),
    ),
    hints=("Take the largest first, and stop as soon as the sum reaches top_p.",),
    read="tinyllm.generate.next_probabilities",
    emptied=("tinyllm.generate.next_probabilities",),
)

EXERCISES = (BPE, ROUNDTRIP, TOPP)
