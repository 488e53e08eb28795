"""A folder written here and read by transformers gives the same logits, and the other way round."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

from tinyllm.formats import safetensors_file  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import llama_shape  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 80, (2, 17))


def close(ours, theirs):
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def theirs_of(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.float().numpy()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("options", [{}, {"head_dim": 32, "rope_theta": 1e5, "norm_eps": 1e-3}])
def test_ours_read_by_transformers(tmp_path, tie, options):
    model = DecoderModel(
        80, 64, 2, 4, **llama_shape(num_kv_heads=2, intermediate_size=96, tie_embeddings=tie, **options), seed=1
    )
    model.save_pretrained(tmp_path)
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    close(model(IDS).data, theirs_of(theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_theirs_read_by_us(tmp_path, dtype):
    config = transformers.LlamaConfig(
        vocab_size=80, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, rope_theta=5e4, tie_word_embeddings=True, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "t", max_shard_size="100KB")
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    # Read again: `.float()` would keep rotary frequencies that were rounded to bfloat16.
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "t", dtype=torch.float32)
    close(ours(IDS).data, theirs_of(wide))
    if dtype == "float32":  # the same tensors, the same bytes
        theirs.save_pretrained(tmp_path / "one")
        ours.save_pretrained(tmp_path / "ours")
        a, b = (safetensors_file.read(tmp_path / d / "model.safetensors")[0] for d in ("one", "ours"))
        assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_our_nf4_folder_read_by_transformers(tmp_path):
    pytest.importorskip("bitsandbytes", reason="not run: bitsandbytes is not installed")
    model = DecoderModel(80, 64, 2, 4, **llama_shape(num_kv_heads=2, intermediate_size=128), seed=1, storage="nf4")
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    # Not eval(): bitsandbytes then computes in bfloat16 on some CPUs. There is no dropout.
    with torch.no_grad():
        close(model(IDS).data, theirs.train()(torch.tensor(IDS)).logits.float().numpy())
