"""SentencePiece vocabularies (`tokenizer.ggml.model` = llama): merges by score, bytes for the rest.

The sentencepiece library does the merging, from a model that is built of the file's own pieces.
Text is handed to it in the parts that special tokens leave, each with the space in front that
llama.cpp gives it.
"""

import re
from collections.abc import Iterator, Sequence

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import decoders

from greta_jax.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""gguf.TokenType and sentencepiece's Type, which are the same numbers."""

SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)
"""Kinds that are found in text before any merging."""

SPACE = "\u2581"
EATS_SPACE = re.compile("phi-?3", re.IGNORECASE)
KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's special tokens swallow the whitespace after them, all but these. No key says so:
llama.cpp goes by `general.name`, and so does this."""


class SpmTokenizer:
    """Pieces and ids of one SPM vocabulary."""

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        kinds: Sequence[int],
        add_space: bool,
        name: str = "",
    ):
        """Raises TokenizerError if the pieces make no SentencePiece model."""
        self.tokens, self.add_space = list(tokens), add_space
        self.ids = {token: i for i, token in enumerate(tokens)}
        special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL and t]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        eat = EATS_SPACE.search(name) is not None
        self._eats_space = set(special) - set(KEEPS_SPACE) if eat else set()
        self._processor = _processor(tokens, scores, kinds)
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if add_space:
            steps.append(decoders.Strip(" ", 1, 0))
        self._decoder = decoders.Sequence(steps)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; every part after a special token, and the first, gets its space."""
        ids: list[int] = []
        for part, special in self._parts(text):
            if special:
                ids.append(self.ids[part])
            else:
                ids.extend(self._processor.encode(" " * self.add_space + part))
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids."""
        return self._decoder.decode([self.tokens[i] for i in token_ids])

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        start = 0
        for match in self._special.finditer(text) if self._special.pattern else ():
            if match.start() > start:
                yield text[start : match.start()], False
            yield match[0], True
            start = match.end()
            if match[0] in self._eats_space:
                start += len(text[start:]) - len(text[start:].lstrip())
        if start < len(text):
            yield text[start:], False


def _processor(tokens, scores, kinds) -> SentencePieceProcessor:
    model, unknown = sentencepiece_model_pb2.ModelProto(), list(kinds).index(UNKNOWN)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = BYTE in kinds
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    for i, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        # Unused pieces take part in merges, as in llama.cpp and transformers.
        kept = CONTROL if kind in SPECIAL else BYTE if kind == BYTE else NORMAL
        model.pieces.add(piece=token, score=score, type=UNKNOWN if i == unknown else kept)
    try:
        return SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise TokenizerError(
            f"the pieces make no SentencePiece model: {error}", remedy="convert it again"
        ) from error
