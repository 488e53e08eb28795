"""A short run in both worlds on a small model: the curves agree step by step, and our adapter is worth the same there.

The real one, 40 steps of a real model, is `benchmarks/same_run.py`; its result stands in docs/same-run.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for name in ("torch", "transformers", "peft"):
    pytest.importorskip(name, reason=f"not run: {name} is not installed")

import tinyllm  # noqa: E402
from tinyllm import assets  # noqa: E402
from tinyllm.data.tokenizer import Tokenizer  # noqa: E402
from tinyllm.models import DecoderModel  # noqa: E402
from tinyllm.models.config import llama_shape  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import same_run  # noqa: E402

LARGE = ["--lr", "5e-3", "--steps", "12", "--batch-size", "2", "--seq-len", "32", "--eval-batches", "2"]


@pytest.fixture
def folder(tmp_path):
    """Widths that are multiples of 64: elsewhere bitsandbytes' CPU path multiplies by the wrong scales."""
    tokenizer = Tokenizer.load(assets.path("base"))
    shape = llama_shape(num_kv_heads=1, intermediate_size=192, max_seq_len=64)
    DecoderModel(tokenizer.vocab_size, 128, 2, 2, seed=3, **shape).save_pretrained(tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    return str(tmp_path / "m")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_curves_agree(folder, method):
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="not run: bitsandbytes is not installed")
    result = same_run.compare(same_run.parser().parse_args([folder, "--method", method, *LARGE]))
    here = result["tinyllm"]
    assert abs(here["before"] - here["after"]) > 0.01  # or nothing has moved, and agreeing proves nothing
    # Some ulps of a loss near 7 in float32 (4.8e-7), which 12 steps of Adam may amplify a little.
    assert result["largest_difference"] < 1e-5 and result["held_out_difference"] < 1e-5


def test_another_run_is_told_apart(folder, monkeypatch):
    plain = tinyllm.optim.AdamW
    monkeypatch.setattr(tinyllm.optim, "AdamW", lambda params, lr, **rest: plain(params, lr=lr * 1.1, **rest))
    result = same_run.compare(same_run.parser().parse_args([folder, *LARGE]))
    assert result["largest_difference"] > 1e-4
