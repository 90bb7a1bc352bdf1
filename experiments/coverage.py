"""What a run looked at, and what it did not: in every report, so that a pass claims no more."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from experiments import kv_watch
from experiments.align import sites, verdict
from experiments.align.patterns import ranges


@dataclass(frozen=True)
class Coverage:
    """`looked_at` are counts, `not_looked_at` sentences; together they name every axis."""

    looked_at: str
    not_looked_at: tuple[str, ...]

    def sentences(self) -> list[str]:
        return [f"looked at: {self.looked_at}", f"not looked at: {'; '.join(self.not_looked_at)}"]

    def record(self) -> dict:
        return asdict(self)


def of(alignment) -> Coverage:
    """Of an experiments.alignment.Alignment."""
    found = [j for result in alignment.results.values() for j in result.judgements]
    judged = {j.key.site for j in found if j.status is not verdict.Status.FUSED}
    dims, layers = alignment.dims, alignment.layers
    tokens = sum(len(r.reference.token_ids) for r in alignment.results.values())
    whole = (
        f"{len(layers)} of {dims['L']} layers, {len(judged)} of {len(sites.SITES)} sites, all "
        f"{dims['N']} query and {dims['K']} kv heads, every element, {tokens} tokens of "
        f"{len(alignment.results)} prompts, route {alignment.facts['route_resolved']}"
    )
    return Coverage(whole, tuple(_gaps(alignment, judged)))


def _gaps(alignment, judged: set[str]):
    rest = sorted(set(range(alignment.dims["L"])) - set(alignment.layers))
    if rest:
        yield f"layers {ranges(rest)} (only what they made of the residual stream)"
    fused = {
        j.key.site
        for result in alignment.results.values()
        for j in result.judgements
        if j.status is verdict.Status.FUSED
    }
    if fused:
        yield f"{_in_order(fused)}: the engine does not store them"
    if unasked := set(sites.SITES) - judged - fused:
        yield f"{_in_order(unasked)}: not judged (--points, --decode_ref)"
    if alignment.config.prefill == "steps":
        yield "prefill in batches (--prefill): every token was fed alone, as decode feeds it"
    if watched := _watched(alignment):
        yield f"cache accesses of steps other than {watched}"
        if alignment.facts.get("kv_evidence") == kv_watch.BYTES:
            yield (
                "which bytes of the cache kernels read, and stores of what was there already (this "
                "device reports no addresses; written is what changed)"
            )
    else:
        yield "cache accesses of any step"
    if contains := _uncounted(alignment):
        yield (
            "which instructions executed (this device counts none; attested from launches, their "
            f"arguments and the disassembly, by matrix-core instructions: {contains})"
        )
    yield _routes(alignment)


def _in_order(names: set[str]) -> str:
    return ", ".join(site for site in sites.SITES if site in names)


def _watched(alignment) -> str:
    steps = {
        prompt: [w.layers[0].position for w in result.run.watched if w.layers]
        for prompt, result in alignment.results.items()
    }
    return ", ".join(f"{ranges(at)} of {prompt}" for prompt, at in steps.items() if at)


def _uncounted(alignment) -> str:
    """Attention kernels that were attested by what they contain."""
    contains: dict[str, int] = {}
    for result in alignment.results.values():
        contains |= result.run.attestation.attention_contains
    return ", ".join(f"{symbol} contains {count}" for symbol, count in contains.items())


def _routes(alignment) -> str:
    """Of the other routes, two tokens a prompt are all that is compared."""
    judged = alignment.facts["route_resolved"]
    seen: Sequence[str] = sorted({r.observed for r in alignment.routes if r.observed} - {judged})
    if not seen:
        return "every other route"
    return f"tensors of the routes {', '.join(seen)} (two top-1 tokens a prompt were)"
