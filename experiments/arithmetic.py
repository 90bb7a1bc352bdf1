"""The oracle's ops over a trace of either side: op64 on captured inputs, floors and closure."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from experiments.align import compare, sites, trace
from experiments.align.slabs import GrowingSlabs
from experiments.reference import SLOT_SITES
from experiments.token_blocks import (
    ATTENTION_SITES,
    before,
    over_tokens,
    over_tokens_each,
    square,
    without,
)
from greta_jax.bounds import OpPrecision, bound
from greta_jax.determined import predict
from greta_jax.errors import TokenizerError
from greta_jax.graph import INPUTS, KV_SITES
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff
from greta_jax.replay import Replays, replay

ROTATED = {"attn.q_rope": "attn.q", "attn.k_rope": "attn.k"}
SLACK = "slack"
"""Name of an input that bounds the error of another: one that a fused kernel kept in registers."""


class OracleArithmetic:
    """What compare.Arithmetic asks for, from the oracle's replay and bounds.

    `engine_precision` maps each site that the engine stores to what it declares of it. A rotated q
    or k that is not among them is computed in fp64 from the q or k before, and what the engine's
    own rotation may have rounded away is carried into the floor of the op that read it. The first
    `batched` tokens went through its prefill, which declares `prefill_precision`.
    """

    def __init__(
        self,
        oracle: Oracle,
        dims: dict[str, int],
        engine_precision: dict,
        prefill_precision: dict | None = None,
        batched: int = 0,
    ):
        self.prefill_precision, self.batched = prefill_precision, batched
        self.fp64 = oracle.with_policy(Policy.fp64())
        self.layers, self.dims, self.engine_precision = oracle.config.layers, dims, engine_precision
        self.policy = oracle.policy
        self._fp32 = oracle.with_policy(Policy.fp32())

    def as_arithmetic(self) -> compare.Arithmetic:
        return compare.Arithmetic(
            self.inputs,
            self.op64_of_each,
            self.floor,
            self.closure,
            self.through,
            self.declared,
            self.bits,
            partial(spelt, self.fp64),
        )

    def through(self, site: str) -> tuple[str, ...]:
        """The tensors that an op reads, if there are several."""
        names = tuple(name for name in INPUTS[site] if name not in ("positions", "token_ids"))
        return names if len(names) > 1 else ()

    def inputs(self, side: trace.Trace, layer: int, site: str) -> dict:
        """What the op read, by the names of INPUTS; for the cache also its slab of each step."""
        read = {}
        for name in INPUTS[site]:
            if name == "token_ids":
                read[name] = np.asarray(side.run.token_ids_T)
            elif name == "positions":
                read[name] = np.arange(len(side.run.token_ids_T))
            elif name == "resid.in":
                read[name] = compare.captured(side, *self.place_before(layer, site), self.dims)
            elif name in ROTATED and (layer, name) not in side:
                read |= self._rotated(side, layer, name)
            else:
                read[name] = compare.captured(side, layer, name, self.dims)
        if site in KV_SITES:
            read["slabs"] = compare.captured(side, layer, site, self.dims)
        return read

    def place_before(self, layer: int, site: str) -> tuple[int, str]:
        """Where the residual stream that `site` reads was left."""
        if site == "final.norm":
            return self.layers - 1, "resid.out"
        return (layer - 1, "resid.out") if layer else (sites.NO_LAYER, "embed")

    def _rotated(self, side: trace.Trace, layer: int, name: str) -> dict:
        source = ROTATED[name]
        read = {
            source: compare.captured(side, layer, source, self.dims),
            "positions": np.arange(len(side.run.token_ids_T)),
        }
        registers = self.engine_precision[source]["accumulate"]
        in_registers = {"store": registers, "accumulate": registers}
        declared = self.engine_precision.get(name, in_registers)
        return {
            name: replay(self.fp64, name, layer, read),
            SLACK: bound(self.fp64, name, layer, read, declared),
        }

    def op64(self, layer: int, site: str, inputs: dict) -> compare.Rows:
        """The op in fp64 on one set of inputs."""
        [rows] = self.op64_of_each(layer, site, [inputs])
        return rows

    def op64_of_each(self, layer: int, site: str, mixtures: Sequence[dict]) -> list[compare.Rows]:
        """The same on several that share tensors."""

        def run(block: list[dict]) -> list[np.ndarray]:
            replays = Replays(self.fp64, layer)
            wide: dict[int, np.ndarray] = {}
            return [replays(site, _in_fp64(without(inputs, SLACK), wide)) for inputs in block]

        return over_tokens_each(run, site, mixtures)

    def floor(self, layer: int, site: str, inputs: dict) -> dict[str, compare.Rows]:
        """The a-priori bound at the precision the engine declares."""
        return {
            "bound": self._by_phase(layer, site, lambda p: self._bounds(p, layer, site, inputs))
        }

    def _by_phase(
        self, layer: int, site: str, rows_of: Callable[[dict], compare.Rows]
    ) -> compare.Rows:
        """What follows from the precision of prefill for its tokens, of decode for the others."""
        rows = rows_of(_declared(self.engine_precision, layer, site))
        if not self._has_two_phases(site):
            return rows
        return self._joined(rows_of(_declared(self.prefill_precision, layer, site)), rows)

    def _has_two_phases(self, site: str) -> bool:
        if not self.batched:
            return False
        phases = (self.engine_precision, self.prefill_precision)
        first, second = (_declared(precision, 0, site) for precision in phases)
        return first != second

    def _joined(self, first: compare.Rows, then: compare.Rows) -> compare.Rows:
        return np.concatenate([first[: self.batched], then[self.batched :]])

    def declared(self, layer: int, site: str, inputs: dict) -> compare.RoundingModel:
        """The op itself evaluated in the precision the engine declares.

        Its sums run in the declared order, or else in XLA's. Where the engine's bound is then of a
        shorter chain of additions, the one that holds for any order goes with it.
        """
        decode = self._modelled(_declared(self.engine_precision, layer, site), layer, site, inputs)
        if not self._has_two_phases(site):
            return decode
        of_prefill = _declared(self.prefill_precision, layer, site)
        first = self._modelled(of_prefill, layer, site, inputs)
        bounds = [model.bound for model in (first, decode)]
        either = self._bounds(without(of_prefill, "chain"), layer, site, inputs)
        bounds = [either if bound is None else bound for bound in bounds]
        return compare.RoundingModel(self._joined(first.rows, decode.rows), self._joined(*bounds))

    def _modelled(
        self, declared: dict, layer: int, site: str, inputs: dict
    ) -> compare.RoundingModel:
        oracle = self._fp32.with_policy(_policy(site, declared))
        unit = np.asarray(declared["scale"])[:, None] if "scale" in declared else None

        def run(inputs: dict) -> np.ndarray:
            inputs = without(inputs, SLACK)
            if unit is None:
                return replay(oracle, site, layer, inputs)
            return replay(oracle, site, layer, _over(inputs, unit)) * unit

        rows = over_tokens(run, site, inputs)
        if "chain" not in declared:
            return compare.RoundingModel(rows)
        return compare.RoundingModel(
            rows, self._bounds(without(declared, "chain"), layer, site, inputs)
        )

    def bits(self, layer: int, site: str, inputs: dict) -> compare.Rows | None:
        """The tensor to the last bit, where the declared arithmetic is modelled; else None."""
        declared = OpPrecision.of(_declared(self.engine_precision, layer, site))
        if declared.bits is None or self._has_two_phases(site):
            return None
        how = declared.bits, declared.store
        found = predict(self._fp32, site, layer, without(inputs, "slabs"), *how)
        if found is None or site not in KV_SITES:
            return found
        return GrowingSlabs(found, before(inputs["slabs"]))

    def closure(self, layer: int, site: str, inputs: dict) -> compare.Rows:
        """The bound at the oracle's own precision."""
        store = self.policy.kv if site in KV_SITES else self.policy.activation
        declared = {"store": store, "accumulate": self.policy.compute}
        return self._bounds(declared, layer, site, inputs)

    def bounds(self, side: trace.Trace, layer: int, site: str) -> np.ndarray:
        """The bounds of all tokens in one array; of the cache, those of the slots appended."""
        [rows] = self.floor(layer, site, self.inputs(side, layer, site)).values()
        if site in SLOT_SITES:
            return square(rows)
        return rows.new_TKH if site in KV_SITES else rows

    def _bounds(self, declared: dict, layer: int, site: str, inputs: dict) -> compare.Rows:
        if site in KV_SITES:
            # Slots of earlier tokens are to be kept, bit for bit.
            new_TKH = self._bound(declared, layer, site, without(inputs, "slabs"))
            return GrowingSlabs(new_TKH, lambda t: np.zeros((t, *new_TKH.shape[1:])))
        return over_tokens(partial(self._bound, declared, layer, site), site, inputs)

    def bound_of(
        self, oracle: Oracle, layer: int, site: str, inputs: dict, slack: np.ndarray | None
    ) -> np.ndarray:
        """What the engine's declared precision may round away of one op on any inputs."""
        error = self._by_phase(layer, site, lambda p: bound(oracle, site, layer, inputs, p))
        if slack is None:
            return error
        if site in KV_SITES:
            return error + slack * (1 + unit_roundoff(self.engine_precision[site]["store"]))
        return error + self._moved(layer, site, inputs, slack)

    def _bound(self, declared: dict, layer: int, site: str, inputs: dict) -> np.ndarray:
        exact = without(inputs, SLACK)
        error = bound(self.fp64, site, layer, exact, declared)
        if SLACK not in inputs:
            return error
        if site in KV_SITES:
            return error + inputs[SLACK] * (1 + unit_roundoff(declared["store"]))
        return error + self._moved(layer, site, exact, inputs[SLACK])

    def _moved(self, layer: int, site: str, inputs: dict, slack_TNH: np.ndarray) -> np.ndarray:
        """How far scores, probabilities or attn.out may move when q does by `slack_TNH`.

        A score that moves by d and a softmax sum that moves with the largest d multiply a
        probability by at most exp(d + largest d).
        """
        k_SKH = np.abs(np.asarray(inputs["kv.k"], np.float64))
        prob_TNS = replay(self.fp64, "attn.probs", layer, without(inputs, "kv.v"))
        (tokens, heads, slots), (K, H) = prob_TNS.shape, k_SKH.shape[1:]
        slack_TKGH = slack_TNH.reshape(tokens, K, -1, H)
        moved_TKGS = np.einsum("TKGH,SKH->TKGS", slack_TKGH, k_SKH) * H**-0.5
        moved_TNS = np.where(prob_TNS > 0, moved_TKGS.reshape(tokens, heads, slots), 0)
        if site == "attn.scores":
            return moved_TNS
        change_TNS = prob_TNS * np.expm1(moved_TNS + moved_TNS.max(axis=-1, keepdims=True))
        if site == "attn.probs":
            return change_TNS
        v_SKH = np.abs(np.asarray(inputs["kv.v"], np.float64))
        change_TKGS = change_TNS.reshape(tokens, K, -1, slots)
        return np.einsum("TKGS,SKH->TKGH", change_TKGS, v_SKH).reshape(tokens, heads, H)


def _declared(precision: dict, layer: int, site: str) -> dict:
    """What is declared of a site in one layer."""
    # Scores and probabilities stay in the registers of attn.out's kernel.
    return in_layer(precision.get(site) or precision["attn.out"], layer)


def in_layer(declared: dict, layer: int) -> dict:
    """With the scales of that layer alone. Raises IndexError if there are none."""
    if "scale_LK" not in declared:
        return declared
    return without(declared, "scale_LK") | {"scale": tuple(declared["scale_LK"][layer])}


def spelt(oracle: Oracle, token_id: int) -> str:
    """The vocabulary's entry of a token id; empty if the file has none."""
    try:
        return oracle.tokenizer.token(token_id)
    except TokenizerError:
        return ""


MATRIX_CORES = {"float16": "mfma:f16", "bfloat16": "mfma:bf16"}


def _policy(site: str, declared: dict) -> Policy:
    """What an engine declares of one site, as a policy of the oracle; operands as matrix cores
    round them, for attention (for a projection that would take far longer than the rest).
    """
    d = OpPrecision.of(declared)
    operand = d.operand if site in ATTENTION_SITES else None
    order = d.order or MATRIX_CORES.get(operand, "native")
    exact = {"weight": "float32", "activation": d.store, "kv": d.store, "compute": d.accumulate}
    return Policy("declared", **exact, order=order, probs=operand, exp="polynomial")


def _over(inputs: dict, unit: np.ndarray) -> dict:
    return {name: np.asarray(value) / unit for name, value in inputs.items()}


def _in_fp64(inputs: dict, wide: dict[int, np.ndarray]) -> dict:
    """As one type, so that programs are compiled for no other; what is shared stays shared."""

    def widened(value):
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.floating):
            return array
        if id(value) not in wide:
            wide[id(value)] = array.astype(np.float64)
        return wide[id(value)]

    return {name: widened(value) for name, value in inputs.items()}
