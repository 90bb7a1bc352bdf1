"""Builds the corpus, trains the tokenizer and writes the tokenised splits.

    python data.py --work build/greta-tiny-32l

Sources (the model card names versions and licences): the documentation and the standard library of
Python 3.11, the manual pages, /usr/share/common-licenses, and chats made of WordNet glosses, of
docstrings, of manual-page summaries and of chats.tsv. Deterministic for a given set of packages.
"""

import argparse
import dataclasses
import gzip
import hashlib
import json
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from chats import Turn, chats, docstring_turns, man_turns, wordnet_turns
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
SEED = 20
VOCAB = 4096
SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SKIPPED_STDLIB = {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
SKIPPED_STDLIB |= {"site-packages", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class Document:
    part: str
    name: str
    text: str
    held_out: bool


def whole(part: str, name: str, text: str) -> Document:
    return Document(part, name, text, is_held_out(name))


def is_held_out(name: str) -> bool:
    """One name in fifty, by its hash: a document is wholly in one split."""
    return hashlib.sha256(name.encode()).digest()[0] < 5


def python_docs(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*.rst.txt")):
        yield whole("python-docs", str(path.relative_to(root)), path.read_text())


def stdlib_files(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED_STDLIB.isdisjoint(inside.parts):
            yield str(inside), path.read_text(encoding="utf-8", errors="replace")


def man_pages(root: Path) -> Iterator[Document]:
    """Every page of sections 1 to 8 as text, without aliases and the Cloud SDK's 16,000 pages."""
    for path in sorted(root.glob("man[1-8]/*.gz")):
        if path.is_symlink() or path.name.startswith("gcloud"):
            continue
        source = gzip.decompress(path.read_bytes())
        if len(source) < 300:
            continue
        command = ["mandoc", "-mdoc" if b"\n.Dd" in source else "-man", "-Tutf8", "-Owidth=90"]
        page = subprocess.run(command, input=source, capture_output=True).stdout.decode()
        page = re.sub(".\b", "", page)
        if page.isascii() or sum(map(str.isascii, page)) > 0.97 * len(page):
            yield whole("man-pages", path.name.removesuffix(".gz"), page)


def licences(root: Path) -> Iterator[Document]:
    for path in sorted(root.iterdir()):
        if not path.is_symlink():
            yield whole("licences", path.name, path.read_text())


def all_documents(args: argparse.Namespace) -> Iterator[Document]:
    rng = random.Random(SEED)
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    yield from python_docs(args.python_docs)
    for name, source in stdlib_files(args.stdlib):
        yield whole("python-stdlib", name, source)
        turns[is_held_out(name)] += docstring_turns(name, source)
    for page in man_pages(args.man):
        yield page
        turns[page.held_out] += man_turns(page.name, page.text)
    yield from licences(args.licences)
    for synset, turn in wordnet_turns(args.wordnet, rng):
        turns[is_held_out(synset)].append(turn)
    rows = [line.split("\t") for line in (HERE / "chats.tsv").read_text().splitlines()]
    for split in (False, True):
        for number, text in enumerate(chats(turns[split], [Turn(*row) for row in rows], rng)):
            yield Document("chats", f"chat:{number}", text, split)


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE cut by Llama 3's pattern; the special tokens follow it, as Llama 3's do."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[Document]) -> np.ndarray:
    """Documents end to end: begin_of_text, the text, and end_of_text unless a chat ends itself."""
    bos, eos = (tokenizer.token_to_id(token) for token in SPECIALS[:2])
    pieces = []
    for document in documents:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        pieces.append([bos, *ids] + ([] if document.part == "chats" else [eos]))
    return np.concatenate([np.array(piece, np.uint16) for piece in pieces])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything built")
    doc, share = Path("/usr/share/doc"), Path("/usr/share")
    parser.add_argument("--python_docs", type=Path, default=doc / "python3.11/html/_sources")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--man", type=Path, default=share / "man")
    parser.add_argument("--licences", type=Path, default=share / "common-licenses")
    parser.add_argument("--wordnet", type=Path, default=share / "wordnet")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    documents = list(all_documents(args))
    random.Random(SEED).shuffle(documents)
    train = [d for d in documents if not d.held_out]
    held_out = [d for d in documents if d.held_out]
    special = re.compile("|".join(map(re.escape, SPECIALS)))
    tokenizer = train_tokenizer(special.sub("\n\n", d.text) for d in train)
    tokenizer.save(str(args.work / "tokenizer.json"))

    report = {"sha256": hashlib.sha256("\0".join(d.text for d in documents).encode()).hexdigest()}
    for split, chosen in (("train", train), ("val", held_out)):
        parts = {}
        ids_by_document = encode(tokenizer, chosen)
        np.save(args.work / f"{split}.npy", ids_by_document)
        for part in sorted({d.part for d in chosen}):
            texts = [d.text for d in chosen if d.part == part]
            parts[part] = {"documents": len(texts), "bytes": sum(len(t.encode()) for t in texts)}
        report[split] = {"tokens": len(ids_by_document), "parts": parts}
    (args.work / "corpus.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
