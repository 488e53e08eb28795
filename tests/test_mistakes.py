"""What people get wrong, in Python and on the command line: each mistake with the sentence it gets.

A mistake ends in an error of the right type, whose message is a sentence or two with the remedy; nothing is changed or
left half-written.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import tiny_model

import tinyllm
from tinyllm import functional as F
from tinyllm import lora, nn, ops, optim, qlora
from tinyllm.cli import build_parser, main, sentence
from tinyllm.data.batches import Batch, Loader
from tinyllm.data.examples import Example
from tinyllm.data.text import load_text
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.generate import generate, next_probabilities
from tinyllm.models import DecoderModel
from tinyllm.train import TrainConfig, evaluate, fit, train

Tensor = tinyllm.Tensor


def small(**options) -> DecoderModel:
    return DecoderModel(20, 8, 1, 2, seed=0, max_seq_len=16, **options)


def adapted(**options) -> DecoderModel:
    return lora.apply_lora(small(), rank=2, verbose=False, **options)


def tensor(*shape, dtype="float32", **options) -> Tensor:
    return Tensor(np.ones(shape, dtype), **options)


def used() -> Tensor:
    y = tensor(3, requires_grad=True).sum()
    y.backward()
    return y


def unrecorded() -> Tensor:
    x = tensor(3, requires_grad=True)
    with tinyllm.no_grad():
        return x.sum()


def batch() -> Batch:
    ids = np.ones((1, 4), int)
    return Batch(ids, ids, ids)


def loader() -> Loader:
    return Loader([Example(np.arange(4), np.arange(4))], 1, 8)


def assigned(t: Tensor) -> None:
    t[0] = 1


def added(t: Tensor) -> None:
    t += 1


class Like:
    """A torch tensor's face, for machines without torch."""

    dtype, shape = "torch.float32", (2,)

    def __array__(self, dtype=None, copy=None):
        return np.ones(2, dtype)


# A mistake, the error it gets and a part of its sentence; `w` has a fresh model and the folders that `world` makes.
PYTHON = {
    # Tensors
    "Tensor of text": (lambda w: Tensor("a"), TypeError, "made of numbers"),
    "Tensor of None": (lambda w: Tensor(None), TypeError, "made of numbers, not of NoneType"),
    "Tensor of rows of two lengths": (lambda w: Tensor([[1], [2, 3]]), ValueError, "rows of one length"),
    "Tensor of Tensors": (lambda w: Tensor([tensor(2), tensor(2)]), TypeError, "tinyllm.ops.stack"),
    "Parameter of text in an array": (lambda w: tinyllm.Parameter(np.array(["a"])), TypeError, "only floating"),
    "grad of ints": (lambda w: Tensor([1, 2], requires_grad=True), TypeError, "only floating tensors"),
    "requires_grad of a result": (
        lambda w: setattr(tensor(2, requires_grad=True) * 2, "requires_grad", False), RuntimeError, "on leaves only"),
    "tensor plus None": (lambda w: tensor(2) + None, TypeError, "not NoneType"),
    "tensor plus text": (lambda w: tensor(2) + "a", TypeError, "not str"),
    "two dtypes": (lambda w: tensor(2) + tensor(2, dtype="float64"), TypeError, "convert one with .astype()"),
    "half a float into ints": (lambda w: Tensor([1]) + 0.5, TypeError, "convert the tensor with .astype"),
    "shapes that do not broadcast": (lambda w: tensor(2) + tensor(3), ValueError, "shapes (2,) (3,)"),
    "item of several": (lambda w: tensor(3).item(), ValueError, "(3,)"),
    "math.sqrt of several": (lambda w: math.sqrt(tensor(3)), ValueError, "(3,)"),
    "if tensor": (lambda w: bool(tensor(3)), ValueError, "neither true nor false"),
    "for x in one number": (lambda w: list(Tensor(1.0)), TypeError, "one number"),
    "len of one number": (lambda w: len(Tensor(1.0)), TypeError, "one number"),
    "t[0] = 1": (lambda w: assigned(tensor(3)), TypeError, "in place"),
    "parameter += 1": (lambda w: added(w.model.norm.weight), TypeError, ".data"),
    "np.add of a tensor": (lambda w: np.add(tensor(2), 1), TypeError, "does not support ufuncs"),
    "dim for axis": (lambda w: tensor(2, 2).sum(dim=0), TypeError, "sum has no parameter 'dim'; did you mean axis?"),
    "keepdim for keepdims": (lambda w: tensor(2, 2).mean(1, keepdim=True), TypeError, "did you mean keepdims?"),
    "unbiased for correction": (lambda w: tensor(2, 2).var(unbiased=False), TypeError, "did you mean correction?"),
    "dim in ops.concatenate": (lambda w: ops.concatenate([tensor(2)], dim=0), TypeError, "did you mean axis?"),
    "axis that is not there": (lambda w: tensor(2, 2).sum(axis=2), ValueError, "axis 2"),
    "axis of one number": (lambda w: Tensor(1.0).var(axis=0), ValueError, "axis 0"),
    "axis as text": (lambda w: tensor(2, 2).sum(axis="rows"), TypeError, "integer"),
    "torch's names of methods": (lambda w: tensor(2).view(1, 2), AttributeError, "did you mean reshape?"),
    "torch's permute": (lambda w: tensor(2, 2).permute(1, 0), AttributeError, "did you mean transpose?"),
    "torch's unsqueeze": (lambda w: tensor(2).unsqueeze(0), AttributeError, "did you mean expand_dims?"),
    "torch's to": (lambda w: tensor(2).to("cuda"), AttributeError, "set_device"),
    "a method mistyped": (lambda w: tensor(2).tanhh(), AttributeError, "did you mean tanh?"),
    "reshape to another size": (lambda w: tensor(3).reshape(2, 2), ValueError, "reshape"),
    "index beyond": (lambda w: tensor(3)[5], IndexError, "out of bounds"),
    "index by floats": (lambda w: tensor(3)[0.5], IndexError, "integers"),
    "index by text": (lambda w: tensor(3)["a"], IndexError, "integers"),
    "transpose to an axis that is not there": (lambda w: tensor(2, 2).transpose(0, 5), ValueError, "out of range"),
    "split that does not add up": (lambda w: ops.split(tensor(3), [1, 1]), ValueError, "add up to 2"),
    "concatenate nothing": (lambda w: ops.concatenate([]), ValueError, "nothing to join"),
    "concatenate one tensor": (lambda w: ops.concatenate(tensor(2, 2)), TypeError, "a list of tensors"),
    "stack shapes": (lambda w: ops.stack([tensor(2), tensor(3)]), ValueError, "shapes"),
    "clip by nothing": (lambda w: tensor(2).clip(), TypeError, "clip needs"),
    "matmul sizes": (lambda w: tensor(2, 3) @ tensor(2, 3), ValueError, "inner 3 and 2 differ"),
    "matmul of numbers": (lambda w: Tensor(1.0) @ tensor(2), ValueError, "multiplied by *"),
    "matmul batches": (lambda w: tensor(2, 2, 2) @ tensor(3, 2, 2), ValueError, "matmul (2, 2, 2) @ (3, 2, 2)"),
    "einsum of three": (lambda w: ops.einsum("i,j,k", tensor(2), tensor(2)), ValueError, "two operands"),
    "einsum without text": (lambda w: ops.einsum(tensor(2), tensor(2), "i,i"), TypeError, "einsum"),
    "an array into an operation": (lambda w: ops.exp(np.ones(2)), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "a list into an operation": (lambda w: ops.sum([1.0, 2.0]), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "another library's tensor into an operation": (lambda w: ops.sum(Like()), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "an array into softmax": (lambda w: F.softmax(np.ones(2)), TypeError, "softmax takes a Tensor, not numpy.ndarray"),
    "a list into a layer": (lambda w: nn.Linear(2, 2)([[1.0, 2.0]]), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "an array into a layer": (lambda w: nn.RMSNorm(2)(np.ones((1, 2))), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "an array as a weight": (lambda w: F.linear(tensor(2), np.ones((2, 2))), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "an array as keys": (lambda w: F.attention(tensor(1, 1, 2, 2), np.ones(2), np.ones(2)), TypeError, "wrap it"),
    "an array into dropout": (lambda w: nn.Dropout(0.5)(np.ones(2)), TypeError, "wrap it"),
    "an array as logits": (lambda w: F.cross_entropy(np.ones((2, 3)), [0, 1]), TypeError, "wrap it"),
    # Functions and layers
    "linear sizes": (lambda w: nn.Linear(2, 3)(tensor(1, 3)), ValueError, "the input has 3 features"),
    "linear with a weight that is no matrix": (lambda w: F.linear(tensor(2), tensor(2)), ValueError, "(out, in)"),
    "linear of one number": (lambda w: F.linear(Tensor(1.0), tensor(2, 2)), ValueError, "linear"),
    "norm sizes": (lambda w: F.rms_norm(tensor(2, 3), tensor(2)), ValueError, "weight has shape (2,)"),
    "attention shapes": (lambda w: F.attention(*3 * [tensor(2, 2)]), ValueError, "attention: q (2, 2)"),
    "embedding by floats": (lambda w: F.embedding(tensor(3, 2), [0.5]), TypeError, "integers"),
    "embedding beyond": (lambda w: F.embedding(tensor(3, 2), [3]), ValueError, "0..2"),
    "embedding below 0": (lambda w: F.embedding(tensor(3, 2), [-1]), ValueError, "0..2"),
    "cross-entropy shapes": (lambda w: F.cross_entropy(tensor(2, 3), [0]), ValueError, "targets has shape (1,)"),
    "cross-entropy with floats": (lambda w: F.cross_entropy(tensor(1, 3), [0.5]), TypeError, "must be integers"),
    "cross-entropy beyond": (lambda w: F.cross_entropy(tensor(1, 3), [3]), ValueError, "outside 0..2"),
    "cross-entropy of nothing": (lambda w: F.cross_entropy(tensor(1, 3), [-100]), ValueError, "every target is -100"),
    "dropout of everything": (lambda w: nn.Dropout(1.0), ValueError, "in [0, 1)"),
    "dropout as text": (lambda w: nn.Dropout("0.1"), ValueError, "dropout"),
    "Linear without a size": (lambda w: nn.Linear(0, 2), ValueError, "at least 1"),
    "Linear with a float": (lambda w: nn.Linear(2.0, 2), ValueError, "whole number"),
    "RMSNorm with text": (lambda w: nn.RMSNorm("8"), ValueError, "the sizes of RMSNorm"),
    "Embedding of nothing": (lambda w: nn.Embedding(0, 2), ValueError, "the sizes of Embedding"),
    "NF4 of a list": (lambda w: qlora.quantize_nf4([1.0]), TypeError, "np.asarray"),
    "NF4 of ints": (lambda w: qlora.quantize_nf4(np.ones(2, int)), TypeError, "cast it first"),
    "NF4 codes in a list": (lambda w: qlora.dequantize_nf4([1], [1.0], (1,)), TypeError, "two arrays"),
    "a module without forward": (lambda w: nn.Module()(1), NotImplementedError, "defines no forward()"),
    "an array as a gain": (lambda w: F.rms_norm(tensor(2), np.ones(2)), TypeError, "wrap it: tinyllm.Tensor(x)"),
    "an array as a bias": (lambda w: F.linear(tensor(2), tensor(2, 2), np.ones(2)), TypeError, "wrap it"),
    "torch's gelu": (lambda w: F.gelu(tensor(2), approximate="none"), TypeError, "True (tanh) or False (erf)"),
    "a list of angles": (
        lambda w: F.rope(tensor(1, 1, 1, 4), [1.0], [0.0]), ValueError, "rope: cos has shape (1,)"),
    # Backward
    "backward twice": (lambda w: used().backward(), RuntimeError, "run the forward again"),
    "backward under no_grad": (lambda w: unrecorded().backward(), RuntimeError, "does not need a gradient"),
    "backward of several": (lambda w: (tensor(3, requires_grad=True) * 2).backward(), ValueError, "pass grad="),
    "backward with another shape": (
        lambda w: (tensor(3, requires_grad=True) * 2).backward(np.ones(2)), ValueError, "grad has shape (2,)"),
    "checkpoint of an array": (lambda w: tinyllm.checkpoint(lambda x: x, np.ones(2)), TypeError, "wrap it"),
    "checkpoint that returns several": (
        lambda w: tinyllm.checkpoint(lambda x: (x, x), tensor(2)), TypeError, "must return one Tensor"),
    # The model
    "d_model": (lambda w: DecoderModel(20, d_model=8, n_layers=1), TypeError, "did you mean hidden_size?"),
    "n_layers": (lambda w: DecoderModel(20, 8, n_layers=1), TypeError, "did you mean num_layers?"),
    "n_heads": (lambda w: DecoderModel(20, 8, 1, n_heads=2), TypeError, "did you mean num_heads?"),
    "n_positions": (lambda w: DecoderModel(20, 8, 1, n_positions=2), TypeError, "did you mean max_seq_len?"),
    "a model without layers": (lambda w: DecoderModel(20, 8, 0), ValueError, "num_layers must be at least 1"),
    "a model with text": (lambda w: DecoderModel("20", 8, 1), ValueError, "vocab_size must be"),
    "a model in int8": (lambda w: DecoderModel(20, 8, 1, storage="int8"), ValueError, "storage must be one of"),
    "a model of ints": (lambda w: DecoderModel(20, 8, 1, dtype="int32"), ValueError, "float32 or float64"),
    "a dtype that is none": (lambda w: DecoderModel(20, 8, 1, dtype="fp32"), ValueError, "float32"),
    "model dropout": (lambda w: DecoderModel(20, 8, 1, dropout=1.5), ValueError, "dropout"),
    "a seed below 0": (lambda w: DecoderModel(20, 8, 1, seed=-1), ValueError, "the seed must be"),
    "ids as text": (lambda w: w.model("hello"), TypeError, "token ids must be integers"),
    "ids in one row": (lambda w: w.model([1, 2]), ValueError, "(batch, time)"),
    "ids as floats": (lambda w: w.model([[0.5]]), TypeError, "token ids must be integers"),
    "ids beyond": (lambda w: w.model([[20]]), ValueError, "outside the vocabulary 0..19"),
    "ids of two lengths": (lambda w: w.model([[1], [2, 3]]), ValueError, "one length"),
    "no ids": (lambda w: w.model([[]]), (TypeError, ValueError), "token"),
    "too many ids": (lambda w: w.model([[1] * 17]), ValueError, "16 learned positions"),
    "a batch for ids": (lambda w: w.model(batch()), TypeError, "batch.ids"),
    "loss of a batch and more": (lambda w: w.model.loss(batch(), segment_ids=[[1]]), TypeError, "loss(batch)"),
    "loss without targets": (lambda w: w.model.loss([[1, 2]]), TypeError, "targets"),
    "loss with another shape": (lambda w: w.model.loss([[1, 2]], [[1]]), ValueError, "must be alike"),
    "loss of rows of two lengths": (lambda w: w.model.loss([[1], [2, 3]], [[1], [2, 3]]), ValueError, "one length"),
    "loss of targets beyond": (lambda w: w.model.loss([[1, 2]], [[1, 20]]), ValueError, "outside 0..19"),
    "segments of another shape": (lambda w: w.model([[1, 2]], segment_ids=[[1]]), ValueError, "segment_ids"),
    "a mask with holes": (lambda w: w.model([[1, 2, 3]], attention_mask=[[1, 0, 1]]), ValueError, "holes"),
    "model.to": (lambda w: w.model.to("cuda"), AttributeError, "did you mean tinyllm.set_device"),
    "model.generate": (lambda w: w.model.generate([1]), AttributeError, "tinyllm.generate.generate(model, ids)"),
    "no such weight": (lambda w: w.model.get("layers.7.norm"), (AttributeError, KeyError), "layers.7"),
    # Files
    "save of a model": (lambda w: tinyllm.save(w.model, w.new), TypeError, "model.state_dict()"),
    "save of nothing": (lambda w: tinyllm.save({}, w.new), ValueError, "the state is empty"),
    "save of text": (lambda w: tinyllm.save({"a": "b"}, w.new), TypeError, "only arrays"),
    "save the wrong way round": (lambda w: tinyllm.save(w.new, w.model.state_dict()), TypeError, "and a path, not"),
    "save of another library's tensor": (lambda w: tinyllm.save({"a": Like()}, w.new), TypeError, "only arrays"),
    "save into a folder": (lambda w: tinyllm.save({"a": np.ones(2)}, w.home), OSError, "it is a folder"),
    "load of what is not there": (lambda w: tinyllm.load(w.new), FileNotFoundError, "missing"),
    "load of a folder": (lambda w: tinyllm.load(w.home), (OSError, ValueError), "folder"),
    "load of text": (lambda w: tinyllm.load(w.home / "text.txt"), ValueError, "text.txt"),
    "load_state_dict of a path": (lambda w: w.model.load_state_dict("a.safetensors"), TypeError, "tinyllm.load(path)"),
    "load_state_dict of a model": (lambda w: w.model.load_state_dict(small()), TypeError, "state_dict()"),
    "load_state_dict of another model": (
        lambda w: w.model.load_state_dict({"norm.wieght": np.ones(8)}, strict=False), KeyError, "norm.weight"),
    "load_state_dict of numbers": (
        lambda w: w.model.load_state_dict({"norm.weight": 1.0}, strict=False), TypeError, "norm.weight"),
    "a model that is not there": (lambda w: DecoderModel.from_pretrained(w.new), FileNotFoundError, "no model in"),
    "a tokenizer's folder": (
        lambda w: DecoderModel.from_pretrained(w.home / "tokenizer"), FileNotFoundError, "a tokenizer"),
    "a weights file": (
        lambda w: DecoderModel.from_pretrained(w.home / "model" / "model.safetensors"), ValueError, "folder"),
    "an adapter for a model": (
        lambda w: DecoderModel.from_pretrained(w.home / "adapter"), FileNotFoundError, "an adapter"),
    "no name at all": (lambda w: DecoderModel.from_pretrained(None), TypeError, "folder"),
    "torch's device_map": (
        lambda w: DecoderModel.from_pretrained(w.home / "model", device_map="auto"), TypeError, "device_map"),
    "load_in_4bit": (
        lambda w: DecoderModel.from_pretrained(w.home / "model", load_in_4bit=True), TypeError, "storage"),
    "torch_dtype": (
        lambda w: DecoderModel.from_pretrained(w.home / "model", torch_dtype="float32"), TypeError, "mean dtype?"),
    "a model for a tokenizer": (lambda w: Tokenizer.load(w.new), FileNotFoundError, "tokenizer.json"),
    "text that is not there": (lambda w: load_text(w.home / "no.txt", None), FileNotFoundError, "no.txt"),
    # LoRA
    "r": (lambda w: lora.apply_lora(w.model, r=4), TypeError, "apply_lora has no parameter 'r'; did you mean rank?"),
    "lora_alpha": (lambda w: lora.apply_lora(w.model, lora_alpha=4), TypeError, "did you mean alpha?"),
    "lora_dropout": (lambda w: qlora.apply_qlora(w.model, lora_dropout=0), TypeError, "did you mean dropout?"),
    "r for qlora": (lambda w: qlora.apply_qlora(w.model, r=4), TypeError, "did you mean rank?"),
    "r in a config": (lambda w: lora.LoRAConfig(r=4), TypeError, "did you mean rank?"),
    "targets": (lambda w: lora.apply_lora(w.model, targets=["q_proj"]), TypeError, "did you mean target_modules?"),
    "rank 0": (lambda w: lora.apply_lora(w.model, rank=0), ValueError, "rank must be"),
    "rank 2.5": (lambda w: lora.apply_lora(w.model, rank=2.5), ValueError, "rank must be a whole number"),
    "rank as text": (lambda w: lora.apply_lora(w.model, rank="8"), ValueError, "not '8'"),
    "rank True": (lambda w: lora.apply_lora(w.model, rank=True), ValueError, "rank must be a whole number"),
    "alpha below 0": (lambda w: lora.apply_lora(w.model, alpha=-1), ValueError, "alpha must be"),
    "alpha no number": (lambda w: lora.apply_lora(w.model, alpha=math.nan), ValueError, "alpha must be"),
    "alpha without end": (lambda w: lora.apply_lora(w.model, alpha=math.inf), ValueError, "alpha must be"),
    "alpha as text": (lambda w: lora.apply_lora(w.model, alpha="16"), ValueError, "alpha must be"),
    "dropout 1": (lambda w: lora.apply_lora(w.model, dropout=1), ValueError, "dropout must be in [0, 1)"),
    "LoRA dropout as text": (lambda w: lora.apply_lora(w.model, dropout="0.1"), ValueError, "dropout must be"),
    "targets as a number": (lambda w: lora.apply_lora(w.model, target_modules=3), TypeError, "target_modules must be"),
    "targets as a dict": (
        lambda w: lora.apply_lora(w.model, target_modules={"q_proj": 8}), TypeError, "target_modules must be"),
    "no targets": (lambda w: lora.apply_lora(w.model, target_modules=[]), ValueError, "there is no target module"),
    "a target mistyped": (
        lambda w: lora.apply_lora(w.model, target_modules=["qkv_porj"]), ValueError, "did you mean 'qkv_proj'?"),
    "a broken expression": (lambda w: lora.apply_lora(w.model, target_modules="("), ValueError, "regular expression"),
    "modules_to_save as text": (
        lambda w: lora.apply_lora(w.model, modules_to_save="norm"), TypeError, 'modules_to_save=["norm"]'),
    "a pattern that is a list": (
        lambda w: lora.apply_lora(w.model, rank_pattern=["q_proj"]), TypeError, "rank_pattern"),
    "a bias that is none": (lambda w: lora.apply_lora(w.model, bias="some"), ValueError, "bias must be one of"),
    "a bias that is True": (lambda w: lora.apply_lora(w.model, bias=True), ValueError, "bias must be one of"),
    "adapters on a path": (lambda w: lora.apply_lora("model"), TypeError, "from_pretrained"),
    "adapters on a class": (lambda w: lora.apply_lora(DecoderModel), TypeError, "the class"),
    "adapters on parameters": (lambda w: qlora.apply_qlora(w.model.parameters()), TypeError, "a model"),
    "adapters twice": (lambda w: lora.apply_lora(adapted()), ValueError, "choose another adapter_name"),
    "a name with a dot": (lambda w: lora.apply_lora(w.model, adapter_name="a.b"), ValueError, "a dot"),
    "a name that is a number": (lambda w: lora.apply_lora(w.model, adapter_name=3), TypeError, "adapter's name"),
    "block size 7": (lambda w: qlora.apply_qlora(w.model, block_size=7), ValueError, "block_size"),
    "block size as text": (lambda w: qlora.apply_qlora(w.model, block_size="64"), ValueError, "block_size"),
    "block size for LoRA": (lambda w: lora.apply_lora(w.model, block_size=64), TypeError, "there are: model, rank"),
    "enable before apply": (lambda w: lora.enable_lora(w.model), RuntimeError, "call apply_lora or apply_qlora first"),
    "disable before apply": (lambda w: lora.disable_lora(w.model), RuntimeError, "call apply_lora or apply_qlora"),
    "merge before apply": (lambda w: lora.merge_lora(w.model), RuntimeError, "call apply_lora or apply_qlora first"),
    "unmerge before apply": (lambda w: lora.unmerge_lora(w.model), RuntimeError, "call apply_lora or apply_qlora"),
    "unmerge what was merged for good": (
        lambda w: lora.unmerge_lora(lora.merge_lora(adapted(), keep_base=False)), RuntimeError, "are gone"),
    "merge into nonsense": (
        lambda w: lora.merge_lora(adapted(), keep_base=False, base="nf4"), ValueError, "base must be"),
    "untie what is kept": (lambda w: lora.merge_lora(adapted(), untie=True), ValueError, "is for keep_base=False"),
    "no parameters of adapters": (lambda w: lora.get_lora_parameters(w.model), RuntimeError, "no adapters"),
    "merge a path": (lambda w: lora.merge_lora("model"), TypeError, "a model"),
    "an adapter that is not": (lambda w: lora.set_adapter(adapted(), "b"), ValueError, "there is no adapter 'b'"),
    "set_adapter of a number": (lambda w: lora.set_adapter(adapted(), 3), TypeError, "adapter"),
    "save no adapter": (lambda w: tinyllm.save_adapter(w.model, w.new), (RuntimeError, ValueError), "adapter"),
    "save the adapter of a path": (lambda w: tinyllm.save_adapter(w.new, w.model), TypeError, "a model"),
    "load the adapter of nothing": (lambda w: tinyllm.load_adapter(w.model, w.new), FileNotFoundError, "adapter"),
    "load a model for an adapter": (
        lambda w: tinyllm.load_adapter(w.model, w.home / "model"), FileNotFoundError, "adapter_config.json"),
    "save_pretrained with adapters": (lambda w: adapted().save_pretrained(w.new), ValueError, "merge"),
    # Training
    "learning_rate": (
        lambda w: optim.AdamW(w.model.parameters(), learning_rate=1), TypeError, "AdamW has no parameter "
        "'learning_rate'; did you mean lr?"),
    "optimizer of one parameter": (lambda w: optim.AdamW(w.model.norm.weight), TypeError, "put it in []"),
    "optimizer of names": (lambda w: optim.AdamW(w.model.named_parameters()), TypeError, "model.parameters()"),
    "optimizer of strings": (lambda w: optim.AdamW(["norm.weight"]), TypeError, "a str"),
    "optimizer of a model": (lambda w: optim.AdamW(w.model), TypeError, "model.parameters()"),
    "optimizer of a state dict": (lambda w: optim.AdamW(w.model.state_dict()), TypeError, "model.parameters()"),
    "optimizer of an empty generator": (lambda w: optim.AdamW(iter(())), ValueError, "nothing to train"),
    "optimizer of what is frozen": (
        lambda w: optim.AdamW([tensor(2)]), ValueError, "requires_grad"),
    "optimizer with a group's mistake": (
        lambda w: optim.AdamW([{"params": w.model.parameters(), "learning_rate": 1}]), TypeError, "did you mean lr?"),
    "lr as text": (lambda w: optim.AdamW(w.model.parameters(), lr="1e-3"), ValueError, "lr, eps"),
    "lr below 0": (lambda w: optim.AdamW(w.model.parameters(), lr=-1), ValueError, "at least 0"),
    "one beta": (lambda w: optim.AdamW(w.model.parameters(), betas=0.9), ValueError, "betas two"),
    "three betas": (lambda w: optim.AdamW(w.model.parameters(), betas=(0.9, 0.9, 0.9)), ValueError, "betas"),
    "a schedule that is none": (lambda w: optim.lr_factor("cosin", 0, 1, 0), ValueError, "there is no schedule"),
    "max_norm 0": (lambda w: optim.clip_grad_norm(w.model.parameters(), 0), ValueError, "max_norm must be"),
    "clip what has no gradient": (lambda w: optim.clip_grad_norm([1, 2], 1.0), TypeError, "parameters"),
    "clip one parameter": (lambda w: optim.clip_grad_norm(w.model.norm.weight, 1.0), TypeError, "model.parameters()"),
    "clip a model": (lambda w: optim.clip_grad_norm(w.model, 1.0), TypeError, "model.parameters()"),
    "evaluate nothing": (lambda w: evaluate(w.model, loader(), 0), ValueError, "max_batches must be"),
    "max_steps": (lambda w: TrainConfig(max_steps=3), TypeError, "TrainConfig has no parameter 'max_steps'; did you "
                  "mean steps?"),
    "learning_rate in a config": (lambda w: TrainConfig(learning_rate=3), TypeError, "did you mean lr?"),
    "warmup_steps": (lambda w: TrainConfig(warmup_steps=3), TypeError, "did you mean warmup?"),
    "steps 0": (lambda w: TrainConfig(steps=0), ValueError, "steps must be"),
    "steps as text": (lambda w: TrainConfig(steps="3"), ValueError, "steps must be"),
    "half a step": (lambda w: TrainConfig(steps=2.5), ValueError, "steps must be"),
    "config lr as text": (lambda w: TrainConfig(lr="1e-3"), ValueError, "lr must be"),
    "config schedule": (lambda w: TrainConfig(schedule="cosin"), ValueError, "did you mean cosine?"),
    "config seed": (lambda w: TrainConfig(seed=-1), ValueError, "seed must be"),
    "a list for a loader": (lambda w: fit(w.model, [batch()], None, TrainConfig()), TypeError, "Loader"),
    "a dataset for a loader": (lambda w: evaluate(w.model, loader().dataset), TypeError, "Loader"),
    "a path to train": (lambda w: train("model", loader(), None, TrainConfig()), TypeError, "a model"),
    "a class to train": (lambda w: fit(DecoderModel, loader(), None, TrainConfig()), TypeError, "the class"),
    "a dict for a config": (lambda w: fit(w.model, loader(), None, {"steps": 3}), TypeError, "TrainConfig(**"),
    "nothing that trains": (
        lambda w: fit(w.model.requires_grad_(False), loader(), None, TrainConfig()), ValueError, "nothing to train"),
    "batch size 0": (lambda w: Loader([], 0, 8), ValueError, "batch size must be at least 1"),
    "half a batch": (lambda w: Loader([Example(np.arange(4), np.arange(4))], 2.5, 8), ValueError, "batch size"),
    "max_seq_len 0": (lambda w: Loader([Example(np.arange(4), np.arange(4))], 1, 0), ValueError, "max_seq_len"),
    "no examples": (lambda w: Loader([], 1, 8), ValueError, "nothing to learn from"),
    "texts for examples": (lambda w: Loader(["a text"], 1, 8), TypeError, "load_text"),
    # Generation
    "text for ids": (lambda w: generate(w.model, "hello"), TypeError, "tokenizer.encode"),
    "a float for an id": (lambda w: generate(w.model, [1.5]), TypeError, "token ids must be integers"),
    "ids in a batch": (lambda w: generate(w.model, [[1, 2]]), ValueError, "one row"),
    "prompts of two lengths": (lambda w: generate(w.model, [[1], [2, 3]]), ValueError, "one row"),
    "one id": (lambda w: generate(w.model, 3), (TypeError, ValueError), "token ids"),
    "no prompt": (lambda w: generate(w.model, []), ValueError, "the prompt is empty"),
    "a prompt beyond": (lambda w: generate(w.model, [20]), ValueError, "outside the vocabulary"),
    "max_tokens": (lambda w: generate(w.model, [1], max_tokens=3), TypeError, "did you mean max_new_tokens?"),
    "max_length": (lambda w: generate(w.model, [1], max_length=3), TypeError, "did you mean max_new_tokens?"),
    "do_sample": (lambda w: generate(w.model, [1], do_sample=True), TypeError, "did you mean temperature?"),
    "temperature below 0": (lambda w: generate(w.model, [1], temperature=-1), ValueError, "temperature must be"),
    "temperature as text": (lambda w: generate(w.model, [1], temperature="hot"), ValueError, "not 'hot'"),
    "top_k below 0": (lambda w: generate(w.model, [1], temperature=1, top_k=-1), ValueError, "top_k"),
    "half a top_k": (lambda w: generate(w.model, [1], temperature=1, top_k=2.5), ValueError, "top_k"),
    "top_p 0": (lambda w: generate(w.model, [1], temperature=1, top_p=0), ValueError, "top_p"),
    "top_p 90": (lambda w: generate(w.model, [1], temperature=1, top_p=90), ValueError, "top_p"),
    "top_k of a distribution": (lambda w: next_probabilities([1.0, 2.0], top_k=-1), ValueError, "top_k"),
    "top_p of a distribution": (lambda w: next_probabilities([1.0, 2.0], top_p=2), ValueError, "top_p"),
    "a generation's seed": (lambda w: generate(w.model, [1], temperature=1, seed=-1), ValueError, "the seed must be"),
    "a stop that is one id": (lambda w: generate(w.model, [1], stop=3), TypeError, "stop"),
    "a stop that is text": (lambda w: generate(w.model, [1], stop="</s>"), TypeError, "stop"),
    "max_new_tokens below 0": (lambda w: generate(w.model, [1], -1), ValueError, "max_new_tokens must be"),
    "half a token": (lambda w: generate(w.model, [1], 2.5), (TypeError, ValueError), "max_new_tokens"),
    "generate with a path": (lambda w: generate("model", [1]), TypeError, "from_pretrained"),
    # Settings and instruments
    "set_device of gpu": (lambda w: tinyllm.set_device("gpu"), ValueError, "did you mean 'cuda'?"),
    "set_device of one card": (lambda w: tinyllm.set_device("cuda:0"), ValueError, "CUDA_VISIBLE_DEVICES"),
    "set_device of nothing": (lambda w: tinyllm.set_device(None), ValueError, "there are 'cpu' and 'cuda'"),
    "manual_seed below 0": (lambda w: tinyllm.manual_seed(-1), ValueError, "the seed must be"),
    "manual_seed of text": (lambda w: tinyllm.manual_seed("x"), TypeError, "the seed must be a whole number"),
    "manual_seed of a float": (lambda w: tinyllm.manual_seed(1.5), TypeError, "the seed must be a whole number"),
    "threads 0": (lambda w: tinyllm.set_num_threads(0), ValueError, "whole number above 0"),
    "threads as text": (lambda w: tinyllm.set_num_threads("two"), (TypeError, ValueError), "thread"),
    "use of what is not": (lambda w: tinyllm.use(sofmax=len).__enter__(), ValueError, "did you mean 'softmax'?"),
    "use of no function": (lambda w: tinyllm.use(softmax=3).__enter__(), TypeError, "softmax"),
    "use of another signature": (lambda w: tinyllm.use(softmax=lambda x: x).__enter__(), TypeError, "softmax takes"),
    "kept of an array": (lambda w: tinyllm.kept(np.ones(2)), TypeError, "kept takes a Tensor"),
    "kept of a model": (lambda w: tinyllm.kept(w.model), TypeError, "kept takes a Tensor"),
    "kept with a path": (lambda w: tinyllm.kept(tensor(2).sum(), "model"), TypeError, "a model is needed"),
    "graph_svg of a number": (lambda w: tinyllm.graph_svg(1.0), TypeError, "graph_svg takes a Tensor"),
    "graph_svg without a graph": (lambda w: tinyllm.graph_svg(tensor(2)), RuntimeError, "no graph to draw"),
    "gradcheck in float32": (lambda w: tinyllm.gradcheck(lambda x: x, tensor(2)), TypeError, "need float64"),
    "gradcheck of no function": (lambda w: tinyllm.gradcheck(tensor(2), tensor(2)), TypeError, "function"),
    "gradcheck of nothing": (lambda w: tinyllm.gradcheck(lambda: tensor(2)), ValueError, "input"),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, its tokenizer, an adapter, and files of every kind."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny_model(folder / "model", layers=1)
    Tokenizer.load(folder / "model").save(folder / "tokenizer")
    lora.apply_lora(model, 2, verbose=False)
    tinyllm.save_adapter(model, folder / "adapter", base_model_name_or_path=str(folder / "model"))
    text = "".join(f"Entry {i} is a line of plain text.\n" for i in range(60))
    records = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(20)]
    files = {
        "text.txt": text,
        "records.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "broken.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a",\n',
        "keys.jsonl": '{"question": "a", "answer": "b"}\n',
        "list.jsonl": "[1, 2]\n",
        "table.csv": "prompt,completion\na,b\n",
        "array.json": json.dumps(records),
        "empty.txt": "",
        "one.txt": "a",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    return folder


def tree(folder) -> dict[str, tuple[int, int]]:
    """Every folder, and every file with its size and the time of its last change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else (0, 0) for p in folder.rglob("*")}


def weights(model) -> dict[str, tuple]:
    return {name: (w.requires_grad, w.data.tobytes()) for name, w in model.named_parameters()}


def is_a_sentence(text: str) -> bool:
    """A sentence or two on one line, with nothing of Python's insides."""
    inside = ("Traceback", "object has no attribute", "NoneType' object", "[Errno", "has no len()", "<class", "0x7f")
    return text == text.strip() and "\n" not in text and len(text) <= 420 and not any(word in text for word in inside)


@pytest.mark.parametrize("name", PYTHON)
def test_a_mistake_in_python(name, home, tmp_path):
    mistake, kind, part = PYTHON[name]
    model, new = small(), tmp_path / "missing"
    before, files = weights(model), tree(home)
    w = SimpleNamespace(model=model, home=home, new=new)
    with np.errstate(all="ignore"), contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(kind) as caught:
        mistake(w)
    text = str(sentence(caught.value)).strip()
    assert is_a_sentence(text) and part in text, text
    if name != "nothing that trains":
        assert weights(model) == before, "the model was changed"
    assert tree(home) == files and not new.exists() and out.getvalue() == ""


# ------------------------------------------------------------------------------------------ the command line

FINE = "finetune --model {model} --data {text} --out {new} --steps 1 --batch-size 2 --max-seq-len 32 --sample-tokens 0"
# A line, how it ends (1: bad input, 2: the verb's usage) and a part of what it says.
COMMANDS = {
    # Words
    "finetun": (2, "did you mean finetune?"),
    "trian": (2, "there is no verb 'trian'"),
    "quantise {model} {new}": (2, "did you mean quantize?"),
    "--rank 8 finetune": (2, "options stand behind the verb"),
    "data shwo {text}": (2, "invalid choice: 'shwo'"),
    "finetune --method qlroa": (2, "'qlora'"),
    "finetune --lora-alpha 8": (2, "did you mean --alpha?"),
    "finetune --steps ten": (2, "--steps: invalid int value: 'ten'"),
    "finetune --steps 1.5": (2, "--steps: invalid int value"),
    "finetune --steps": (2, "--steps: expected one argument"),
    "finetune --steps=": (2, "--steps: invalid int value: ''"),
    "finetune --target-modules": (2, "--target-modules: expected at least one argument"),
    "finetune --lr fast": (2, "--lr: invalid float value"),
    "finetune --device gpu": (2, "invalid choice: 'gpu'"),
    "finetune --dtype fp16": (2, "invalid choice: 'fp16'"),
    "finetune extra": (2, "unrecognized arguments: extra"),
    "merge --adapter {adapter}": (2, "--out"),
    "merge --out {new}": (2, "--adapter"),
    "quantize {model}": (2, "OUT"),
    "fetch llama": (2, "smollm2-135m"),
    "inspect": (2, "ADAPTER"),
    "finetune --data ": (1, "--data is empty"),
    # Numbers out of range, before anything is printed
    FINE + " --steps 0": (1, "steps must be at least 1"),
    FINE + " --steps -3": (1, "steps must be at least 1"),
    FINE + " --rank 0": (1, "rank must be"),
    FINE + " --rank -2": (1, "rank must be"),
    FINE + " --alpha 0": (1, "alpha must be above 0"),
    FINE + " --alpha nan": (1, "alpha must be above 0"),
    FINE + " --alpha inf": (1, "alpha must be above 0"),
    FINE + " --dropout 1": (1, "dropout must be in [0, 1)"),
    FINE + " --dropout nan": (1, "dropout must be in [0, 1)"),
    FINE + " --method qlora --rank 0": (1, "rank must be"),
    FINE + " --method qlora --block-size 7": (1, "block_size 7"),
    FINE + " --lr -1": (1, "lr must be"),
    FINE + " --lr inf": (1, "lr must be"),
    FINE + " --warmup -1": (1, "warmup must be"),
    FINE + " --grad-accum 0": (1, "grad_accum must be"),
    FINE + " --weight-decay nan": (1, "weight_decay must be"),
    FINE + " --max-grad-norm 0": (1, "max_grad_norm must be"),
    FINE + " --seed -1": (1, "the seed must be"),
    FINE + " --eval-every -1": (1, "eval_every must be"),
    FINE + " --save-every -1": (1, "save_every must be"),
    FINE + " --batch-size 0": (1, "batch size must be"),
    FINE + " --max-seq-len 0": (1, "max_seq_len must be"),
    FINE + " --max-seq-len 100": (1, "beyond the model's context of 64"),
    FINE + " --held-out 1": (1, "held-out"),
    FINE + " --held-out -0.1": (1, "held-out"),
    FINE + " --held-out nan": (1, "held-out"),
    FINE + " --sample-tokens -1": (1, "--sample-tokens must be at least 0"),
    "pretrain --data {text} --out {new} --heads 0": (1, "--heads must be at least 1"),
    "pretrain --data {text} --out {new} --heads 3": (1, "num_heads"),
    "pretrain --data {text} --out {new} --hidden-size 0": (1, "--hidden-size must be at least 1"),
    "pretrain --data {text} --out {new} --kv-heads 3": (1, "num_kv_heads"),
    "pretrain --data {text} --out {new} --steps 0": (1, "steps must be"),
    "pretrain --data {text} --out {new} --batch-size 0": (1, "batch size"),
    "pretrain --data {text} --out {new} --seed -1": (1, "the seed must be"),
    "generate --model {model} --temperature -1": (1, "temperature must be"),
    "generate --model {model} --temperature nan": (1, "temperature must be"),
    "generate --model {model} --temperature 1 --top-p 0": (1, "top_p in (0, 1]"),
    "generate --model {model} --temperature 1 --top-p 90": (1, "top_p in (0, 1]"),
    "generate --model {model} --temperature 1 --top-k -1": (1, "top_k at least 1"),
    "generate --model {model} --temperature 1 --seed -1": (1, "the seed must be"),
    "generate --model {model} --max-new-tokens -1": (1, "max_new_tokens must be"),
    "targets {model} --rank 0": (1, "--rank must be"),
    "memory --model {model} --rank 0": (1, "rank must be"),
    "memory --model {model} --batch-size 0": (1, "batch"),
    "memory --model {model} --max-seq-len 0": (1, "max-seq-len"),
    "data show {text} --rows -1": (1, "--rows must be at least 0"),
    "data show {text} --max-seq-len 0": (1, "max_seq_len must be"),
    "quantize {model} {new} --block-size 7": (2, "--block-size"),
    # Options that would do nothing
    FINE + " --method full --rank 4": (1, "--rank"),
    FINE + " --method full --rank 8": (1, "--rank"),
    FINE + " --method full --alpha 4": (1, "--alpha"),
    FINE + " --method full --dropout 0.1": (1, "--dropout"),
    FINE + " --method full --rslora": (1, "--rslora"),
    FINE + " --method full --dora": (1, "--dora"),
    FINE + " --method full --bias all": (1, "--bias"),
    FINE + " --method full --target-modules q_proj": (1, "--target-modules"),
    FINE + " --method full --loraplus-ratio 4": (1, "--loraplus-ratio"),
    FINE + " --method full --block-size=64": (1, "--block-size"),
    FINE + " --block-size 64": (1, "--block-size is for --method qlora"),
    "generate --model {model} --top-p 0.9": (1, "--temperature"),
    "generate --model {model} --top-k 40": (1, "--temperature"),
    "generate --model {model} --seed 3": (1, "--temperature"),
    "generate --model {model} --temperature 0 --top-k 5": (1, "--temperature"),
    "generate --model {model} --chat Hello --prompt Hello": (1, "--chat"),
    "generate --model {model} --template none": (1, "--template is for --chat"),
    "memory --model {model} --method full --rank 4": (1, "--rank"),
    "memory --model {model} --method full --target-modules q_proj": (1, "--target-modules"),
    # Models and adapters
    "finetune --model {new}": (1, "there is no model in"),
    "finetune --model smollm2-135": (1, "did you mean smollm2-135m?"),
    "finetune --model bse": (1, "did you mean base?"),
    "finetune --model {home}": (1, "there is no model in"),
    "finetune --model {text}": (1, "is a file; give the model's folder"),
    "finetune --model {tokenizer}": (1, "a tokenizer alone"),
    "finetune --model {adapter}": (1, "an adapter"),
    "generate --model {model} --adapter {model}": (1, "adapter"),
    "generate --model {model} --adapter {new}": (1, "missing"),
    "generate --model {model} --prompt=": (1, "the prompt is empty"),
    "generate --model {model} --device cuda": (1, "'cpu'"),
    "generate --model {model} --dtype float16": (1, "set_device('cuda')"),
    "merge --model {model} --adapter {model} --out {new}": (1, "adapter"),
    "merge --model {model} --adapter {adapter} --out {model}": (1, "own folder"),
    "merge --model {model} --adapter {adapter} --out {text}": (1, "is a file"),
    "merge --model {model} --adapter {adapter} --out {new} --data {home}/no.txt": (1, "no.txt"),
    "merge --model {model} --adapter {adapter} --out {new} --base requantized": (1, "four bits"),
    "quantize {new} {new}2": (1, "there is no model in"),
    "quantize {model} {model}": (1, "own folder"),
    "quantize {model} {text}": (1, "is a file"),
    "inspect {model}": (1, "adapter_config.json"),
    "inspect {text}": (1, "adapter_config.json"),
    "inspect {new}": (1, "adapter_config.json"),
    "targets {new}": (1, "there is no model in"),
    "memory --model {new}": (1, "there is no model in"),
    "memory --model llama-2-70b": (1, "there is no model in"),
    # Data
    "data show {home}": (1, "folder"),
    "data show {home}/no.txt": (1, "no.txt"),
    "data show {home}/empty.txt": (1, "is empty"),
    "data show {home}/one.txt": (1, "nothing to learn from"),
    "data show {home}/broken.jsonl": (1, "line 2"),
    "data show {home}/keys.jsonl": (1, "line 1"),
    "data show {home}/list.jsonl": (1, "line 1"),
    "data show {home}/table.csv": (1, ".jsonl"),
    "data show {home}/array.json": (1, ".jsonl"),
    "data show {home}/binary.txt": (1, "UTF-8"),
    "data show {text} --model {new}": (1, "missing"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {home}": (1, "folder"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {home}/no.jsonl": (1, "no.jsonl"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {home}/table.csv": (1, ".jsonl"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {home}/binary.txt": (1, "UTF-8"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {home}/one.txt": (1, "nothing to learn from"),
    "finetune --model {model} --max-seq-len 32 --out {new} --data {model}/model.safetensors": (
        1, "model.safetensors"),
    "pretrain --out {new} --data {home}": (1, "folder"),
    "pretrain --out {new} --tokenizer {home}": (1, "tokenizer.json"),
    # Where results go
    "finetune --model {model} --max-seq-len 32 --data {text} --out {text}": (1, "is a file"),
    "finetune --model {model} --max-seq-len 32 --data {text} --out {text}/o": (1, "text.txt"),
    "finetune --model {model} --max-seq-len 32 --data {text} --out {model}": (1, "own folder"),
    "finetune --model {model} --max-seq-len 32 --data {text} --out /proc/o": (1, "/proc"),
    "finetune --model {model} --max-seq-len 32 --data {text} --out {new} --resume": (1, "nothing to resume"),
    "finetune --model {model} --max-seq-len 32 --data {text} --out {new} --target-modules q_prj": (
        1, "did you mean 'q_proj'?"),
    "pretrain --data {text} --out {text}": (1, "is a file"),
}  # fmt: skip
PLANNED = ("--resume", "q_prj", "/proc/o", "own folder")  # what is found out with the model in hand


@pytest.mark.parametrize("line", COMMANDS)
def test_a_mistake_on_the_command_line(line, home, tmp_path, capsys, monkeypatch):
    code, part = COMMANDS[line]
    names = {name: home / name for name in ("model", "tokenizer", "adapter")}
    names |= {"home": home, "text": home / "text.txt", "new": tmp_path / "missing"}
    words = [word.format(**names) for word in line.split(" ")]
    before = tree(home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    try:
        ended = main(words)
    except SystemExit as end:
        ended = end.code
    out, error = capsys.readouterr()
    last = error.rstrip("\n").splitlines()[-1]
    assert ended == code, error or out
    assert part in last and is_a_sentence(re.sub(r"\S*/", "", last)), error
    assert last.startswith("tinyllm") and ": " in last
    assert code == 2 and error.startswith("usage: tinyllm") or error.count("\n") == 1, error
    assert out == "" or any(word in line or word in part for word in PLANNED), out
    assert tree(home) == before and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option, note", [(("--prompt", "Hello"), "--sample-tokens 0 writes no samples"),
                     (("--held-out", "0", "--eval-every", "5"), "--eval-every has nothing to look at"),
                     (("--held-out", "0", "--eval-every", "0"), ""), (("--seed", "3"), "")],
)  # fmt: skip
def test_an_option_that_has_nothing_to_do_is_noted(option, note, home, tmp_path, capsys):
    line = FINE.format(model=home / "model", text=home / "text.txt", new=tmp_path / "o")
    assert main([*line.split(), *option]) == 0
    error = capsys.readouterr().err
    assert note in error and error.count("note: ") == bool(note)
    assert "given" not in json.loads((tmp_path / "o" / "run.json").read_text())


def test_the_folder_may_bring_the_temperature(home, tmp_path, capsys):
    shutil.copytree(home / "model", tmp_path / "m")
    about = {"do_sample": True, "temperature": 0.7, "top_k": 9}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(about))
    words = ["generate", "--model", str(tmp_path / "m"), "--max-new-tokens", "2"]
    for more in (["--top-p", "0.9"], ["--seed", "3"], ["--top-k", "0"], ["--temperature", "0"]):
        assert main([*words, *more]) == 0, more
    capsys.readouterr()
    assert main([*words, "--temperature", "0", "--top-k", "3"]) == 1
    assert "give a --temperature above 0" in capsys.readouterr().err


def test_what_was_given_is_known():
    def given(*words):
        return build_parser().parse_args(["finetune", *words]).given

    assert given() == frozenset()
    assert given("--rank", "8", "--dora", "--lr=1e-3") == {"rank", "dora", "lr"}
    assert given("--block", "64", "--batch-s=3") == {"block_size", "batch_size"}
    assert given("--lr", "-1", "--target-modules", "rank", "alpha") == {"lr", "target_modules"}


def test_there_are_enough_of_them():
    assert len(PYTHON) >= 120 and len(COMMANDS) >= 120
