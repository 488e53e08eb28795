"""The same run in both worlds: LoRA or QLoRA here and in torch + PEFT (+ bitsandbytes), step by step.

Same weights, same first adapter, same batches in the same order, same optimiser, no dropout. The curves have to agree
to rounding; and our trained adapter, loaded into PEFT, has to give the held-out loss that it gives here. The result is
a JSON; `--report` draws the picture and writes the table of ``docs/same-run.md`` from what is in `results/`.

    python benchmarks/same_run.py MODEL [--method qlora] [--data FILE] [--steps 40]
    python benchmarks/same_run.py --report

MODEL is a Hugging Face folder, a GGUF file or the name of a fetched model. Needs torch, transformers and peft (and
bitsandbytes for qlora) in the same environment; docs/same-run.md says what came out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tinyllm
from tinyllm import assets
from tinyllm.cli.options import model_folder
from tinyllm.data import Loader, load_text, split
from tinyllm.data.tokenizer import Tokenizer
from tinyllm.lora import apply_lora, get_lora_parameters
from tinyllm.models import DecoderModel
from tinyllm.qlora import quantize_base
from tinyllm.train import evaluate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PICTURE = ROOT / "docs" / "same-run.md", ROOT / "docs" / "same-run.png"
# The target of either method: how far the losses of one step may be apart.
ALLOWED = {"lora": 1e-3, "qlora": 2e-3}


def ours(folder: Path, loader: Loader, held_out: Loader, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train here; leaves the first adapter in ``work/first`` and the trained one in ``work/trained``."""
    model = DecoderModel.from_pretrained(folder, storage="float32")
    tinyllm.manual_seed(args.seed)
    if args.method == "qlora":  # embedding and head stay float32, as in the peer
        quantize_base(model)
    apply_lora(model, args.rank, 2.0 * args.rank, target_modules=args.targets, verbose=False)
    tinyllm.save_adapter(model, work / "first")
    optimizer = tinyllm.optim.AdamW(get_lora_parameters(model), lr=args.lr, weight_decay=0.0)
    before, losses, began = evaluate(model, held_out, args.eval_batches), [], time.perf_counter()
    model.train()
    for step in range(args.steps):
        batch = loader.batch(step)
        loss = model.loss(batch.ids, batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    tinyllm.save_adapter(model, work / "trained")
    return {
        "losses": losses, "before": before, "after": evaluate(model, held_out, args.eval_batches), "seconds": seconds,
    }  # fmt: skip


class Peer:
    """torch + PEFT over the same folder."""

    def __init__(self, folder: Path, adapter: Path, args: argparse.Namespace):
        import peft
        import torch
        import transformers

        self.torch = torch
        quantised = None
        if args.method == "qlora":
            quantised = transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )  # fmt: skip
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=quantised
        )
        self.model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
        # Never eval(): bitsandbytes computes in bfloat16 then on some CPUs. There is no dropout anywhere.
        self.model.train()

    def loss(self, batch: Any) -> Any:
        """The mean loss over the live labels, which are shifted already."""
        torch = self.torch
        logits = self.model(torch.tensor(batch.ids)).logits
        labels = torch.tensor(batch.labels).reshape(-1)
        return torch.nn.functional.cross_entropy(logits.reshape(len(labels), -1), labels, ignore_index=-100)

    def evaluate(self, loader: Loader, max_batches: int) -> float:
        total, live = 0.0, 0
        with self.torch.no_grad():
            for i in range(min(max_batches, len(loader))):
                batch = loader.batch(i)
                total += self.loss(batch).item() * batch.live
                live += batch.live
        return total / live

    def train(self, loader: Loader, steps: int, lr: float) -> list[float]:
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer, losses = self.torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0), []
        for step in range(steps):
            loss = self.loss(loader.batch(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses


def theirs(folder: Path, loader: Loader, held_out: Loader, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train in torch from the same first adapter; then judge the adapter that was trained here."""
    peer = Peer(folder, work / "first", args)
    before, began = peer.evaluate(held_out, args.eval_batches), time.perf_counter()
    losses = peer.train(loader, args.steps, args.lr)
    seconds = time.perf_counter() - began
    after = peer.evaluate(held_out, args.eval_batches)
    judged = Peer(folder, work / "trained", args).evaluate(held_out, args.eval_batches)
    return {"losses": losses, "before": before, "after": after, "our_adapter": judged, "seconds": seconds}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both runs and how far they are apart."""
    source = model_folder(args.model)
    tokenizer = Tokenizer.load(source)
    learn, rest = split(load_text(args.data, tokenizer), 0.1, args.seed)
    # One window a row: packing would need another mask in the peer.
    loader = Loader(learn, args.batch_size, args.seq_len, args.seed, pack=False)
    held_out = Loader(rest, args.batch_size, args.seq_len, args.seed, pack=False)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        DecoderModel.from_pretrained(source, storage="float32").save_pretrained(work / "model")
        here = ours(work / "model", loader, held_out, args, work)
        there = theirs(work / "model", loader, held_out, args, work)
    apart = [abs(a - b) for a, b in zip(here["losses"], there["losses"], strict=True)]
    packages = ("numpy", "torch", "transformers", "peft", "bitsandbytes")
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "report")},
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "tinyllm": here,
        "torch": there,
        "largest_difference": max(apart),
        "held_out_difference": abs(here["after"] - there["our_adapter"]),
        "allowed": ALLOWED[args.method],
    }


def table(results: list[dict[str, Any]]) -> str:
    """The page's table, in Markdown."""
    rows = [
        ("steps", lambda r: f"{r['settings']['steps']}"),
        ("loss of the first step, here / torch", lambda r: _two(r["tinyllm"]["losses"][0], r["torch"]["losses"][0])),
        ("loss of the last step, here / torch", lambda r: _two(r["tinyllm"]["losses"][-1], r["torch"]["losses"][-1])),
        ("largest difference of any step", lambda r: f"{r['largest_difference']:.1e} (allowed {r['allowed']:.0e})"),
        ("held-out loss before, here / torch", lambda r: _two(r["tinyllm"]["before"], r["torch"]["before"])),
        ("held-out loss after, here / torch", lambda r: _two(r["tinyllm"]["after"], r["torch"]["after"])),
        ("our adapter in PEFT, held-out loss", lambda r: f"{r['torch']['our_adapter']:.6f}"),
    ]
    lines = ["| | " + " | ".join(r["settings"]["method"] for r in results) + " |", "|---" * (len(results) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(r) for r in results) + " |" for name, cell in rows]
    return "\n".join(lines) + "\n"


def _two(a: float, b: float) -> str:
    return f"{a:.6f} / {b:.6f}"


def committed() -> list[dict[str, Any]]:
    """The results in `results/`, LoRA first."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("same-run-*.json"))]


def write_table(page: str, results: list[dict[str, Any]]) -> str:
    """The page with its table made anew."""
    return re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + table(results) + m[2], page, flags=re.DOTALL)


def draw(results: list[dict[str, Any]]) -> None:
    """Both curves of each method, and under them how far they are apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(results), figsize=(5 * len(results), 5), sharex=True, squeeze=False, height_ratios=[2, 1]
    )
    for (top, low), r in zip(axes.T, results, strict=True):
        here, there = np.array(r["tinyllm"]["losses"]), np.array(r["torch"]["losses"])
        steps = np.arange(1, len(here) + 1)
        top.plot(steps, there, color="tab:orange", linewidth=4, alpha=0.5, label="torch + PEFT")
        top.plot(steps, here, color="tab:blue", linewidth=1, label="tinyllm")
        top.set_title(r["settings"]["method"])
        top.set_ylabel("loss")
        top.legend()
        low.semilogy(steps, np.maximum(np.abs(here - there), 1e-9), color="tab:blue", label="difference")
        low.axhline(r["allowed"], color="tab:red", linestyle="--", label="allowed")
        low.set_xlabel("step")
        low.set_ylabel("difference of the loss")
        low.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def parser() -> argparse.ArgumentParser:
    said = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    said.add_argument("model", nargs="?", default="base")
    said.add_argument("--method", default="lora", choices=list(ALLOWED))
    said.add_argument("--data", default=str(assets.path("jargon.txt")), help="default: the embedded jargon file")
    said.add_argument("--steps", type=int, default=40)
    said.add_argument("--lr", type=float, default=2e-4)
    said.add_argument("--rank", type=int, default=8)
    said.add_argument("--targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "o_proj"])
    said.add_argument("--batch-size", type=int, default=4)
    said.add_argument("--seq-len", type=int, default=128)
    said.add_argument("--eval-batches", type=int, default=8)
    said.add_argument("--seed", type=int, default=0)
    said.add_argument("--out", type=Path, help="a JSON for the result")
    said.add_argument("--report", action="store_true", help="draw and write the page's table, and do nothing else")
    return said


def main() -> int:
    args = parser().parse_args()
    if args.report:
        results = committed()
        draw(results)
        PAGE.write_text(write_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
        return 0
    result = compare(args)
    if Path(result["settings"]["data"]).is_relative_to(ROOT):  # no path of this machine
        result["settings"]["data"] = str(Path(result["settings"]["data"]).relative_to(ROOT))
    print(table([result]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    good = result["largest_difference"] <= result["allowed"] and result["held_out_difference"] <= 1e-3
    print("the runs agree" if good else "THE RUNS DIFFER by more than allowed")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
