"""Reading GGUF headers: agreement with gguf-py on good files, one-line errors on bad ones."""

import resource
import struct

import gguf
import numpy as np
import pytest

from greta_jax.errors import GgufError
from greta_jax.gguf.reader import GgufFile


def written(tmp_path, data: bytes):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    return path


def refused(path, *words) -> str:
    with pytest.raises(GgufError) as caught:
        GgufFile(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message
    return message


def test_header_agrees_with_gguf_py(quantised_path):
    ours, theirs = GgufFile(quantised_path), gguf.GGUFReader(quantised_path)
    keys = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert set(ours.metadata) == set(keys)
    for key, field in keys.items():
        np.testing.assert_array_equal(ours.metadata[key], field.contents(), err_msg=key)
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        info = ours.info(t.name)
        assert info.shape == tuple(reversed(t.shape.tolist()))
        assert (info.dtype, info.offset, info.nbytes) == (t.tensor_type, t.data_offset, t.n_bytes)
        assert np.array_equal(ours.raw_rows(t.name).ravel(), t.data.view(np.uint8).ravel())


def test_missing_file_is_refused(tmp_path):
    refused(tmp_path / "absent.gguf", "no such file")


def test_directory_is_refused(tmp_path):
    refused(tmp_path, "cannot be read")


def test_empty_file_is_refused(tmp_path):
    refused(written(tmp_path, b""), "cannot be read")


def test_file_that_is_no_gguf_is_refused(tmp_path):
    refused(written(tmp_path, b"PK\x03\x04 a zip file"), "not a GGUF", "PK")


def test_big_endian_file_is_refused_by_name(tmp_path):
    refused(written(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0)), "big-endian", "convert")


def test_unknown_version_is_refused(tmp_path):
    refused(written(tmp_path, b"GGUF" + struct.pack("<IQQ", 9, 0, 0)), "version 9")


@pytest.mark.parametrize("keep", [6, 20, 24, 60, 400, 5000, -1])
def test_truncated_file_is_refused(tiny_path, tmp_path, keep):
    refused(written(tmp_path, tiny_path.read_bytes()[:keep]), "truncated")


def test_unknown_dtype_is_refused_by_number(tiny_path, tmp_path):
    data = bytearray(tiny_path.read_bytes())
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight")
    struct.pack_into("<I", data, at + 4 + 8, 4242)
    message = refused(written(tmp_path, bytes(data)), "output_norm.weight", "unknown dtype 4242")
    assert "F32" not in message


def test_tensor_listed_twice_is_refused(tiny_path, tmp_path):
    data = tiny_path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight")
    refused(written(tmp_path, data), "blk.0.attn_q.weight", "twice")


@pytest.mark.parametrize("count", [2**16, 2**40, 2**63, 2**64 - 1])
def test_absurd_counts_cost_an_error_and_no_memory(tmp_path, count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for counts in ((count, 0), (0, count)):
        refused(written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(99)), "claims")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 4096


def split_in_two(path, folder, drop=None):
    """Rewrites a model as two parts, as gguf-split would."""
    reader, names = gguf.GGUFReader(path), []
    for part in range(2):
        names.append(folder / f"m-{part + 1:05d}-of-00002.gguf")
        writer = gguf.GGUFWriter(names[-1], "llama")
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for i, t in enumerate(reader.tensors):
            if (i % 3 == 0) == bool(part) and t.name != drop:
                writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


def test_split_model_reads_as_one(tiny_path, tmp_path):
    names = split_in_two(tiny_path, tmp_path)
    whole, parts = GgufFile(tiny_path), GgufFile(names[0])
    assert set(parts.tensors) == set(whole.tensors)
    for name in whole.tensors:
        assert np.array_equal(whole.raw_rows(name), parts.raw_rows(name)), name


def test_incomplete_split_models_are_refused(tiny_path, tmp_path):
    names = split_in_two(tiny_path, tmp_path, drop="output_norm.weight")
    refused(names[0], "split.tensors.count")
    refused(names[1], "part 2 of 2", "00001-of-00002")
    names[1].unlink()
    with pytest.raises(GgufError, match="00002-of-00002.gguf: no such file"):
        GgufFile(names[0])


def test_alignment_of_the_file_is_honoured(tiny_path, tmp_path):
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    values = np.arange(5, dtype=np.float32)
    writer.add_tensor("a", values)
    writer.add_tensor("b", values + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.header.alignment == 256
    assert file.info("b").offset % 256 == 0
    assert np.array_equal(file.raw_rows("b").view(np.float32)[0], values + 1)
