"""Damaged files: whatever a header says, an error of one line or a model, and little memory."""

import os
import resource
from pathlib import Path

import gguf
import numpy as np
import pytest

from greta_jax.config import LlamaConfig
from greta_jax.errors import OracleError
from greta_jax.gguf.reader import GgufFile
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.tokenizer import Tokenizer
from greta_jax.weights import ModelWeights
from tests.greta_jax.header_test import split_in_two
from tests.tiny_gguf import PRIME_ISH, llama_writer, write_llama

MUTATIONS = int(os.environ.get("GRETA_FUZZ", "150"))
"""A file; thousands when somebody asks."""

ODD_VALUES = (
    *(0, 1, -1, 2**31, 2**63, 2**64 - 1, True, 0.0, -1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "\n", "llama", "\ud7ff", [], ["a"], ["a", "a"], [""], ["<0x0A>"] * 3),
    *(np.zeros(0, np.int32), np.ones(97, np.int32), np.full(97, np.nan, np.float32)),
    *(np.full(97, -(2**31), np.int32), np.full(97, 6, np.int32), np.zeros(97, bool)),
)
"""What a key may hold that it should not; arrays of 97 are as long as the vocabulary."""


@pytest.fixture(scope="module")
def spm_path(tmp_path_factory):
    """The tiny llama with a SentencePiece vocabulary of bytes, a template, and scaled RoPE."""
    path = tmp_path_factory.mktemp("spm") / "spm.gguf"
    whole = write_llama(path.with_name("whole.gguf"), PRIME_ISH)
    tensors = gguf.GGUFReader(whole).tensors
    writer = llama_writer(path, PRIME_ISH)
    for key in list(writer.kv_data[0]):
        if key.startswith("tokenizer."):
            del writer.kv_data[0][key]
    tokens = ["<unk>", "<s>", "</s>", *(chr(i) for i in range(33, 127))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(97)])
    writer.add_token_types([2, 3, 3, *[1] * 94])
    writer.add_bos_token_id(1)
    writer.add_add_space_prefix(True)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def split_path(tiny_path, tmp_path_factory):
    """The first of two parts; its keys are those of a split model only."""
    return split_in_two(tiny_path, tmp_path_factory.mktemp("split"))[0]


def use(path: Path) -> str:
    """Everything that reads a header: what became of it. Any error but ours is a crash."""
    try:
        oracle = Oracle.open(path, Policy.fp64())
        tokenizer = oracle.tokenizer
        tokenizer.decode(tokenizer.encode_prompt("a \u00f1</s> b"))
        oracle.config.rotation(np.arange(3))
        return "read"
    except OracleError as error:
        assert "\n" not in str(error)
        return "refused"


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("which", ["tiny_path", "spm_path"])
def test_damaged_headers_are_refused_or_read(which, request, tmp_path):
    good = request.getfixturevalue(which)
    assert use(good) == "read"
    data, rng = good.read_bytes(), np.random.default_rng(0)
    header, outcomes, before = GgufFile(good).header.data_offset, set(), peak_kib()
    for _ in range(MUTATIONS):
        outcomes.add(use(written(tmp_path, damaged(data, header, rng))))
    assert outcomes == {"read", "refused"}
    assert peak_kib() - before < 128 * 1024


def damaged(data: bytes, header: int, rng: np.random.Generator) -> bytes:
    """Some bytes changed, a stretch removed or doubled, or the end cut off."""
    at, length = int(rng.integers(header)), int(rng.integers(1, 40))
    kind = rng.integers(5)
    if kind == 0:
        return data[:at] + data[at + length :]
    if kind == 1:
        return data[: at + length] + data[at:]
    if kind == 2:
        return data[:at]
    changed = bytearray(data)
    for where in rng.integers(0, header, rng.integers(1, 4)):
        changed[where] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(changed)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "damaged.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("damaged_part", [0, 1])
def test_damaged_parts_of_a_split_model_are_refused_or_read(split_path, tmp_path, damaged_part):
    names = [split_path, split_path.with_name(split_path.name.replace("00001-of", "00002-of"))]
    parts, rng = [name.read_bytes() for name in names], np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTATIONS):
        for number, (name, data) in enumerate(zip(names, parts, strict=True)):
            header = GgufFile(names[0])._parts[number].header.data_offset
            whole = number != damaged_part
            (tmp_path / name.name).write_bytes(data if whole else damaged(data, header, rng))
        try:
            GgufFile(tmp_path / names[0].name)
            outcomes["read"] += 1
        except OracleError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def understood(metadata: dict, file: GgufFile) -> bool:
    """False if the keys are refused; any error but ours is a crash."""
    try:
        config = LlamaConfig.from_gguf(metadata, "m.gguf")
        ModelWeights(file, config, "float64")
        config.rotation(np.arange(3))
        tokenizer = Tokenizer.from_gguf(metadata, "m.gguf")
        tokenizer.decode(tokenizer.encode_prompt("a \u00f1</s> b"))
        if tokenizer.chat_template is not None:
            tokenizer.render_chat([{"role": "user", "content": "a"}])
        return True
    except OracleError as error:
        assert "\n" not in str(error)
        return False


@pytest.mark.parametrize("which", ["tiny_path", "spm_path"])
def test_any_value_of_any_key_is_refused_or_understood(which, request):
    file = GgufFile(request.getfixturevalue(which))
    keys = {*file.metadata, "general.name"}
    keys |= {"llama.attention.sliding_window", "llama.attention.sliding_window_pattern"}
    keys |= {"llama.expert_count", "llama.rope.scaling.factor", "llama.rope.scaling.type"}
    keys |= {f"tokenizer.ggml.{name}_token_id" for name in ("eos", "unknown")}
    keys |= {f"tokenizer.ggml.{name}" for name in ("add_bos_token", "pre", "scores")}
    refused = {
        key: sum(not understood(file.metadata | {key: value}, file) for value in ODD_VALUES)
        for key in sorted(keys)
    }
    assert understood(file.metadata, file)
    harmless = {key for key, count in refused.items() if not count}
    assert harmless <= {"general.name", "general.architecture"} | unread(which)


def unread(which: str) -> set[str]:
    """Keys of the other kind of vocabulary."""
    spm = {"merges", "pre"} if which == "spm_path" else {"scores", "unknown_token_id"}
    return {f"tokenizer.ggml.{name}" for name in spm}


@pytest.mark.parametrize("key", ["split.count", "split.no", "split.tensors.count"])
@pytest.mark.parametrize("value", [-1, 0, 2, 65535, "x", True, 1.5, [1]], ids=str)
def test_odd_split_keys_are_refused_or_read(key, value, tmp_path):
    path = tmp_path / "m-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.add_tensor("a", np.zeros(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        assert list(GgufFile(path).tensors) == ["a"]
    except OracleError as error:
        assert "\n" not in str(error)
