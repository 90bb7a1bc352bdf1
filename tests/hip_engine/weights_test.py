from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from hip_engine.errors import ModelRefused
from hip_engine.weights import open_model
from tests.tiny_gguf import PRIME_ISH, QUANTISED, llama_writer, write_llama


def test_the_configuration_is_that_of_the_file(tiny_path):
    config = open_model(tiny_path).config
    s = PRIME_ISH
    assert (config.L, config.D, config.F) == (s.layers, s.dim, s.ffn)
    assert (config.N, config.K, config.H, config.V) == (s.heads, s.kv_heads, s.head_dim, s.vocab)


def test_tensors_are_the_bytes_of_the_file(quantised_path):
    model = open_model(quantised_path)
    assert model.tensors["blk.1.ffn_down.weight"].format == "q6_k"
    query = model.tensors["blk.0.attn_q.weight"]
    assert query.columns == 256 and query.data.nbytes == query.rows * 144
    assert query.data.tobytes() in quantised_path.read_bytes()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelRefused, match="no model file .*absent.gguf"):
        open_model(tmp_path / "absent.gguf")


@pytest.mark.parametrize("keep", [0, 3, 20, 300, 5000, -7])
def test_a_truncated_file_is_refused(quantised_path, tmp_path, keep):
    path = tmp_path / "cut.gguf"
    path.write_bytes(quantised_path.read_bytes()[:keep])
    with pytest.raises(ModelRefused, match="not a whole GGUF file"):
        open_model(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("banana " * 100)
    with pytest.raises(ModelRefused, match="not a whole GGUF file"):
        open_model(path)


def rewritten(tmp_path, edit):
    """A tiny model whose header was edited: `edit(writer)` before anything is written."""
    path = tmp_path / "edited.gguf"
    writer = llama_writer(path, PRIME_ISH)
    edit(writer.kv_data[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def set_key(key, value, type=gguf.GGUFValueType.UINT32):
    return lambda keys: keys.update({key: gguf.gguf_writer.GGUFValue(value, type)})


HEADERS = {
    "another_architecture": (
        set_key("general.architecture", "gpt2", gguf.GGUFValueType.STRING),
        "architecture 'gpt2'",
    ),
    "missing_key": (lambda keys: keys.pop("llama.block_count"), "missing keys: llama.block_count"),
    "unknown_key": (set_key("llama.expert_count", 8), "does not know: llama.expert_count"),
    "kv_heads_do_not_divide": (set_key("llama.attention.head_count_kv", 4), "6 query heads"),
    "no_heads": (set_key("llama.attention.head_count_kv", 0), "K is 0"),
    "partial_rope": (set_key("llama.rope.dimension_count", 8), "rope_dimensions is 8"),
    "scaled_rope": (
        set_key("llama.rope.scaling.type", "yarn", gguf.GGUFValueType.STRING),
        "scaling.type is 'yarn'",
    ),
    "no_tensors": (lambda keys: None, "missing tensors: blk.0.attn_k.weight"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_this_engine_cannot_run_is_refused_by_name(tmp_path, case):
    edit, message = HEADERS[case]
    with pytest.raises(ModelRefused, match=message):
        open_model(rewritten(tmp_path, edit))


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    def swap(name, raw):
        return np.ascontiguousarray(raw.T) if name == "blk.1.attn_k.weight" else raw

    path = write_llama(tmp_path / "swapped.gguf", PRIME_ISH, swap)
    with pytest.raises(ModelRefused, match="blk.1.attn_k.weight is 20x24.*says 24x20"):
        open_model(path)


def test_a_missing_tensor_is_named(tmp_path):
    def drop(name, raw):
        return None if name == "blk.2.ffn_up.weight" else raw

    path = write_llama(tmp_path / "dropped.gguf", PRIME_ISH, drop)
    with pytest.raises(ModelRefused, match="missing tensors: blk.2.ffn_up.weight"):
        open_model(path)


def test_a_type_without_a_kernel_is_refused(tmp_path):
    shape = replace(QUANTISED, dtypes=QUANTISED.dtypes | {"attn_norm": T.F16})
    path = write_llama(tmp_path / "norms.gguf", shape)
    with pytest.raises(ModelRefused, match="attn_norm.weight is F16: kernels decode F32"):
        open_model(path)


def test_a_type_that_nobody_knows_is_refused(quantised_path, tmp_path):
    raw = bytearray(quantised_path.read_bytes())
    name = b"blk.0.attn_q.weight"
    dims = raw.index(name) + len(name)
    at = dims + 4 + 8 * int.from_bytes(raw[dims : dims + 4], "little")
    raw[at : at + 4] = (77).to_bytes(4, "little")
    path = tmp_path / "type77.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelRefused, match="77"):
        open_model(path)
