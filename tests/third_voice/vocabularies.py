"""A vocabulary written to a GGUF, and our tokenizer of it beside another one."""

import gguf

from greta_jax.gguf.reader import GgufFile
from greta_jax.tokenizer import Tokenizer
from tests.third_voice.hard_strings import texts

CONTROL, USER_DEFINED = ("<|bos|>", "<|eot|>"), ("<tool>", "<tool_call>")
TEXTS = texts(CONTROL + USER_DEFINED)
"""Hard strings with special tokens in them."""


def written(path, model: str, pre: str, tokens, kinds, **keys) -> Tokenizer:
    """The tokenizer that we make of a GGUF with that vocabulary alone."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.from_gguf(GgufFile(path).metadata, str(path))


def same(ours: Tokenizer, theirs, examples) -> None:
    """Equal ids and equal decoding, for every example."""
    ids = {text: ours.encode(text) for text in examples}
    differing = [t for t in ids if ids[t] != theirs.encode(t, add_special_tokens=False)]
    assert differing == [], f"{len(differing)} of {len(ids)}"
    assert [t for t in ids if ours.decode(ids[t]) != theirs.decode(ids[t])] == []
