"""The documentation runs: every python block of docs/*.md, in order, one namespace a page, in an empty folder.

A ```text block right after a python block is what that block prints. ```bash blocks are not run, but every `tinyllm`
command in them must be understood by the command line's own parser.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tinyllm
from tinyllm.backend.cpu import threads

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass
class Block:
    """A fenced block: its language, its text, and the line of the page where the text begins (from 1)."""

    language: str
    text: str
    line: int
    follows: bool  # only blank lines stand between it and the block before


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page. An unclosed fence is an error: it would hide everything below it."""
    found: list[Block] = []
    opened: tuple[str, int, bool] | None = None
    body: list[str] = []
    follows = False
    for number, line in enumerate(page.splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened, body = (line[3:].strip(), number + 1, follows), []
        elif opened is not None and line.rstrip() == "```":
            found.append(Block(opened[0], "".join(f"{row}\n" for row in body), *opened[1:]))
            opened, follows = None, True
        elif opened is not None:
            body.append(line)
        elif line.strip():
            follows = False
    if opened is not None:
        raise AssertionError(f"the fence before line {opened[1]} is never closed")
    return found


def run_page(page: str, name: str) -> int:
    """Execute the python blocks and compare what they print; returns how many there were."""
    namespace: dict = {"__name__": "__main__"}
    printed: str | None = None
    count = 0
    for block in blocks(page):
        if block.language == "text" and block.follows and printed is not None:
            expected = [row.rstrip() for row in block.text.rstrip().splitlines()]
            actual = [row.rstrip() for row in printed.rstrip().splitlines()]
            assert actual == expected, f"{name}:{block.line}: the block above prints\n{printed}"
        printed = None
        if block.language == "python":
            # The blank lines in front make a traceback point at the page's own lines.
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
            printed = out.getvalue()
            count += 1
    return count


def commands(page: str) -> list[tuple[int, list[str]]]:
    """The arguments of every `tinyllm` command in the bash blocks, with the block's line."""
    found = []
    for block in blocks(page):
        if block.language == "bash":
            for row in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(row, comments=True)
                if words and words[0] == "tinyllm":
                    found.append((block.line, words[1:]))
    return found


def check_commands(page: str, name: str) -> None:
    from tinyllm.cli import build_parser

    for line, arguments in commands(page):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                build_parser().parse_args(arguments)
            except SystemExit as stop:
                assert not stop.code, f"{name}:{line}: tinyllm {shlex.join(arguments)}\n{said.getvalue()}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_run_and_print_what_the_page_says(path, tmp_path, monkeypatch):
    if path.name in ("cuda-on-cpu.md", "kernels.md") and shutil.which("g++") is None:
        pytest.skip("not run: g++ is not installed")
    monkeypatch.chdir(tmp_path)
    tinyllm.manual_seed(0)  # a page does not depend on the tests that ran before it
    monkeypatch.setattr(threads, "_threads", threads.get_num_threads())  # nor do others on the number it sets
    run_page(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_are_understood(path):
    check_commands(path.read_text(encoding="utf-8"), path.name)


def test_there_are_pages_with_blocks():
    pages = {path.name: blocks(path.read_text(encoding="utf-8")) for path in PAGES}
    assert sum(block.language == "python" for block in pages["fine-tuning.md"]) >= 10
    assert sum(block.language == "bash" for block in pages["fine-tuning.md"]) >= 1


# The checker itself: each fault it is there for, planted.


def test_a_wrong_output_is_noticed():
    page = "```python\nx = 1\n```\ntext\n```python\nprint(x + 1)\n```\n\n```text\n{}\n```\n"
    assert run_page(page.format(2), "page") == 2
    with pytest.raises(AssertionError, match="page:10"):
        run_page(page.format(3), "page")


def test_a_block_that_prints_nothing_is_compared_too():
    with pytest.raises(AssertionError):
        run_page("```python\nx = 1\n```\n```text\n1\n```\n", "page")


def test_a_text_block_elsewhere_is_not_an_output():
    assert run_page("```python\nprint(1)\n```\n\nA picture:\n\n```text\nx -> y\n```\n", "page") == 1


def test_an_exception_fails_the_page():
    with pytest.raises(ZeroDivisionError):
        run_page("```python\n1 / 0\n```\n", "page")


def test_an_unclosed_fence_is_noticed():
    with pytest.raises(AssertionError, match="never closed"):
        blocks("```python\nx = 1\n")


@pytest.mark.parametrize("command", ["finetune --no-such-option", "finetune --rank eight", "no-such-verb"])
def test_an_unknown_option_is_noticed(command):
    with pytest.raises(AssertionError, match="page:2"):
        check_commands(f"```bash\ntinyllm {command}\n```\n", "page")


def test_long_commands_and_comments_are_read():
    page = "```bash\n# a comment\npip install x\ntinyllm finetune \\\n  --rank 8  # why\n```\n"
    assert commands(page) == [(2, ["finetune", "--rank", "8"])]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An empty folder in which every name means a tiny model that is there, and training is two steps long at most."""
    from tinyllm import assets
    from tinyllm.cli import fetch, training
    from tinyllm.data.tokenizer import Tokenizer
    from tinyllm.models import DecoderModel
    from tinyllm.models.config import llama_shape

    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(assets.path("base"))
    model = DecoderModel(tokenizer.vocab_size, 16, 1, 2, seed=0, **llama_shape(max_seq_len=512))
    model.save_pretrained("path/to/model")
    tokenizer.save("path/to/model")
    for name, module in list(sys.modules.items()):  # every verb's: a new machine has fetched nothing
        if name.startswith("tinyllm.cli.") and hasattr(module, "model_folder"):
            monkeypatch.setattr(module, "model_folder", lambda name: Path("path/to/model"))
    monkeypatch.setattr(fetch, "is_intact", lambda path, model: True)
    plain = training.train

    def short(model, loader, held_out, config, *args, **options):
        return plain(model, loader, held_out, replace(config, steps=min(config.steps, 2)), *args, **options)

    monkeypatch.setattr(training, "train", short)


def run_commands(page: Path) -> int:
    from tinyllm.cli import main

    found = commands(page.read_text(encoding="utf-8"))
    for line, arguments in found:
        assert main(arguments) == 0, f"{page.name}:{line}: tinyllm {shlex.join(arguments)}"
    return len(found)


def test_the_guides_commands_run(small):
    """In the order of the page and as printed, on a tiny model and a few notes."""
    Path("notes.jsonl").write_text('{"prompt": "Say it. ", "completion": "It is said."}\n' * 40, encoding="utf-8")
    talk = '{"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]}\n'
    Path("chats.jsonl").write_text(talk * 40, encoding="utf-8")
    Path("notes.txt").write_text("Once there was a note, and then another. " * 200, encoding="utf-8")
    assert run_commands(ROOT / "docs" / "fine-tuning.md") >= 10


def test_readmes_commands_run(small, capsys):
    """From a clone: nothing is there but what the clone has, and what the lines before have made."""
    shutil.copytree(ROOT / "docs", "docs", ignore=shutil.ignore_patterns("*.png", "*.svg"))
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    path = Path("path/to/model/tokenizer_config.json")
    about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**about, "chat_template": template}), encoding="utf-8")
    assert run_commands(ROOT / "README.md") >= 6
    out = " ".join(capsys.readouterr().out.split())
    assert 'try it: tinyllm generate --model smollm2-135m --adapter runs/guide --prompt "..."' in out
    assert {"adapter_model.safetensors"} <= {p.name for p in Path("runs/guide").iterdir()}
    assert Path("runs/merged/model.safetensors").is_file()


def test_readme_names_every_verb_and_every_page():
    from tinyllm.cli import VERBS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"| `tinyllm {verb}" not in readme] == []
    assert [path.name for path in PAGES[1:] if f"](docs/{path.name})" not in readme] == []


def test_the_guides_table_of_contents_is_its_headings():
    page = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    for block in blocks(page):
        page = page.replace(block.text, "")  # a comment is no heading
    headings = re.findall(r"^##+ (.*)$", page, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
    assert re.findall(r"^ *\* \[(.*)\]\(#(.*)\)$", page, re.MULTILINE) == list(zip(headings, anchors, strict=True))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    page = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page):
        there = (path.parent / target) if target else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings], anchor
