"""The oracle's side of an alignment: tokens, the reference trace and its self-check."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.align import compare, sites, trace
from experiments.flags import UsageError, prompt_text
from greta_jax.graph import KV_SITES
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff
from greta_jax.selfcheck import Finding, selfcheck
from greta_jax.taps import Taps

SLOT_SITES = ("attn.scores", "attn.probs")


@dataclass(frozen=True)
class Reference:
    """One prompt under the oracle: the trace of prompt and greedy continuation, and its top-1s.

    `complaints` are the self-checks that failed: a reference with any of them judges nobody.
    """

    prompt: str
    prompt_tokens: int
    trace: trace.Trace
    logits_TV: np.ndarray
    complaints: tuple[str, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.trace.run.token_ids_T

    @property
    def top1_T(self) -> np.ndarray:
        return self.logits_TV.argmax(axis=-1)

    @property
    def expected(self) -> tuple[int, int]:
        """Top-1 after the prompt's last token, and after the first decode step."""
        return int(self.top1_T[self.prompt_tokens - 1]), int(self.top1_T[self.prompt_tokens])


def tokenise(oracle: Oracle, prompt: str, max_tokens: int) -> list[int]:
    """Ids of a prompt, begun as the model's file asks. Raises UsageError if they cannot fit."""
    ids, context = oracle.tokenizer.encode_prompt(prompt_text(prompt)), oracle.config.context
    if len(ids) + max_tokens > context:
        raise UsageError(
            f"prompt {prompt} has {len(ids)} tokens and {max_tokens} more are to be decoded, but "
            f"the model's context is {context}: use a shorter prompt or a smaller --max_tokens"
        )
    return ids


def needed_layers(layers: tuple[int, ...], layers_in_model: int) -> tuple[int, ...]:
    """The chosen layers, and those whose output they or final.norm read."""
    before = {layer - 1 for layer in layers if layer > 0}
    return tuple(sorted({*layers, *before, layers_in_model - 1}))


def make_reference(
    oracle: Oracle,
    prompt: str,
    max_tokens: int,
    layers: tuple[int, ...],
    kept: Collection[str] = sites.SITES,
) -> Reference:
    """Prefill, greedy decode, then one pass over the whole sequence that keeps the sites `kept`."""
    ids, text = tokenise(oracle, prompt, max_tokens), prompt_text(prompt)
    step = oracle.prefill(ids)
    logits = [step.logits_TV[-1]]
    sequence = list(ids)
    for _ in range(max_tokens):
        sequence.append(int(logits[-1].argmax()))
        step = oracle.decode(step.cache, sequence[-1])
        logits.append(step.logits_TV[-1])
    run = trace.Run(oracle.model_sha256, trace.sha256(text), tuple(sequence))
    made = _checked(oracle, prompt, len(ids), run, np.stack(logits), layers, kept)
    return replace(made, complaints=(*_other_ids(oracle, text, ids), *made.complaints))


def reference_of_tokens(
    oracle: Oracle, prompt: str, run: trace.Run, layers: tuple[int, ...]
) -> Reference:
    """The same for given tokens, all of them taken for the prompt."""
    *before, last = run.token_ids_T
    cache = oracle.prefill(before).cache if before else oracle.empty_cache()
    stepwise_TV = oracle.decode(cache, last).logits_TV
    every = sites.SITES
    return _checked(oracle, prompt, len(run.token_ids_T), run, stepwise_TV, layers, every)


def _checked(
    oracle: Oracle,
    prompt: str,
    prompt_tokens: int,
    run: trace.Run,
    stepwise_TV: np.ndarray,
    layers: tuple[int, ...],
    kept: Collection[str],
) -> Reference:
    """One pass with taps; `stepwise_TV`: its last logits as decode computed them.

    Attention's weights are looked at in every layer, and let go of unless they are to be kept: with
    the scores they are most of a long prompt's tensors.
    """
    sequence = list(run.token_ids_T)
    asked = Taps({*kept, "attn.probs"}, needed_layers(layers, oracle.config.layers))
    whole = oracle.begin(np.asarray(sequence, np.int64), oracle.empty_cache(), asked)
    complaints: list[str] = []
    for layer in range(oracle.config.layers):
        oracle.run_layer(whole, layer)
        if (place := (layer, "attn.probs")) in whole.taken:
            complaints += _weights_sum_to_one(oracle, layer, whole.taken[place])
            if "attn.probs" not in kept:
                del whole.taken[place]
    logits_TV = oracle.finish(whole)
    rows = {place: rows_of(place[1], value) for place, value in whole.taken.items()}
    complaints = complaints[:1] + _prefill_equals_decode(oracle, logits_TV, stepwise_TV, sequence)
    return Reference(prompt, prompt_tokens, trace.Trace(run, rows), logits_TV, tuple(complaints))


def rows_of(site: str, value: np.ndarray) -> compare.Rows:
    """One array a token: the slots that were live when that token was processed."""
    if site in KV_SITES:
        return [value[: position + 1] for position in range(len(value))]
    if site in SLOT_SITES:
        return [row_NS[:, : position + 1] for position, row_NS in enumerate(value)]
    return value


def laws(oracle: Oracle) -> list[Finding]:
    """The self-check in its quick form; the law of the whole model is checked on each prompt."""
    return selfcheck(oracle, quick=True)


def _other_ids(oracle: Oracle, text: str, ids: Sequence[int]) -> list[str]:
    """Whether the prompt's ids begin with the BOS that the file names, and spell its text.

    SentencePiece writes a space before the text that it does not read back.
    """
    tokenizer, bos = oracle.tokenizer, oracle.file.metadata.get("tokenizer.ggml.bos_token_id")
    if tokenizer.add_bos and bos is not None and list(ids[:1]) != [bos]:
        return [f"token ids: a prompt begins with {ids[0]}, the file's BOS is {bos}"]
    spelt, text = tokenizer.decode(ids), text.lstrip(" ")
    if text in spelt:
        return []
    # A vocabulary may lack letters of the text: those are lost by right.
    letters = {c for i in range(tokenizer.vocab_size) for c in tokenizer.decode([i])}
    known = ["".join(c for c in words if c in letters) for words in (text, spelt)]
    return [] if known[0] in known[1] else [f"token ids: the prompt's spell {spelt[:40]!r}"]


def _weights_sum_to_one(oracle: Oracle, layer: int, prob_TNS: np.ndarray) -> list[str]:
    """Softmax rows: S-1 roundings in its sum, one division, S-1 in ours."""
    u = unit_roundoff(oracle.policy.compute)
    slots_T = 1 + np.arange(len(prob_TNS))
    allowed_T = 2 * slots_T * u / (1 - 2 * slots_T * u)
    off_T = np.abs(prob_TNS.sum(axis=-1, dtype=np.float64) - 1).max(axis=-1)
    return [
        f"attention weights of layer {layer} at position {position} sum to 1 "
        f"only within {off_T[position]:.3g}"
        for position in np.flatnonzero(~(off_T <= allowed_T))[:1]
    ]


def _prefill_equals_decode(oracle: Oracle, whole_TV, stepwise_TV, sequence) -> list[str]:
    """The law prefill(n) = prefill(n-1) then decode(1), to the rounding noise of this model.

    `stepwise_TV` holds the last rows, from the prompt's last token on, as decode computed them.

    The noise is measured and not assumed: the distance between the oracle in fp32 and in fp64,
    scaled by the ratio of their roundoffs, is what this model makes of typical rounding. Two
    evaluations may differ by twice that, and worst-case rounding of a sum of n terms exceeds the
    typical by sqrt(n).
    """
    logits_TV = {oracle.policy: whole_TV}
    for policy in (Policy.fp32(), Policy.fp64()):
        if policy != oracle.policy:
            logits_TV[policy] = oracle.with_policy(policy).prefill(sequence).logits_TV
    distance = np.abs(logits_TV[Policy.fp32()].astype(np.float64) - logits_TV[Policy.fp64()])
    noise = distance.max() / unit_roundoff("float32")
    config = oracle.config
    terms = max(config.dim, config.ffn, len(sequence))
    floor = 2 * np.sqrt(terms) * noise * unit_roundoff(oracle.policy.compute)
    off = np.abs(whole_TV[-len(stepwise_TV) :].astype(np.float64) - stepwise_TV).max()
    if off <= floor:
        return []
    return [f"prefill and decode logits differ by {off:.3g}, rounding explains {floor:.3g}"]
