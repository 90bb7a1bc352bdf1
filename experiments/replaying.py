"""Replays a bundle on the oracle and on the emulated device."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments import launch_capture, repro
from experiments.align import attn_verify, records, sites, stored_trace, verdict
from experiments.align.errors import TraceError
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, Config
from experiments.opening import DTYPES
from experiments.outcome import Outcome
from experiments.progress import Clock
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine.gfx942.device import EmulatedDevice

NEEDED = (
    *("layer", "site", "position", "judgement", "model", "code_object_sha256", "launches"),
    *("facts", "config", "prefill_precision", "batched_tokens"),
)


def run(config: Config, bundle: str, clock: Clock) -> Outcome:
    folder = Path(bundle)
    manifest = _manifest(folder)
    if dict(config.sources)["model"] == "default":
        config = replace(config, model=manifest["model"])
    outcome = Outcome("replay_op", config, {"bundle": bundle})
    place = f"{sites.name(manifest['layer'], manifest['site'])}, position {manifest['position']}"
    precision = manifest["config"]["precision"]
    with clock.stage("oracle"):
        oracle = Oracle.open(config.model, Policy.uniform(DTYPES[precision]))
        judged = repro.judge(folder, manifest, oracle)
    judgement = judged.judgements[manifest["position"]]
    outcome.facts |= {"model_sha256": oracle.model_sha256, "commit": manifest["facts"]["commit"]}
    outcome.verdicts["bundle"] = [judged]
    fields = records.plain_values(attn_verify.judgement_fields(judgement))
    keys = [k for k in fields if k.startswith(("local", "floor", "total", "propagated_m"))]
    other = [k for k in keys if fields[k] != manifest["judgement"].get(k)]
    outcome.events.append({"event": "replay", "place": place, "recorded": manifest["judgement"]})
    outcome.lines.append(
        f"oracle: {place}: {judgement.status}; local error {judgement.local.max:.17g} at "
        f"{judgement.local.at}, {judgement.ratio_max:.17g} x its floor; recorded: "
        f"{'the same, bit for bit' if not other else f'another {other[0]}'}"
        if judgement.local
        else f"oracle: {place}: {judgement.status}: {judgement.reason}"
    )
    if other:
        text = f"the oracle's replay is not what was recorded: {', '.join(other)}"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))
    if judgement.status in verdict.FAILED:
        outcome.reasons.append((EXIT_FAIL, f"{place}: {judgement.status}, {judgement.reason}"))
    with clock.stage("kernels"):
        _relaunch(outcome, folder, manifest)
    outcome.sure = "one op of one token; nothing else of the run was repeated"
    return outcome


def _manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"{folder} is no bundle of a failed op: {reason}") from error
    if lacking := [n for n in NEEDED if not isinstance(found, dict) or n not in found]:
        raise TraceError(f"{path} lacks {', '.join(lacking)}")
    return found


def _relaunch(outcome: Outcome, folder: Path, manifest: dict) -> None:
    """The op's launches again; every buffer they may write is compared, and the op's own output."""
    if manifest["launches"] != "captured":
        text = f"the kernels were not replayed: {manifest['launches']}"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))
        return
    try:
        code_object = (folder / "code_object.co").read_bytes()
    except OSError as error:
        raise TraceError(f"cannot read {folder / 'code_object.co'}: {error.strerror}") from error
    if hashlib.sha256(code_object).hexdigest() != manifest["code_object_sha256"]:
        raise TraceError(f"{folder / 'code_object.co'} is corrupt: its sha256 is another")
    differ, memory = launch_capture.replay(EmulatedDevice(), code_object, folder)
    launches = json.loads((folder / "launches.json").read_text())["launches"]
    symbols = [launch["symbol"] for launch in launches]
    same = f"{len(memory)} buffers, every byte as in the run"
    told = f"other bytes in {', '.join(differ)}" if differ else same
    outcome.lines.append(f"kernel: {' + '.join(symbols)} launched again: {told}")
    if differ:
        text = f"the launches did not repeat what was recorded: {', '.join(differ)}"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))
    outcome.lines.append(_own_output(folder, manifest, memory))


def _own_output(folder: Path, manifest: dict, memory: dict[str, bytes]) -> str:
    """Whether the op's output, as launched again, is the tensor that was judged."""
    site, layer = manifest["site"], manifest["layer"]
    if site.startswith("kv."):
        return "kernel: the slot it wrote is among those buffers"
    path = folder / "got" / ("model" if layer == sites.NO_LAYER else f"layer_{layer}")
    stored = stored_trace.tensor_file.read(path.with_suffix(".safetensors")).tensors
    name = site if layer == sites.NO_LAYER else f"{layer}.{site}"
    row = stored[name][manifest["position"]]
    again = np.frombuffer(memory[site], np.float32)[: row.size].reshape(row.shape)
    equal = np.array_equal(again, row, equal_nan=True)
    return f"kernel: its output is {'the tensor that was judged' if equal else 'ANOTHER tensor'}"
