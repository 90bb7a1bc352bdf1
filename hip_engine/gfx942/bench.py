"""Speed of the emulated device: what each figure is, what bounds it, and torch beside it.

`python -m hip_engine.gfx942 bench` prints one table; every ratio comes from one run.
"""

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from hip_engine import kernels
from hip_engine.arguments import ATTN_ARGS, KV_VIEW, record
from hip_engine.device import LaunchRecord
from hip_engine.gfx942 import jit
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.disassembly import disassemble
from hip_engine.gfx942.sanitizer import CHECKS
from hip_engine.launcher import ATTENTION_CHUNK, Launcher
from hip_engine.toolchain import find_compiler, run

FLAGS = (
    *("-x", "hip", "--offload-arch=gfx942", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpulib", "-nogpuinc", "-O3", "-ffp-contract=off"),
)
CHAINS = 16
COLD_INSTRUCTIONS = 3000
N, K, H, S = 32, 8, 128, 4096  # decode attention of Llama-3-8B
SHAPE = f"N {N}, K {K}, H {H}, S {S}, fp16 cache"
REPEATS = 5
WIDTH = 140  # of the table where the output is no terminal

FMA_SOURCE = f"""
extern "C" __attribute__((global)) void fma_chains(float* c, int n) {{
  int t = __builtin_amdgcn_workitem_id_x();
  float x[{CHAINS}];
  for (int i = 0; i < {CHAINS}; i++) x[i] = c[t + i];
  for (int i = 0; i < n; i++)
#pragma unroll
    for (int k = 0; k < {CHAINS}; k++)
      x[k] = __builtin_fmaf(x[k], x[(k + 1) % {CHAINS}], x[(k + 5) % {CHAINS}]);
  float s = 0;
  for (int i = 0; i < {CHAINS}; i++) s += x[i];
  c[t] = s;
}}
"""
MFMA_SOURCE = """
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef float float4 __attribute__((ext_vector_type(4)));
extern "C" __attribute__((global)) void mfma_chain(const half4* a, float4* c, int n) {
  int t = __builtin_amdgcn_workitem_id_x();
  float4 x = c[t];
  for (int i = 0; i < n; i++)
    x = __builtin_amdgcn_mfma_f32_16x16x16f16(a[t], a[t + 64], x, 0, 0, 0);
  c[t] = x;
}
"""


class Row(NamedTuple):
    """One figure: what was measured, the value with its unit, the bar it is held to, the bound."""

    what: str
    value: str
    bar: str
    bound: str


def build(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.hip"
        path.write_text(source)
        done = run([find_compiler()[0], *FLAGS, str(path), "-o", str(path.with_suffix(".co"))])
        if done.returncode:
            raise RuntimeError(done.stderr)
        return path.with_suffix(".co").read_bytes()


def median_seconds(
    function: Callable[[], LaunchRecord | None], clock: Callable[[], float] = time.process_time
) -> float:
    """Of REPEATS calls after a first one; CPU seconds of this process unless told otherwise."""
    function()
    times = []
    for _ in range(REPEATS):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


def fma_rate() -> Row:
    device = EmulatedDevice(threads=1)
    kernel = device.load(build(FMA_SOURCE))["fma_chains"]
    data = device.allocate(4 * 256, "c")
    device.write(data, np.full(256, 0.1, np.float32))

    def launch() -> LaunchRecord:
        return device.launch(kernel, (1, 1, 1), (64, 1, 1), [data, np.int32(200_000)])

    executed = sum(launch().executed.values())
    rate = executed / median_seconds(launch) / 1e6
    bound = "register file in L1: three loads and a store of 256 bytes an instruction"
    return Row("fp32 fma, one core", f"{rate:.0f} M wave instr/s", ">= 200", bound)


def mfma_cost() -> Row:
    device = EmulatedDevice(threads=1)
    kernel = device.load(build(MFMA_SOURCE))["mfma_chain"]
    rng = np.random.default_rng(0)
    a, c = device.allocate(1024, "a"), device.allocate(1024, "c")
    device.write(a, rng.standard_normal(512).astype(np.float16))
    count = 20_000

    def launch() -> LaunchRecord:
        device.write(c, np.zeros(256, np.float32))
        return device.launch(kernel, (1, 1, 1), (64, 1, 1), [a, c, np.int32(count)])

    cost = median_seconds(launch) / count * 1e6
    bound = "integer vectors: 16 aligned products and two roundings an element"
    return Row("v_mfma_f32_16x16x16_f16, one core", f"{cost:.2f} us", "<= 2", bound)


def cold_translation() -> Row:
    """From machine code to native code, nothing cached, of one kernel of 3,000 instructions."""
    body = "\n".join(
        f"  x[{i % 24}] = __builtin_fmaf(x[{i % 24}], x[{(i * 7 + 3) % 24}], c[t + {i % 64}]);"
        for i in range(COLD_INSTRUCTIONS)
    )
    source = f"""
extern "C" __attribute__((global)) void straight(float* c) {{
  int t = __builtin_amdgcn_workitem_id_x();
  float x[24];
  for (int i = 0; i < 24; i++) x[i] = c[t + i];
{body}
  for (int i = 0; i < 24; i++) c[t + i] = x[i];
}}
"""
    data = build(source)
    code = CodeObject.parse(data)
    kernel = code.kernels["straight"]
    jit.runtime()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        made = jit.build(Path(folder) / "k", code, kernel, disassemble(data), False)
        seconds = time.perf_counter() - start
    count = len(made["sites"])
    return Row(
        f"cold translation of {count} instructions",
        f"{seconds:.2f} s",
        "< 5 for 3,000",
        "LLVM's instruction selection and register allocation",
    )


class Attention:
    """Decode attention of one token over S slots, fp16 cache, as the engine launches it."""

    def __init__(self, threads: int | None, **options):
        self.device = EmulatedDevice(threads=threads, **options)
        instance = kernels.Instance(H, "f16")
        self.launcher = Launcher(self.device, kernels.build(instance=instance))
        rng = np.random.default_rng(1)
        self.q_NH = rng.standard_normal((N, H)).astype(np.float32)
        self.k_KSH, self.v_KSH = (
            rng.standard_normal((K, S, H)).astype(np.float16) for _ in range(2)
        )
        self.symbol = f"attn_manual_valu_f16_h{H}_g{N // K}"
        self.chunks = math.ceil(S / ATTENTION_CHUNK)
        self.out = self.device.allocate(4 * N * H, "out")
        self.args = self._arguments()

    def _put(self, array: np.ndarray) -> int:
        buffer = self.device.allocate(array.nbytes, "input")
        self.device.write(buffer, array)
        return buffer.address

    def _room(self, count: int) -> int:
        return self.device.allocate(4 * count, "partials").address

    def _arguments(self) -> np.ndarray:
        args = np.zeros((), ATTN_ARGS)
        args["kv"] = record(
            KV_VIEW,
            k_PKJH=self._put(self.k_KSH),
            v_PKJH=self._put(self.v_KSH),
            table_BP=self._put(np.zeros(1, np.int32)),
            scales_2K=self._put(np.ones(2 * K, np.float32)),
            page_stride=K * S * H,
            head_stride=S * H,
            log2_page=31,
            table_stride=1,
        )
        args["q_TNH"] = self._put(self.q_NH)
        args["position_T"] = self._put(np.array([S - 1], np.int32))
        args["sequence_T"] = self._put(np.zeros(1, np.int32))
        for name, count in (("max_TNC", 1), ("sum_TNC", 1), ("out_TNCH", H)):
            args[name] = self._room(N * self.chunks * count)
        args["N"], args["K"], args["max_chunks"], args["scale"] = N, K, self.chunks, H**-0.5
        return args

    def launch(self) -> None:
        self.launcher.attention(self.symbol, self.args, S, H, self.out.address, 1)

    def executed(self) -> int:
        self.launcher.take_records()
        self.launch()
        return sum(sum(r.executed.values()) for r in self.launcher.take_records())


def attention_rate() -> Row:
    attention = Attention(threads=1)
    executed = attention.executed()
    rate = executed / median_seconds(attention.launch) / 1e6
    bound = "loads whose lanes are gathered, LDS, cross-lane sums"
    what = f"attention kernels' mix, one core ({executed / 1e6:.1f} M)"
    return Row(what, f"{rate:.0f} M wave instr/s", ">= 100", bound)


def checks_cost() -> list[Row]:
    """Counters and sanitizers on the attention kernels, one core, against the same without: code
    that makes no call to the observer.
    """
    plain = median_seconds(Attention(threads=1).launch)
    counted = median_seconds(Attention(threads=1, counters=True).launch)
    rows = [Row("counters / none", f"{counted / plain:.2f} x", "< 2", "lines and banks of a load")]
    bounds = {
        "memory": "the observer's call; bounds are always checked",
        "init": "a bit a lane and register, a mark a byte",
        "race": "a record of 8 bytes a byte",
        "waitcnt": "two counters a register",
        "align": "the observer's call",
    }
    for names in (*((name,) for name in CHECKS), tuple(CHECKS)):
        slow = median_seconds(Attention(threads=1, sanitize=names).launch)
        what = f"sanitize={','.join(names)} / none"
        bound = bounds[names[0]] if len(names) == 1 else "their sum, the observer called once"
        rows.append(Row(what, f"{slow / plain:.2f} x", "<= 10", bound))
    return rows


def against_torch() -> list[Row]:
    """The same decode attention through torch on the same cores, in the dtypes of each."""
    import torch

    attention = Attention(threads=None)
    ours = median_seconds(attention.launch, time.perf_counter)
    rows = [Row(f"emulated decode attention, {SHAPE}", f"{ours * 1e3:.1f} ms", "", "two cores")]
    for dtype in (torch.float16, torch.float32):
        query = torch.from_numpy(attention.q_NH)[None, :, None].to(dtype)
        key, value = (
            torch.from_numpy(x)[None].to(dtype) for x in (attention.k_KSH, attention.v_KSH)
        )
        attend = functools.partial(
            torch.nn.functional.scaled_dot_product_attention, query, key, value, enable_gqa=True
        )
        theirs = median_seconds(attend, time.perf_counter)
        name = str(dtype).removeprefix("torch.")
        rows.append(Row(f"torch SDPA, {name}", f"{theirs * 1e3:.1f} ms", "", "two cores"))
        rows.append(Row(f"emulated / torch {name}", f"{ours / theirs:.2f} x", "<= 10", ""))
    return rows


def main() -> None:
    table = Table("figure", "measured", "bar", "bounded by", title="The emulated MI300X")
    for measure in (fma_rate, mfma_cost, cold_translation, attention_rate):
        table.add_row(*measure())
    for measure in (checks_cost, against_torch):
        for row in measure():
            table.add_row(*row)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)


if __name__ == "__main__":
    main()
