"""Tokenizer from GGUF keys: byte-level BPE with special tokens."""

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, trainers

from greta_jax import spm
from greta_jax.errors import TokenizerError
from greta_jax.tokenizer import Tokenizer

TEXT = [
    "the cat sat on the mat, it's 12345 o'clock",
    "año, señor: ¿qué tal?",
    "日本語 🙂 x\n\n\ty",
] * 4


@pytest.fixture(scope="module")
def trained():
    """A byte-level BPE trained by the tokenizers library, and the GGUF keys that describe it."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|bos|>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    fast.train_from_iterator(TEXT, trainer)
    import json

    model = json.loads(fast.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.token_type": np.array(
            [3 if t in ("<|bos|>", "<|eot|>") else 1 for t in tokens], np.int32
        ),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return fast, keys


def test_ids_equal_those_of_the_tokenizer_the_vocabulary_came_from(trained):
    fast, keys = trained
    ours = Tokenizer.from_gguf(keys)
    for text in TEXT:
        assert ours.encode(text) == fast.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_special_tokens_in_text_are_parsed_and_survive_decoding(trained):
    ours = Tokenizer.from_gguf(trained[1])
    ids = ours.encode("<|bos|>cat<|eot|>")
    assert (ids[0], ids[-1]) == (ours.bos_id, ours.eos_id) == (0, 1)
    assert ours.decode(ids) == "<|bos|>cat<|eot|>"
    assert ours.token(1) == "<|eot|>"


def test_llama3_pattern_cuts_numbers_by_three(trained):
    ours = Tokenizer.from_gguf(trained[1] | {"tokenizer.ggml.pre": "llama-bpe"})
    pieces = [ours.token(i) for i in ours.encode("12345678")]
    assert not any(len(piece) > 3 for piece in pieces)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.pre": "esperanto"}, "esperanto.*supported: gpt-2.*tekken"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": ["no such"]}, "merges"),
    ],
    ids=str,
)
def test_unsupported_vocabularies_are_refused_by_name(trained, change, words):
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_gguf(trained[1] | change, "m.gguf")
    assert "\n" not in str(caught.value) and "m.gguf" in str(caught.value)


def test_id_outside_the_vocabulary_is_refused(trained):
    with pytest.raises(TokenizerError, match="999"):
        Tokenizer.from_gguf(trained[1]).token(999)


def test_token_types_are_gguf_s():
    for kind in gguf.TokenType:
        assert getattr(spm, kind.name) == kind


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.ggml.pre": ["gpt-2"]}, "tokenizer.ggml.pre is no str"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "no array of 300 numbers"),
        ({"tokenizer.ggml.bos_token_id": 300}, "bos_token_id 300 is outside"),
        ({"tokenizer.ggml.bos_token_id": True}, "bos_token_id is no int"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token is no bool"),
        (
            {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.add_eos_token": True},
            "no eos_token",
        ),
        ({"tokenizer.chat_template": 3}, "chat_template is no str"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "'a' is listed twice"),
    ],
    ids=str,
)
def test_keys_that_contradict_each_other_are_refused(trained, change, words):
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.from_gguf(trained[1] | change, "m.gguf")


SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "\u2581", "\u2581a"],
    "tokenizer.ggml.scores": np.array([0, 0, 0, -1, -2, -3], np.float32),
    "tokenizer.ggml.token_type": np.array([2, 3, 3, 1, 1, 1], np.int32),
}


def test_spm_merges_pieces_and_gives_the_unknown_token_where_it_has_no_bytes():
    ours = Tokenizer.from_gguf(SPM)
    assert ours.encode("a a") == [5, 5]
    assert ours.encode("</s>a\u00f1") == [2, 5, 0]
    assert ours.decode([1, 5, 5]) == "<s> a a" and ours.decode([5, 5]) == "a a"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.ggml.scores": None}, "scores' is no array of 6"),
        ({"tokenizer.ggml.scores": np.full(6, np.nan, np.float32)}, "NaN"),
        ({"tokenizer.ggml.token_type": None}, "token_type' is no array"),
        ({"tokenizer.ggml.token_type": np.array([2, 3, 3, 6, 1, 1])}, "SentencePiece model"),
        ({"tokenizer.ggml.add_space_prefix": "yes"}, "add_space_prefix is no bool"),
    ],
    ids=str,
)
def test_spm_vocabularies_that_are_none_are_refused(change, words):
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_gguf(SPM | change, "m.gguf")
    assert "\n" not in str(caught.value) and "m.gguf" in str(caught.value)


@pytest.mark.parametrize("which", ["bpe", "spm"])
def test_text_that_is_no_unicode_is_refused(trained, which):
    ours = Tokenizer.from_gguf(trained[1] if which == "bpe" else SPM)
    with pytest.raises(TokenizerError, match="character 1 of the text is half"):
        ours.encode("a\ud800")


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {%- if m.role not in ('user', 'system') %}{{ raise_exception('no ' + m.role) }}{% endif %}\n"
    "[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_template_is_rendered_with_the_file_s_special_tokens(trained):
    ours = Tokenizer.from_gguf(trained[1] | {"tokenizer.chat_template": TEMPLATE})
    text = ours.render_chat([{"role": "user", "content": " Hi "}])
    assert text == "<|bos|>[user]Hi<|eot|>[assistant]"
    assert not ours.render_chat([], reply=False).endswith("[assistant]")


def test_missing_failing_and_refusing_templates_are_errors_of_one_line(trained):
    messages = [{"role": "pirate", "content": "Arr"}]
    for template, words in (
        (None, "no chat template"),
        ("{% if %}", "fails"),
        (TEMPLATE, "no pirate"),
        ("{{ messages.__class__.__mro__ }}", "fails"),
    ):
        ours = Tokenizer.from_gguf(trained[1] | {"tokenizer.chat_template": template})
        with pytest.raises(TokenizerError, match=words):
            ours.render_chat(messages)
