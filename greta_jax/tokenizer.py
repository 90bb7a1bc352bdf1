"""Token ids from the vocabulary in the GGUF itself: byte-level BPE and SentencePiece."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from greta_jax import chat
from greta_jax.errors import TokenizerError
from greta_jax.pretokenizers import PRE_TOKENIZERS
from greta_jax.spm import NORMAL, SPECIAL, UNKNOWN, SpmTokenizer

MODELS = ("gpt2", "llama")
PREFIX = "tokenizer.ggml."
SPM_BOS, SPM_EOS = 1, 2
"""What llama.cpp takes for SPM vocabularies whose files do not say."""


class BpeTokenizer:
    """Byte-level BPE: GPT-2's letters for bytes, merges by rank."""

    def __init__(self, tokens: list[str], merges: list[str], kinds: Sequence[int], pre: str):
        """Raises TokenizerError for an unknown pre-tokenizer and merges that do not fit."""
        if pre not in PRE_TOKENIZERS:
            raise TokenizerError(
                f"pre-tokenizer {pre!r} is not supported",
                remedy=f"supported: {', '.join(PRE_TOKENIZERS)}",
            )
        self.tokens, rule = tokens, PRE_TOKENIZERS[pre]
        vocab = {token: i for i, token in enumerate(tokens)}
        pairs = [_pair(merge) for merge in merges]
        try:
            model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule.whole)
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(
                f"the merges do not fit the vocabulary: {error}", remedy="convert it again"
            ) from error
        self._fast = FastTokenizer(model)
        self._fast.pre_tokenizer = rule.build()
        self._fast.decoder = decoders.ByteLevel()
        special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL]
        self._fast.add_special_tokens([AddedToken(t, normalized=False) for t in special])

    def encode(self, text: str) -> list[int]:
        """Ids of the text, special tokens in it parsed."""
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids."""
        return self._fast.decode(token_ids, skip_special_tokens=False)


class Tokenizer:
    """Encodes and decodes as the model's authors did. Build it with `Tokenizer.from_gguf`.

    add_bos, add_eos: a prompt begins with BOS, ends with EOS (`encode_prompt` does it).
    """

    def __init__(self, model: BpeTokenizer | SpmTokenizer, keys: "_Keys", add_bos: bool):
        spm = isinstance(model, SpmTokenizer)
        self._model = model
        self.bos_id: int | None = keys.token_id("bos_token_id", SPM_BOS if spm else None)
        self.eos_id: int | None = keys.token_id("eos_token_id", SPM_EOS if spm else None)
        self.add_bos: bool = keys.adds("bos", self.bos_id, add_bos)
        self.add_eos: bool = keys.adds("eos", self.eos_id, False)
        self.chat_template: str | None = keys.take("tokenizer.chat_template", str, None)

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any], where: str = "metadata") -> "Tokenizer":
        """Builds it from the `tokenizer.*` keys.

        Raises:
          TokenizerError: no vocabulary, a model or pre-tokenizer that is not supported, or keys
          that contradict each other.
        """
        try:
            return cls._from_keys(_Keys(metadata))
        except TokenizerError as error:
            raise TokenizerError(error.what, where=where, remedy=error.remedy) from error

    @classmethod
    def _from_keys(cls, keys: "_Keys") -> "Tokenizer":
        model = keys.take(PREFIX + "model", str, None)
        if model not in MODELS:
            raise TokenizerError(
                f"tokenizer model {model!r} is not supported",
                remedy=f"supported: {', '.join(MODELS)}",
            )
        tokens = keys.tokens()
        if model == "gpt2":
            pre, kinds = keys.take(PREFIX + "pre", str, "default"), keys.kinds(NORMAL)
            bpe = BpeTokenizer(tokens, keys.strings("merges"), kinds, pre)
            return cls(bpe, keys, PRE_TOKENIZERS[pre].add_bos)
        add_space = keys.take(PREFIX + "add_space_prefix", bool, True)
        name = keys.take("general.name", str, "")
        spm = SpmTokenizer(tokens, keys.numbers("scores"), keys.kinds(None), add_space, name)
        return cls(spm, keys, True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self._model.tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, special tokens in it parsed. No BOS or EOS is added.

        Raises TokenizerError for text with a lone surrogate, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is half of a surrogate pair",
                remedy="give text that can be written in UTF-8",
            ) from error
        return self._model.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a whole prompt: BOS before it and EOS after it if the file says so.

        A BOS that is already in the text (chat templates write one) is not doubled.
        """
        ids = self.encode(text)
        if self.add_bos and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return [*ids, self.eos_id] if self.add_eos else ids

    def render_chat(self, messages: Sequence[dict[str, Any]], reply: bool = True) -> str:
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
        return chat.render(self.chat_template, messages, add_generation_prompt=reply, **tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens written out; invalid UTF-8 becomes U+FFFD.

        Raises TokenizerError for an id outside the vocabulary.
        """
        for token_id in token_ids:
            self.token(token_id)
        return self._model.decode([int(i) for i in token_ids])

    def token(self, token_id: int) -> str:
        """The vocabulary entry of one id. Raises TokenizerError if there is none."""
        if not 0 <= int(token_id) < self.vocab_size:
            raise TokenizerError(
                f"id {token_id} is not in the vocabulary of {self.vocab_size}",
                remedy="give an id that the model's tokenizer produced",
            )
        return self._model.tokens[int(token_id)]


class _Keys:
    """Typed access to `tokenizer.*` keys. Raises TokenizerError for a value of another type."""

    def __init__(self, metadata: dict[str, Any]):
        self.metadata, self.size = metadata, 0

    def take(self, key: str, kind: type, default: Any) -> Any:
        """The value of a key; the default where it is missing or None."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(f"{key} is no {kind.__name__}")
        return value

    def strings(self, name: str) -> list[str]:
        """An array of strings that must be there."""
        value = self.metadata.get(PREFIX + name)
        if not isinstance(value, list):
            raise self.fail(f"key {PREFIX + name!r} is missing or no array of strings")
        return value

    def tokens(self) -> list[str]:
        """The vocabulary, whose entries must differ."""
        tokens = [t or f"[EMPTY_{i}]" for i, t in enumerate(self.strings("tokens"))]
        self.size = len(tokens)
        twice = [token for token, times in Counter(tokens).items() if times > 1]
        if twice:
            raise self.fail(f"token {twice[0]!r} is listed twice")
        return tokens

    def numbers(self, name: str) -> list:
        """One finite number for each token."""
        value = self.metadata.get(PREFIX + name)
        if not isinstance(value, np.ndarray) or value.shape != (self.size,):
            raise self.fail(f"key {PREFIX + name!r} is no array of {self.size} numbers")
        if not np.isfinite(value).all():
            raise self.fail(f"{PREFIX + name} holds NaN or inf")
        return value.tolist()

    def kinds(self, default: int | None) -> list[int]:
        """The type of each token; the unknown token is marked if the file names it only by id."""
        if default is not None and PREFIX + "token_type" not in self.metadata:
            return [default] * self.size
        kinds = self.numbers("token_type")
        unknown = self.token_id("unknown_token_id", None)
        if UNKNOWN not in kinds and default is None:
            kinds[0 if unknown is None else unknown] = UNKNOWN
        return kinds

    def token_id(self, name: str, default: int | None) -> int | None:
        """An id, which must be in the vocabulary."""
        value = self.take(PREFIX + name, int, None)
        if value is None:
            return default if default is not None and default < self.size else None
        if not 0 <= value < self.size:
            raise self.fail(f"{PREFIX + name} {value} is outside the vocabulary of {self.size}")
        return value

    def adds(self, which: str, token_id: int | None, default: bool) -> bool:
        """Whether the token belongs to every prompt; if the file says so it must exist."""
        said = self.take(f"{PREFIX}add_{which}_token", bool, None)
        if said and token_id is None:
            raise self.fail(f"{PREFIX}add_{which}_token is true, but no {which}_token_id is given")
        return default and token_id is not None if said is None else said

    def fail(self, what: str) -> TokenizerError:
        return TokenizerError(what, remedy="convert it again")


def _pair(merge: str) -> tuple[str, str]:
    """The two parts of a merge; a part may begin with a space, as in SPM-like vocabularies."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right
