"""Token ids of the shipped model against transformers' tokenizer from the same GGUF."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from greta_jax import chat
from greta_jax.gguf.reader import GgufFile
from greta_jax.tokenizer import Tokenizer
from tests.third_voice.hard_strings import texts

SHIPPED = Path(__file__).parents[2] / "models/greta-tiny-32l/greta-tiny-32l-Q4_K_M.gguf"


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
    examples = texts(number=400)
    differing = [
        text
        for text in examples
        if ours.encode(text) != theirs.encode(text, add_special_tokens=False)
    ]
    assert differing == [], f"{len(differing)} of {len(examples)}"
    for text in examples:
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


HARD_TEMPLATE = """
{%- for m in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {#- The assistant's own words. #}
    {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}
{{ m | tojson }} {{ m | tojson(indent=1, sort_keys=true) }}
{% endfor %}
{{ strftime_now('%Y') }} {{ tools is none }} {{ namespace(a=1).a }} {{ dict(b=2) }}
"""


@pytest.mark.parametrize("reply", [True, False])
def test_what_templates_call_is_there_as_in_transformers(reply):
    messages = [
        {"role": r, "content": f" <b> & ma\u00f1ana {r}\n"} for r in ("user", "assistant") * 3
    ]
    ref = render_jinja_template(
        [messages], chat_template=HARD_TEMPLATE, add_generation_prompt=reply, bos_token="<s>"
    )[0][0]
    assert "ma\u00f1ana" in ref and ref.count("<b>") == 7
    got = chat.render(HARD_TEMPLATE, messages, add_generation_prompt=reply, bos_token="<s>")
    assert got == ref
