"""A transformers model, written by the README's helper, judged offline: clean, and with a fault."""

import json
import re

import pytest

from experiments import align_traces, flags
from experiments.align import name_map, records
from greta_jax.gguf.reader import GgufFile
from greta_jax.tokenizer import Tokenizer

PROMPT = "<|begin_of_text|>Write one short sentence."
LAYERS = "--layers=0,1,2"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def helper():
    """`write_trace` as the README has it."""
    text = (flags.ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(import hashlib.*?)^```$", text, re.M | re.S)
    assert len(code.splitlines()) <= 40
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    return scope["write_trace"]


def write(folder, change=lambda model: None):
    file = GgufFile(flags.DEFAULT_MODEL)
    ids = Tokenizer.from_gguf(file.metadata, file.path).encode(PROMPT)
    helper()(flags.DEFAULT_MODEL, PROMPT, ids, folder, change)
    return folder


def judge(trace, out_dir, *more):
    argv = ["align", f"--got={trace}", "--map=hf", f"--out_dir={out_dir}", LAYERS, *more]
    code = align_traces.run(argv)
    return code, json.loads((out_dir / "align_run.json").read_text())


@pytest.fixture(scope="module")
def clean_trace(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hf"))


def test_an_honest_transformers_model_is_clean(clean_trace, tmp_path):
    code, run = judge(clean_trace, tmp_path)
    assert code == flags.EXIT_PASS, run["lines"]
    judged = {
        r["site"] for r in records.read(tmp_path / "align.jsonl") if r["event"] == "site_verify"
    }
    assert judged >= name_map.load("hf").sites
    assert any("3 of 32 layers judged" in line for line in run["lines"])


def gate_scaled(model):
    """The gate of layer 1 half as large again."""
    model.model.layers[1].mlp.gate_proj.weight.data *= 1.5


def heads_swapped(model):
    """The first two query heads reach the output projection of layer 2 in each other's place."""

    def swap(module, args):
        x = args[0].clone()
        H = model.config.head_dim
        x[..., :H], x[..., H : 2 * H] = args[0][..., H : 2 * H], args[0][..., :H]
        return (x, *args[1:])

    model.model.layers[2].self_attn.o_proj.register_forward_pre_hook(swap)


@pytest.mark.parametrize(
    "change, place",
    [
        (gate_scaled, "ffn.gate of layer 1, position 0"),
        # With one key, heads of a group see the same value: only the second token tells.
        pytest.param(heads_swapped, "attn.out of layer 2, position 1", marks=pytest.mark.slow),
    ],
)
def test_an_injected_error_is_found_and_placed(change, place, tmp_path):
    code, run = judge(write(tmp_path / "trace", change), tmp_path)
    assert code == flags.EXIT_FAIL
    (first,) = [line for line in run["lines"] if line.startswith("first divergence")]
    assert first.startswith(f"first divergence: {place}")
    assert "clean throughout: 0" in first
