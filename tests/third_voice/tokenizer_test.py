"""Token ids of the shipped model against transformers' tokenizer from the same GGUF."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from greta_jax.gguf.reader import GgufFile
from greta_jax.tokenizer import Tokenizer

SHIPPED = Path(__file__).parents[2] / "models/greta-tiny-32l/greta-tiny-32l-Q4_K_M.gguf"
PIECES = (
    "the cat",
    " Buenos Aires",
    "\u00bfqu\u00e9 ma\u00f1ana?",
    "A\u00c9i\u0301o\u0308",
    "\u65e5\u672c\u8a9e \u4e2d\u6587",
    "\ud55c\uad6d\uc5b4",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x):\n\treturn x**2  # ok\n",
    "12345678",
    "3.14e-10",
    "   ",
    "\n\n\n",
    "\r\n",
    "\t\t",
    "I'll we've they'RE don't",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>user<|end_header_id|>",
    "<|not_special|>",
    "<|eot_id",
    "\u00a0\u2003\u200b",
    "!!!???...",
    "http://a.b/c?d=e&f=%20",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\x00\x7f",
    "\u00df\u0130\u01c4",
)


@pytest.fixture(scope="module")
def voices():
    if not SHIPPED.exists():
        pytest.skip("the shipped model is not there")
    file = GgufFile(SHIPPED)
    ours = Tokenizer.from_gguf(file.metadata, file.path)
    return ours, AutoTokenizer.from_pretrained(SHIPPED.parent, gguf_file=SHIPPED.name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ids_equal_those_of_transformers_on_hard_strings(voices):
    ours, theirs = voices
    rng = np.random.default_rng(0)
    texts = [*PIECES, *("".join(rng.choice(PIECES, rng.integers(2, 7))) for _ in range(400))]
    differing = [
        text for text in texts if ours.encode(text) != theirs.encode(text, add_special_tokens=False)
    ]
    assert differing == [], f"{len(differing)} of {len(texts)}"
    for text in texts:
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_chat_template_equals_that_of_transformers(voices):
    ours, theirs = voices
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "  Hi\n"},
    ]
    for reply in (True, False):
        ref = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
        assert ours.render_chat(messages, reply) == ref
