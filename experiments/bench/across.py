"""Worker: the oracle's trace on one device, and the judge's word on it from another.

The device under test is treated as any engine: it declares the dtype it stores and accumulates in.
"""

import hashlib

from experiments import flags
from experiments.bench.ours import DTYPE, chosen_devices, device_name, token_ids

SKIPPED = ("embed",)


def measure(question: dict) -> dict:
    """Keys: model, precision, tokens, layers, trace (an .npz), device, devices; judge: read, not
    write.
    """
    flags.configure_jax(question["device"])
    return (_judge if question.get("judge") else _write)(question)


def _trace(question: dict, precision: str) -> tuple:
    from experiments.align import sites
    from experiments.reference import needed_layers
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy
    from greta_jax.taps import Taps

    policy, devices = Policy.uniform(DTYPE[precision]), chosen_devices(question)
    model = Oracle.open(question["model"], policy, resident=True, devices=devices)
    ids = token_ids(model, question["tokens"])
    layers = needed_layers(tuple(question["layers"]), model.config.layers)
    return model, ids, model.prefill(ids, Taps(sites.SITES, layers))


def _write(question: dict) -> dict:
    import numpy as np

    model, _, step = _trace(question, question["precision"])
    arrays = {f"{layer}|{site}": value for (layer, site), value in step.taps.items()}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    np.savez(question["trace"], **arrays)
    return {
        "digest": digest.hexdigest()[:16],
        "weights": weights_digest(model),
        "device": device_name(),
    }


def weights_digest(model) -> str:
    """Of every decoded weight of the file as fp32: the same bits on every device, or another."""
    import numpy as np

    from greta_jax.gguf.dequantize import dequantize

    digest = hashlib.sha256()
    for name, info in model.file.tensors.items():
        digest.update(np.asarray(dequantize(model.file.raw_rows(name), info.dtype)).tobytes())
    return digest.hexdigest()[:16]


def _judge(question: dict) -> dict:
    import numpy as np

    from experiments.align import compare, sites, trace
    from experiments.arithmetic import OracleArithmetic
    from experiments.reference import rows_of

    model, ids, step = _trace(question, "fp64")
    run = trace.Run(model.model_sha256, trace.sha256(repr(ids.tolist())), tuple(ids.tolist()))
    with np.load(question["trace"]) as file:
        got = {(int(name.split("|")[0]), name.split("|")[1]): file[name] for name in file.files}
    sides = [
        trace.Trace(run, {place: rows_of(place[1], value) for place, value in taken.items()})
        for taken in (step.taps, got)
    ]
    dtype = DTYPE[question["precision"]]
    declared = {site: {"store": dtype, "accumulate": dtype} for site in sites.SITES}
    dims = model.config.dimensions
    judged = compare.judge_all(
        *sides,
        OracleArithmetic(model, dims, declared).as_arithmetic(),
        compare.Declared(dims, {site: dtype for site in sites.SITES}),
        question["layers"],
        [site for site in sites.SITES if site not in SKIPPED],
    )
    return _summary(judged) | {"weights": weights_digest(model)}


def _summary(judged) -> dict:
    import numpy as np

    statuses: dict[str, int] = {}
    worst, where, unclean = 0.0, "", []
    for found in judged:
        statuses[found.status.value] = statuses.get(found.status.value, 0) + 1
        ratio = max((float(np.max(r, initial=0.0)) for r in found.ratios), default=0.0)
        place = f"{found.layer} {found.site}"
        if ratio > worst:
            worst, where = ratio, place
        if found.status.value not in ("exact", "within_floor", "vacuous"):
            unclean.append(f"{place}: {found.status.value} {found.worst.reason}")
    return {"statuses": statuses, "worst": worst, "where": where, "unclean": unclean[:6]}
