"""SentencePiece vocabularies: transformers' ids, sentencepiece's, and ours from the GGUF alone."""

import io
from functools import cache

import gguf
import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, normalizers
from transformers.convert_slow_tokenizer import generate_merges

from greta_jax.tokenizer import Tokenizer
from tests.third_voice.hard_strings import texts
from tests.third_voice.vocabularies import CONTROL, TEXTS, USER_DEFINED, same, written

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@cache
def pieces() -> tuple[bytes, list[str], list[float], list[int]]:
    """A SentencePiece BPE model with bytes, and its pieces as llama.cpp's converter takes them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(seed=1)),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99,
        user_defined_symbols=list(USER_DEFINED),
        control_symbols=list(CONTROL),
        minloglevel=2,
    )
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = []
    for i in range(spm.vocab_size()):
        kind = gguf.TokenType.NORMAL
        if spm.IdToPiece(i) in USER_DEFINED:
            kind = gguf.TokenType.USER_DEFINED
        elif spm.IsUnknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif spm.IsControl(i):
            kind = gguf.TokenType.CONTROL
        elif spm.IsByte(i):
            kind = gguf.TokenType.BYTE
        kinds.append(kind)
    ids = range(spm.vocab_size())
    return model.getvalue(), [spm.IdToPiece(i) for i in ids], [spm.GetScore(i) for i in ids], kinds


def spm_tokenizer(path, **keys) -> Tokenizer:
    _, tokens, scores, kinds = pieces()
    return written(path, "llama", "default", tokens, kinds, token_scores=scores, **keys)


def spm_class(name: str, legacy: bool = False):
    """LlamaTokenizer or GemmaTokenizer of the same pieces; `legacy` as Llama's tokenizer.json."""
    _, tokens, scores, _ = pieces()
    vocab = {token: i for i, token in enumerate(tokens)}
    skip = ("<unk>", "<s>", "</s>", *CONTROL, *USER_DEFINED)
    merges = generate_merges(vocab, dict(zip(tokens, scores, strict=True)), skip)
    names = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    names |= dict(pad_token="<unk>", mask_token="<unk>") if name == "GemmaTokenizer" else {}
    tokenizer = getattr(transformers, name)(vocab=vocab, merges=merges, **names)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    if legacy:
        space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(space)
        tokenizer.backend_tokenizer.pre_tokenizer = None
    return tokenizer


SPM_TEXTS = [*TEXTS, "", " ", "<s>a</s> b<unk>", "<s> a", "  a", "\u2581a"]


def test_spm_ids_equal_those_of_transformers(tmp_path):
    same(spm_tokenizer(tmp_path / "v.gguf"), spm_class("LlamaTokenizer", legacy=True), SPM_TEXTS)


def test_spm_ids_equal_those_of_sentencepiece_itself(tmp_path):
    ours = spm_tokenizer(tmp_path / "v.gguf")
    spm = sentencepiece.SentencePieceProcessor(model_proto=pieces()[0])
    plain = [t for t in SPM_TEXTS if not any(s in t for s in (*CONTROL, *USER_DEFINED, "<s>"))]
    assert len(plain) > 200
    for text in filter(None, plain):
        assert ours.encode(text) == spm.encode(text), text


def test_llamatokenizer_now_differs_only_where_a_space_begins_a_part(tmp_path):
    """Since `legacy=False` only the first part has a space put in front, and not before another.

    llama.cpp puts one before every part, as SentencePiece and Llama's own tokenizer.json do.
    """
    ours, theirs = spm_tokenizer(tmp_path / "v.gguf"), spm_class("LlamaTokenizer")
    special = ("<s>", "</s>", "<unk>", *CONTROL, *USER_DEFINED)
    plain = [
        t for t in SPM_TEXTS if t[:1] not in (" ", "\u2581") and not any(s in t for s in special)
    ]
    assert len(plain) > 200
    same(ours, theirs, plain)
    for text in ("<s>a", " a"):
        assert ours.encode(text) != theirs.encode(text, add_special_tokens=False)


def test_gemma_s_ids_have_no_space_in_front(tmp_path):
    ours = spm_tokenizer(tmp_path / "v.gguf", add_space_prefix=False)
    same(ours, spm_class("GemmaTokenizer"), SPM_TEXTS)


def test_runs_of_spaces_that_gemma_defines_are_found_before_merging(tmp_path):
    """Its pieces of several spaces are user-defined; the converter writes them with spaces."""
    runs, model = ["\u2581\u2581", "\u2581\u2581\u2581\u2581", "\n\n"], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(seed=1)),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=runs,
        minloglevel=2,
    )
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens = [spm.IdToPiece(i) for i in range(spm.vocab_size())]
    kinds = [
        *(2, 3, 3, 4, 4, 4),
        *(6 if spm.IsByte(i) else 1 for i in range(6, len(tokens))),
    ]
    assert tokens[3:6] == runs
    tokens[3:6] = [run.replace("\u2581", " ") for run in runs]
    scores = [spm.GetScore(i) for i in range(len(tokens))]
    keys = dict(token_scores=scores, add_space_prefix=False)
    ours = written(tmp_path / "v.gguf", "llama", "default", tokens, kinds, **keys)
    examples = [" " * n + word for n in range(9) for word in ("the cat", "\n\n\n", "", "\u00f1")]
    for text in filter(None, [*examples, *texts()]):
        if "\u2581" not in text and "<s>" not in text:
            assert ours.encode(text) == spm.encode(text), text


def test_bos_and_eos_go_where_the_file_says(tmp_path):
    keys = dict(bos_token_id=1, eos_token_id=2)
    plain = spm_tokenizer(tmp_path / "a.gguf", **keys)
    assert plain.add_bos and not plain.add_eos
    ids = plain.encode("the cat")
    assert plain.encode_prompt("the cat") == [1, *ids]
    assert plain.encode_prompt("<s>the cat") == plain.encode("<s>the cat")
    both = spm_tokenizer(tmp_path / "b.gguf", **keys, add_bos_token=False, add_eos_token=True)
    assert both.encode_prompt("the cat") == [*ids, 2]


def test_phi3_s_special_tokens_swallow_the_space_after_them(tmp_path):
    ours = spm_tokenizer(tmp_path / "v.gguf", name="Phi-3 mini")
    assert ours.encode("<|eot|> \n the cat") == ours.encode("<|eot|>the cat")
    assert ours.encode("<s> the cat") != ours.encode("<s>the cat")
