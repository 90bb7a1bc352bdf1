"""Each family's tokenizer, trained small: transformers' ids, and ours from a GGUF of it alone.

The other side is built as the family's own tokenizer.json is, or by its transformers class.
"""

import json
import unicodedata
from dataclasses import dataclass
from functools import cache

import gguf
import pytest
import transformers
from tokenizers import AddedToken, Regex, decoders, models, trainers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers as cut

from greta_jax.tokenizer import Tokenizer
from tests.third_voice.hard_strings import texts
from tests.third_voice.vocabularies import CONTROL, TEXTS, USER_DEFINED, same, written

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

GPT2 = cut.ByteLevel(add_prefix_space=False)
TO_BYTES = cut.ByteLevel(add_prefix_space=False, use_regex=False)


def split(*patterns):
    """As tokenizer.json writes it: one Split a pattern, then bytes."""
    splits = [cut.Split(Regex(pattern), "isolated", invert=False) for pattern in patterns]
    return cut.Sequence([*splits, TO_BYTES])


TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = [
    cut.Split(Regex("[\r\n]"), "isolated"),
    cut.Split(Regex(r"\s?\p{L}+"), "isolated"),
    cut.Split(Regex(r"\s?\p{P}+"), "isolated"),
    cut.Split(Regex("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), "isolated"),
    cut.Digits(individual_digits=True),
    TO_BYTES,
]
THREE = cut.Split(Regex("[0-9][0-9][0-9]"), "isolated")
BYTE_LEVEL = {
    "gpt-2": (GPT2, False),
    "olmo": (GPT2, False),
    "starcoder": (cut.Sequence([cut.Digits(individual_digits=True), GPT2]), False),
    "refact": (cut.Sequence([cut.Digits(individual_digits=True), GPT2]), False),
    "command-r": (cut.Sequence([cut.Digits(individual_digits=True), GPT2]), False),
    "smollm": (cut.Sequence([cut.Digits(individual_digits=True), GPT2]), False),
    "falcon": (cut.Sequence([cut.Punctuation("contiguous"), GPT2, THREE]), False),
    "llama-bpe": (split(TIKTOKEN % "{1,3}"), True),
    "dbrx": (split(TIKTOKEN % "{1,3}"), False),
    "glm4": (split(TIKTOKEN % "{1,3}"), True),
    "qwen2": (split(TIKTOKEN % ""), False),
    "gpt-4o": (split(O200K), False),
    "llama4": (split(O200K), False),
    "tekken": (split(TEKKEN), True),
    "deepseek-coder": (cut.Sequence(DEEPSEEK_CODER), False),
    "deepseek-v3": (split(*DEEPSEEK_V3), False),
    "bloom": (split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), False),
}
"""`tokenizer.ggml.pre` to the authors' own pre-tokenizer, and whether merges yield to whole words.

Falcon's Punctuation also cuts at the ASCII symbols, as its row's pattern does.
"""


@dataclass(frozen=True)
class Trained:
    """A small vocabulary and its merges."""

    tokens: list[str]
    merges: list[tuple[str, str]]
    fast: FastTokenizer


@cache
def trained(pre: str) -> Trained:
    """A byte-level BPE trained through the family's own pre-tokenizer."""
    pre_tokenizer, whole = BYTE_LEVEL[pre]
    fast = FastTokenizer(models.BPE(ignore_merges=whole))
    fast.pre_tokenizer, fast.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=list(CONTROL),
        initial_alphabet=cut.ByteLevel.alphabet(),
    )
    fast.train_from_iterator(texts(seed=1), trainer)
    model = json.loads(fast.to_str())["model"]
    added = [AddedToken(token, normalized=False, special=False) for token in USER_DEFINED]
    fast.add_tokens(added)
    tokens = sorted(fast.get_vocab(), key=fast.get_vocab().get)
    return Trained(tokens, [tuple(pair) for pair in model["merges"]], fast)


def byte_level(path, pre: str) -> tuple[Tokenizer, Trained]:
    vocabulary = trained(pre)
    kinds = [
        gguf.TokenType.CONTROL
        if token in CONTROL
        else gguf.TokenType.USER_DEFINED
        if token in USER_DEFINED
        else gguf.TokenType.NORMAL
        for token in vocabulary.tokens
    ]
    merges = [" ".join(pair) for pair in vocabulary.merges]
    return written(
        path, "gpt2", pre, vocabulary.tokens, kinds, token_merges=merges, bos_token_id=0
    ), vocabulary


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_ids_equal_those_of_transformers(pre, tmp_path):
    ours, vocabulary = byte_level(tmp_path / "v.gguf", pre)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary.fast)
    same(ours, theirs, TEXTS)


def test_the_comparison_tells_the_families_apart(tmp_path):
    """One vocabulary whose text is cut as another family's: other ids somewhere."""
    ours, vocabulary = byte_level(tmp_path / "v.gguf", "gpt-2")
    kinds, merges = [1] * len(vocabulary.tokens), [" ".join(pair) for pair in vocabulary.merges]
    for pre in ("starcoder", "qwen2", "tekken", "falcon", "bloom", "deepseek-v3"):
        path, tokens = tmp_path / f"{pre}.gguf", vocabulary.tokens
        other = written(path, "gpt2", pre, tokens, kinds, token_merges=merges)
        assert any(ours.encode(text) != other.encode(text) for text in texts()), pre


def classes(name: str):
    """A transformers class of its own around the family's vocabulary."""
    vocabulary = trained({"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}[name])
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    specials = {"unk_token": None, "bos_token": CONTROL[0], "eos_token": CONTROL[1]}
    if name == "Qwen2Tokenizer":
        specials["pad_token"] = CONTROL[1]
    tokenizer = getattr(transformers, name)(vocab=vocab, merges=vocabulary.merges, **specials)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return tokenizer


def test_ids_equal_those_of_gpt2tokenizer(tmp_path):
    same(byte_level(tmp_path / "v.gguf", "gpt-2")[0], classes("GPT2Tokenizer"), TEXTS)


def test_ids_equal_those_of_qwen2tokenizer_but_for_its_normaliser(tmp_path):
    """Its NFC is in no GGUF key, and llama.cpp does without: text in that form is the same."""
    ours, _ = byte_level(tmp_path / "v.gguf", "qwen2")
    theirs = classes("Qwen2Tokenizer")
    composed = [unicodedata.normalize("NFC", text) for text in TEXTS]
    same(ours, theirs, composed)
    differing = [t for t in TEXTS if ours.encode(t) != theirs.encode(t)]
    assert differing and all(t != unicodedata.normalize("NFC", t) for t in differing)
