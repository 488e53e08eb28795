"""A model as a folder, the way Hugging Face keeps it: ``config.json``, and weights in one safetensors file or several.

Nothing is read before it is asked for, one weight at a time.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyllm.backend.half import BFLOAT16
from tinyllm.backend.names import few, nearest
from tinyllm.formats import gguf_file, json_file, safetensors_file
from tinyllm.formats.foreign import other_weights, pickles, refuse_pointer
from tinyllm.formats.state import NF4_PARTS, QUANT_STATE, unpack
from tinyllm.frozen import HalfWeight, Weight, stored
from tinyllm.models.build import fill, skeleton, storages
from tinyllm.models.checkpoints import hub
from tinyllm.models.checkpoints.gguf import load_gguf, read_config
from tinyllm.models.checkpoints.origin import of_folder
from tinyllm.models.config import DecoderConfig
from tinyllm.models.families.family import FAMILIES

if TYPE_CHECKING:
    from tinyllm.models.decoder import DecoderModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_pretrained(
    cls: type[DecoderModel], name: Any, storage: str | None = None, dtype: Any = np.float32
) -> DecoderModel:
    """Read a model.

    Parameters
    ----------
    cls : type
        What to make: `DecoderModel`, which imports this module, and so hands itself down.
    name : str or Path
        A folder with ``config.json`` and ``model.safetensors``, or shards and ``model.safetensors.index.json``; a GGUF
        file; or the name of a model on the Hugging Face hub, ``owner/name`` (see `tinyllm.models.checkpoints.hub`).
    storage : {"float32", "float16", "bfloat16", "nf4"}, optional
        What the weights are kept as, see `DecoderModel`. None: each as it is stored, NF4 or floats. What is stored as
        NF4 stays NF4 in any case.
    dtype : dtype
        What to compute in.

    Returns
    -------
    DecoderModel
        In evaluation mode. Its weights are read and converted one at a time.

    Raises
    ------
    FileNotFoundError
        If a file is missing, naming it, or the hub does not give the model.
    ImportError
        If the package is missing that reads GGUF's blocks, or fetches from the hub.
    ValueError
        If the model is not understood, or weights are missing, left over or of another shape.
    """
    path = hub.find(name)
    if path.suffix == ".gguf" and not path.is_dir():
        return load_gguf(cls, path, storage, dtype)
    folder, storage = ModelFolder(path), storage or "float32"
    model = folder.skeleton(cls, storage, dtype)
    kept_as = storages(model, storage)

    def init(name: str, shape: tuple[int, ...]) -> Any:
        weight = folder.read(name, shape)
        same = weight.storage == kept_as[name] == "bfloat16" and _is_finite(weight)
        return weight if same or weight.storage == "nf4" else weight.dense()

    fill(model, init, storage, largest_first=True)
    model.eval()
    return model


def load_config(name: Any) -> DecoderConfig:
    """The shape of a model, without its weights; parameters and errors as in `load_pretrained`."""
    path = hub.find(name)
    if path.suffix == ".gguf" and not path.is_dir():
        return DecoderConfig(**read_config(path, gguf_file.read_header(path)))
    return DecoderConfig(**ModelFolder(path).config)


class ModelFolder:
    """A folder's configuration, checked, and its weights, to be read one by one.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    family : Family
    config : dict
        The keyword arguments of `DecoderModel`.
    origin : Origin
        What came beside the weights.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_pretrained`; what is wrong with the weights' names is found when the model is built.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / "config.json").is_file():
            raise _no_model(path)
        fields = json_file.read(path / "config.json")
        kind = fields.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ValueError(f"the model in {path} is of type {kind!r}; understood are {', '.join(FAMILIES)}")
        self.family = FAMILIES[kind]
        self.config = self.family.read(fields)
        self.origin = of_folder(path, kind, self.family.inert_fields(fields))
        self._files = _files(path)
        self._keys: dict[str, str] = {}
        _refuse_other_quantisation(fields.get("quantization_config"), self._files)

    def skeleton(self, cls: type[DecoderModel], storage: str, dtype: Any) -> DecoderModel:
        """A `cls` whose weights have names and shapes only, to be filled with what `read` gives.

        Raises
        ------
        ValueError
            If keys are missing or left over, or the configuration's sizes do not fit together or go beyond any array.
        """
        self._refuse_sizes_beyond(DecoderConfig(**self.config))
        model = skeleton(cls, self.config, storage, dtype)
        model.origin = self.origin
        self._keys = self._match([name for name, _ in model.named_weights()])
        self._refuse_another_head()
        return model

    def read(self, name: str, shape: tuple[int, ...]) -> Weight:
        """Our weight of this name, as it is stored: floats, bfloat16 or NF4.

        Raises
        ------
        ValueError
            If it has another shape, or holds no floats.
        """
        key = self._keys[name]
        weight = stored(self._read(key))
        if weight.dtype.kind != "f":
            raise ValueError(f"{key} in {self._files[key]} has dtype {weight.dtype}, but floats are needed")
        if self.family.transposed(name) and weight.storage != "nf4" and len(weight.shape) == 2:
            weight = weight.transposed().move(np.ascontiguousarray)
        if tuple(weight.shape) != tuple(shape):
            raise ValueError(
                f"{key} in {self._files[key]} has shape {tuple(weight.shape)}, but config.json asks for {tuple(shape)}"
            )
        return weight

    def _read(self, key: str) -> Any:
        arrays: dict[str, Any] = {}
        for part in [key, *(key + part for part in NF4_PARTS)]:
            if part in self._files:  # a weight's parts may stand in two shards
                arrays |= safetensors_file.read(self._files[part], [part])[0]
        if len(arrays) == 1 and arrays[key].dtype == BFLOAT16:
            return HalfWeight(arrays[key].view(np.uint16), "bfloat16")
        return unpack(arrays, {}, where=str(self._files[key]))[key]

    def _match(self, names: list[str]) -> dict[str, str]:
        """The key of each of our weights; an error for keys that are missing or left over."""
        keys = {name: self.family.hf_name(name) for name in names}
        prefix = keys["embed_tokens.weight"].partition(".")[0] + "."
        if not any(key.startswith(prefix) for key in self._files):  # saved without its head, as GPT-2's first files
            keys = {name: key.removeprefix(prefix) for name, key in keys.items()}
        wanted = list(keys.values())
        missing = [key for key in wanted if key not in self._files]
        known = {*wanted, *(key + part for key in wanted for part in NF4_PARTS)}
        if self.config["tie_embeddings"]:
            known.add(self.family.hf_name("lm_head.weight"))
        extra = [key for key in self._files if key not in known and not key.endswith(self.family.buffers)]
        faults = [f"missing {few(missing)}"] if missing else []
        faults += [f"left over {few(extra)}{nearest(extra[0], wanted)}"] if extra else []
        if faults:
            raise ValueError(f"the weights in {self.path} do not fit its config.json: {'; '.join(faults)}")
        return keys

    def _refuse_another_head(self) -> None:
        head, embedding = self.family.hf_name("lm_head.weight"), self._keys["embed_tokens.weight"]
        tied = self.config["tie_embeddings"] and head in self._files
        if tied and not _equal(self._read(head), self._read(embedding)):
            raise ValueError(
                f"config.json in {self.path} says tie_word_embeddings, but {head} differs from the embedding; "
                f"set tie_word_embeddings to false, or leave {head} out"
            )

    def _refuse_sizes_beyond(self, config: DecoderConfig) -> None:
        """Raise ValueError for sizes that no array of the files could have, before anything of that size is made."""
        headers = [safetensors_file.read_header(path) for path in set(self._files.values())]
        largest = max((prod(shape) for header in headers for _, shape in header.values()), default=0)
        sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
        sizes |= {"num_attention_heads": config.num_heads, "head_dim of all heads": config.num_heads * config.head_dim}
        limits = {**dict.fromkeys(sizes, 2 * largest), "num_hidden_layers": len(self._files)}  # two codes a byte
        for name, size in {**sizes, "num_hidden_layers": config.num_layers}.items():
            if size > limits[name]:
                raise ValueError(
                    f"config.json in {self.path} has a {name} of {size}, but none of its weights is that large"
                )


def _no_model(path: Path) -> Exception:
    """The error for a place without config.json: what stands there instead, and what to do."""
    if path.is_file():
        refuse_pointer(path)
        kind = other_weights(path)
        return ValueError(
            f"{path} is {kind or 'a file'}; give the model's folder as Hugging Face has it, with its config.json"
        )
    hint = ""
    if (path / "adapter_config.json").is_file():
        hint = ", but an adapter: name its model, and the adapter with --adapter"
    elif path.is_dir() and (pickled := pickles(path)):
        hint = f", but a pickle ({few(pickled)}), which is not opened, since it could run code"
    elif (path / "tokenizer.json").is_file():
        hint = ", but a tokenizer alone"
    return FileNotFoundError(
        f"there is no model in {path} (no config.json){hint}; give a folder as Hugging Face has it"
    )


def _is_finite(weight: Any) -> bool:
    """Whether these bfloat16 weights are numbers: exponents of nothing but ones are infinities or none."""
    return not ((weight.bits & 0x7F80) == 0x7F80).any()


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(getattr(a, "bits", a), getattr(b, "bits", b))


def _files(folder: Path) -> dict[str, Path]:
    """Which file each array stands in."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():  # transformers looks for it first, too
        return dict.fromkeys(safetensors_file.read_header(single), single)
    if not index.is_file():
        if pickled := pickles(folder):
            raise ValueError(
                f"{folder} has only pickled weights ({few(pickled)}), which could run code when opened; convert them "
                "to safetensors, in Python with transformers.AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(other)"
            )
        raise FileNotFoundError(f"there is neither {single.name} nor {index.name} in {folder}")
    named = json_file.read(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
        raise ValueError(f"{index} has no weight_map from names to files; get or write it again")
    files: dict[str, Path] = {}
    for shard in sorted(set(named.values())):
        # By its name: in the hub's cache the files themselves are links to another folder.
        if Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise ValueError(f"{index} names a shard outside its folder: {shard!r}")
        header = safetensors_file.read_header(folder / shard)
        twice = next((name for name in header if name in files), None)
        if twice:
            raise ValueError(f"{twice} stands in {files[twice].name} and in {shard}; get or write the folder again")
        files |= dict.fromkeys(header, folder / shard)
    return files


def _refuse_other_quantisation(config: Any, files: dict[str, Path]) -> None:
    found = any(key.endswith(QUANT_STATE) for key in files)
    if config and not (isinstance(config, dict) and config.get("quant_method") == "bitsandbytes" and found):
        raise ValueError(
            "the model is quantised in a way not understood here (quantization_config); only bitsandbytes' NF4 is"
        )
