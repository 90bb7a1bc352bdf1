"""Conversations as text, by the template in the file, rendered as transformers renders it."""

import json
from collections.abc import Sequence
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from greta_jax.errors import TokenizerError


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def render(template: str, messages: Sequence[dict], **names) -> str:
    """The template's text for the messages; `names` are what else it may read.

    The template is foreign code: it runs in jinja2's sandbox. Raises TokenizerError if it fails.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    try:
        text = environment.from_string(template)
        return text.render(messages=list(messages), tools=None, documents=None, **names)
    except Exception as error:  # a template may raise whatever Python does
        raise TokenizerError(
            f"the chat template fails: {error}", remedy="check the roles of the messages"
        ) from error
