"""Prefill and decode of a Llama on a device: every operation a kernel, every site readable."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hip_engine import kernels
from hip_engine.attestation import Attestation, Observer
from hip_engine.decode import Decoder
from hip_engine.device import Device
from hip_engine.errors import ContextOverflow, RouteNotBuilt, TokenRefused
from hip_engine.forward import Forward, KernelChoice, Row
from hip_engine.kv_cache import KvCache, KvGeometry, KvLayout
from hip_engine.launcher import UNIT, Launcher
from hip_engine.memory_plan import MemoryPlan, rope_table
from hip_engine.options import Options
from hip_engine.page_pool import SequenceId
from hip_engine.precision import declared_precision
from hip_engine.routes import Route, attention_symbol, resolve
from hip_engine.spot_check import check_weights_on_device
from hip_engine.statics import StaticCode
from hip_engine.taps import NO_LAYER, NO_TAPS, Generation, Step, Taps, sites_of
from hip_engine.weights import ModelFile, open_model


class Engine:
    """Sequences on one device, from `open`; refusals are EngineErrors before any launch.

    Sequence 0 is always there: `step` and `prefill` mean it unless told otherwise. The SequenceId
    of another engine is refused (ForeignSequence).

    Attributes:
      config, model_sha256, code_object_sha256: what runs.
      route, route_reason: the concrete route of decode, and why `auto` became it.
      precision: site -> {"store", "accumulate"} dtypes and more, as the kernels of decode are
        written; prefill_precision: of batched prefill.
      kv_scales_L2K: of an fp8 cache, else None.
      sites: the sites that can be tapped.
    """

    @classmethod
    def open(
        cls,
        model_path: str | Path,
        device: Device,
        route: str | Route = "manual/valu",
        kv_dtype: str = "float16",
        max_context: int | None = None,
        source_patch: Sequence[tuple[str, str, str]] = (),
        check_weights: bool = True,
        **options,
    ) -> "Engine":
        """Checks the file, builds the kernels and puts the model on the device.

        `source_patch`: (file, old, new) changes of the kernels' sources, for fault injection.
        `options`: fields of Options: pages, batches, window, soft cap.

        Raises:
          EngineError: a subclass that names what is wrong with the file, route, type or device.
        """
        wanted = route if isinstance(route, Route) else Route.parse(route)
        chosen = Options(kv_dtype=kv_dtype, **options).checked()
        model = open_model(model_path)
        chosen = replace(chosen, max_context=_context(model, max_context))
        concrete, reason = resolve(wanted, chosen.kv_type, model.config)
        _check_prefill(model, chosen)
        instance = kernels.Instance(model.config.H, chosen.kv_type.symbol)
        launcher = Launcher(device, kernels.build(source_patch, instance))
        engine = cls(model, launcher, concrete, reason, chosen)
        if check_weights:
            check_weights_on_device(launcher, model, engine._buffers)
        return engine

    def __init__(
        self, model: ModelFile, launcher: Launcher, route: Route, reason: str, options: Options
    ):
        config, kind = model.config, options.kv_type
        self.config, self.model_sha256 = config, model.sha256
        self.route, self.route_reason = route, reason
        self.kv_scales_L2K = options.kv_scales(model) if kind.scaled else None
        self.sites = sites_of(route)
        self.precision, self.prefill_precision = (
            declared_precision(config, chosen, kind, gemm, self.kv_scales_L2K)
            for chosen, gemm in (
                (route, "valu"),
                (Route("manual", route.matmul), options.prefill_gemm),
            )
        )
        self._launcher, self._device, self._options = launcher, launcher.device, options
        self._choice = _choose(route, launcher, model, options)
        # Rows of one sequence must all be appended before any is read: fused cannot.
        manual = _choose(Route("manual", route.matmul), launcher, model, options)
        self._prefill = replace(manual, gemm=options.prefill_gemm)
        self._code = StaticCode(launcher.code_object)
        self.code_object_sha256 = launcher.kernels[self._choice.symbol].code_object_sha256
        layout = KvLayout(
            kind, options.max_context, options.sequences, options.page_slots, options.pages
        )
        plan = MemoryPlan.of(model, layout, options.max_rows)
        self._buffers = plan.allocate(self._device)
        self._device.write(self._buffers["rope.cos_sin"], rope_table(config, layout.positions))
        for name, tensor in model.tensors.items():
            self._device.write(self._buffers[name], np.ascontiguousarray(tensor.data))
            model.release_pages()
        owner = f"an engine of model {model.sha256[:12]}"
        self._cache = KvCache(
            config, layout, self._device, self._buffers, self.kv_scales_L2K, owner
        )
        self._forward = Forward(
            *(model, launcher, self._cache, self._buffers, plan.max_chunks),
            read_offset_bytes=lambda layer: self.kv_layer_offset_bytes(layer),
        )
        self._cache.poison_guard(launcher)
        self._decoder = Decoder(
            self._forward, launcher, self._choice, self._buffers["step.history"]
        )
        self.reset()

    def reset(self):
        """Forgets every sequence, without poisoning its pages, and opens an empty sequence 0."""
        self._cache.clear()
        self._cache.pool.open()
        geometry = self._cache.geometry()
        self._observed = {
            phase: Observer(self._code, (geometry.k, geometry.v)) for phase in ("decode", "prefill")
        }

    def close(self):
        """Frees the device's memory; the engine cannot be used afterwards."""
        self._decoder.close()
        self._launcher.close()
        for buffer in self._buffers.values():
            self._device.free(buffer)
        self._buffers = {}

    @property
    def position(self) -> int:
        """Tokens of sequence 0 in the cache, which is the position of its next one."""
        return self._cache.pool.length(0)

    @property
    def pool(self):
        """Block tables, lengths and reference counts: to be read."""
        return self._cache.pool

    def kv_geometry(self) -> KvGeometry:
        return self._cache.geometry()

    def kv_layer_offset_bytes(self, layer: int) -> int:
        """The slab that attention *reads* for `layer`, in bytes from the start of kv.k and kv.v.

        The append has its own (Forward). Fault R7 of GRETA, attention handed the base of layer 0,
        is `engine.kv_layer_offset_bytes = lambda layer: 0`.
        """
        return self._cache.layer_offset_bytes(layer)

    def attest(self, phase: str = "decode") -> Attestation:
        """The route that launches since `reset` amount to.

        `phase`: "decode", or "prefill" for passes of several tokens of one sequence, which run
        manual kernels on every route: all rows are in the cache before any is read.
        """
        return self._observed[phase].attestation()

    def open_sequence(self) -> SequenceId:
        return self._cache.pool.open()

    def fork_sequence(self, sequence: int, length: int) -> SequenceId:
        """A new sequence that shares the first `length` tokens, pages and all, with another."""
        child = self._cache.pool.fork(sequence, length)
        self._cache.write_tables()
        return child

    def close_sequence(self, sequence: int):
        """Frees and poisons the pages that no other sequence shares."""
        freed = self._cache.pool.close(sequence)
        self._cache.write_tables()
        for page in freed:
            self._cache.poison_page(self._launcher, page)

    def prefill(
        self, token_ids: Sequence[int], taps: Taps | None = None, sequence: int = 0
    ) -> list[Step]:
        """Appends tokens to a sequence in passes of up to max_rows; one Step for each token.

        However the tokens are cut into passes, and whether the last one comes by `step`, on valu
        routes every Step has the same bits.

        Raises:
          ContextOverflow, OutOfPages, TokenRefused, UnknownSite: nothing was changed.
        """
        taps = self._check(token_ids, taps)
        self._reserve({sequence: len(token_ids)})
        steps: list[Step] = []
        while len(steps) < len(token_ids):
            first = self._cache.pool.length(sequence)
            chunk = token_ids[len(steps) : len(steps) + self._options.max_rows]
            rows = [Row(sequence, token, first + i) for i, token in enumerate(chunk)]
            steps += self._pass(rows, taps)
        return steps

    def step(self, token_id: int, taps: Taps | None = None, sequence: int = 0) -> Step:
        """Runs one token at the sequence's position; the cache then holds it.

        Raises:
          ContextOverflow, OutOfPages, TokenRefused, UnknownSite, WrongBlockTable: nothing was
            changed.
          DeviceFault: a kernel failed; the position did not advance.
        """
        return self.decode({sequence: token_id}, taps)[sequence]

    def decode(self, tokens: Mapping[int, int], taps: Taps | None = None) -> dict[int, Step]:
        """One token for each of several sequences, of any lengths, in one pass. As `step`."""
        taps = self._check(tokens.values(), taps)
        if not tokens:
            return {}
        self._reserve(dict.fromkeys(tokens, 1))
        rows = [Row(s, token, self._cache.pool.length(s)) for s, token in tokens.items()]
        return dict(zip(tokens, self._pass(rows, taps), strict=True))

    def generate(
        self, token_id: int, count: int, sequence: int = 0, until: Collection[int] = ()
    ) -> Generation:
        """Feeds `token_id`, then the token just chosen, `count` times or until one of `until`.

        The same tokens as `step` in a loop, without the host: tokens and positions stay on the
        device, each pass is one graph launch, and is under way when the token before is read.

        Raises:
          ContextOverflow, OutOfPages, TokenRefused: nothing was changed.
          DeviceFault: a kernel failed; the position did not advance.
        """
        if count < 1:
            raise TokenRefused(f"{count} tokens to generate: at least 1")
        self._check([token_id], None)
        self._reserve({sequence: count})
        self._launcher.take_records()
        row = Row(sequence, token_id, self._cache.pool.length(sequence))
        generated = self._decoder.free_run(row, count, until, self._observed["decode"])
        self._cache.pool.advance(sequence, len(generated.tokens))
        return generated

    def _check(self, token_ids, taps: Taps | None) -> Taps:
        for token_id in token_ids:
            if not 0 <= token_id < self.config.V:
                raise TokenRefused(f"token {token_id}: the vocabulary is 0..{self.config.V - 1}")
        taps = taps or NO_TAPS
        taps.check(self.sites, self.config.L)
        return taps

    def _reserve(self, wanted: dict[int, int]):
        for pages in self._cache.pool.reserve(wanted):
            self._cache.copy_page(self._launcher, pages)
        self._cache.write_tables()

    def _pass(self, rows: Sequence[Row], taps: Taps) -> list[Step]:
        self._launcher.take_records()  # of a pass that a fault ended, or of page copies
        batched = len({row.sequence for row in rows}) < len(rows)
        phase, choice = ("prefill", self._prefill) if batched else ("decode", self._choice)
        taken: dict = {}
        if taps.sites or batched:
            taken = self._forward.run(rows, choice, taps)
        else:
            self._decoder.step(rows)
        logits = self._forward.read_site("logits", NO_LAYER, rows)
        top1 = self._forward.read_top1(len(rows))
        records = self._launcher.take_records()
        self._observed[phase].add(records)
        for row in rows:
            self._cache.pool.advance(row.sequence, 1)
        return [
            Step(
                row.position,
                logits[i][0],
                top1[i],
                {place: arrays[i] for place, arrays in taken.items()},
                records,
            )
            for i, row in enumerate(rows)
        ]


def _context(model: ModelFile, wanted: int | None) -> int:
    longest = model.config.context_length
    positions = longest if wanted is None else wanted
    if not 0 < positions <= longest:
        raise ContextOverflow(f"a context of {positions} tokens: the model has 1 to {longest}")
    return positions


def _check_prefill(model: ModelFile, options: Options):
    """Raises RouteNotBuilt for matrices that the matrix-core GEMM does not take."""
    odd = [t for t in model.tensors.values() if t.rows > 1 and t.columns % UNIT]
    if options.prefill_gemm == "mfma" and odd:
        raise RouteNotBuilt(
            f"prefill_gemm mfma takes columns in multiples of {UNIT}, {odd[0].name} has "
            f"{odd[0].columns}: nearest is prefill_gemm valu"
        )


def _choose(route: Route, launcher: Launcher, model: ModelFile, options: Options):
    symbol = attention_symbol(launcher.kernels, route, options.kv_type, model.config)
    return KernelChoice(route, symbol, options.kv_type.symbol, options.window, options.softcap)
