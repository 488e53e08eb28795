"""Every family against transformers: logits, gradients, generation, folders both ways, in float and in four bits."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

from tinyllm.backend.half import to_bfloat16  # noqa: E402
from tinyllm.cli import main  # noqa: E402
from tinyllm.formats import safetensors_file  # noqa: E402
from tinyllm.frozen.nf4 import NF4Weight  # noqa: E402
from tinyllm.generate import generate  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import llama_shape  # noqa: E402
from tinyllm.models.families.family import family_of  # noqa: E402
from tinyllm.tensor import Parameter  # noqa: E402

VOCAB, CONTEXT = 97, 64  # a prime, and longer than every window and every first context below
IDS = np.random.default_rng(0).integers(0, VOCAB, (2, 33))
SMALL = dict(
    vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
    intermediate_size=80, max_position_embeddings=CONTEXT, initializer_range=0.3,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
GPT2 = dict(
    vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=3, n_positions=CONTEXT, initializer_range=0.3, resid_pdrop=0.0,
    embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
CONFIGS = {
    "llama": lambda **k: transformers.LlamaConfig(**SMALL, **k),
    "llama tied, another head size": lambda **k: transformers.LlamaConfig(
        **SMALL, head_dim=10, tie_word_embeddings=True, rms_norm_eps=1e-3, **k
    ),
    "llama 3": lambda **k: transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3, **k),
    "mistral": lambda **k: transformers.MistralConfig(**SMALL, sliding_window=5, **k),
    "mistral without a window": lambda **k: transformers.MistralConfig(**SMALL, sliding_window=None, **k),
    "qwen2": lambda **k: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True, **k),
    "qwen2 with windows": lambda **k: transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=0, **k
    ),
    "qwen3": lambda **k: transformers.Qwen3Config(**SMALL, head_dim=10, **k),
    "gpt2": lambda **k: transformers.GPT2Config(**GPT2, **k),
    "gpt2 untied, exact gelu": lambda **k: transformers.GPT2Config(
        **GPT2, n_inner=50, activation_function="gelu", layer_norm_epsilon=1e-3, tie_word_embeddings=False, **k
    ),
}


def theirs_of(name, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](**changes)).eval()
    with torch.no_grad():
        for p in model.parameters():  # gains of 1 and biases of 0 would hide that they are swapped
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return model.to(dtype)


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(torch.tensor(ids), **more).logits.float().numpy()


def close(ours, theirs, budget=1e-5):
    assert np.abs(ours - theirs).max() <= budget * np.abs(theirs).max()
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def reloaded(folder, **more):
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, **more
    )
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    return model.eval()


def tensors(folder):
    arrays: dict = {}
    for path in folder.glob("*.safetensors"):
        arrays |= safetensors_file.read(path)[0]
    return arrays


def same_bytes(a, b):
    assert a.keys() == b.keys()
    assert [key for key in a if a[key].tobytes() != b[key].tobytes() or a[key].shape != b[key].shape] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_in_and_out(tmp_path, name):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path / "t", max_shard_size="40KB")
    assert (tmp_path / "t" / "model.safetensors.index.json").is_file()
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    close(ours(IDS).data, logits(theirs))
    close(ours(IDS[:, :1]).data, logits(theirs, IDS[:, :1]))
    ours.save_pretrained(tmp_path / "o")
    same_bytes(tensors(tmp_path / "t"), tensors(tmp_path / "o"))
    again = reloaded(tmp_path / "o")
    assert type(again) is type(theirs)
    assert np.array_equal(logits(again), logits(theirs))
    ours.save_pretrained(tmp_path / "o", max_shard_size=40_000)
    assert np.array_equal(logits(reloaded(tmp_path / "o")), logits(theirs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_half_precision(tmp_path, name, dtype):
    theirs_of(name, getattr(torch, dtype)).save_pretrained(tmp_path / "t")
    close(DecoderModel.from_pretrained(tmp_path / "t")(IDS).data, logits(reloaded(tmp_path / "t")))
    DecoderModel.from_pretrained(tmp_path / "t", storage=dtype).save_pretrained(tmp_path / "o")
    t, o = tensors(tmp_path / "t"), tensors(tmp_path / "o")
    for key in t:  # vectors are kept as floats here, which changes no value
        if t[key].dtype == o[key].dtype:
            assert t[key].tobytes() == o[key].tobytes(), key
    assert np.array_equal(logits(reloaded(tmp_path / "o")), logits(reloaded(tmp_path / "t")))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_all_weights(tmp_path, name):
    theirs = theirs_of(name).train()
    theirs.save_pretrained(tmp_path)
    ours = DecoderModel.from_pretrained(tmp_path).train()
    family = family_of(ours.config)
    loss = ours.loss(IDS[:, :-1], IDS[:, 1:])
    loss.backward()
    wanted = theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss
    wanted.backward()
    assert abs(float(loss.data) - float(wanted.detach())) <= 1e-5 * float(wanted.detach())
    named = dict(theirs.named_parameters())
    assert {family.hf_name(key) for key, _ in ours.named_parameters()} == named.keys()
    for key, p in ours.named_parameters():
        g = named[family.hf_name(key)].grad.numpy()
        g = g.T if family.transposed(key) else g
        assert np.abs(p.grad - g).max() <= 1e-4 * np.abs(g).max(), key


@pytest.mark.parametrize("name", CONFIGS)
def test_generation_token_for_token(tmp_path, name):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    ours = DecoderModel.from_pretrained(tmp_path)
    for prompt in ([5], IDS[0, :7].tolist(), IDS[1, :20].tolist()):
        wanted = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=40,
            do_sample=False,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert generate(ours, prompt, 40) == wanted
        assert generate(ours, prompt, 40, use_cache=False) == wanted


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt2"])
def test_padding_on_the_left(tmp_path, name):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    mask = np.ones((2, 12), int)
    mask[0, :7] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    ids = IDS[:, :12]
    wanted = logits(theirs, ids, attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions))
    close(DecoderModel.from_pretrained(tmp_path)(ids, attention_mask=mask).data[mask > 0], wanted[mask > 0])


def test_what_a_family_trained_here_stays(tmp_path):
    for name in ("llama 3", "mistral", "qwen2", "qwen3", "gpt2"):
        theirs = theirs_of(name)
        theirs.save_pretrained(tmp_path / "t")
        ours = DecoderModel.from_pretrained(tmp_path / "t")
        ours.loss(IDS[:, :-1], IDS[:, 1:]).backward()
        for p in ours.parameters():
            p.data = p.data - np.float32(0.1) * p.grad
        ours.save_pretrained(tmp_path / "o")
        again = reloaded(tmp_path / "o")
        assert type(again) is type(theirs)
        close(ours(IDS).data, logits(again))


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "nf4"])
def test_models_made_here(tmp_path, shape, storage):
    if storage == "nf4":
        pytest.importorskip("bitsandbytes", reason="not run: bitsandbytes is not installed")
    shape = llama_shape(num_kv_heads=1) if shape == "llama" else {}  # the other is the guide's default
    model = DecoderModel(VOCAB, 64, 2, 2, intermediate_size=128, seed=1, storage=storage, max_seq_len=CONTEXT, **shape)
    model.eval().save_pretrained(tmp_path)
    theirs = reloaded(tmp_path)
    close(model(IDS).data, logits(theirs.train() if storage == "nf4" else theirs))


# bitsandbytes -------------------------------------------------------------------------------------------------------

# Multiples of 64: elsewhere bitsandbytes' own CPU path reads the wrong scales, and is no judge.
WIDE = dict(hidden_size=64, num_attention_heads=2, intermediate_size=128)
BNB = {
    "llama": lambda: transformers.LlamaConfig(**{**SMALL, **WIDE}),
    "qwen2": lambda: transformers.Qwen2Config(**{**SMALL, **WIDE}, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**{**SMALL, **WIDE}, head_dim=64),
    "gpt2": lambda: transformers.GPT2Config(**{**GPT2, "n_embd": 64, "n_head": 2}),
}


def quantised(folder, config, double=True, weights=torch.float32, **options):
    """A folder of floats, and what transformers and bitsandbytes make of it."""
    pytest.importorskip("bitsandbytes", reason="not run: bitsandbytes is not installed")
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).to(weights).save_pretrained(folder / "f")
    options = {"bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_use_double_quant": double, **options}
    asked = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "f", quantization_config=asked, dtype=weights)
    theirs.save_pretrained(folder / "t")  # before any eval() forward, after which bitsandbytes saves other weights
    return theirs.train()  # nor eval(): bitsandbytes then computes in bfloat16 on some CPUs; there is no dropout


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", BNB)
def test_four_bits_both_ways(tmp_path, name, double):
    theirs = quantised(tmp_path, BNB[name](), double)
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    assert sum(isinstance(w, NF4Weight) for _, w in ours.named_weights()) == (8 if name == "gpt2" else 14)
    close(ours(IDS).data, logits(theirs))
    ours.save_pretrained(tmp_path / "o")
    same_bytes(tensors(tmp_path / "t"), tensors(tmp_path / "o"))
    assert np.array_equal(logits(reloaded(tmp_path / "o").train()), logits(theirs))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", BNB)
def test_the_quantize_command_writes_their_bytes(tmp_path, name, double):
    theirs = quantised(tmp_path, BNB[name](), double)
    from tinyllm import assets

    for path in assets.path("base").glob("tokenizer*"):
        (tmp_path / "f" / path.name).write_bytes(path.read_bytes())
    assert main(["quantize", str(tmp_path / "f"), str(tmp_path / "q"), *([] if double else ["--single"])]) == 0
    same_bytes(tensors(tmp_path / "t"), tensors(tmp_path / "q"))
    assert np.array_equal(logits(reloaded(tmp_path / "q").train()), logits(theirs))


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_half_precision_in_four_bits(tmp_path, weights):
    """Their weights, to the bit, once they are rounded as theirs are; here they are not rounded."""
    import bitsandbytes

    dtype = getattr(torch, weights)
    theirs = quantised(tmp_path, BNB["llama"](), weights=dtype, bnb_4bit_compute_dtype=dtype)
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    seen = 0
    for name, weight in ours.named_weights():
        if not isinstance(weight, NF4Weight):
            continue
        their = theirs.get_parameter(family_of(ours.config).hf_name(name))
        floats = bitsandbytes.functional.dequantize_4bit(their.data, their.quant_state)
        assert floats.dtype == dtype
        mine = to_bfloat16(weight.dense()) if weights == "bfloat16" else weight.dense().astype("f2").view("u2")
        assert mine.tobytes() == floats.view(torch.uint16).numpy().tobytes(), name
        seen += 1
    assert seen == 14


@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_their_quant_storage(tmp_path, storage):
    theirs = quantised(tmp_path, BNB["llama"](), bnb_4bit_quant_storage=getattr(torch, storage))
    said = json.loads((tmp_path / "t" / "config.json").read_text())["quantization_config"]
    assert said["bnb_4bit_quant_storage"] == storage
    close(DecoderModel.from_pretrained(tmp_path / "t")(IDS).data, logits(theirs))


@pytest.mark.parametrize("name", BNB)
def test_floats_beside_four_bits(tmp_path, name):
    """What merging leaves: transformers has to be told which layers are floats."""
    quantised(tmp_path, BNB[name]())
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    for path in ("layers.0.mlp.down_proj.weight", "layers.1.self_attn.out_proj.weight"):
        ours.set_weight(path, Parameter(ours.get(path).dense() * np.float32(1.5)))
    ours.save_pretrained(tmp_path / "mixed")
    close(ours(IDS).data, logits(reloaded(tmp_path / "mixed").train()))
    close(DecoderModel.from_pretrained(tmp_path / "mixed")(IDS).data, ours(IDS).data, 0)


def test_shapes_their_processor_path_gets_wrong(tmp_path):
    """Rows that are no whole blocks: what their file says, worked out by the format's definition, is what we read."""
    config = transformers.LlamaConfig(**SMALL)  # rows of 48 and 80 weights
    quantised(tmp_path, config, double=False)
    file = tensors(tmp_path / "t")
    ours = DecoderModel.from_pretrained(tmp_path / "t")
    floats = tensors(tmp_path / "f")
    for name, weight in ours.named_weights():
        if isinstance(weight, NF4Weight):
            key = family_of(ours.config).hf_name(name)
            packed = file[key].reshape(-1)
            codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[: weight.size]
            scales = np.repeat(file[key + ".absmax"], 64)[: weight.size]
            assert np.array_equal(weight.dense().reshape(-1), file[key + ".quant_map"][codes] * scales)
            wrong = weight.dense() - floats[key]
            assert np.linalg.norm(wrong) < 0.12 * np.linalg.norm(floats[key])
    again = DecoderModel.from_pretrained(tmp_path / "f", storage="nf4")
    assert np.array_equal(again.layers[1].mlp.down_proj.weight.packed, ours.layers[1].mlp.down_proj.weight.packed)
