"""Exercises of lesson 1: one operation's derivative, paths counted, an order without recursion."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from tinyllm.course.exercise import Chaff, Exercise, Property, demand

# ------------------------------------------------------------------------------------------------ 01-local


def local(name: str, x: float) -> tuple[float, float]:
    if name == "log":
        return math.log(x), 1 / x
    if name == "sqrt":
        return math.sqrt(x), 0.5 / math.sqrt(x)
    if name == "cube":
        return x * x * x, 3 * x * x
    s = 1 / (1 + math.exp(-x))
    return s, s * (1 - s)


def local_by_powers(name: str, x: float) -> tuple[float, float]:
    e = math.exp(-x)
    return {
        "log": lambda: (math.log(x), x**-1),
        "sqrt": lambda: (x**0.5, x**-0.5 / 2),
        "cube": lambda: (x**3, 3 * x**2),
        "sigmoid": lambda: (1 / (1 + e), e / (1 + e) ** 2),
    }[name]()


def local_size(name: str, x: float) -> tuple[float, float]:
    value, slope = local(name, x)
    return abs(value), value if name == "sigmoid" else abs(slope)  # 1 - s loses what s is rounded by


def _instead(name: str, slope: Any) -> Any:
    """The right answer but for one operation's derivative."""

    def wrong(asked: str, x: float) -> tuple[float, float]:
        value, right = local(asked, x)
        return value, slope(value, x) if asked == name else right

    return wrong


_POSITIVE = st.integers(1, 64).map(lambda n: n / 4)
_ANY = st.integers(-40, 40).map(lambda n: n / 4)
ZERO_TO_HERO = "nn-zero-to-hero #52, where exp' was x"
LOCAL = Exercise(
    id="01-local",
    minutes=10,
    importance=5,
    reference=local,
    wheats=(local, local_by_powers),
    size=local_size,
    properties=(
        Property("log and sqrt", st.tuples(st.sampled_from(["log", "sqrt"]), _POSITIVE)),
        Property("the sigmoid", st.tuples(st.just("sigmoid"), _ANY)),
        Property("the cube", st.tuples(st.just("cube"), _ANY)),
    ),
    chaffs=(
        Chaff(
            "the derivative from the value instead of x",
            _instead("log", lambda value, x: 1 / value if value else 0.0),
            "log and sqrt",
            "The logarithm's derivative is one over its argument. Which of your two numbers is that?",
            ZERO_TO_HERO,
        ),
        Chaff(
            "the root forgotten",
            _instead("sqrt", lambda value, x: 0.5 / x),
            "log and sqrt",
            "At x = 4 the slope of the root is a quarter. What is yours?",
        ),
        Chaff(
            "a sigmoid that does not flatten",
            _instead("sigmoid", lambda value, x: value),
            "the sigmoid",
            "Far to the right the sigmoid is flat. Is your derivative small there?",
        ),
        Chaff(
            "the outer derivative alone",
            _instead("sigmoid", lambda value, x: value * value),
            "the sigmoid",
            "The sigmoid has an exponential inside: its own derivative is a factor, too.",
        ),
        Chaff(
            "the power not lowered",
            _instead("cube", lambda value, x: 3 * value),
            "the cube",
            "The exponent comes down as a factor, and is one less afterwards.",
        ),
    ),
    hints=("Move x by a millionth and see by how many millionths the value moves.",),
    read="tinyllm.ops.arithmetic.sigmoid",
)

# ------------------------------------------------------------------------------------------------ 01-paths and 01-deep

Graph = dict[str, list[str]]


def paths(parents: Graph, result: str) -> dict[str, int]:
    counts = dict.fromkeys(parents, 0)
    counts[result] = 1
    for name in reversed(order(parents, result)):
        for parent in parents[name]:
            counts[parent] += counts[name]
    return counts


def paths_by_uses(parents: Graph, result: str) -> dict[str, int]:
    """From the other side: the paths to a name are those to its users, remembered."""
    reached = set(order(parents, result))
    users: dict[str, list[str]] = {name: [] for name in parents}
    for name in reached:
        for parent in parents[name]:
            users[parent].append(name)
    known: dict[str, int] = {result: 1}
    for name in reversed(order(parents, result)):
        known[name] = sum(known[user] for user in users[name]) if name != result else 1
    return {name: known.get(name, 0) for name in parents}


def order(parents: Graph, result: str) -> list[str]:
    done: dict[str, None] = {}
    open_: list[tuple[str, int]] = [(result, 0)]
    while open_:
        name, looked_at = open_.pop()
        if name in done:
            continue
        if looked_at < len(parents[name]):
            open_ += [(name, looked_at + 1), (parents[name][looked_at], 0)]
        else:
            done[name] = None
    return list(done)


def order_by_waves(parents: Graph, result: str) -> list[str]:
    """Count for each name what it waits for; whatever waits for nothing is next."""
    behind, queue = {result}, [result]
    while queue:
        for parent in parents[queue.pop()]:
            if parent not in behind:
                behind.add(parent)
                queue.append(parent)
    waits = {name: len(set(parents[name])) for name in behind}
    users: Graph = {name: [] for name in behind}
    for name in behind:
        for parent in set(parents[name]):
            users[parent].append(name)
    ready, found = sorted(name for name in behind if not waits[name]), []
    while ready:
        found.append(ready.pop())
        for user in users[found[-1]]:
            waits[user] -= 1
            if not waits[user]:
                ready.append(user)
    return found


def is_order(call: Any, parents: Graph, result: str) -> None:
    found = call(parents, result)
    demand(isinstance(found, list), f"it must be a list, not a {type(found).__name__}")
    demand(len(set(found)) == len(found), "a name stands in it twice")
    wanted, given = set(order(parents, result)), set(found)
    demand(given >= wanted, f"{min(wanted - given, default='')!r} is missing")
    demand(given <= wanted, "a name stands in it that is not behind the result")
    place = {name: i for i, name in enumerate(found)}
    for name in found:
        for parent in parents[name]:
            demand(place[parent] < place[name], f"{name!r} stands before {parent!r}, which it came from")


def paths_assigned(parents: Graph, result: str) -> dict[str, int]:
    counts = dict.fromkeys(parents, 0)
    counts[result] = 1
    for name in reversed(order(parents, result)):
        for parent in parents[name]:
            counts[parent] = counts[name]
    return counts


def paths_once(parents: Graph, result: str) -> dict[str, int]:
    return paths({name: list(dict.fromkeys(given)) for name, given in parents.items()}, result)


def paths_unordered(parents: Graph, result: str) -> dict[str, int]:
    counts = dict.fromkeys(parents, 0)
    counts[result] = 1
    queue = [result]
    while queue:
        name = queue.pop(0)
        for parent in parents[name]:
            if not counts[parent]:
                queue.append(parent)
            counts[parent] += counts[name]
    return counts


def paths_walked(parents: Graph, result: str) -> dict[str, int]:
    counts = dict.fromkeys(parents, 0)

    def walk(name: str) -> None:
        counts[name] += 1
        for parent in parents[name]:
            walk(parent)

    walk(result)
    return counts


def paths_reached(parents: Graph, result: str) -> dict[str, int]:
    return {name: n for name, n in paths(parents, result).items() if n}


@st.composite
def graphs(draw: Any) -> tuple[Graph, str]:
    """Of up to six names, each from one to three of those before it, but for some leaves."""
    names = "abcdef"[: draw(st.integers(1, 6))]
    parents: Graph = {"a": []}
    for i, name in enumerate(names[1:], 1):
        leaf = draw(st.sampled_from([False, False, False, True]))
        parents[name] = [] if leaf else draw(st.lists(st.sampled_from(names[:i]), min_size=1, max_size=3))
    result = draw(st.sampled_from([names[-1], names[-1], *names]))
    return {name: parents[name] for name in draw(st.permutations(names))}, result


def _doublings(many: int) -> tuple[Graph, str]:
    parents: Graph = {"x0": []}
    for i in range(many):
        parents[f"x{i + 1}"] = [f"x{i}", f"x{i}"]
    return parents, f"x{many}"


def _chain(many: int) -> tuple[Graph, str]:
    return {str(i): [str(i - 1)] if i else [] for i in range(many)}, str(many - 1)


MICROGRAD = "micrograd #2, #67, #68"
ANY_GRAPH, SIXTY = "any graph", "sixty doublings at once"
PATHS = Exercise(
    id="01-paths",
    minutes=15,
    importance=4,
    reference=paths,
    wheats=(paths, paths_by_uses),
    properties=(
        Property(ANY_GRAPH, graphs(), points=3),
        Property(SIXTY, st.just(60).map(_doublings)),
    ),
    chaffs=(
        Chaff(
            "= for +=",
            paths_assigned,
            ANY_GRAPH,
            "When two names used it, both bring their paths: they add up.",
            "the lecture notes of nn-zero-to-hero; micrograd #102",
        ),
        Chaff("used twice, counted once", paths_once, ANY_GRAPH, "x + x has x twice in its list: two ways lead there."),
        Chaff(
            "no order",
            paths_unordered,
            ANY_GRAPH,
            "A name passed its number on before all of its users had brought theirs.",
            MICROGRAD,
        ),
        Chaff(
            "every path walked",
            paths_walked,
            SIXTY,
            "There are 2 to the 60 paths. Count them without walking them.",
            slow=True,
        ),
        Chaff("what is not reached is missing", paths_reached, ANY_GRAPH, "Names to which no path leads have a 0."),
    ),
    hints=("Begin with 1 at the result, and hand numbers down in an order in which all users come first.",),
    read="tinyllm.autograd.topological",
)


def order_recursive(parents: Graph, result: str) -> list[str]:
    done: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for parent in parents[name]:
                visit(parent)
            done.append(name)

    visit(result)
    return done


def order_on_sight(parents: Graph, result: str) -> list[str]:
    seen, queue = {result: None}, [result]
    for name in queue:
        for parent in parents[name]:
            if parent not in seen:
                seen[parent] = None
                queue.append(parent)
    return list(seen)[::-1]


def order_repeated(parents: Graph, result: str) -> list[str]:
    found, queue = [result], [result]
    while queue:
        for parent in parents[queue.pop()]:
            found.append(parent)
            queue.append(parent)
    return found[::-1]


LONG = "a long chain"
DEEP = Exercise(
    id="01-deep",
    minutes=20,
    importance=3,
    reference=order,
    wheats=(order, order_by_waves),
    properties=(
        Property(ANY_GRAPH, graphs(), points=3, law=is_order),
        Property(LONG, st.just(20_000).map(_chain), law=is_order),
    ),
    chaffs=(
        Chaff("recursion", order_recursive, LONG, "Keep the list of open names yourself.", MICROGRAD),
        Chaff(
            "in the order of sight",
            order_on_sight,
            ANY_GRAPH,
            "A name that was seen early may still be needed by one that is seen late: when is it finished?",
            MICROGRAD,
        ),
        Chaff("a name twice", order_repeated, ANY_GRAPH, "A name that two others came from stands there once."),
        Chaff("the result first", lambda p, r: order(p, r)[::-1], ANY_GRAPH, "Inputs come first, the result is last."),
    ),
    hints=("A list of pairs (name, how many of its parents have been looked at) takes the place of the calls.",),
    read="tinyllm.autograd.topological",
)

EXERCISES = (LOCAL, PATHS, DEEP)
