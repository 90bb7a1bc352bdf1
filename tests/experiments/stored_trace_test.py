"""Traces on disk: what was written comes back, what was cut off is read up to the cut, what is not
a trace is refused."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.align import name_map, stored_trace, tensor_file
from experiments.align.errors import TraceError
from experiments.align.trace import Run, Trace

DIMS = {"D": 6, "N": 4, "K": 2, "H": 4, "F": 10, "V": 11, "L": 2}
RUN = Run("model", "prompt", (3, 1, 4, 1, 5))
T = len(RUN.token_ids_T)
RNG = np.random.default_rng(3)
SITES = name_map.load("sites")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def made_up() -> Trace:
    """A slab of which step 3 overwrote a slot, and one of every other kind of tensor."""
    slabs = [normal(T, 2, 4)[:1]]
    for position in range(1, T):
        slabs.append(np.concatenate([slabs[-1], normal(1, 2, 4)]))
        if position == 3:
            slabs[-1][1] = 7
    probs = [normal(4, position + 1) for position in range(T)]
    rows = {(-1, "embed"): normal(T, 6), (0, "attn.q"): normal(T, 4, 4), (1, "kv.k"): slabs}
    return Trace(RUN, rows | {(0, "attn.probs"): probs, (1, "resid.out"): normal(T, 6)})


def precision(trace):
    declared = {"store": "float32", "accumulate": "float32"}
    return {site: declared for _, site in trace.rows_by_place}


@pytest.fixture
def folder(tmp_path):
    trace = made_up()
    return stored_trace.write(tmp_path / "trace", trace, precision(trace), prompt="p"), trace


def read(folder, names=SITES):
    model = json.loads((folder / "trace.json").read_text())["model_sha256"]
    return stored_trace.read(folder, names, DIMS, model)


def same(left: Trace, right: Trace):
    assert left.run == right.run
    assert left.rows_by_place.keys() == right.rows_by_place.keys()
    for place, rows in left.rows_by_place.items():
        for ref, got in zip(rows, right.rows_by_place[place], strict=True):
            np.testing.assert_array_equal(ref, got)


def test_a_trace_comes_back_overwritten_slots_and_all(folder):
    stored = read(folder[0])
    same(folder[1], stored.trace)
    assert stored.complaints == () and stored.unknown == ()
    assert stored.manifest["prompt"] == "p"
    assert stored.precision["attn.q"]["store"] == "float32"


def test_a_file_a_step_is_the_same_trace(tmp_path):
    trace = made_up()
    for position in range(T):
        taken = {"0.attn.q": trace.rows(0, "attn.q")[position : position + 1]}
        taken |= {"1.kv.k": trace.rows(1, "kv.k")[position].copy()}
        save_file(taken, tmp_path / f"step_{position + 8}.safetensors")  # 8, 9, 10: as numbers
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    found = read(tmp_path).trace
    np.testing.assert_array_equal(found.rows(0, "attn.q"), trace.rows(0, "attn.q"))
    for ref, got in zip(trace.rows(1, "kv.k"), found.rows(1, "kv.k"), strict=True):
        np.testing.assert_array_equal(ref, got)


def manifest(**changes):
    run = {"model_sha256": "m", "prompt_sha256": "p", "token_ids": list(RUN.token_ids_T)}
    return run | changes


def test_a_cut_file_is_read_up_to_the_cut_wherever_it_is(tmp_path):
    tensors = {f"{layer}.attn.q": normal(T, 4, 4) for layer in range(2)}
    whole = tmp_path / "whole.safetensors"
    save_file(tensors, whole)
    data, path = whole.read_bytes(), tmp_path / "cut.safetensors"
    readable = []
    for size in range(len(data)):
        path.write_bytes(data[:size])
        found = tensor_file.read(path)
        assert found.lost and len(found.tensors) < 2
        for name, tensor in found.tensors.items():
            np.testing.assert_array_equal(tensor, tensors[name])
        readable.append(len(found.tensors))
    assert sorted(set(readable)) == [0, 1]
    path.write_bytes(data)
    assert not tensor_file.read(path).lost


def test_a_cut_trace_keeps_its_first_tokens_and_says_so(tmp_path):
    for position in range(T):
        taken = {f"{layer}.attn.q": normal(1, 4, 4) for layer in range(2)}
        save_file(taken, tmp_path / f"step_{position}.safetensors")
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    path = tmp_path / "step_3.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (tmp_path / "step_4.safetensors").unlink()
    stored = read(tmp_path)
    assert stored.trace.run.token_ids_T == RUN.token_ids_T[:3]
    assert {len(rows) for rows in stored.trace.rows_by_place.values()} == {3}
    assert "step_3.safetensors is cut off: 1 of its 2 tensors are lost" in stored.complaints[0]
    assert "ends after 3 of 5 tokens" in stored.complaints[1]


def test_an_npz_is_read_and_a_cut_one_is_lost(tmp_path):
    np.savez(tmp_path / "a.npz", **{"0.attn.q": normal(T, 4, 4)})
    save_file({"1.attn.q": normal(T, 4, 4)}, tmp_path / "b.safetensors")
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    assert len(read(tmp_path).trace.rows_by_place) == 2
    path = tmp_path / "a.npz"
    for size in (0, 3, 100, len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:size])
        stored = read(tmp_path)
        assert list(stored.trace.rows_by_place) == [(1, "attn.q")]
        assert "a.npz is cut off or damaged" in stored.complaints[0]


def test_bfloat16_is_read(tmp_path):
    header = {"0.attn.q": {"dtype": "BF16", "shape": [1, 4, 4], "data_offsets": [0, 32]}}
    text = json.dumps(header).encode()
    values = normal(1, 4, 4)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw.tobytes())
    expected = (raw.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(tensor_file.read(path).tensors["0.attn.q"], expected)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_sha256": ""}, "lacks model_sha256"),
        ({"prompt_sha256": 5}, "lacks prompt_sha256"),
        ({"token_ids": []}, "lacks token_ids"),
        ({"token_ids": [1, -2]}, "not all token ids"),
        ({"token_ids": [1, 2.5]}, "not all token ids"),
        ({"token_ids": [3, 1, 4]}, "5 rows, the trace has 3 tokens"),
        ({"precision": []}, "precision is not a mapping"),
        ({"files": {"model.safetensors": "0"}}, "corrupt: it has not the sha256"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(folder, changes, words):
    path = folder[0] / "trace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(TraceError, match=words):
        read(folder[0])


HEADER = {"0.attn.q": {"dtype": "F32", "shape": [5, 4, 4], "data_offsets": [0, 320]}}


def with_header(header) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(320)


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a.safetensors", b"I am not a tensor file, whatever", "not a safetensors file"),
        ("a.safetensors", with_header(b"{no json"), "header is corrupt"),
        ("a.safetensors", with_header(b"[1]"), "header is corrupt"),
        ("a.safetensors", with_header({"a": {"dtype": "F32"}}), "header is corrupt"),
        ("a.safetensors", with_header({"a": HEADER["0.attn.q"] | {"dtype": "I64"}}), "is I64"),
        ("a.safetensors", with_header({"a": HEADER["0.attn.q"] | {"shape": [9]}}), "of its shape"),
        ("a.safetensors", with_header({"q": HEADER["0.attn.q"]}), "no tensor that the map .* q"),
        ("a.npz", b"neither", "is not an npz"),
        ("a.txt", b"", "holds no .safetensors or .npz"),
    ],
)
def test_a_file_that_is_no_tensor_file_is_refused(tmp_path, name, data, words):
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TraceError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("shape", [(T, 4, 5), (T, 16), (T, 2, 4)])
def test_dims_that_are_not_those_declared_are_refused(tmp_path, shape):
    save_file({"0.attn.q": normal(*shape)}, tmp_path / "a.safetensors")
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    with pytest.raises(TraceError, match="'0.attn.q': shape .*the map declares TNH"):
        read(tmp_path)


def test_whole_numbers_are_no_tensor_of_an_engine(tmp_path):
    np.savez(tmp_path / "a.npz", **{"0.attn.q": np.zeros((T, 4, 4), np.int32)})
    (tmp_path / "trace.json").write_text(json.dumps(manifest()))
    with pytest.raises(TraceError, match="is int32, not a floating-point type"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["sites", "hf", "ggml", "greta"])
def test_a_shipped_map_declares_dims_and_dtype(name):
    names = name_map.load(name)
    assert {"attn.out", "kv.k", "resid.out", "logits"} <= names.sites
    assert name == "sites" or names.sites <= names.precision().keys()


@pytest.mark.parametrize(
    "name, tensor, place, row",
    [
        ("hf", "model.layers.7.self_attn.q_proj", (7, "attn.q"), (T, 4, 4)),
        ("hf", "cache.1.k", (1, "kv.k"), (T, 2, 4)),
        ("ggml", "kqv_out-0", (0, "attn.out"), (T, 4, 4)),
        ("ggml", "kq_soft_max-3", (3, "attn.probs"), (T, 4, T)),
        ("greta", "x_out.2", (2, "resid.out"), (T, 6)),
    ],
)
def test_a_name_of_another_engine_is_its_site_in_our_order(name, tensor, place, row):
    layer, found = name_map.load(name).find(tensor)
    assert (layer, found.sites[0]) == place
    sizes = DIMS | {"T": T, "S": T}
    shape = [int(np.prod([sizes[letter] for letter in axis])) for axis in found.axes]
    array = RNG.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    arranged = found.arranged(array, DIMS, "here")
    assert arranged.shape == row and sorted(arranged.flat) == sorted(array.flat)


def test_halves_become_pairs():
    _, q = name_map.load("hf").find("model.layers.0.self_attn.q_proj")
    row = np.tile(np.arange(4, dtype=np.float32), 4)[None]  # elements 0 1 | 2 3 of four heads
    assert q.arranged(row, DIMS, "here")[0, 2].tolist() == [0, 2, 1, 3]


GOOD = {"site": "attn.q", "dims": "TNH", "dtype": "float32"}


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1]", "a map has"),
        ("tensors: {}\nsites: {}", "a map has"),
        ("tensors: [a]", "maps names to"),
        (json.dumps({"tensors": {"q": {"dims": "TD"}}}), "needs a site and dims"),
        (json.dumps({"tensors": {"q.{layer}": GOOD | {"site": "q"}}}), "'q' is no site"),
        (json.dumps({"tensors": {"q.{layer}": GOOD | {"dims": "TKH"}}}), "not those of attn.q"),
        (json.dumps({"tensors": {"q.{layer}": GOOD | {"dims": "T[NH]"}}}), "is not like"),
        (json.dumps({"tensors": {"q.{layer}": GOOD | {"type": "x"}}}), "unknown key 'type'"),
        (json.dumps({"tensors": {"q.{layer}": GOOD | {"order": "odd"}}}), "order 'odd'"),
        (json.dumps({"tensors": {"q": GOOD}}), "belongs in names of sites that layers have"),
        ("tensors: {a: {", "no map"),
    ],
)
def test_a_map_that_is_wrong_is_refused(tmp_path, text, words):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(TraceError, match=words):
        name_map.load(str(path))


def test_an_unknown_map_is_refused_with_the_known_ones():
    with pytest.raises(TraceError, match="use one of ggml, greta, hf, sites, or a file"):
        name_map.load("vllm")
