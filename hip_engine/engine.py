"""Prefill and decode of a Llama on a device: every operation a kernel, every site readable."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hip_engine import kernels
from hip_engine.device import Device, LaunchRecord
from hip_engine.errors import ContextOverflow, EngineError, TokenRefused
from hip_engine.kv_cache import DTYPES, KERNEL_NAMES, KvCache, KvGeometry
from hip_engine.launcher import AttentionShape, Launcher, Matrix, attention_symbol
from hip_engine.memory_plan import MemoryPlan, rope_table, site_shapes
from hip_engine.routes import Attestation, Route, observe, resolve
from hip_engine.spot_check import check_weights_on_device
from hip_engine.taps import NO_LAYER, NO_TAPS, SITES, Step, Taps
from hip_engine.weights import ModelFile, open_model


class Engine:
    """One sequence on one device, from `open`; refusals are EngineErrors before any launch.

    Attributes:
      config, model_sha256, code_object_sha256: what runs.
      route, route_reason: the concrete route, and why `auto` became it.
      precision: site -> {"store", "accumulate"} dtypes, as the kernels are written.
      sites: the sites that can be tapped; attn.scores and attn.probs stay in registers.
      position: tokens in the cache, which is the position of the next one.
      launch_log: what was launched since `reset`.
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
    ) -> "Engine":
        """Checks the file, builds the kernels and puts the model on the device.

        `source_patch`: (file, old, new) changes of the kernels' sources, for fault injection.

        Raises:
          EngineError: a subclass that names what is wrong with the file, route, type or device.
        """
        wanted = route if isinstance(route, Route) else Route.parse(route)
        chosen, reason = resolve(wanted)
        if kv_dtype not in DTYPES:
            raise EngineError(f"unknown kv dtype {kv_dtype!r}: use {' or '.join(DTYPES)}")
        model = open_model(model_path)
        positions = model.config.context_length if max_context is None else max_context
        if not 0 < positions <= model.config.context_length:
            raise ContextOverflow(
                f"a context of {positions} tokens: the model has 1 to {model.config.context_length}"
            )
        engine = cls(model, Launcher(device, kernels.build(source_patch)), kv_dtype, positions)
        engine.route, engine.route_reason = chosen, reason
        if check_weights:
            check_weights_on_device(engine._launcher, model, engine._buffers)
            engine._launcher.take_records()
        return engine

    def __init__(self, model: ModelFile, launcher: Launcher, kv_dtype: str, positions: int):
        self.config = config = model.config
        self.model_sha256 = model.sha256
        self.sites = SITES
        kv_stored = {"kv.k": kv_dtype, "kv.v": kv_dtype}
        self.precision = {
            site: {"store": kv_stored.get(site, "float32"), "accumulate": "float32"}
            for site in SITES
        }
        self._model, self._launcher, self._device = model, launcher, launcher.device
        self._cache_name = KERNEL_NAMES[kv_dtype]
        self._attention = attention_symbol(launcher.kernels, self._cache_name, config.H, config.G)
        self.code_object_sha256 = launcher.kernels[self._attention].code_object_sha256
        plan = MemoryPlan.of(model, kv_dtype, positions)
        self._buffers = plan.allocate(self._device)
        self._address = {label: buffer.address for label, buffer in self._buffers.items()}
        self._cache = KvCache(config, kv_dtype, positions, self._buffers)
        self._shape = AttentionShape(
            config.N, config.K, config.H, self._cache.head_stride_elements, plan.max_chunks
        )
        self._site_shapes = site_shapes(config)
        self._device.write(self._buffers["rope.cos_sin"], rope_table(config, positions))
        for name, tensor in model.tensors.items():
            self._device.write(self._buffers[name], np.ascontiguousarray(tensor.data))
        self.reset()

    def reset(self):
        """Empties the cache: the next token is at position 0."""
        self.position = 0
        self.launch_log: list[LaunchRecord] = []

    def close(self):
        """Frees the device's memory; the engine cannot be used afterwards."""
        for buffer in self._buffers.values():
            self._device.free(buffer)
        self._buffers = {}

    def kv_geometry(self) -> KvGeometry:
        return self._cache.geometry

    def kv_layer_offset_bytes(self, layer: int) -> int:
        """The slab that attention *reads* for `layer`, in bytes from the start of kv.k and kv.v.

        The append has its own (KvCache.layer_offset_bytes). Fault R7 of GRETA, attention handed
        the base of layer 0, is `engine.kv_layer_offset_bytes = lambda layer: 0`.
        """
        return self._cache.layer_offset_bytes(layer)

    def attest(self) -> Attestation:
        """The route that what was launched since `reset` amounts to."""
        return observe(self.launch_log)

    def prefill(self, token_ids: Sequence[int], taps: Taps | None = None) -> list[Step]:
        """`step` for each token; refused as a whole if the tokens do not fit.

        Raises:
          ContextOverflow, TokenRefused: nothing was changed.
        """
        self._check_fits(token_ids)
        return [self.step(token_id, taps) for token_id in token_ids]

    def step(self, token_id: int, taps: Taps | None = None) -> Step:
        """Runs one token at the current position; the cache then holds it.

        Raises:
          ContextOverflow, TokenRefused, UnknownSite: nothing was changed.
          DeviceFault: a kernel failed; the position did not advance.
        """
        self._check_fits([token_id])
        taps = taps or NO_TAPS
        taps.check(self.config.L)
        self._launcher.take_records()  # of a step that a fault ended
        self._write_int("step.token", token_id)
        self._write_int("step.position", self.position)
        taken = self._run(taps)
        logits_V = self._read_site("logits")[0]
        top1 = int(self._device.read(self._buffers["step.top1"], np.dtype(np.int32), 1)[0])
        records = self._launcher.take_records()
        self.launch_log.extend(records)
        self.position += 1
        return Step(self.position - 1, logits_V, top1, taken, records)

    def _check_fits(self, token_ids: Sequence[int]):
        room = self._cache.geometry.positions - self.position
        if len(token_ids) > room:
            raise ContextOverflow(
                f"{len(token_ids)} tokens at position {self.position}: the cache has room for "
                f"{room} of {self._cache.geometry.positions}"
            )
        for token_id in token_ids:
            if not 0 <= token_id < self.config.V:
                raise TokenRefused(f"token {token_id}: the vocabulary is 0..{self.config.V - 1}")

    def _run(self, taps: Taps) -> dict[tuple[int, str], np.ndarray]:
        """The whole model at the current position."""
        config, at, launch = self.config, self._address, self._launcher
        taken: dict[tuple[int, str], np.ndarray] = {}

        def tap(layer: int, *sites: str):
            for site in sites:
                if taps.wants(layer, site):
                    taken[layer, site] = self._read_site(site, layer)

        embedding = self._model.tensors["token_embd.weight"]
        launch.gather_rows(
            embedding.format, at[embedding.name], at["step.token"], at["embed"], config.D, T=1
        )
        tap(NO_LAYER, "embed")
        x = "embed"
        for layer in range(config.L):
            self._attend(layer, x, tap)
            self._feed_forward(layer, tap)
            x = "resid.out"
        self._norm(x, "output_norm.weight", "final.norm")
        tap(NO_LAYER, "final.norm")
        output = "output.weight" if "output.weight" in self._model.tensors else embedding.name
        self._project("final.norm", {output: "logits"})
        tap(NO_LAYER, "logits")
        launch.argmax(at["logits"], at["step.top1"], config.V, T=1)
        return taken

    def _attend(self, layer: int, x: str, tap):
        config, at, launch, block = self.config, self._address, self._launcher, f"blk.{layer}"
        N, K, H = config.N, config.K, config.H
        self._norm(x, f"{block}.attn_norm.weight", "attn.norm")
        tap(layer, "attn.norm")
        qkv = {f"{block}.attn_{name}.weight": f"attn.{name}" for name in "qkv"}
        self._project("attn.norm", qkv)
        tap(layer, "attn.q", "attn.k", "attn.v")
        turned = (at["attn.q_rope"], at["attn.k_rope"])
        position = at["step.position"]
        launch.rope(
            at["attn.q"], at["attn.k"], at["rope.cos_sin"], position, turned, (N, K, H), T=1
        )
        tap(layer, "attn.q_rope", "attn.k_rope")
        written = [at[name] + self._cache.layer_offset_bytes(layer) for name in ("kv.k", "kv.v")]
        stride = self._shape.head_stride
        launch.kv_append(
            self._cache_name, turned[1], at["attn.v"], position, written, stride, (K, H), T=1
        )
        tap(layer, "kv.k", "kv.v")
        read = [at[name] + self.kv_layer_offset_bytes(layer) for name in ("kv.k", "kv.v")]
        partials = [at[f"attn.partial_{name}"] for name in ("max", "sum", "out")]
        S = self.position + 1
        launch.attention(
            self._attention, turned[0], read, position, partials, at["attn.out"], S, self._shape
        )
        tap(layer, "attn.out")
        self._project("attn.out", {f"{block}.attn_output.weight": "attn.proj"})
        tap(layer, "attn.proj")
        launch.residual_add(at[x], at["attn.proj"], at["resid.mid"], config.D)
        tap(layer, "resid.mid")

    def _feed_forward(self, layer: int, tap):
        at, launch, block = self._address, self._launcher, f"blk.{layer}"
        self._norm("resid.mid", f"{block}.ffn_norm.weight", "ffn.norm")
        tap(layer, "ffn.norm")
        self._project(
            "ffn.norm",
            {f"{block}.ffn_{name}.weight": f"ffn.{name}" for name in ("gate", "up")},
        )
        tap(layer, "ffn.gate", "ffn.up")
        launch.swiglu(at["ffn.gate"], at["ffn.up"], at["ffn.act"], self.config.F)
        tap(layer, "ffn.act")
        self._project("ffn.act", {f"{block}.ffn_down.weight": "ffn.down"})
        tap(layer, "ffn.down")
        launch.residual_add(at["resid.mid"], at["ffn.down"], at["resid.out"], self.config.D)
        tap(layer, "resid.out")

    def _norm(self, x: str, weight: str, output: str):
        at, config = self._address, self.config
        self._launcher.rms_norm(at[x], at[weight], at[output], config.D, config.norm_eps, T=1)

    def _project(self, x: str, outputs: dict[str, str]):
        """Weight names -> sites; weights of one format share a launch."""
        by_format: dict[str, list[Matrix]] = {}
        for name, site in outputs.items():
            tensor = self._model.tensors[name]
            matrix = Matrix(self._address[name], self._address[site], tensor.rows)
            by_format.setdefault(tensor.format, []).append(matrix)
        for format, matrices in by_format.items():
            self._launcher.gemv(format, self._address[x], matrices, tensor.columns, T=1)

    def _read_site(self, site: str, layer: int = NO_LAYER) -> np.ndarray:
        if site in ("kv.k", "kv.v"):
            return self._cache.live_slab(
                self._device, site.removeprefix("kv."), layer, self.position + 1
            )
        shape = self._site_shapes[site]
        count = int(np.prod(shape))
        flat = self._device.read(self._buffers[site], np.dtype(np.float32), count)
        return flat.reshape(1, *shape)

    def _write_int(self, label: str, value: int):
        self._device.write(self._buffers[label], np.array([value], np.int32))
