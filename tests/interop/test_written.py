"""A model that was written again ends its texts in transformers where it did before; PEFT finds an adapter's base."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
peft = pytest.importorskip("peft", reason="not run: peft is not installed")

from tinyllm.cli import main  # noqa: E402
from tinyllm.lora import apply_lora  # noqa: E402
from tinyllm.lora.peft.adapter import load_adapter, save_adapter  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402

VOCAB, PROMPT = 97, [[5, 17, 40, 3]]
SMALL = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=64, initializer_range=0.5,
)  # fmt: skip
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5
    ),
}


def continued(folder, adapter=None):
    """Greedy text, as the files say where it ends."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor(PROMPT)
    model.eval()
    options = dict(do_sample=False, max_new_tokens=24, attention_mask=torch.ones_like(ids))
    return model.generate(ids, **options)[0, len(PROMPT[0]) :].tolist()


@pytest.fixture(params=KINDS)
def base(request, tmp_path, monkeypatch):
    """A folder of transformers', an adapter over it, and the text of both without an end."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[request.param]())
    model.generation_config = transformers.GenerationConfig(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model.save_pretrained(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    ours = apply_lora(DecoderModel.from_pretrained("m"), rank=2, verbose=False)
    rng = np.random.default_rng(2)
    for p in ours.parameters():
        if p.requires_grad:
            p.data = p.data + rng.normal(0, 0.1, p.shape).astype(np.float32)
    save_adapter(ours.eval(), tmp_path / "a")
    return tmp_path, ours


@pytest.mark.parametrize("way", ["merge", "quantize", "save_pretrained"])
@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_texts_end_where_they_ended(base, way, where):
    folder, _ = base
    adapter = folder / "a" if way == "merge" else None
    text = continued(folder / "m", adapter)
    end = next(token for token in text[6:] if text.index(token) >= 6)  # first seen after some steps
    never = next(token for token in range(VOCAB) if token not in text)
    ids = {"eos_token_id": [never, end], "bos_token_id": 3, "pad_token_id": 4}
    path = folder / "m" / where
    if where == "config.json":
        (folder / "m" / "generation_config.json").unlink()
        ids["eos_token_id"] = end
    path.write_text(json.dumps({**json.loads(path.read_text()), **ids}))
    wanted = continued(folder / "m", adapter)
    assert wanted[-1] == end and len(wanted) == text.index(end) + 1 < 24
    if way == "save_pretrained":
        DecoderModel.from_pretrained("m").save_pretrained("o")
    else:
        argv = ["merge", "--model", "m", "--adapter", "a", "--out", "o"] if way == "merge" else ["quantize", "m", "o"]
        assert main(argv) == 0
    if way != "quantize":
        assert continued("o") == wanted
    configs = [transformers.GenerationConfig.from_pretrained(at) for at in ("o", "m")] if where != "config.json" else [
        transformers.AutoModelForCausalLM.from_pretrained(at).generation_config for at in ("o", "m")
    ]  # fmt: skip
    for name in ids:
        assert getattr(configs[0], name) == getattr(configs[1], name) == ids[name]


def test_peft_finds_the_base_of_an_adapter(base, monkeypatch):
    folder, ours = base
    (folder / "else").mkdir()
    monkeypatch.chdir(folder / "else")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained("../a").eval()
    ids = np.random.default_rng(3).integers(0, VOCAB, (2, 17))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(ours(ids).numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
    alone = DecoderModel.from_pretrained(folder / "m")(ids).numpy()
    assert np.abs(alone - wanted).max() > 1e-2 * np.abs(wanted).max()
    assert theirs.peft_config["default"].base_model_name_or_path == str(folder / "m")


def test_peft_finds_a_base_in_gguf(tmp_path):
    pytest.importorskip("gguf", reason="not run: gguf is not installed")
    from gguf_files import byte_level, tiny, write

    vocabulary = byte_level("smollm")
    model = tiny("llama", vocab_size=len(vocabulary["tokenizer.ggml.tokens"]))
    path = write(tmp_path / "one.gguf", model, "llama", vocabulary)
    ours = apply_lora(DecoderModel.from_pretrained(path), rank=2, verbose=False)
    for _, p in ours.named_parameters():
        p.data = p.data + np.float32(0.01) if p.requires_grad else p.data
    save_adapter(ours.eval(), tmp_path / "a")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", gguf_file="one.gguf").eval()
    ids = np.arange(20)[None]
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.float().numpy()
    assert np.abs(ours(ids).numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
    again = load_adapter(DecoderModel.from_pretrained(tmp_path), tmp_path / "a")  # its one GGUF file is the model
    assert np.array_equal(again(ids).numpy(), ours(ids).numpy())
