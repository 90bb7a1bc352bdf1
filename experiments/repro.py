"""A folder from which one failed op can be replayed alone: inputs, code object, launches, manifest.

manifest.json          model, prompt, commit, versions, configuration, the op and its verdict
got/, ref/             the tensors that the op read and wrote, all tokens, as stored traces
code_object.co         what ran, fault and all
launches.json          the launches that made the op's output, arguments and all
memory.npz             every buffer they point into, as it was before
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from experiments import inject, launch_capture
from experiments.align import (
    attn_verify,
    compare,
    divergence,
    name_map,
    records,
    sites,
    stored_trace,
)
from experiments.align.errors import AlignError, TraceError
from experiments.align.trace import Trace
from experiments.alignment import PromptResult
from experiments.arithmetic import OracleArithmetic
from experiments.launch_capture import CapturingDevice
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine import kernels
from hip_engine.errors import EngineError
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.kv_types import KV_TYPES

PACKAGES = ("greta-jax", "jax", "jaxlib", "numpy", "llvmlite", "gguf")


class Noted(Mapping):
    """A trace's rows, and which of them were asked for."""

    def __init__(self, rows: Mapping):
        self.rows, self.asked = rows, set()

    def __getitem__(self, place):
        self.asked.add(place)
        return self.rows[place]

    def __contains__(self, place) -> bool:
        return place in self.rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def write(
    folder: Path, result: PromptResult, oracle: Oracle, engine, facts, config, open_engine, fault
) -> Path | None:
    """The bundle of a prompt's first divergence; None if no op is to blame.

    `open_engine(device)`: the engine as it ran, on another device. What cannot be captured (a GPU
    does not say what its kernels touch) is left out, and the manifest says why.
    """
    first = divergence.first_divergence(result.judgements)
    if first is None:
        return None
    key, batched = first.first.key, 0
    if config.prefill != "steps":
        batched = result.reference.prompt_tokens
    precisions = engine.precision, engine.prefill_precision
    ops = OracleArithmetic(oracle, oracle.config.dimensions, *precisions, batched)
    for name, side in (("got", result.run.trace), ("ref", result.reference.trace)):
        kept = _read_by(ops, side, key.layer, key.site)
        precision = engine.precision if name == "got" else _of_policy(oracle.policy)
        stored_trace.write(folder / name, kept, precision, engine=name)
    instance = kernels.Instance(ops.dims["H"], KV_TYPES[config.kv_dtype].symbol)
    code_object = kernels.build(inject.kernel_patches(fault), instance)
    (folder / "code_object.co").write_bytes(code_object)
    manifest = {
        "layer": key.layer,
        "site": key.site,
        "position": key.position,
        "judgement": attn_verify.judgement_fields(first.first),
        "model": config.model,
        "model_sha256": key.model_sha256,
        "prompt_sha256": key.prompt_sha256,
        "code_object_sha256": hashlib.sha256(code_object).hexdigest(),
        "seed": None,
        "seed_note": "nothing is drawn at random",
        "versions": versions(),
        "config": config.as_record(),
        "facts": facts,
        "batched_tokens": batched,
        "prefill_precision": engine.prefill_precision,
        "launches": _capture(folder, result, key, batched, config, open_engine),
    }
    text = json.dumps(records.plain_values(manifest), indent=1)
    records.write_whole(folder / "manifest.json", f"{text}\n")
    return folder


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _read_by(ops: OracleArithmetic, side: Trace, layer: int, site: str) -> Trace:
    """The part of a trace that judging one op reads."""
    noted = Noted(side.rows_by_place)
    ops.inputs(replace(side, rows_by_place=noted), layer, site)
    asked = noted.asked | {(layer, site)}
    return replace(side, rows_by_place={place: side.rows(*place) for place in asked})


def _of_policy(policy: Policy) -> dict[str, dict]:
    entry = {"store": policy.activation, "accumulate": policy.compute}
    return dict.fromkeys(sites.SITES, entry)


def _capture(folder: Path, result: PromptResult, key, batched: int, config, open_engine) -> str:
    """ "captured", or why not."""
    if key.position < batched:
        return "not captured: the token was prefilled in a batch, and only steps are repeated"
    if config.device != "emulated":
        return f"{config.device} does not say what its kernels touch"
    device = CapturingDevice(EmulatedDevice())
    try:
        engine = open_engine(device)
        ids, place = result.reference.token_ids, (key.position, key.layer, key.site)
        launch_capture.capture(engine, device, ids, *place).save(folder)
        engine.close()
    except (EngineError, AlignError) as error:
        return f"not captured: {' '.join(str(error).split())}"
    return "captured"


def judge(folder: Path, manifest: Mapping, oracle: Oracle) -> compare.SiteVerdict:
    """The verdict on the op again, from the bundle's tensors alone. Raises TraceError."""
    names, dims = name_map.load("sites"), oracle.config.dimensions
    sides = {
        name: stored_trace.read(folder / name, names, dims, oracle.model_sha256)
        for name in ("got", "ref")
    }
    if lost := [text for side in sides.values() for text in side.complaints]:
        raise TraceError(f"{folder} is not whole: {lost[0]}")
    precisions = dict(sides["got"].precision), manifest["prefill_precision"]
    ops = OracleArithmetic(oracle, dims, *precisions, manifest["batched_tokens"])
    declared = compare.Declared.of(dims, precisions[0], precisions[0])
    pair = sides["ref"].trace, sides["got"].trace
    place = manifest["layer"], manifest["site"]
    return compare.judge_site(*pair, ops.as_arithmetic(), declared, *place)
