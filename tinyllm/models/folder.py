"""A model as a folder, the way Hugging Face keeps it: ``config.json`` and ``model.safetensors``.

Read next: `../adapters.py`.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyllm.formats import safetensors_file
from tinyllm.formats.atomic import make_folder, write_text
from tinyllm.frozen import FrozenWeight, HalfWeight, NF4Weight
from tinyllm.models.decoder import DecoderModel
from tinyllm.models.llama import config_from_hf, config_to_hf, hf_name
from tinyllm.state import QUANT_STATE, pack, unpack
from tinyllm.tensor import Parameter

NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", QUANT_STATE)


def load_pretrained(folder: Any, storage: str | None = None, dtype: Any = np.float32) -> DecoderModel:
    """Read a model.

    Parameters
    ----------
    folder : str or Path
        With ``config.json`` and ``model.safetensors``, or shards and ``model.safetensors.index.json``.
    storage : {"float32", "float16", "bfloat16", "nf4"}, optional
        What the weights are kept as, see `DecoderModel`. None: as floats, or NF4 if they are stored so.
    dtype : dtype
        What to compute in.

    Returns
    -------
    DecoderModel
        Its weights are read and converted one at a time.

    Raises
    ------
    FileNotFoundError
        If a file is missing, naming it.
    ValueError
        If the model is not understood, or weights are missing, left over or of another shape.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        hint = ", but an adapter: name its model, and the adapter with --adapter" if _is_adapter(folder) else ""
        raise FileNotFoundError(
            f"there is no model in {folder} (no config.json){hint}; give a folder as Hugging Face has it"
        )
    fields = read_json(folder / "config.json")
    config = config_from_hf(fields)
    as_stored = storage is None
    if storage is None:
        storage = "nf4" if fields.get("quantization_config") else "float32"
    files = _files(folder)
    _check_names(folder, files, config)
    _refuse_other_quantisation(fields, files)
    if config["tie_embeddings"] and "lm_head.weight" in files:
        if not np.array_equal(_read(files, "lm_head.weight"), _read(files, hf_name("embed_tokens.weight"))):
            raise ValueError(
                f"config.json in {folder} says tie_word_embeddings, but lm_head.weight differs from the embedding; "
                "set tie_word_embeddings to false, or leave lm_head.weight out"
            )

    def init(name: str, shape: tuple[int, ...]) -> Any:
        key = hf_name(name)
        path, weight = files[key], _read(files, key)
        if tuple(weight.shape) != tuple(shape):
            raise ValueError(
                f"{key} in {path} has shape {tuple(weight.shape)}, but config.json asks for {tuple(shape)}"
            )
        if isinstance(weight, NF4Weight):
            weight.dtype = np.dtype(dtype)
        elif as_stored and DecoderModel.storage_of(name, storage) == "nf4":
            return Parameter(weight.astype(dtype, copy=False))  # merged, say: not to be quantised again
        return weight

    model = DecoderModel(**config, storage=storage, dtype=dtype, init=init)
    model.eval()
    return model


def save_pretrained(model: DecoderModel, folder: Any) -> None:
    """Write a Llama-shaped model so that transformers and `load_pretrained` can read it.

    Parameters
    ----------
    model : DecoderModel
        Without adapters: merge them for good first, or write them with `tinyllm.save_adapter`.
    folder : str or Path
        Made if it does not exist.

    Raises
    ------
    ValueError
        If the model has adapters or is not Llama-shaped.
    OSError
        If it cannot be written.
    """
    state: dict[str, Any] = dict(model.state_dict())
    if any(".base_layer." in name or ".original." in name for name in state):
        raise ValueError(
            "the model has adapters; write them alone with tinyllm.save_adapter(model, folder), or fold them in first "
            "with merge_lora(model, keep_base=False)"
        )
    kept = {w.storage for w in state.values() if isinstance(w, FrozenWeight)}
    half = {w.storage for w in state.values() if isinstance(w, HalfWeight)}
    fields = config_to_hf(model.config, half.pop() if half and "nf4" not in kept else model.dtype.name)
    # Training or merging may have parted the two, or an assignment joined them.
    fields["tie_word_embeddings"] = model.lm_head.weight is model.embed_tokens.weight
    nested = {w.double_quant for w in state.values() if isinstance(w, NF4Weight)}
    if nested:
        fields["quantization_config"] = {
            "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": any(nested),
            "bnb_4bit_compute_dtype": model.dtype.name, "quant_method": "bitsandbytes",
        }  # fmt: skip
    folder = make_folder(folder)
    if nested:  # transformers does not convert what stands beside 4-bit weights; widening changes no value
        state = {name: w.dense() if isinstance(w, HalfWeight) else w for name, w in state.items()}
    arrays, _ = pack({hf_name(name): weight for name, weight in state.items()})
    safetensors_file.write(folder / "model.safetensors", arrays)
    write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)  # of an older, sharded model


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; one clear sentence if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); get or write it again") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds no JSON object")
    return fields


def _files(folder: Path) -> dict[str, Path]:
    """Which file each array stands in."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # transformers looks for it first, too
        return dict.fromkeys(safetensors_file.read_header(single), single)
    if not index.is_file():
        if list(folder.glob("pytorch_model*.bin")):
            raise ValueError(
                f"{folder} has only pickled weights, which could run code when opened; convert them to safetensors"
            )
        raise FileNotFoundError(f"there is neither {single.name} nor {index.name} in {folder}")
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict):
        raise ValueError(f"{index} has no weight_map")
    files: dict[str, Path] = {}
    for shard in sorted(set(named.values())):
        path = folder / shard
        if path.resolve().parent != folder.resolve():
            raise ValueError(f"{index} names a shard outside its folder: {shard}")
        files |= dict.fromkeys(safetensors_file.read_header(path), path)
    return files


def _read(files: dict[str, Path], key: str) -> Any:
    """One weight; half precision comes as floats, for `storage` rules."""
    path = files[key]
    parts = [key + part for part in NF4_PARTS if files.get(key + part) == path]
    arrays, _ = safetensors_file.read(path, [key, *parts])
    return unpack(arrays, {}, where=str(path))[key]


def _check_names(folder: Path, files: dict[str, Path], config: dict[str, Any]) -> None:
    wanted = [hf_name(name) for name in _names(config)]
    missing = [key for key in wanted if key not in files]
    parts = {key + part for key in wanted for part in NF4_PARTS}
    tied = {"lm_head.weight"} if config["tie_embeddings"] else set()
    extra = [
        k
        for k in files
        if k not in wanted and k not in parts and k not in tied and not k.endswith("rotary_emb.inv_freq")
    ]
    if missing or extra:
        said = []
        if missing:
            said.append(f"missing {_few(missing)}")
        if extra:
            close = difflib.get_close_matches(extra[0], wanted, n=1)
            said.append(f"left over {_few(extra)}" + (f" (did you mean {close[0]}?)" if close else ""))
        raise ValueError(f"the weights in {folder} do not fit its config.json: {'; '.join(said)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _names(config: dict[str, Any]) -> list[str]:
    """The names of a Llama's weights."""
    block = [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    block += ["input_layernorm", "post_attention_layernorm"]
    names = ["embed_tokens", "norm", *(f"layers.{i}.{part}" for i in range(config["num_layers"]) for part in block)]
    return [f"{name}.weight" for name in (names if config["tie_embeddings"] else [*names, "lm_head"])]


def _refuse_other_quantisation(fields: dict[str, Any], files: dict[str, Path]) -> None:
    said = fields.get("quantization_config")
    if said and (said.get("quant_method") != "bitsandbytes" or not any(key.endswith(QUANT_STATE) for key in files)):
        raise ValueError(
            "the model is quantised in a way not understood here (quantization_config); only bitsandbytes' NF4 is"
        )
