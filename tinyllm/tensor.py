"""Tensors: an operation is its value and one gradient rule an input::

    def mul(a, b):
        x, y = a.data, b.data
        return op(x * y, (a, lambda g: g * y), (b, lambda g: g * x))

`op` keeps a rule only if recording is on and that input needs a gradient. So what a rule *names* is what is kept for
backward, and a frozen weight costs nothing. Where an operation broadcast an input, the walk sums what its rule returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.autograd import UNUSED, Node, walk
from tinyllm.backend import random
from tinyllm.backend.device import to_host
from tinyllm.backend.names import kind_of
from tinyllm.backend.table import of

if TYPE_CHECKING:  # the operators stand in the next chapter, which gives them to Tensor
    from tinyllm.ops import Operators
else:
    Operators = object


class Tensor(Operators):
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
    __array_ufunc__ = None  # array * tensor is the tensor's business, not NumPy's

    def __init__(self, data: Any, requires_grad: bool = False):
        if type(data) is not np.ndarray:  # what operations give is one; the rest is looked at more closely
            data = _array(data)
        self.data: Any = data
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
        self.node = (self.node or Node([], self.data, leaf=self)) if wanted else None

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

    def __getstate__(self) -> tuple:
        """What copy, deepcopy and pickle take along; a copy is a leaf of its own."""
        if self.node is not None and self.node.leaf is None:
            raise RuntimeError("the result of an operation cannot be copied, since its history cannot; use .detach()")
        return self.data, self.grad, self.requires_grad

    def __setstate__(self, state: tuple) -> None:
        self.data, self.grad, wanted = state
        self.node = Node([], self.data, leaf=self) if wanted else None

    def numpy(self) -> np.ndarray:
        """The array on the host."""
        return to_host(self.data)

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.data)

    def backward(self, grad: Any = None) -> None:
        """Leave d(self)/d(leaf) in ``.grad`` of every leaf that led here; see `backward`."""
        backward(self, grad)


def _array(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.data
    if not hasattr(data, "dtype"):
        array = _rows(data)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a tensor is made of numbers, not of {kind_of(data)}")
        return array.astype(np.float32) if array.dtype == np.float64 else array
    return data if hasattr(data, "__array_function__") and not isinstance(data, np.generic) else np.asarray(data)


def _rows(data: Any) -> np.ndarray:
    if isinstance(data, list | tuple) and any(isinstance(x, Tensor) for x in data):
        raise TypeError("a tensor made of tensors would lose their history: join them with tinyllm.ops.stack")
    try:
        return np.asarray(data)
    except ValueError:
        raise ValueError("a tensor needs rows of one length; pad them") from None


def require_tensors(operation: str, *given: Any) -> None:
    """TypeError unless each of these is a Tensor."""
    for x in given:
        if not isinstance(x, Tensor):
            raise TypeError(f"{operation} takes a Tensor, not {kind_of(x)}; wrap it: tinyllm.Tensor(x)")


class Parameter(Tensor):
    """A tensor that a module owns and an optimiser may change."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data, requires_grad)

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]  # it never returns
        raise TypeError("`p += x` would put a tensor in the parameter's place; write p.data += x, outside of the graph")

    __isub__ = __imul__ = __itruediv__ = __iadd__


RECORD, TRACE, OFF = "record", "trace", "off"
_mode: ContextVar[str] = ContextVar("mode", default=RECORD)  # each thread has its own


@contextmanager
def _recording(mode: str) -> Iterator[None]:
    before = _mode.get()
    _mode.set(mode)
    try:
        yield
    finally:
        _mode.set(before)


def no_grad() -> AbstractContextManager[None]:
    """A ``with`` block in which this thread records nothing and keeps nothing."""
    return _recording(OFF)


def enable_grad() -> AbstractContextManager[None]:
    """A ``with`` block in which operations are recorded, also inside `no_grad`."""
    return _recording(RECORD)


def is_grad_enabled() -> bool:
    """Whether operations are being recorded."""
    return _mode.get() is RECORD


def op(value: Any, *edges: tuple[Any, Callable]) -> Tensor:
    """The result of an operation: its value, and for each input the rule for its gradient.

    Parameters
    ----------
    value : array, already computed
    *edges : (Tensor, rule) or (tuple of several Tensors, rule)
        ``rule(g)`` maps the gradient of the result (an array like `value`) to the gradient of that input, in the
        input's shape or in one it was broadcast to. A rule over several inputs is called as ``rule(g, needs)`` with
        one bool an input and returns a tuple (anything where not needed). A rule returns `g` itself, a view of it or a
        fresh array; it writes into nothing it was given.

    Returns
    -------
    Tensor
        It links to the inputs' nodes only if something among them needs a gradient.
    """
    out = Tensor(value)
    mode = _mode.get()
    if mode is OFF:
        return out
    kept: list = []
    for source, rule in edges:
        if type(source) is tuple:
            nodes = tuple([x.node for x in source])
            if any(nodes):
                kept.append((nodes, rule))
        elif source.node is not None:
            kept.append(((source.node,), rule))
    if kept:
        # TRACE asks only *whether* a gradient would flow (see `checkpoint`), so nothing is kept.
        out.node = Node(kept if mode is RECORD else [], out.data)
    return out


def wants_grad(*tensors: Any) -> bool:
    """Whether an operation on these would be recorded; for the fused head, which computes its gradient forward."""
    return _mode.get() is RECORD and any(t.node is not None for t in tensors)


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
        walk(y.node, grad)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Run `function` without keeping anything; run it again when its gradient is asked for.

    Trades a second forward pass for the memory of the first (Chen et al. 2016, arXiv 1604.06174). Parameters *inside*
    the function train, too, also when every input is frozen or there is none. Random numbers repeat: the generator goes
    back to where it was.

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
    require_tensors("checkpoint", *inputs)
    start, mode = random.default.state, _mode.get()
    with _recording(TRACE if mode is RECORD else mode):
        y = function(*inputs)
    if not isinstance(y, Tensor):
        raise TypeError(f"a checkpointed function must return one Tensor, not {type(y).__name__}")
    if mode is not RECORD or y.node is None:
        return y
    arrays, wanted = [x.data for x in inputs], [x.requires_grad for x in inputs]

    def checkpoint_rule(g: Any, needs: Sequence[bool] = ()) -> Any:
        after = random.default.state
        random.default.restore(start)
        again = [Tensor(x, requires_grad=need) for x, need in zip(arrays, wanted, strict=True)]
        try:
            with enable_grad():
                result = function(*again)
        finally:
            random.default.restore(after)
        backward(result, g)
        parts = tuple(UNUSED if x.grad is None else x.grad for x in again)
        return parts if len(parts) != 1 else parts[0]

    out = Tensor(y.data)
    out.node = Node([(tuple(x.node for x in inputs), checkpoint_rule)], out.data)
    return out
