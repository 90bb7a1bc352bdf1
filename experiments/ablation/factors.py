"""Precision factors: one deviation from a base policy, at some sites and layers, as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.ablation.errors import FactorError
from experiments.align import sites
from greta_jax.errors import PrecisionError
from greta_jax.precision import Policy, Rule

FIELDS = (
    *("weight", "activation", "kv", "compute", "score", "softmax", "pv"),
    *("order", "probs", "exp"),
)

SHORT = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fnuz",
    "bf8": "float8_e5m2fnuz",
}
DEFAULT = (
    *("weight=fp16", "activation=fp32", "activation=bf16", "compute=fp32", "compute=fp16"),
    *("kv=fp16", "kv=fp8", "kv=int8", "score=fp16", "probs=fp16", "pv=fp16", "exp=polynomial"),
)
GRAMMAR = re.compile(
    r"(?P<field>[a-z]+)=(?P<value>[a-z0-9_:]+?)"
    r"(@(?P<sites>[a-z_.+]+))?(/(?P<first>\d+)(-(?P<last>\d+))?)?"
)


@dataclass(frozen=True)
class Factor:
    """`field=value`, at `sites` (None: all) of layers first to last (None: everywhere)."""

    field: str
    value: str
    sites: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        short = {long: name for name, long in SHORT.items()}
        where = f"@{'+'.join(self.sites)}" if self.sites else ""
        if self.first is not None:
            last = "" if self.last == self.first else f"-{self.last}"
            where += f"/{self.first}{last}"
        return f"{self.field}={short.get(self.value, self.value)}{where}"

    def applied(self, policy: Policy) -> Policy:
        """The policy with this deviation."""
        if self.sites is None and self.first is None:
            return replace(policy, **{self.field: self.value})
        changes = ((self.field, self.value),)
        rule = Rule(changes, self.sites, self.first, self.last)
        return replace(policy, rules=(*policy.rules, rule))


def parse(text: str, layers_in_model: int) -> Factor:
    """Reads `kv=fp8`, `compute=fp16@attn.proj+ffn.down`, `pv=fp16/31`, `kv=fp8/0-15`.

    Raises:
      FactorError: with what is possible.
    """
    if not (match := GRAMMAR.fullmatch(text.strip())):
        raise FactorError(
            f"factor {text!r}: write FIELD=VALUE, then @SITE+SITE, then /LAYER or /FIRST-LAST"
        )
    if match["field"] not in FIELDS:
        raise FactorError(f"factor {text!r}: no field {match['field']!r}; use {', '.join(FIELDS)}")
    first = None if match["first"] is None else int(match["first"])
    last = first if match["last"] is None else int(match["last"])
    if first is not None and not first <= last < layers_in_model:
        raise FactorError(f"factor {text!r}: the model has layers 0 to {layers_in_model - 1}")
    chosen = match["sites"] and sites.resolve(match["sites"].split("+"))
    value = SHORT.get(match["value"], match["value"])
    factor = Factor(match["field"], value, chosen or None, first, last)
    try:
        factor.applied(Policy.fp64())
    except PrecisionError as error:
        raise FactorError(f"factor {text!r}: {error}") from error
    return factor


def combined(base: Policy, factors: Sequence[Factor]) -> Policy:
    """All factors on one policy, named by them."""
    for factor in factors:
        base = factor.applied(base)
    return replace(base, name=" ".join(map(str, factors)) or base.name)
