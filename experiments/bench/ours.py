"""Worker: the oracle from GGUF file to a tensor a layer and logits, on a CPU or a GPU."""

import gc
import hashlib
import math
import time
from collections.abc import Callable

from experiments import flags
from experiments.bench.process import peak_rss_bytes, timed

RATE_SIZE = {"cpu": 1024, "gpu": 8192}
PRODUCT_WEIGHTS = 2**26
DECODED = 32
SETTLE_S = 0.3
"""Before a pass: the last one's logits on the host, up to 2 GB, take time to be given back."""

DTYPE = {"fp64": "float64", "fp32": "float32"}


def measure(question: dict) -> dict:
    """Keys: model, precision, tokens (list), device, devices, resident (list of bools), decode,
    tapped.

    `tapped`: layers whose every site a further streamed pass returns, as a study would ask.
    """
    device, dtype = question["device"], DTYPE[question["precision"]]
    import_s, _ = timed(lambda: flags.configure_jax(device))
    answer = {"import_s": import_s, "passes": []}
    if question.get("rates", True):
        one = matrix_rate(dtype, RATE_SIZE[device])
        answer |= {"rate_flops": one * question.get("devices", 1)}
    for resident in question["resident"]:
        for tokens in question["tokens"]:
            answer["passes"].append(_passes(question, dtype, tokens, resident))
        if resident and question.get("decode"):
            answer["decode"] = _decode(question, dtype, question["tokens"][0])
    return answer | memory() | {"device": device_name()}


_OPEN: dict = {}


def oracle(question: dict, dtype: str, resident: bool):
    """The model, opened once a process."""
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy

    if resident not in _OPEN:
        _OPEN.clear()
        policy, devices = Policy.uniform(dtype), chosen_devices(question)
        _OPEN[resident] = Oracle.open(question["model"], policy, resident, devices=devices)
    return _OPEN[resident]


def chosen_devices(question: dict):
    """The devices to split the model over; None for one. Raises ValueError if there are fewer."""
    import jax

    wanted, there = question.get("devices", 1), jax.devices()
    if wanted > len(there):
        raise ValueError(f"{wanted} devices were asked for and JAX sees {len(there)}")
    return None if wanted == 1 else there[:wanted]


def token_ids(model, tokens: int):
    """Random ids, the same for every side."""
    import numpy as np

    return np.random.default_rng(0).integers(0, model.config.vocab, tokens)


def _passes(question: dict, dtype: str, tokens: int, resident: bool) -> dict:
    """A first pass (it compiles and reads), and `again` more."""
    open_s, model = timed(lambda: oracle(question, dtype, resident))
    ids = token_ids(model, tokens)
    first = one_pass(model, ids)
    again = [one_pass(model, ids) for _ in range(question.get("again", 1))]
    best = min(again, key=lambda one: one["total_s"])
    found = {
        "tokens": tokens,
        "resident": resident,
        "open_s": open_s,
        "first_s": first["total_s"],
        "again": best,
        "bit_equal": len({one["digest"] for one in (first, *again)}) == 1,
        "digest": first["digest"],
        "flop": product_flop(model, tokens),
    }
    if question.get("tapped"):
        found |= _tapped(model, dtype, ids, question["tapped"])
    found |= memory()
    if question.get("products", True):
        found["products_s"] = products_s(model, dtype, tokens)
    return found


def _tapped(model, dtype: str, ids, layers: list[int]) -> dict:
    """Seconds of a streamed pass that also returns every site of some layers, and of its products.

    Those of a layer are made alone after each layer, in the forward's chunks: the speed of a shared
    machine changes by half within seconds, and so it changes for both sides.
    """
    from greta_jax.stream import stream
    from greta_jax.taps import Taps

    *layer, head = matrices(model)
    layer = layer[: len(layer) // model.config.layers]
    alone = {shape: _chunked_product(dtype, len(ids), *shape) for shape in {*layer, head}}
    beside = []

    def products(_):
        beside.append(sum(alone[shape]() for shape in layer))

    total_s, _ = timed(lambda: stream(model, ids, Taps.everything(layers), report=products))
    return {"tapped_s": total_s - sum(beside), "beside_s": sum(beside) + alone[head]()}


def _chunked_product(dtype: str, tokens: int, rows: int, columns: int) -> Callable[[], float]:
    """What times a matrix's products once, as many rows at a time as the forward takes."""
    from greta_jax.weights import rows_of_chunk

    n = min(rows_of_chunk(columns), rows)
    product, count = _product(dtype, tokens, columns, n), math.ceil(rows / n)
    return lambda: timed(lambda: product(count))[0] * rows / (n * count)


def one_pass(model, ids) -> dict:
    """Seconds of each layer and of the head; then what bringing the logits to the host costs.

    Keeps resid.out of every layer as fp32, as a study would. On a GPU a layer is waited for when
    the next one is on its way, so that the device never waits for Python.
    """
    import numpy as np

    from greta_jax import accelerator
    from greta_jax.graph import FINAL_NORM, KV_SITES, LOGITS
    from greta_jax.taps import MODEL_LAYER, Taps

    def layer(index):
        model.run_layer(run, index)
        for site in KV_SITES:
            run.slabs[site].pop(index)
        kept.append(run.x_TD.astype("float32"))
        kept[-2 if ahead and index else -1].block_until_ready()

    def head():
        x_TD = model.apply(FINAL_NORM, MODEL_LAYER, {"resid.in": run.x_TD})
        return model.apply(LOGITS, MODEL_LAYER, {"final.norm": x_TD}).block_until_ready()

    gc.collect()
    time.sleep(SETTLE_S)
    kept: list = []
    ahead = accelerator.in_use()
    embed_s, run = timed(lambda: model.begin(ids, model.empty_cache(), Taps()))
    layer_s = [timed(lambda i=i: layer(i))[0] for i in range(model.config.layers)]
    head_s, logits_TV = timed(head)
    model.weights.settle()
    host_s, host = timed(lambda: [np.asarray(x)[: run.tokens] for x in (*kept, logits_TV)])
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in host[-2:]))
    return {
        "total_s": embed_s + sum(layer_s) + head_s,
        "to_host_s": host_s,
        "embed_s": embed_s,
        "layer_s": layer_s,
        "head_s": head_s,
        "digest": digest.hexdigest()[:16],
    }


def _decode(question: dict, dtype: str, tokens: int) -> dict:
    """Greedy tokens a second after a prompt, weights decoded and resident."""
    model = oracle(question, dtype, True)
    step = model.prefill(token_ids(model, tokens))
    times = []
    for _ in range(question.get("decoded", DECODED)):
        spent, step = timed(lambda s=step: model.decode(s.cache, int(s.logits_TV[-1].argmax())))
        times.append(spent)
    usual = sorted(times)[len(times) // 2]
    return {"tokens_per_s": 1 / usual, "median_s": usual, "first_s": times[0]}


def matrices(model) -> list[tuple[int, int]]:
    """Rows and columns of every matrix that a token is multiplied with."""
    from greta_jax.weights import MODEL_TENSORS

    weights, layer = model.weights, []
    for name in weights.table:
        shape = weights.shape(name)
        if name not in MODEL_TENSORS and len(shape) > 1:
            columns = weights.file.info(weights.tensor_name(name, 0)).shape[-1]
            layer.append((math.prod(shape) // columns, columns))
    return layer * model.config.layers + [(model.config.vocab, model.config.dim)]


def product_flop(model, tokens: int) -> float:
    """Multiplications and additions with weights; attention's own products are not counted."""
    return sum(2.0 * rows * columns * tokens for rows, columns in matrices(model))


def products_s(model, dtype: str, tokens: int) -> float:
    """Time of the products with weights alone: whole matrices or the forward's chunks of them,
    whichever is faster (of a matrix above PRODUCT_WEIGHTS so many of its rows)."""
    from collections import Counter

    from greta_jax.weights import rows_of_chunk

    total = 0.0
    for (rows, columns), count in Counter(matrices(model)).items():
        sizes = {min(rows_of_chunk(columns), rows), min(PRODUCT_WEIGHTS // columns, rows)}
        total += count * min(rows / n * _product_s(dtype, tokens, columns, n) for n in sizes)
    return total


def matrix_rate(dtype: str, size: int) -> float:
    """Operations a second of the best of several square products."""
    return 2.0 * size**3 / _product_s(dtype, size, size, size)


def _product_s(dtype: str, tokens: int, columns: int, rows: int) -> float:
    """Seconds of one product: the best of three rounds."""
    product = _product(dtype, tokens, columns, rows)
    count = max(1, min(8, int(2e12 / (2.0 * tokens * columns * rows))))
    return min(timed(lambda: product(count))[0] for _ in range(3)) / count


def _product(dtype: str, tokens: int, columns: int, rows: int) -> Callable[[int], None]:
    """What multiplies x[T, X] by w[E, X] of random numbers so many times; it has done so once."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda x, w: jnp.einsum("TX,EX->TE", x, w, precision="highest"))
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (tokens, columns), dtype)
    w = jax.random.normal(keys[1], (rows, columns), dtype)
    product(x, w).block_until_ready()
    return lambda count: jax.block_until_ready([product(x, w) for _ in range(count)])


def memory() -> dict:
    """Peaks so far, of the host and of the device if it has memory of its own."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return {"rss_bytes": peak_rss_bytes(), "device_bytes": stats.get("peak_bytes_in_use", 0)}


def device_name() -> str:
    """What JAX computes on."""
    import jax

    return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
