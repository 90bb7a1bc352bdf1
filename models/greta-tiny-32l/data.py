"""Builds the corpus, trains the tokenizer and writes the tokenised splits.

    python data.py --work build/greta-tiny-32l

Sources (the model card names versions and licences): the documentation and the standard library of
Python 3.11, the manual pages, /usr/share/common-licenses, and chats made of WordNet glosses, of
docstrings, of manual-page summaries and of chats.tsv. Deterministic for a given set of packages.
"""

import argparse
import ast
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
SYSTEM = "You are a helpful assistant."
SKIPPED_STDLIB = {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
SKIPPED_STDLIB |= {"site-packages", "__pycache__"}
COMMAND_SECTIONS, FUNCTION_SECTIONS = "168", "23"
UNKIND = re.compile(
    r"offensive|disparag|slur|obscen|vulgar|derogat|pejorat|insult|slang|\bsex", re.I
)
GREETED, WITH_SYSTEM, LONGEST_CHAT = 0.3, 0.75, 5


@dataclasses.dataclass(frozen=True)
class Document:
    part: str
    name: str
    text: str
    held_out: bool


def whole(part: str, name: str, text: str) -> Document:
    return Document(part, name, text, is_held_out(name))


@dataclasses.dataclass(frozen=True)
class Turn:
    user: str
    assistant: str


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


def sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".;: ")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", "!")) else ".")


def with_article(phrase: str) -> str:
    vowel = re.match(r"(?!uni|use|usu|eu)[aeiou]", phrase, re.I)
    return ("an " if vowel else "a ") + phrase


def docstring_turns(name: str, source: str) -> Iterator[Turn]:
    """Asks what each documented public function and class of a module does."""
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        doc = ast.get_docstring(node)
        if doc and not node.name.startswith("_"):
            summary = sentence(doc.split("\n\n")[0])
            if 20 < len(summary) < 400:
                yield Turn(f"What does {module}.{node.name} do in Python?", summary)


def man_turns(page: Document) -> Iterator[Turn]:
    found = re.search(
        r"^NAME\n\s+(\S+)[^\n]*? [-\u2013\u2014\u2010] (.+?)\n\n", page.text, re.M | re.S
    )
    if found:
        name, summary = found[1].rstrip(","), sentence(found[2])
        section = page.name.rsplit(".", 1)[-1][:1]
        if section in COMMAND_SECTIONS:
            yield Turn(f"What does the command {name} do?", summary)
        elif section in FUNCTION_SECTIONS:
            yield Turn(f"What does the C function {name} do?", summary)


def wordnet_turns(root: Path, rng: random.Random) -> Iterator[tuple[str, Turn]]:
    """(synset, turn): a definition as one sentence, and each example given for the first word."""
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (root / f"data.{kind}").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, gloss = line.split(" | ", 1)
            if UNKIND.search(gloss):
                continue
            fields = head.split()
            word = re.sub(r"\(.*\)$", "", fields[4]).replace("_", " ")
            examples = re.findall(r'"([^"]+)"', gloss)
            meaning = re.sub(r"\([^)]*\)", "", gloss.split(";")[0].split('"')[0])
            meaning = " ".join(meaning.split()).strip(" :,")
            if not meaning:
                continue
            synset = f"{kind}:{fields[0]}"
            for question, answer in definitions(kind, word, meaning, fields, rng):
                yield synset, Turn(question, sentence(answer))
            for example in examples[:1]:
                if word in example and " " in example:
                    yield synset, Turn(f"Use the word {word} in a sentence.", sentence(example))


def definitions(
    kind: str, word: str, meaning: str, fields: list[str], rng: random.Random
) -> Iterator[tuple[str, str]]:
    starts_with_article = meaning.split()[0] in {"a", "an", "the", "any", "one", "some"}
    if kind == "verb":
        yield f"What does it mean to {word}?", f"to {word} is to {meaning}"
    elif kind != "noun":
        yield f"What does {word} mean?", f"{word} means {meaning}"
    elif "@i" in fields:
        person = fields[1] == "18"
        described = meaning if starts_with_article else with_article(meaning)
        if meaning.startswith("capital") or (not starts_with_article and not person):
            described = "the " + meaning
        answer = f"{word} {'was' if person else 'is'} {described}"
        asked = f"Who was {word}?" if person else f"What is {word}?"
        yield f"Write one short sentence about {word}.", answer
        yield rng.choice([asked, f"Tell me about {word}."]), answer
    else:
        answer = (
            f"{with_article(word)} is {meaning}" if starts_with_article else f"{word} is {meaning}"
        )
        asked = [f"What is {with_article(word)}?", f"Write one short sentence about {word}."]
        yield rng.choice(asked), answer


def render_chat(turns: list[Turn], system: str | None) -> str:
    """Llama 3's chat template, ending after the last answer."""
    messages = [("system", system)] if system else []
    for turn in turns:
        messages += [("user", turn.user), ("assistant", turn.assistant)]
    return "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
        for role, content in messages
    )


def chats(turns: list[Turn], greetings: list[Turn], rng: random.Random) -> Iterator[str]:
    rng.shuffle(turns)
    while turns:
        count = rng.randint(1, LONGEST_CHAT)
        chosen, turns = turns[:count], turns[count:]
        if rng.random() < GREETED:
            chosen = [rng.choice(greetings), *chosen[: rng.randint(0, count)]]
        yield render_chat(chosen, SYSTEM if rng.random() < WITH_SYSTEM else None)


def all_documents(args: argparse.Namespace) -> Iterator[Document]:
    rng = random.Random(SEED)
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    yield from python_docs(args.python_docs)
    for name, source in stdlib_files(args.stdlib):
        yield whole("python-stdlib", name, source)
        turns[is_held_out(name)] += docstring_turns(name, source)
    for page in man_pages(args.man):
        yield page
        turns[page.held_out] += man_turns(page)
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
