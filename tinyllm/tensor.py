"""The whole autograd: an operation is its value and one gradient rule an input.

    def mul(a, b):
        x, y = a.data, b.data
        return op(x * y, (a, lambda g: g * y), (b, lambda g: g * x))

`op` keeps a rule only if recording is on and that input needs a gradient. So what a rule *names* is what is kept for
backward, and a frozen weight costs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.table import of


class Node:
    """A place in the graph. It links nodes, never tensors, so an array lives only as long as somebody names it."""

    __slots__ = ("edges", "leaf", "__weakref__")

    def __init__(self, edges: list | None, leaf: Tensor | None = None):
        self.edges = edges  # [(node or tuple of nodes, rule)]; None once used
        self.leaf = None if leaf is None else weakref.ref(leaf)


class Tensor:
    """An array that can remember how it was computed.

    Parameters
    ----------
    data : array_like
        Taken as it is if it is an array of NumPy or CuPy; Python floats become float32, as in PyTorch.
    requires_grad : bool
        Whether `backward` shall leave a gradient in ``.grad``. Only for floating dtypes.

    Attributes
    ----------
    data : array
    grad : array or None
        Same shape and dtype as `data`; `backward` adds to it.
    """

    __slots__ = ("data", "grad", "node", "__weakref__")
    data: Any
    __array_ufunc__ = None  # array * tensor is the tensor's business, not NumPy's

    def __init__(self, data: Any, requires_grad: bool = False):
        if type(data) is not np.ndarray:  # what operations give is one; the rest is looked at more closely
            data = _array(data)
        self.data = data
        self.grad: Any = None
        self.node: Node | None = None
        if requires_grad:
            self.requires_grad = True

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to this tensor. May be set on leaves."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if self.node is not None and self.node.leaf is None:
            raise RuntimeError("requires_grad can be set on leaves only; this tensor is the result of an operation")
        if wanted and self.data.dtype.kind != "f" and self.data.dtype.name != "bfloat16":
            raise TypeError(f"only floating tensors can have gradients, not {self.data.dtype}")
        self.node = (self.node or Node([], leaf=self)) if wanted else None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def item(self) -> float:
        """The one number in this tensor, as a Python number."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The array on the host."""
        return self.data.get() if hasattr(self.data, "get") else self.data

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.data)

    def backward(self, grad: Any = None) -> None:
        """Leave d(self)/d(leaf) in ``.grad`` of every leaf that led here; see `backward`."""
        backward(self, grad)

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=20, precision=4)
        return f"{type(self).__name__}({body}, shape={self.shape}, dtype={self.dtype.name}" + (
            ", requires_grad=True)" if self.requires_grad else ")"
        )

    if TYPE_CHECKING:  # attached by ops.py

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __pow__(self, exponent: float) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def max(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def swapaxes(self, a: int, b: int) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def sigmoid(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def astype(self, dtype: Any) -> Tensor: ...
        @property
        def T(self) -> Tensor: ...


def _array(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.data
    if not hasattr(data, "dtype"):
        data = np.asarray(data)
        return data.astype(np.float32) if data.dtype == np.float64 else data
    return data if hasattr(data, "__array_function__") and not isinstance(data, np.generic) else np.asarray(data)


class Parameter(Tensor):
    """A tensor that a module owns and an optimiser may change."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad)


RECORD, TRACE, OFF = "record", "trace", "off"
_mode = RECORD


@contextmanager
def _recording(mode: str) -> Iterator[None]:
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def no_grad() -> AbstractContextManager[None]:
    """A ``with`` block in which nothing is recorded and nothing is kept."""
    return _recording(OFF)


def enable_grad() -> AbstractContextManager[None]:
    """A ``with`` block in which operations are recorded, also inside `no_grad`."""
    return _recording(RECORD)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded."""
    return _mode is RECORD


def op(value: Any, *edges: tuple[Any, Callable]) -> Tensor:
    """The result of an operation: its value, and for each input the rule for its gradient.

    Parameters
    ----------
    value : array
        Already computed.
    *edges : (Tensor, rule) or (tuple of Tensor, rule)
        ``rule(g)`` maps the gradient of the result (an array like `value`) to the gradient of that input. A rule over
        a tuple is called as ``rule(g, needs)`` with one bool an input and returns a tuple (None where not needed). A
        rule returns `g` itself, a view of it or a fresh array; it writes into nothing it was given.

    Returns
    -------
    Tensor
        It links to the inputs' nodes only if something among them needs a gradient.
    """
    out = Tensor(value)
    if _mode is OFF:
        return out
    kept: list = []
    for source, rule in edges:
        if type(source) is tuple:
            nodes = tuple(x.node for x in source)
            if any(node is not None for node in nodes):
                kept.append((nodes, rule))
        elif source.node is not None:
            kept.append((source.node, rule))
    if kept:
        # TRACE asks only *whether* a gradient would flow (see `checkpoint`), so nothing is kept.
        out.node = Node(kept if _mode is RECORD else [])
    return out


def wants_grad(*tensors: Any) -> bool:
    """Whether an operation on these tensors would be recorded. For the one operation (the fused head) that computes
    its gradient in the forward pass."""
    return _mode is RECORD and any(t.node is not None for t in tensors)


def backward(y: Tensor, grad: Any = None) -> None:
    """Reverse-mode differentiation: walk the graph from `y` and add to ``.grad`` of every leaf.

    Nodes are freed as they are used: a graph serves once. Derivatives are first-order.

    Parameters
    ----------
    y : Tensor
        Usually the loss, one number.
    grad : array, optional
        dL/dy, of y's shape; 1 for a single number.

    Raises
    ------
    RuntimeError
        If `y` needs no gradient, or its graph was used already.
    ValueError
        If `grad` is missing for a `y` of several numbers, or of another shape.
    """
    if y.node is None:
        raise RuntimeError(
            "this tensor does not need a gradient: was everything frozen, merged or disabled, or was it computed "
            "under no_grad()? (merged adapters: call unmerge_lora first)"
        )
    be = of(y.data)
    if grad is None:
        if y.data.size != 1:
            raise ValueError(f"backward() starts from one number, not from shape {y.shape}; pass grad= of that shape")
        grad = be.xp.ones_like(y.data)
    grad = be.xp.asarray(grad.data if isinstance(grad, Tensor) else grad, dtype=y.data.dtype)
    if grad.shape != y.data.shape:
        raise ValueError(f"grad has shape {grad.shape}, but the tensor has {y.shape}")

    with be.hold():
        _walk(y.node, grad)


def _walk(root: Node, grad: Any) -> None:
    order = _topological(root)
    gradients: dict[Node, list] = {root: [grad, False]}  # node -> [array, made by the engine?]
    while order:
        node = order.pop()
        entry = gradients.pop(node, None)
        if node.leaf is not None:
            if entry is not None:
                _deliver(node, *entry)
            continue
        edges, node.edges = node.edges, None
        if entry is None:
            continue
        if edges is None:  # it was there when this walk began
            raise RuntimeError(
                "this graph was already used by a checkpointed function that names a tensor from outside; make that "
                "tensor one of the checkpoint's inputs and run the forward again"
            )
        g = entry[0]
        for source, rule in edges:
            if type(source) is tuple:
                parts = rule(g, tuple(s is not None for s in source))
                for s, part in zip(source, parts, strict=True):
                    if s is not None and part is not None:  # a checkpointed function may not use an input
                        _accumulate(gradients, s, part, g)
            else:
                _accumulate(gradients, source, rule(g), g)
        del g, entry, edges


def _topological(root: Node) -> list[Node]:
    """Nodes so that each stands after everything it was computed from; iterative, so depth is no limit."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(_inputs(root)))]
    while stack:
        node, inputs = stack[-1]
        for source in inputs:
            if source not in seen:
                seen.add(source)
                stack.append((source, iter(_inputs(source))))
                break
        else:
            order.append(node)
            stack.pop()
    return order


def _inputs(node: Node) -> list[Node]:
    if node.edges is None:
        raise RuntimeError("this graph was already used by a backward(); run the forward again")
    found: list[Node] = []
    for source, _ in node.edges:
        if type(source) is tuple:
            found += [s for s in source if s is not None]
        else:
            found.append(source)
    return found


def _accumulate(gradients: dict[Node, list], node: Node, new: Any, g: Any) -> None:
    entry = gradients.get(node)
    if entry is None:
        # Fresh arrays may be handed on; g and views of it are shared with other edges.
        gradients[node] = [new, new is not g and new.base is None]
    elif entry[1]:
        entry[0] += new
    else:
        gradients[node] = [entry[0] + new, True]


def _deliver(node: Node, g: Any, ours: bool) -> None:
    leaf = node.leaf() if node.leaf is not None else None
    if leaf is None:
        return
    if leaf.grad is None:
        leaf.grad = of(leaf.data).xp.asarray(g if ours else g.copy())  # a full reduction gives a scalar
    else:
        leaf.grad += g


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run `function` without keeping anything; run it again when its gradient is asked for.

    Trades a second forward pass for the memory of the first (Chen et al. 2016, arXiv 1604.06174). Works when only
    parameters *inside* the function train and every input is frozen. Random numbers repeat: the generator goes back to
    where it was.

    Parameters
    ----------
    function : callable
        From Tensors to one Tensor; must compute the same again.
    *inputs : Tensor

    Returns
    -------
    Tensor
        The same bits as ``function(*inputs)``.

    Raises
    ------
    TypeError
        If `function` returns anything else.
    """
    start = random.default.state
    with _recording(TRACE if _mode is RECORD else _mode):
        y = function(*inputs)
    if not isinstance(y, Tensor):
        raise TypeError(f"a checkpointed function must return one Tensor, not {type(y).__name__}")
    if _mode is not RECORD or y.node is None:
        return y
    arrays = [x.data for x in inputs]

    def checkpoint_rule(g: Any, needs: Sequence[bool]) -> tuple:
        after = random.default.state
        random.default.restore(start)
        again = [Tensor(x, requires_grad=need) for x, need in zip(arrays, needs, strict=True)]
        try:
            with enable_grad():
                result = function(*again)
        finally:
            random.default.restore(after)
        backward(result, g)
        return tuple(x.grad for x in again)

    out = Tensor(y.data)
    out.node = Node([(tuple(x.node for x in inputs), checkpoint_rule)])
    return out
