"""SmolLM2-135M-Instruct for real: `tinyllm fetch smollm2-135m` first. Against the gguf package and transformers."""

from __future__ import annotations

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="not run: gguf is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="not run: tokenizers is not installed")

from tinyllm import assets  # noqa: E402
from tinyllm.cli import fetch  # noqa: E402
from tinyllm.data.tokenizer import Tokenizer  # noqa: E402
from tinyllm.formats import gguf_file  # noqa: E402
from tinyllm.generate import generate  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402

FILE = fetch.place("smollm2-135m")
pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="not run: smollm2-135m is not fetched (tinyllm fetch smollm2-135m)"
)
TEXT = (
    "The quick brown fox, born in 1998, jumped 3.14159 metres.\n\n\tnaïve élan: 日本語 12 한국어 ½ ٣ Ⅷ 🙂\r\n"
    "  x2 = 7**2  \nShe'll say I'm 21. <|im_start|>user\nWhat is 2 + 2?<|im_end|>"
)
STORY = "Once upon a time, there was a little girl who"


@pytest.fixture(scope="module")
def ours():
    return DecoderModel.from_pretrained(FILE)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(FILE)


def test_all_272_tensors_are_what_the_package_reads():
    tensors = gguf_file.read_header(FILE).tensors
    assert len(tensors) == 272 and {e.kind for e in tensors.values()} == {"F32", "Q4_1", "Q8_0"}
    for tensor in gguf.GGUFReader(FILE).tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        got = gguf_file.read_tensor(FILE, tensors[tensor.name])
        assert got.shape == expected.shape
        assert (got.view(np.uint32) == expected.view(np.uint32)).all(), tensor.name


def test_the_tokenizer_is_digits_and_byte_level(tokenizer):
    metadata = gguf_file.read_header(FILE).metadata
    vocabulary = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    steps = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = steps.Sequence([steps.Digits(individual_digits=True), steps.ByteLevel(False)])
    kinds = metadata["tokenizer.ggml.token_type"]
    theirs.add_special_tokens([token for token, id in vocabulary.items() if kinds[id] == 3])
    whole = assets.path("jargon.txt").read_text(encoding="utf-8")
    for text in (TEXT, whole[:200_000], "".join(f" {chr(c)}{c}" for c in range(0x20, 0x3000))):
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text).ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 2, 2, 49152)
    assert not tokenizer.adds_bos and "im_start" in tokenizer.chat_template


@pytest.mark.parametrize(
    "prompt, answer",
    [
        ("The capital of France is", " Paris."),
        (STORY, " loved to play with her toys. She had a big imagination and loved to create her own stories"),
        (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is gravity? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n",
            "Gravity is a fundamental concept in physics that describes the force of gravity, which is a result of "
            "the curvature of spacetime caused by the presence of mass.",
        ),
    ],
)
def test_greedy_answers(ours, tokenizer, prompt, answer):
    ids = generate(ours, tokenizer.encode(prompt), len(tokenizer.encode(answer)) + 1, temperature=0)
    assert tokenizer.decode(ids).startswith(answer)


def test_logits_and_forty_tokens_are_transformers_own(ours, tokenizer):
    torch = pytest.importorskip("torch", reason="not run: torch is not installed")
    transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32)
    theirs.eval()
    ids = np.array([tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    got = ours(ids).data
    difference = np.abs(got - expected).max()
    print(
        f"\n{ids.shape[1]} positions, largest logit {np.abs(expected).max():.2f}, largest difference {difference:.2e}"
    )
    assert difference <= 2e-4
    assert (got.argmax(-1) == expected.argmax(-1)).all()
    start = tokenizer.encode(STORY)
    with torch.no_grad():
        greedy = theirs.generate(torch.tensor([start]), max_new_tokens=40, do_sample=False)[0, len(start) :].tolist()
    assert list(generate(ours, start, 40, temperature=0)) == greedy and len(greedy) == 40


def test_transformers_reads_the_saved_tokenizer(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT).input_ids == tokenizer.encode(TEXT)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert theirs.chat_template == tokenizer.chat_template
