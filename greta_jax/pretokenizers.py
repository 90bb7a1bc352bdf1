"""How text is cut before byte pairs are merged: one row for each `tokenizer.ggml.pre` we know.

Sources: the `tokenizer.json` of each model's authors, and llama.cpp's llama-vocab.cpp for the names
and for what goes with them. Each pattern cuts the pieces that the one before it left, matches and
gaps alike. A normaliser of the authors (NFC in Qwen's and OLMo's files) is in no GGUF key, and
llama.cpp applies none; neither does this.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
ONE_DIGIT, THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
KANJI_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CASED = (
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""The cased letters of the Unicode version that DeepSeek LLM's authors had."""


def of_words(digits: str, endings: str = ENDINGS + "|") -> str:
    """Llama 3's pattern: English endings, words with their leading mark, digits, marks, spaces."""
    marks = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return rf"{endings}{LEAD}\p{{L}}+|{digits}|{marks}|{SPACES}"


def of_cased_words(digits: str, ending: str) -> str:
    """GPT-4o's pattern: capitals before small letters; `ending` after a word."""
    words = f"{LEAD}{UPPER}*{LOWER}+{ending}|{LEAD}{UPPER}+{LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
QWEN35 = rf"{ENDINGS}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
SEED = rf"{ENDINGS}|{LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    CJK,
    ONE_DIGIT,
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, ONE_DIGIT)
DEEPSEEK_V3 = (
    THREE_DIGITS,
    KANJI_AND_KANA,
    ASCII_PUNCTUATION
    + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + SPACES,
)
FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
TINY_AYA = (r"\d{1,3}(?=(?:\d{3})*\b)", of_cased_words(THREE_DIGITS, ENDINGS + "?"))


@dataclass(frozen=True)
class PreTokenizer:
    """The patterns, in order. `whole`: a piece that is a token is that token, whatever the merges.

    add_bos: text begins with BOS when the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The same as a pre-tokenizer that ends in bytes."""
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in self.patterns]
        return pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )


LLAMA3 = PreTokenizer((of_words(THREE_DIGITS),), whole=True, add_bos=True)
_ROWS = (
    ("gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum", (GPT2,)),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", (ONE_DIGIT, GPT2)),
    ("qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez solar-open kormo", (of_words(ONE_DIGIT),)),
    ("grok-2", (of_words(ONE_DIGIT),)),
    ("dbrx smaug-bpe chatglm-bpe", (of_words(THREE_DIGITS),)),
    ("gpt-4o llama4 kanana2 minimax-m2", (of_cased_words(THREE_DIGITS, ENDINGS + "?"),)),
    ("deepseek-llm", DEEPSEEK_LLM),
    ("deepseek-coder", DEEPSEEK_CODER),
    ("deepseek-v3 hunyuan-dense joyai-llm", DEEPSEEK_V3),
    ("falcon", FALCON),
    ("default", UNNAMED),
    ("bloom poro-chat gpt3-finnish", (BLOOM,)),
    ("viking", (BLOOM, ONE_DIGIT)),
    ("qwen35", (QWEN35,)),
    ("bailingmoe bailingmoe2 llada-moe", (BAILING,)),
    ("seed-coder", (SEED,)),
    ("tiny_aya cohere2moe", TINY_AYA),
    ("ufakzeka", (of_words(ONE_DIGIT, ""),)),
)
PRE_TOKENIZERS = {
    **{name: PreTokenizer(patterns) for names, patterns in _ROWS for name in names.split()},
    **dict.fromkeys(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2".split(), LLAMA3
    ),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer((of_words(THREE_DIGITS),), whole=True)),
    "tekken": PreTokenizer((of_cased_words(ONE_DIGIT, ""),), whole=True, add_bos=True),
    "minicpm5": PreTokenizer((THREE_DIGITS, of_words(r"\p{N}+")), whole=True),
}
"""By `tokenizer.ggml.pre`; a file without that key is cut as "default", as llama.cpp does."""
