"""One pass of rows through the model, launch by launch. A row is a token of a sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hip_engine.arguments import ATTN_ARGS
from hip_engine.device import Buffer, Graph
from hip_engine.kv_cache import KvCache
from hip_engine.launcher import Launcher, Matrix
from hip_engine.memory_plan import site_shapes
from hip_engine.routes import Route
from hip_engine.taps import NO_LAYER, Taps
from hip_engine.weights import ModelFile

Tapped = dict[tuple[int, str], list[np.ndarray]]


class Row(NamedTuple):
    """A token to process, and the slot of its sequence that it will fill."""

    sequence: int
    token: int
    position: int


@dataclass(frozen=True)
class KernelChoice:
    """The kernels of a pass: attention's route and symbol, how the cache is spelt, the GEMMs."""

    route: Route
    symbol: str
    cache: str
    window: int = 0
    softcap: float = 0.0
    gemm: str = "valu"


class Forward:
    """The model's weights and buffers on the device, and the order of the launches.

    `read_offset_bytes(layer)`: where attention takes the layer's slabs to start. The append takes
    the cache's own offset: the two can be made to differ, which is GRETA's fault R7.
    """

    def __init__(
        self,
        model: ModelFile,
        launcher: Launcher,
        cache: KvCache,
        buffers: dict[str, Buffer],
        max_chunks: int,
        read_offset_bytes: Callable[[int], int],
    ):
        self.config, self._tensors = model.config, model.tensors
        self._launch, self._cache, self._buffers = launcher, cache, buffers
        self._at = {label: buffer.address for label, buffer in buffers.items()}
        self._max_rows = buffers["step.rows"].nbytes // (4 * len(Row._fields))
        for number, label in enumerate(Row._fields):
            self._at[f"step.{label}"] = self._at["step.rows"] + 4 * self._max_rows * number
        self._read_offset_bytes = read_offset_bytes
        self._site_shapes = site_shapes(model.config)
        self._attention = self._attention_args(max_chunks)

    def run(self, rows: Sequence[Row], choice: KernelChoice, taps: Taps) -> Tapped:
        """Every launch of a pass, one by one; taps come back as one array a row.

        A site is read, and given to the taps' sink, before the next kernel is launched.
        """
        taken: Tapped = {}

        def tap(layer: int, *sites: str):
            for site in sites:
                if taps.wants(layer, site):
                    taken[layer, site] = self.read_site(site, layer, rows)
                    if taps.sink is not None:
                        taps.sink(layer, site, rows, taken[layer, site])

        self.write_rows(rows)
        S = max(row.position for row in rows) + 1
        self._launch_pass(len(rows), S, choice, tap)
        return taken

    def capture(self, T: int, S: int, choice: KernelChoice) -> Graph:
        """A pass of T rows and the advance to the next, for sequences of up to S slots.

        Tokens, positions and tables are read on the device when the graph runs.
        """
        at, positions = self._at, self._cache.layout.positions

        def launch():
            self._launch_pass(T, S, choice, lambda layer, *sites: None)
            rows = at["step.top1"], at["step.token"], at["step.position"]
            self._launch.advance(*rows, at["step.history"], positions, T)

        return self._launch.capture(launch)

    def write_rows(self, rows: Sequence[Row]):
        """Tokens, positions and sequences of the next pass, in one copy."""
        ints = np.zeros((len(Row._fields), self._max_rows), np.int32)
        for row, label in zip(ints, Row._fields, strict=True):
            row[: len(rows)] = [getattr(r, label) for r in rows]
        self._launch.device.write(self._buffers["step.rows"], ints)

    def _launch_pass(self, T: int, S: int, choice: KernelChoice, tap):
        """Launches of T rows whose sequences have up to S slots; `tap(layer, *sites)` may read."""
        config, at = self.config, self._at
        embedding = self._tensors["token_embd.weight"]
        tokens = at["step.token"]
        self._launch.gather_rows(
            embedding.format, at[embedding.name], tokens, at["embed"], config.D, T
        )
        tap(NO_LAYER, "embed")
        x = "embed"
        for layer in range(config.L):
            self._attend(layer, x, (T, S), choice, tap)
            self._feed_forward(layer, T, choice.gemm, tap)
            x = "resid.out"
        self._norm(x, "output_norm.weight", "final.norm", T)
        tap(NO_LAYER, "final.norm")
        output = "output.weight" if "output.weight" in self._tensors else embedding.name
        self._project("final.norm", {output: "logits"}, T, choice.gemm)
        tap(NO_LAYER, "logits")
        self._launch.argmax(at["logits"], at["step.top1"], config.V, T)

    def read_top1(self, T: int) -> list[int]:
        device = self._launch.device
        return device.read(self._buffers["step.top1"], np.dtype(np.int32), T).tolist()

    def read_site(self, site: str, layer: int, rows: Sequence[Row]) -> list[np.ndarray]:
        """One array a row: the site with a leading 1, or the slab up to the row's own slot."""
        if site in ("kv.k", "kv.v"):
            which = site.removeprefix("kv.")
            return [
                self._cache.live_slab(which, layer, row.sequence, row.position + 1) for row in rows
            ]
        shape = self._site_shapes[site]
        count = len(rows) * int(np.prod(shape))
        flat = self._launch.device.read(self._buffers[site], np.dtype(np.float32), count)
        return np.split(flat.reshape(len(rows), *shape), len(rows))

    def _attend(self, layer: int, x: str, TS: tuple[int, int], choice: KernelChoice, tap):
        at, T, block = self._at, TS[0], f"blk.{layer}"
        self._norm(x, f"{block}.attn_norm.weight", "attn.norm", T)
        tap(layer, "attn.norm")
        qkv = {f"{block}.attn_{name}.weight": f"attn.{name}" for name in "qkv"}
        self._project("attn.norm", qkv, T, choice.gemm)
        tap(layer, "attn.q", "attn.k", "attn.v")
        if choice.route.kernel == "manual":
            self._turn_and_append(layer, choice.cache, T, tap)
        self._attention_launch(layer, TS, choice)
        if choice.route.kernel == "fused":
            tap(layer, "kv.k", "kv.v")
        tap(layer, "attn.out")
        self._project("attn.out", {f"{block}.attn_output.weight": "attn.proj"}, T, choice.gemm)
        tap(layer, "attn.proj")
        count = T * self.config.D
        self._launch.residual_add(at[x], at["attn.proj"], at["resid.mid"], count)
        tap(layer, "resid.mid")

    def _turn_and_append(self, layer: int, cache: str, T: int, tap):
        config, at = self.config, self._at
        turned = at["attn.q_rope"], at["attn.k_rope"]
        rows = at["step.position"], at["step.sequence"]
        shape = config.N, config.K, config.H
        self._launch.rope(at["attn.q"], at["attn.k"], at["rope.cos_sin"], rows[0], turned, shape, T)
        tap(layer, "attn.q_rope", "attn.k_rope")
        view = self._cache.view(layer, self._cache.layer_offset_bytes(layer))
        self._launch.kv_append(cache, turned[1], at["attn.v"], rows, view, shape[1:], T)
        tap(layer, "kv.k", "kv.v")

    def _attention_launch(self, layer: int, TS: tuple[int, int], choice: KernelChoice):
        args, at, (T, S) = self._attention, self._at, TS
        fused = choice.route.kernel == "fused"
        args["q_TNH"] = at["attn.q" if fused else "attn.q_rope"]
        args["kv"] = self._cache.view(layer, self._read_offset_bytes(layer))
        append = self._cache.layer_offset_bytes(layer)
        args["k_append_PKJH"] = at["kv.k"] + append
        args["v_append_PKJH"] = at["kv.v"] + append
        args["window"], args["softcap"] = choice.window, choice.softcap
        self._launch.attention(choice.symbol, args, S, self.config.H, at["attn.out"], T)

    def _attention_args(self, max_chunks: int) -> np.ndarray:
        """What does not change from launch to launch."""
        args, at, config = np.zeros((), ATTN_ARGS), self._at, self.config
        labels = {
            "k_TKH": "attn.k",
            "v_TKH": "attn.v",
            "cos_sin_SH": "rope.cos_sin",
            "position_T": "step.position",
            "sequence_T": "step.sequence",
            "max_TNC": "attn.partial_max",
            "sum_TNC": "attn.partial_sum",
            "out_TNCH": "attn.partial_out",
        }
        for field, label in labels.items():
            args[field] = at[label]
        args["N"], args["K"], args["max_chunks"] = config.N, config.K, max_chunks
        args["scale"] = config.H**-0.5
        return args

    def _feed_forward(self, layer: int, T: int, gemm: str, tap):
        at, block = self._at, f"blk.{layer}"
        self._norm("resid.mid", f"{block}.ffn_norm.weight", "ffn.norm", T)
        tap(layer, "ffn.norm")
        gate_up = {f"{block}.ffn_{name}.weight": f"ffn.{name}" for name in ("gate", "up")}
        self._project("ffn.norm", gate_up, T, gemm)
        tap(layer, "ffn.gate", "ffn.up")
        self._launch.swiglu(at["ffn.gate"], at["ffn.up"], at["ffn.act"], T * self.config.F)
        tap(layer, "ffn.act")
        self._project("ffn.act", {f"{block}.ffn_down.weight": "ffn.down"}, T, gemm)
        tap(layer, "ffn.down")
        count = T * self.config.D
        self._launch.residual_add(at["resid.mid"], at["ffn.down"], at["resid.out"], count)
        tap(layer, "resid.out")

    def _norm(self, x: str, weight: str, output: str, T: int):
        at, config = self._at, self.config
        self._launch.rms_norm(at[x], at[weight], at[output], config.D, config.norm_eps, T)

    def _project(self, x: str, outputs: dict[str, str], T: int, gemm: str):
        """Weight names -> sites; on vector ALUs, weights of one format share a launch."""
        by_format: dict[str, list[Matrix]] = {}
        for name, site in outputs.items():
            tensor = self._tensors[name]
            matrix = Matrix(self._at[name], self._at[site], tensor.rows)
            by_format.setdefault(tensor.format, []).append(matrix)
        for format, matrices in by_format.items():
            if gemm == "mfma" and T > 1:
                for matrix in matrices:
                    self._launch.gemm_mfma(format, self._at[x], matrix, tensor.columns, T)
                continue
            self._launch.gemv(format, self._at[x], matrices, tensor.columns, T)
