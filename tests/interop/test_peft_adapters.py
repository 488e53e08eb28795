"""Adapters written here and read by PEFT give the same logits, and the other way round."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
peft = pytest.importorskip("peft", reason="not run: peft is not installed")

from tinyllm.adapters import load_adapter, save_adapter  # noqa: E402
from tinyllm.formats import safetensors_file  # noqa: E402
from tinyllm.lora import apply_lora  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import llama_shape  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 80, (2, 17))
OPTIONS = [
    {},
    {"target_modules": "all-linear", "use_rslora": True},
    {
        "target_modules": ["q_proj", "layers.1.mlp.up_proj"],
        "rank_pattern": {"q_proj": 8},
        "alpha_pattern": {"up_proj": 32},
    },
    {"modules_to_save": ["norm", "lm_head"], "rank_pattern": {r"layers\.0\..*": 3}},
]


@pytest.fixture
def base(tmp_path):
    model = DecoderModel(
        80, 64, 2, 4, **llama_shape(num_kv_heads=2, intermediate_size=96, tie_embeddings=False), seed=1
    )
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def close(ours, theirs):
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def theirs_of(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def hf(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def same_tensors(a, b):
    a, b = (safetensors_file.read(folder / "adapter_model.safetensors")[0] for folder in (a, b))
    assert a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("options", OPTIONS)
def test_ours_read_by_peft(tmp_path, base, options):
    ours = DecoderModel.from_pretrained(base)
    apply_lora(ours, 4, 8.0, verbose=False, **options)
    rng = np.random.default_rng(3)
    for p in ours.parameters():
        if p.requires_grad:
            p.data = p.data + (0.1 * rng.standard_normal(p.shape)).astype(p.dtype)
    save_adapter(ours.eval(), tmp_path / "a")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")  # PEFT only warns of keys that do not fit
        theirs = peft.PeftModel.from_pretrained(hf(base), tmp_path / "a")
    close(ours(IDS).data, theirs_of(theirs))
    theirs.save_pretrained(tmp_path / "b")
    same_tensors(tmp_path / "a", tmp_path / "b")
    again = load_adapter(DecoderModel.from_pretrained(base), tmp_path / "b").eval()
    assert np.array_equal(again(IDS).data, ours(IDS).data)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32}},
        {"target_modules": r".*layers\.1\.(self_attn|mlp)\..*_proj"},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    ],
)
def test_theirs_read_by_us(tmp_path, base, options):
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        hf(base), peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, **options)
    )
    for name, p in theirs.named_parameters():
        if p.requires_grad and "lora_" not in name:
            p.data += 0.1 * torch.randn_like(p)
    theirs.save_pretrained(tmp_path / "a")
    ours = load_adapter(DecoderModel.from_pretrained(base), tmp_path / "a").eval()
    close(ours(IDS).data, theirs_of(theirs))
    assert np.abs(ours(IDS).data - DecoderModel.from_pretrained(base)(IDS).data).max() > 1e-3
    save_adapter(ours, tmp_path / "b")
    same_tensors(tmp_path / "a", tmp_path / "b")
