"""Makes chats in Llama 3's template from a dictionary, docstrings and manual-page summaries."""

import ast
import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path

SYSTEM = "You are a helpful assistant."
COMMAND_SECTIONS, FUNCTION_SECTIONS = "168", "23"
UNKIND = re.compile(
    r"offensive|disparag|slur|obscen|vulgar|derogat|pejorat|insult|slang|\bsex", re.I
)
GREETED, WITH_SYSTEM, LONGEST_CHAT = 0.3, 0.75, 5


@dataclasses.dataclass(frozen=True)
class Turn:
    user: str
    assistant: str


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


def man_turns(page: str, text: str) -> Iterator[Turn]:
    """Asks what a command or a C function does; `page` is a file name such as ls.1."""
    found = re.search(r"^NAME\n\s+(\S+)[^\n]*? [-\u2013\u2014\u2010] (.+?)\n\n", text, re.M | re.S)
    if found:
        name, summary = found[1].rstrip(","), sentence(found[2])
        section = page.rsplit(".", 1)[-1][:1]
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
