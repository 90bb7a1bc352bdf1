"""Stored traces judged offline: an honest one passes, and nothing that is not whole ever does.

The engine under test is the oracle's own fp32 evaluation of a small random model, in our names.
"""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import align_traces, flags, localize
from experiments.align import sites, stored_trace, trace
from experiments.reference import rows_of
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import Taps

TOKENS = (5, 9, 2, 6, 5, 3)


def traced(path, policy, tokens=TOKENS):
    oracle = Oracle.open(path, policy)
    taps = oracle.prefill(tokens, Taps.everything()).taps
    rows = {place: rows_of(place[1], value) for place, value in taps.items()}
    return trace.Trace(trace.Run(oracle.model_sha256, trace.sha256("prompt"), tokens), rows)


def store(folder, found, dtype, **more):
    declared = dict.fromkeys(sites.SITES, {"store": dtype, "accumulate": dtype})
    return stored_trace.write(folder, found, declared, **more)


@pytest.fixture(scope="module")
def both(tiny_path, tmp_path_factory):
    """Folders of the reference and of an honest fp32 engine."""
    folder = tmp_path_factory.mktemp("traces")
    ref = store(folder / "ref", traced(tiny_path, Policy.fp64()), "float64")
    return ref, store(folder / "got", traced(tiny_path, Policy.fp32()), "float32")


@pytest.fixture
def got(both, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(both[1], tmp_path / "got")


def align(model, got, out_dir, *more):
    argv = ["align", f"--model={model}", f"--got={got}", f"--out_dir={out_dir}/out", *more]
    return align_traces.run(argv)


def lines(out_dir, name="align"):
    return json.loads((out_dir / "out" / f"{name}_run.json").read_text())["lines"]


def edit(folder, file, change):
    """Changes tensors of one file, and forgets its digest."""
    path = folder / file
    save_file(change(dict(load_file(path))), path)
    manifest = json.loads((folder / "trace.json").read_text())
    (folder / "trace.json").write_text(json.dumps(manifest | {"files": {}}))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def doubled(name):
    return lambda tensors: tensors | {name: tensors[name] * 2}


def test_an_honest_trace_passes_against_the_oracle(tiny_path, both, tmp_path):
    assert align(tiny_path, both[1], tmp_path) == flags.EXIT_PASS
    assert "3 of 3 layers judged; routes are not attested" in lines(tmp_path)


def run_localize(model, ref, got, out_dir):
    argv = [f"--model={model}", f"--ref={ref}", f"--got={got}", f"--out_dir={out_dir}/out"]
    return flags.run(localize.main, localize.__doc__, ["localize", *argv], localize.MORE)


def test_an_honest_trace_has_nothing_to_localize(tiny_path, both, tmp_path):
    assert run_localize(tiny_path, *both, tmp_path) == flags.EXIT_PASS


def test_a_fault_is_localized_from_files_alone(tiny_path, both, got, tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "prefill", None)  # no model is run
    edit(got, "layer_1.safetensors", doubled("1.ffn.up"))
    assert run_localize(tiny_path, both[0], got, tmp_path) == flags.EXIT_FAIL
    (first,) = [line for line in lines(tmp_path, "localize") if line.startswith("first div")]
    assert first.startswith("first divergence: ffn.up of layer 1, position 0")
    assert first.endswith("clean throughout: 0, 2")


def test_a_run_compared_with_itself_is_vacuous(tiny_path, both, tmp_path):
    assert align(tiny_path, both[0], tmp_path, f"--ref={both[0]}") == flags.EXIT_INCONCLUSIVE
    assert any("is vacuous: bit for bit" in line for line in lines(tmp_path))


@pytest.mark.parametrize("name", ["attn.out", "ffn.gate"])
def test_a_missing_site_is_no_pass(tiny_path, got, tmp_path, name):
    edit(got, "layer_1.safetensors", without(f"1.{name}"))
    assert align(tiny_path, got, tmp_path) == flags.EXIT_INCONCLUSIVE
    text = "\n".join(lines(tmp_path))
    assert f"{name} of layer 1 is missing: declared but not in the trace" in text


def test_what_was_captured_is_judged_where_an_input_was_not(tiny_path, got, tmp_path):
    edit(got, "layer_1.safetensors", without("1.ffn.norm"))
    chosen = "--points=ffn.gate,ffn.down"
    assert align(tiny_path, got, tmp_path, chosen) == flags.EXIT_INCONCLUSIVE
    text = "\n".join(lines(tmp_path))
    assert "ffn.gate of layer 1 is inconclusive: its input ffn.norm of layer 1" in text
    assert align(tiny_path, got, tmp_path, "--points=ffn.down") == flags.EXIT_PASS


def test_a_lost_file_is_no_pass(tiny_path, got, tmp_path):
    (got / "layer_2.safetensors").unlink()
    assert align(tiny_path, got, tmp_path) == flags.EXIT_INCONCLUSIVE
    assert align(tiny_path, got, tmp_path, "--layers=0,1", "--points=attn_out") == flags.EXIT_PASS


def cut(folder, file, share):
    path = folder / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def test_a_trace_that_was_cut_off_is_judged_up_to_the_cut(tiny_path, got, tmp_path):
    cut(got, "layer_2.safetensors", 0.6)
    assert align(tiny_path, got, tmp_path) == flags.EXIT_INCONCLUSIVE
    text = "\n".join(lines(tmp_path))
    assert "layer_2.safetensors is cut off:" in text and "no op is to blame" in text


def test_a_fault_before_the_cut_is_still_a_failure(tiny_path, got, tmp_path):
    edit(got, "layer_0.safetensors", doubled("0.ffn.act"))
    cut(got, "layer_2.safetensors", 0.6)
    assert align(tiny_path, got, tmp_path) == flags.EXIT_FAIL
    assert any(line.startswith("first divergence: ffn.act of layer 0") for line in lines(tmp_path))


def test_a_flipped_bit_is_refused(tiny_path, got, tmp_path, capsys):
    path = got / "layer_1.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert align(tiny_path, got, tmp_path) == flags.EXIT_USAGE
    assert "layer_1.safetensors is corrupt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tensor, at, place",
    [
        ("1.attn.out", (2, 1, 3), "attn.out of layer 1, position 2 (token 2)"),
        # A slot of the cache that the first two queries do not see.
        ("1.kv.v@000000006", (2, 1, 3), "kv.v of layer 1, position 2 (token 2)"),
    ],
)
def test_a_nan_is_found_where_it_arises(tiny_path, got, tmp_path, tensor, at, place):
    def spoil(tensors):
        tensors[tensor][at] = np.nan
        return tensors

    edit(got, "layer_1.safetensors", spoil)
    assert align(tiny_path, got, tmp_path) == flags.EXIT_FAIL
    first = next(line for line in lines(tmp_path) if line.startswith("first divergence"))
    assert f"{place}: nonfinite" in first
    assert "first nan at" in first and "inputs clean" in first


def test_another_model_is_refused(quantised_path, both, tmp_path, capsys):
    assert align(quantised_path, both[1], tmp_path, "--layers=0") == flags.EXIT_USAGE
    line = capsys.readouterr().err.splitlines()[-1]
    assert "refusing to judge" in line and "its model_sha256 is" in line


def test_other_tokens_are_refused(tiny_path, both, tmp_path, capsys):
    other = traced(tiny_path, Policy.fp32(), (5, 9, 2, 7, 5, 3))
    folder = store(tmp_path / "other", other, "float32")
    assert align(tiny_path, folder, tmp_path, f"--ref={both[0]}") == flags.EXIT_USAGE
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"token ids differ from position 3 on: 6 .*in the reference and 7 ", line)


def test_runs_of_unequal_length_are_refused(tiny_path, both, tmp_path, capsys):
    shorter = traced(tiny_path, Policy.fp32(), TOKENS[:4])
    folder = store(tmp_path / "shorter", shorter, "float32")
    assert align(tiny_path, folder, tmp_path, f"--ref={both[0]}") == flags.EXIT_USAGE
    said = "token ids differ from position 4 on: 5 ('&') in the reference and no token in the trace"
    assert said in capsys.readouterr().err


def test_another_prompt_is_refused(tiny_path, both, tmp_path, capsys):
    assert align(tiny_path, both[1], tmp_path, "--prompt=p0_short") == flags.EXIT_USAGE
    assert "is not a trace of --prompt=p0_short" in capsys.readouterr().err


def of_shipped_prompt(path, tmp_path, ids_of):
    """A stored trace of the shipped prompt p0_short, whose engine had its ids from `ids_of`."""
    text = flags.prompt_text("p0_short")
    ids = tuple(ids_of(Oracle.open(path, Policy.fp32()).tokenizer, text))
    found = traced(path, Policy.fp32(), ids)
    run = replace(found.run, prompt_sha256=trace.sha256(text))
    return store(tmp_path / "shipped", replace(found, run=run), "float32")


def test_ids_of_another_tokenizer_are_found_at_the_token_ids(tiny_path, tmp_path):
    """GRETA's L1: a byte tokenizer with a wrong BOS in place of the model's vocabulary."""
    wrong = of_shipped_prompt(
        tiny_path, tmp_path, lambda _, text: (1, *(byte % 97 for byte in text.encode()))
    )
    assert align(tiny_path, wrong, tmp_path) == flags.EXIT_FAIL
    said = [line for line in lines(tmp_path) if "token ids:" in line]
    assert (
        said and "token ids: 1 ('\"') at position 0, where the prompt in the vocabulary" in said[0]
    )
    assert "has 95 ('<|begin_of_text|>')" in said[0]


def test_ids_of_the_models_own_vocabulary_are_right(tiny_path, tmp_path):
    right = of_shipped_prompt(tiny_path, tmp_path, lambda own, text: own.encode_prompt(text))
    assert align(tiny_path, right, tmp_path) == flags.EXIT_PASS
    edit(right, "layer_2.safetensors", lambda tensors: {k: v[:-1] for k, v in tensors.items()})
    assert align(tiny_path, right, tmp_path) == flags.EXIT_INCONCLUSIVE  # cut off, not others


def test_of_a_prompt_that_nobody_knows_the_ids_are_not_checked(tiny_path, both, tmp_path):
    assert align(tiny_path, both[1], tmp_path) == flags.EXIT_PASS
    assert "token ids were not checked: no --prompt has this trace's digest" in lines(tmp_path)


@pytest.mark.parametrize(
    "more, words",
    [
        (("--got=",), "--got=FOLDER is needed"),
        (("--got=/nowhere",), "/nowhere is no trace"),
        (("--route=manual/mfma",), "--route decides nothing here"),
        (("--map=vllm",), "no map 'vllm'"),
        (("--layers=3",), "layer 3 does not exist"),
    ],
)
def test_bad_flags_are_refused(tiny_path, both, tmp_path, capsys, more, words):
    assert align(tiny_path, both[1], tmp_path, *more) == flags.EXIT_USAGE
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_localize_asks_for_a_reference(tiny_path, both, tmp_path, capsys):
    assert run_localize(tiny_path, "oracle", both[1], tmp_path) == flags.EXIT_USAGE
    assert "--ref=FOLDER is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "precision, words",
    [
        ({}, "no dtype is declared for"),
        ({"attn.q": {"store": "float99"}}, "the precision declared of attn.q"),
        ({"attn.q": {"accumulate": "float32"}}, "the precision declared of attn.q"),
        ({"attn.q": {"store": "float32", "speed": 1}}, "unknown precision keys"),
        ({"attn.q": 3}, "the precision declared of attn.q"),
        ({"kv.k": {"store": "float32", "scale_LK": [[1.0]]}}, "the precision declared of kv.k"),
        ({"kv.k": {"store": "float32", "scale_LK": [[1, 1]] * 9}}, "scale_LK is of kv.k and kv.v"),
        ({"attn.q": {"store": "float32", "scale_LK": [[1, 1]] * 9}}, "of kv.k and kv.v"),
        ({"kv.k": {"store": "float32", "scale_LK": [[3, 1]] * 9}}, "use powers of two"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(tiny_path, both, tmp_path, capsys, precision, words):
    bare = shutil.copytree(both[1], tmp_path / "bare")
    manifest = json.loads((bare / "trace.json").read_text())
    (bare / "trace.json").write_text(json.dumps(manifest | {"precision": precision}))
    assert align(tiny_path, bare, tmp_path) == flags.EXIT_USAGE
    assert words in capsys.readouterr().err
