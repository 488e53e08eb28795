"""The memory ledger: what a training run will hold, by category, before it begins.

Two steps of training are run on ghosts (`backend/ghost`): the model is built as it would be, adapters are applied,
loss, backward and AdamW follow, and only the content is missing. The moment at which most bytes are alive is the plan.
A card's run is planned in its dtype, cut as it cuts, but with NumPy's primitives, whose temporaries are others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from tinyllm.backend import random
from tinyllm.backend.device import as_dtype, device
from tinyllm.backend.ghost import Ghost, Meter, haunted, labelled
from tinyllm.backend.table import BACKENDS
from tinyllm.frozen.half import HalfWeight
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.inspect.memory import resident_memory
from tinyllm.lora.verbs import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.models.build import fill, skeleton, storages
from tinyllm.models.config import DecoderConfig
from tinyllm.nn import Module
from tinyllm.optim import AdamW, clip_grad_norm
from tinyllm.tensor import Parameter, Tensor

STORAGE = {"full": "float32", "lora": "float32", "qlora": "nf4"}  # by method, unless another is asked for
SOMETHING = 45_000_000  # bytes that Python, NumPy and this library take, where the system does not tell


@dataclass(frozen=True)
class Plan:
    """Bytes by category at the fullest moment of a training step, and what was counted.

    Attributes
    ----------
    base, adapters : int
        Weights, as stored; with full fine-tuning there are no adapters.
    gradients, optimizer : int
        Of what trains: one float each, and AdamW's two.
    activations : int
        What the forward pass keeps for backward, and what is being computed.
    head : int
        A chunk of logits and what the loss makes of it.
    tiles : int
        Stretches of a stored weight, unpacked.
    library : int
        Python, NumPy and this library: what this process has when the plan is made; nothing of it is on a GPU.
    parameters, total, trainable : int
        How many numbers the base model has, how many there are with the adapters, and how many train.
    """

    base: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    tiles: int
    library: int
    parameters: int
    total: int
    trainable: int

    @property
    def share(self) -> float:
        """The share of all numbers that trains, 0 to 1."""
        return self.trainable / self.total

    @property
    def peak(self) -> int:
        """All categories together."""
        return sum(self.by_category().values())

    def by_category(self) -> dict[str, int]:
        """The bytes by the names of the categories."""
        return {name: n for name, n in asdict(self).items() if name not in ("parameters", "total", "trainable")}


def plan(
    config: DecoderConfig,
    method: str = "lora",
    *,
    storage: str | None = None,
    rank: int = 8,
    target_modules: Any = None,
    modules_to_save: Sequence[str] = (),
    use_dora: bool = False,
    batch_size: int = 1,
    seq_len: int = 128,
    checkpointing: bool = False,
    dropout: float = 0.0,
    dtype: Any = np.float32,
) -> Plan:
    """How much memory training will need.

    Parameters
    ----------
    config : DecoderConfig
    method : {"full", "lora", "qlora"}
    storage : {"float32", "float16", "bfloat16", "nf4"}, optional
        What the base is kept as; float32, and NF4 for "qlora", by default.
    rank, target_modules, modules_to_save, use_dora, dropout
        As in `apply_lora`.
    batch_size, seq_len : int
        Rows and tokens of a micro-batch.
    checkpointing : bool
    dtype : dtype
        What is computed in.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If there is no such method, or the model could not be trained so.
    """
    storage, dtype = _storage(method, storage), _dtype(dtype)
    for name, n in (("the batch size", batch_size), ("max_seq_len", seq_len)):
        if n < 1:
            raise ValueError(f"{name} must be at least 1, not {n}")
    _have_blas_take_its_work_space()
    place = random.default.state
    try:
        with haunted() as meter:
            ledger = _Ledger(meter)
            with meter.labelled("base"):
                model = ghost_model(config, storage, dtype)
            model.checkpointing = checkpointing
            parameters = model.num_parameters()
            if method != "full":
                with meter.labelled("adapters"):
                    apply_lora(
                        model, rank, dropout=dropout, target_modules=target_modules, modules_to_save=modules_to_save,
                        use_dora=use_dora, verbose=False,
                    )  # fmt: skip
            with meter.labelled("activations"):
                ledger.watch(model)
                _train(model, batch_size, seq_len)
            return ledger.plan(_library(), parameters)  # planning leaves a few MB behind
    finally:
        random.default.restore(place)


def _storage(method: str, storage: str | None) -> str:
    """What the base is kept as."""
    if method not in STORAGE:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(STORAGE)}")
    storage = storage or STORAGE[method]
    if method == "full" and storage != "float32":
        raise ValueError(f"weights stored as {storage} are frozen; full fine-tuning needs storage='float32'")
    return storage


def _dtype(dtype: Any) -> np.dtype:
    """What is computed in; float16 for bfloat16, which has as many bytes, and of whose results NumPy tells nothing."""
    dtype = as_dtype(dtype)
    return np.dtype(np.float16) if dtype.itemsize == 2 else dtype


def _library() -> int:
    """What stands beside the arrays, where they are."""
    return 0 if device() == "cuda" else resident_memory() or SOMETHING


def _have_blas_take_its_work_space() -> None:
    """It takes one for each thread, at the first product that is wide enough."""
    be = BACKENDS["numpy"]
    tall, wide = np.ones((256, 512), np.float32), np.ones((512, 2048), np.float32)
    results = np.empty((len(be.pieces(len(tall), even=True)), 256, 2048), np.float32)  # as many as threads
    be.share(lambda out: np.matmul(tall, wide, out=out), list(results))


def _train(model: DecoderModel, batch_size: int, seq_len: int) -> None:
    """Two steps: only the second has the optimiser's moments from the start."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    with labelled("base"):  # what trains whole in half precision becomes float32
        optimizer = AdamW(trainable)
    ids = np.zeros((batch_size, seq_len), np.int64)
    for _ in range(2):
        model.loss(ids, ids).backward()
        clip_grad_norm(trainable, 1.0)
        with labelled("optimizer"):
            optimizer.step()
        optimizer.zero_grad()


def ghost_model(config: DecoderConfig, storage: str = "float32", dtype: Any = np.float32) -> DecoderModel:
    """A model whose weights are ghosts, for use inside `haunted`."""
    model = skeleton(_Decoder, vars(config), storage, dtype)
    kept_as = storages(model, storage)

    def init(name: str, shape: tuple[int, ...]) -> Any:
        kind, n = kept_as[name], prod(shape)
        if kind == "float32":
            return Parameter(Ghost(shape, dtype))
        if kind != "nf4":
            return _Half(Ghost(shape, np.uint16), kind, dtype)
        blocks = -(-n // 64)
        scales = Ghost(blocks, np.uint8), Ghost(-(-blocks // 256)), np.float32(0)
        return _NF4(Ghost((n + 1) // 2, np.uint8), scales, shape, dtype=dtype)

    fill(model, init, storage)
    return model


class _Decoder(DecoderModel):
    """Of a loss, all but the hidden states is the head's."""

    def hidden(self, *args: Any, **kwargs: Any) -> Tensor:
        with labelled("activations"):
            return super().hidden(*args, **kwargs)

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        with labelled("head"):
            return super().loss(*args, **kwargs)


class _Tiles:
    """Of a thread's tiles, which are all alike, the first and the last tell as much as all of them."""

    def runs(self) -> list[list[slice]]:
        every: list[list[slice]] = super().runs()  # type: ignore[misc]
        return [run[:1] + run[1:][-1:] for run in every]

    def tiles(self, spans: list[slice] | None = None) -> Iterator[tuple[slice, Any]]:
        tiles = super().tiles(spans)  # type: ignore[misc]
        while True:
            with labelled("tiles"):
                tile = next(tiles, None)
            if tile is None:
                return
            yield tile
            del tile  # the next takes its place


class _Half(_Tiles, HalfWeight):
    pass


class _NF4(_Tiles, NF4Weight):
    pass


class _Ledger:
    """Takes down the categories whenever there is a new peak that matters."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.parts: Counter[str] = Counter()

    def watch(self, model: Module) -> None:
        self.total, self.trainable = model.num_parameters(), model.num_parameters(trainable_only=True)
        self.training = [p for p in model.parameters() if p.requires_grad]
        self.noted = 0
        self.meter.on_peak = self._note

    def _note(self) -> None:
        if self.meter.peak < self.noted * 1.002:
            return
        self.noted = self.meter.peak
        self.parts = Counter(self.meter.by_label)
        for gradient in (p.grad for p in self.training if p.grad is not None):
            # It was made as any other array, and became a gradient when it was delivered.
            self.parts[gradient.owner.label] -= gradient.nbytes
            self.parts["gradients"] += gradient.nbytes

    def plan(self, library: int, parameters: int) -> Plan:
        parts = self.parts
        parts["activations"] += self.meter.peak - sum(parts.values())  # what came after the last note
        names = ("base", "adapters", "gradients", "optimizer", "activations", "head", "tiles")
        return Plan(
            **{name: parts.get(name, 0) for name in names}, library=library, parameters=parameters,
            total=self.total, trainable=self.trainable,
        )  # fmt: skip
