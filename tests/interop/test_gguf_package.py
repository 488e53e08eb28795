"""Files written by the official package and read by transformers: the same weights, logits and tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="not run: gguf is not installed")
torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

sys.path.append(str(Path(__file__).parents[1]))

from gguf_files import TEXT, byte_level, described, layout, random_blocks, spm_metadata, tiny  # noqa: E402

from tinyllm.data.tokenizer import Tokenizer  # noqa: E402
from tinyllm.formats import gguf_file  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.checkpoints.gguf import load_gguf  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 40, (2, 17))


def written(path, architecture, metadata, tensors):
    """A file of the package's own writer; a tensor is an array, or (kind, shape, bytes)."""
    writer = gguf.GGUFWriter(path, architecture)
    c = {key.split(".", 1)[1]: value for key, value in metadata.items() if key.startswith(architecture + ".")}
    writer.add_block_count(c["block_count"])
    writer.add_context_length(c["context_length"])
    writer.add_embedding_length(c["embedding_length"])
    writer.add_feed_forward_length(c["feed_forward_length"])
    writer.add_head_count(c["attention.head_count"])
    writer.add_head_count_kv(c["attention.head_count_kv"])
    writer.add_key_length(c["attention.key_length"])
    writer.add_value_length(c["attention.value_length"])
    writer.add_layer_norm_rms_eps(c["attention.layer_norm_rms_epsilon"])
    writer.add_rope_freq_base(c["rope.freq_base"])
    writer.add_rope_dimension_count(c["rope.dimension_count"])
    writer.add_token_list([f"t{i}" for i in range(len(tensors["token_embd.weight"]))])  # transformers counts them
    writer.add_quantization_version(2)
    for name, given in tensors.items():
        if isinstance(given, tuple):
            kind, shape, raw = given
            data = np.frombuffer(raw, np.uint8).reshape(*shape[:-1], -1)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, np.ascontiguousarray(given, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theirs_of(path, ids=IDS):
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model(tmp_path, architecture, tied):
    # transformers believes that every Qwen3 has heads of 128, whatever its file says.
    heads = {"num_heads": 3, "num_kv_heads": 1, "head_dim": 128} if architecture == "qwen3" else {}
    model = tiny(architecture, tie_embeddings=tied, rope_theta=3e4, norm_eps=1e-4, **heads)
    path = written(tmp_path / "m.gguf", architecture, *described(model, architecture))
    ours, theirs = load_gguf(DecoderModel, path)(IDS).data, theirs_of(path)
    np.testing.assert_array_equal(ours, model(IDS).data)
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_model_has_the_same_logits(tmp_path, kind):
    model = tiny("llama", hidden_size=96, num_heads=12, num_kv_heads=4, head_dim=8, intermediate_size=64)
    metadata, tensors = described(model, "llama")
    for name, array in tensors.items():
        if array.ndim == 2:
            raw = gguf.quants.quantize(array.astype(np.float32), gguf.GGMLQuantizationType[kind])
            tensors[name] = (kind, array.shape, raw.tobytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({**metadata, "llama.vocab_size": 40, "general.quantization_version": 2}, tensors))
    ours, theirs = load_gguf(DecoderModel, path)(IDS).data, theirs_of(path)
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", gguf_file.BLOCKS)
def test_weights_are_what_the_package_reads(tmp_path, kind):
    rng = np.random.default_rng(3)
    weights, _ = gguf_file.BLOCKS[kind]
    shape = (48, 2 * max(weights, 32))
    if kind not in ("Q4_K", "Q5_K", "Q6_K"):
        data = rng.standard_normal(shape).astype(np.float32)
        raw = gguf.quants.quantize(data, gguf.GGMLQuantizationType[kind])
    else:  # the package quantises none of these
        raw = random_blocks(kind, 48 * 2, rng).reshape(48, -1)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", np.ascontiguousarray(raw), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = gguf.GGUFReader(tmp_path / "m.gguf").tensors[0]
    expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    ours = gguf_file.read_tensor(tmp_path / "m.gguf", gguf_file.read_header(tmp_path / "m.gguf").tensors["w"])
    np.testing.assert_array_equal(ours.view(np.uint32), np.asarray(expected, np.float32).view(np.uint32))


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "default"])
def test_transformers_reads_the_saved_tokenizer(tmp_path, pre):
    path = tmp_path / "m.gguf"
    path.write_bytes(layout(byte_level(pre, **{"tokenizer.ggml.add_bos_token": True}), {}))
    ours = Tokenizer.load(path)
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(TEXT, add_special_tokens=False).input_ids == ours.encode(TEXT)
    assert theirs("a 12").input_ids == [1, *ours.encode("a 12")]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert theirs.decode(ours.encode("Hello  12 é")) == "Hello  12 é"
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-2"])
def test_transformers_rebuilds_the_same_tokenizer(tmp_path, pre):
    """Not for "smollm", whose digits transformers forgets to cut."""
    path = tmp_path / "m.gguf"
    metadata = {"general.architecture": "qwen2" if pre == "qwen2" else "llama"}
    path.write_bytes(layout({**metadata, **byte_level(pre)}, {}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert theirs(TEXT, add_special_tokens=False).input_ids == Tokenizer.load(path).encode(TEXT)


def test_sentencepiece_is_what_transformers_rebuilds(tmp_path):
    """Pieces learned from a text; transformers puts no second ▁ before a leading space, SentencePiece does."""
    import tokenizers

    words = TEXT.replace(" ", "▁")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.train_from_iterator(
        [words[i : i + 40] for i in range(0, 20_000, 40)], tokenizers.trainers.BpeTrainer(vocab_size=500)
    )
    letters = sorted(set(words))
    pieces = [t for t in sorted(inner.get_vocab(), key=inner.get_vocab().get) if len(t) > 1] + letters
    metadata, _, _ = spm_metadata(pieces)
    path = tmp_path / "m.gguf"
    path.write_bytes(layout({"general.architecture": "llama", **metadata}, {}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    ours = Tokenizer.load(path)
    for line in [*filter(None, map(str.strip, TEXT[:20_000].splitlines())), "Ω ≈ 3"]:
        assert theirs(line, add_special_tokens=False).input_ids == ours.encode(line), line
