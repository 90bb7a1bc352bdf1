"""Token ids from the vocabulary and merges in the GGUF itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from greta_jax.errors import TokenizerError

CONTROL, USER_DEFINED = 3, 4
"""gguf.TokenType: control tokens are parsed in text and never produced by merging; so are these."""

IGNORED_KEYS = (
    "tokenizer.ggml.scores",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging. `ignore_merges`: a piece that is a token is that token."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False


GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(GPT2),
    "llama-bpe": PreTokenizer(LLAMA3, ignore_merges=True),
    "llama3": PreTokenizer(LLAMA3, ignore_merges=True),
    "llama-v3": PreTokenizer(LLAMA3, ignore_merges=True),
}
"""`tokenizer.ggml.pre` to its pattern. Source: llama.cpp, llama-vocab.cpp."""


class Tokenizer:
    """Encodes and decodes as the model's authors did. Build it with `Tokenizer.from_gguf`."""

    def __init__(self, fast: FastTokenizer, metadata: dict[str, Any]):
        self._fast = fast
        self.bos_id: int | None = metadata.get("tokenizer.ggml.bos_token_id")
        self.eos_id: int | None = metadata.get("tokenizer.ggml.eos_token_id")
        self.add_bos: bool = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
        self.chat_template: str | None = metadata.get("tokenizer.chat_template")

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any], where: str = "metadata") -> "Tokenizer":
        """Builds it from the `tokenizer.*` keys.

        Raises:
          TokenizerError: no vocabulary, or a model or pre-tokenizer that is not supported.
        """
        model = metadata.get("tokenizer.ggml.model")
        if model != "gpt2":
            raise TokenizerError(
                f"tokenizer model {model!r} is not supported", where=where, remedy="supported: gpt2"
            )
        return cls(_byte_level_bpe(metadata, where), metadata)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._fast.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text, special tokens in it parsed. No BOS is added (see add_bos)."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def render_chat(self, messages: Sequence[dict[str, str]], reply: bool = True) -> str:
        """The text of a conversation by the file's own `tokenizer.chat_template`.

        Each message has a `role` and a `content`; `reply` opens the assistant's turn. Special
        tokens are in the text, BOS included where the template writes it.

        Raises:
          TokenizerError: the file has no template, or the template fails or refuses the messages.
        """
        if self.chat_template is None:
            raise TokenizerError(
                "the file has no chat template", remedy="give the whole prompt as text"
            )
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        tokens = {name: "" if i is None else self.token(i) for name, i in names.items()}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=messages, add_generation_prompt=reply, **tokens)
        except TemplateError as error:
            raise TokenizerError(
                f"the chat template fails: {error}", remedy="check the roles of the messages"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens written out; invalid UTF-8 becomes U+FFFD."""
        return self._fast.decode([int(i) for i in token_ids], skip_special_tokens=False)

    def token(self, token_id: int) -> str:
        """The vocabulary entry of one id. Raises TokenizerError if there is none."""
        token = self._fast.id_to_token(int(token_id))
        if token is None:
            raise TokenizerError(
                f"id {token_id} is not in the vocabulary of {self.vocab_size}",
                remedy="give an id that the model's tokenizer produced",
            )
        return token


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _byte_level_bpe(metadata: dict[str, Any], where: str) -> FastTokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"pre-tokenizer {pre!r} is not supported",
            where=where,
            remedy=f"supported: {', '.join(PRE_TOKENIZERS)}",
        )
    tokens, merges = _lists(metadata, where)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise TokenizerError("a token is listed twice", where=where, remedy="convert it again")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    rule = PRE_TOKENIZERS[pre]
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule.ignore_merges)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"the merges do not fit the vocabulary: {error}", where=where, remedy="convert it again"
        ) from error
    fast = FastTokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    fast.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", ())
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            fast.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    return fast


def _lists(metadata: dict[str, Any], where: str) -> tuple[list[str], list[str]]:
    lists = []
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        value = metadata.get(key)
        if not isinstance(value, list):
            raise TokenizerError(f"key {key!r} is missing", where=where, remedy="convert it again")
        lists.append(value)
    return tuple(lists)
