"""`tinyllm quantize`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc

import numpy as np
import pytest

from tinyllm import assets
from tinyllm.cli import main
from tinyllm.formats import safetensors_file
from tinyllm.frozen.nf4 import NF4Weight
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

IDS = np.arange(12)[None]


@pytest.fixture
def source(tmp_path):
    shutil.copytree(assets.path("base"), tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("options", [[], ["--single"], ["--block-size", "128"]])
def test_every_linear_layer_but_the_head(tmp_path, source, capsys, options):
    assert main(["quantize", str(source), str(tmp_path / "q"), *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    before, after = DecoderModel.from_pretrained(source), DecoderModel.from_pretrained(tmp_path / "q")
    block_size, double = 128 if "128" in options else 64, "--single" not in options
    lost = total = count = 0
    for (name, w), (_, q) in zip(before.named_weights(), after.named_weights(), strict=True):
        if name.endswith("proj.weight"):
            assert isinstance(q, NF4Weight) and q.block_size == block_size and q.double_quant == double
            expected = NF4Weight.quantize(w.data, block_size, double)
            assert q.packed.tobytes() == expected.packed.tobytes()
            lost, total = lost + ((w.data - q.dense()) ** 2).sum(dtype=float), total + (w.data**2).sum(dtype=float)
            count += w.size
        else:
            assert q.data.tobytes() == w.data.tobytes()
    assert f"relative error of those weights {(lost / total) ** 0.5:.4f}" in said
    assert re.search(rf"{count:,} of {before.num_parameters():,} weights in 4\.\d+ bits", said)
    assert f"{(tmp_path / 'q' / 'model.safetensors').stat().st_size / 1e6:.2f} MB after" in said
    fields = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert fields["bnb_4bit_use_double_quant"] is double and fields["bnb_4bit_compute_dtype"] == "float32"
    assert (tmp_path / "q" / "tokenizer.json").is_file()
    assert main(["generate", "--model", str(tmp_path / "q"), "--max-new-tokens", "3"]) == 0


@pytest.mark.parametrize("kind", ["gpt2", "bfloat16"])
def test_it_equals_quantising_the_model(tmp_path, source, kind):
    shape = llama_shape(num_kv_heads=1) if kind == "bfloat16" else {}
    model = DecoderModel(1024, 64, 2, 2, **shape, seed=1, storage="bfloat16" if shape else "float32", max_seq_len=32)
    model.save_pretrained(source)
    assert main(["quantize", str(source), str(tmp_path / "q")]) == 0
    quantised = DecoderModel.from_pretrained(source, storage="nf4")
    back = DecoderModel.from_pretrained(tmp_path / "q")
    for (name, w), (_, q) in zip(quantised.named_weights(), back.named_weights(), strict=True):
        if isinstance(w, NF4Weight):
            assert w.packed.tobytes() == q.packed.tobytes(), name
    # A second save changes no byte.
    back.save_pretrained(tmp_path / "again")
    a, b = (safetensors_file.read(tmp_path / d / "model.safetensors")[0] for d in ("q", "again"))
    assert a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def test_one_float_weight_at_a_time(tmp_path, source):
    shape = llama_shape(num_kv_heads=2, intermediate_size=1024, max_seq_len=16)
    DecoderModel(1024, 512, 6, 2, **shape, seed=0, storage="bfloat16").save_pretrained(source)
    tracemalloc.start()
    assert main(["quantize", str(source), str(tmp_path / "q")]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(path.stat().st_size for path in (tmp_path / "q").glob("*.safetensors"))
    assert peak <= size + 4 * 4 * 1024 * 512, peak / 1e6  # all floats would be 47 MB


def test_what_it_refuses(tmp_path, source, capsys):
    def says(*args):
        assert main(["quantize", *map(str, args)]) == 1
        return capsys.readouterr().err

    assert "own folder" in says(source, source)
    assert "no config.json" in says(tmp_path / "nothing", tmp_path / "q")
    assert main(["quantize", str(source), str(tmp_path / "q")]) == 0
    capsys.readouterr()
    assert "in four bits already" in says(tmp_path / "q", tmp_path / "qq")
    path = source / "model.safetensors"
    arrays, _ = safetensors_file.read(path)
    arrays["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    safetensors_file.write(path, arrays)
    assert "up_proj" in says(source, tmp_path / "qq")
    assert not (tmp_path / "qq").exists()
