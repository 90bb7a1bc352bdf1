"""Files of a run that never was: every part of a page has something to draw, one op is wrong."""

import numpy as np

from experiments.align import records, sites
from experiments.align.cache_blame import CacheFault
from experiments.align.invariants import TOUCHED
from experiments.align.sources import SiteSources
from experiments.align.sources import records as records_of
from experiments.align.tokens import Flip, compare
from experiments.attribution import Attribution, Contribution
from experiments.coverage import Coverage
from experiments.flips import UNEXPLAINED, FlipVerdict, NextTokens
from experiments.report import maps, run_file
from experiments.report.maps import NUMBERS, STATUSES, Maps

HEADS = 8
KV_HEADS = 2
WRONG = (1, "attn.out")
PROMPT_TOKENS = 22


def places(layers: int) -> tuple[tuple[int, str], ...]:
    return tuple(sites.places(range(layers), sites.SITES))


def made_up_maps(layers: int, tokens: int, wrong=WRONG, seed: int = 0) -> Maps:
    """Random errors below their floors, but at `wrong`, whose head 3 is a thousand floors off."""
    rng, all_places = np.random.default_rng(seed), places(layers)
    shape = len(all_places), tokens
    local = 10 ** rng.uniform(-4, -0.1, shape)
    statuses = np.full(shape, STATUSES.index("within_floor"), np.uint8)
    groups = np.repeat(local[..., None], maps.GROUPS, axis=2) * rng.uniform(0.1, 1, (*shape, 16))
    for p, (_, site) in enumerate(all_places):
        kinds = {"head": HEADS, "kv head": KV_HEADS, "block": maps.GROUPS}
        groups[p, :, kinds[maps.group_kind(site)] :] = np.nan
        if site in ("attn.scores", "attn.probs"):
            statuses[p], local[p], groups[p] = STATUSES.index("fused"), np.nan, np.nan
    if wrong in all_places:
        p = all_places.index(wrong)
        statuses[p], local[p] = STATUSES.index("structural"), 1234.5
        groups[p, :, 3] = 1234.5
    floor = np.full(shape, 2e-6)
    numbers = {name: floor.copy() for name in NUMBERS}
    numbers |= {"local_over_floor": local, "local_max": local * floor, "local_mae": local * 1e-6}
    slots = np.zeros((layers, KV_HEADS, tokens + 8), np.uint8)
    slots[:, :, :tokens] = TOUCHED["k read"] | TOUCHED["v read"]
    slots[:, :, tokens - 1] |= TOUCHED["k written"] | TOUCHED["v written"]
    return Maps(all_places, statuses, numbers, groups.astype(np.float32), slots, tokens - 1)


def write(folder, prompts=("p4_sys",), layers=32, tokens=24, exit_code=1) -> run_file.RunFile:
    """Writes all files of the run into `folder`."""
    wrong = WRONG if exit_code == 1 else None
    written = []
    for seed, prompt in enumerate(prompts):
        maps.save(folder / f"{prompt}_maps.npz", made_up_maps(layers, tokens, wrong, seed))
        with records.JsonLines(folder / f"{prompt}.jsonl") as lines:
            for layer in range(layers):
                lines.append(_attn_verify(layer, tokens))
                lines.append(_site_verify(layer))
            lines.append(_summary(wrong) | _judged(tokens))
        names = {"records": f"{prompt}.jsonl", "maps": f"{prompt}_maps.npz"}
        written.append({"prompt": prompt, **names})
    routes = [
        {"route": route, "prompt": prompt, "observed": "manual/valu", "status": "ok", "note": ""}
        | {"prefill_last_top1": 7, "decode0_top1": 11}
        for route in ("manual/valu", "manual/auto", "auto/valu", "auto/auto")
        for prompt in prompts
    ]
    routes.append(dict(routes[0], route="fused/mfma", prompt="", observed="", status="not built"))
    return run_file.write(
        folder,
        {
            "experiment": "b3_20",
            "exit_code": exit_code,
            "verdict": {0: "PASS", 1: "FAIL"}[exit_code],
            "command": f"python -m experiments.b3_20 --prompt={','.join(prompts)}",
            "lines": ["p4_sys: <b>made up</b> </script> & not run"],
            "prompts": written,
            "routes": routes,
            "seconds": {"oracle pass": 2.5},
            "seconds_total": 3.25,
            "facts": {"device": "emulated", "commit": "0123456789abcdef" * 2 + "01234567"},
        },
    )


def _attn_verify(layer: int, tokens: int) -> dict:
    offsets = {
        f"{kind}_{way}_offset_bytes": 64 * layer for kind in "kv" for way in ("read", "write")
    }
    shared = {"event": "attn_decode_verify", "layer": layer, "kv_pos": tokens - 1}
    held = {"kv_layer_stride_bytes": 64, "kv_invariant_ok": True, "kv_error": ""}
    return shared | held | offsets


def _site_verify(layer: int) -> dict:
    through = {"attn.q_rope": 1e-5, "kv.k": 2e-5, "kv.v": 3e-5}
    seen = {"smallest_error_detected_over_rms": 1e-3 * (layer + 1), "propagated_max_all": 4e-5}
    return (
        {"event": "site_verify", "layer": layer, "site": "attn.out"}
        | seen
        | {"through_max_all": through}
    )


def _judged(tokens: int) -> dict:
    """What a summary says beside the divergence: next tokens, floors, the cache, coverage."""
    flip = Flip(position=1, ref=3, got=5, margin=0.25)
    contributions = (Contribution(0, "kv.k", -0.2), Contribution(1, "resid.out", -0.1, 30))
    attribution = Attribution(1, 3, 5, 0.25, -0.3, contributions, 0.01)
    logits_TV = np.random.default_rng(2).standard_normal((tokens, 40))
    found = compare(logits_TV, logits_TV + 1e-3)
    flips = (FlipVerdict(flip, UNEXPLAINED, "the margin is above what rounding may move"),)
    fault = CacheFault("overwritten later", "k", 1, 4, 0, 7, 5, 2, "values", "zeros")
    floors = SiteSources("attn.out", 1e-5, 1e-6, 0.1, 0.9, None, None)
    gaps = Coverage("4 of 32 layers", ("layers 3-30", "prefill in batches"))
    return {
        "next_tokens": NextTokens(found, flips, (attribution,)).record(),
        "floors": records_of([floors]),
        "cache_faults": [fault.record()],
        "coverage": gaps.record(),
    }


def _summary(wrong) -> dict:
    first = wrong and {
        **{"layer": wrong[0], "site": wrong[1], "position": 0, "token_id": 5},
        **{"clean_before": 26, "judged_before": 26, "verdict": "structural"},
        **{"local_over_floor": 1234.5, "local_over_floor_at": [3, 5], "verdict_reason": "wrong"},
    }
    symbols = {"attn_manual_valu_f16": 48, "gemv_q4_k": 300}
    shared = {"event": "summary", "route_observed": "manual/valu", "attention_mfma": 0}
    return shared | {"first_divergence": first, "symbols": symbols}
