"""Small random llamas written as GGUF, for tests."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from greta_jax.architectures import ARCHITECTURES
from greta_jax.weights import MODEL_TENSORS, file_shape, layer_tensors

HALF_FIELDS = {T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,)}
"""Byte offsets of the fp16 scales in a block, which random bytes would make huge or NaN."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and the dtype of each kind of tensor (default F32)."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int = 128
    rope_base: float = 10000.0
    dtypes: dict[str, T] = field(default_factory=dict)
    seed: int = 0


PRIME_ISH = Shape(
    3, 24, 6, 2, 10, 35, 97, dtypes={"attn_q": T.F16, "attn_v": T.BF16, "ffn_gate": T.F16}
)
QUANTISED = Shape(
    2,
    256,
    8,
    2,
    64,
    512,
    131,
    dtypes={
        "attn_q": T.Q4_K,
        "attn_k": T.Q4_K,
        "attn_v": T.Q6_K,
        "attn_output": T.Q4_K,
        "ffn_gate": T.Q4_K,
        "ffn_up": T.Q8_0,
        "ffn_down": T.Q6_K,
        "token_embd": T.Q4_K,
        "output": T.Q6_K,
    },
)


def byte_vocabulary(size: int) -> list[str]:
    """Tokens of a byte-level BPE: single byte letters, then two-letter ones, then specials."""
    letters = [chr(c) for c in range(33, 127)]
    specials = ["<|begin_of_text|>", "<|eot_id|>"]
    pairs = [a + b for a in "etaoinshrdlu" for b in "srhldmwfgy"]
    tokens = (letters + pairs)[: size - len(specials)]
    assert len(tokens) + len(specials) == size, size
    return tokens + specials


def tensor_shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    """Row-major shape by tensor name."""
    layer = {
        "attn_norm": (s.dim,),
        "attn_q": (s.heads * s.head_dim, s.dim),
        "attn_k": (s.kv_heads * s.head_dim, s.dim),
        "attn_v": (s.kv_heads * s.head_dim, s.dim),
        "attn_output": (s.dim, s.heads * s.head_dim),
        "ffn_norm": (s.dim,),
        "ffn_gate": (s.ffn, s.dim),
        "ffn_up": (s.ffn, s.dim),
        "ffn_down": (s.dim, s.ffn),
    }
    shapes = {"token_embd.weight": (s.vocab, s.dim), "output_norm.weight": (s.dim,)}
    shapes["output.weight"] = (s.vocab, s.dim)
    for i in range(s.layers):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def random_raw(rng: np.random.Generator, shape: tuple[int, ...], dtype: T) -> np.ndarray:
    """Random weights of about unit row norm as stored bytes (or as an array for float types)."""
    scale = shape[-1] ** -0.5
    if dtype in (T.F32, T.F16, T.BF16, T.Q8_0):
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
        if len(shape) == 1:
            values = values + np.float32(1)
        return gguf.quantize(values, dtype)
    block, nbytes = GGML_QUANT_SIZES[dtype]
    raw = rng.integers(0, 256, (np.prod(shape) // block, nbytes), dtype=np.uint8)
    for at in HALF_FIELDS[dtype]:
        d = (rng.uniform(0.5, 1.5, len(raw)) * scale / 500).astype(np.float16)
        raw[:, at : at + 2] = d[:, None].view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def llama_writer(path: Path, s: Shape) -> gguf.GGUFWriter:
    """A writer with every key set and no tensors yet."""
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name("tiny")
    w.add_block_count(s.layers)
    w.add_context_length(s.context)
    w.add_embedding_length(s.dim)
    w.add_feed_forward_length(s.ffn)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.rope_base)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(s.vocab)
    tokens = byte_vocabulary(s.vocab)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if len(t) > 2 else gguf.TokenType.NORMAL for t in tokens]
    w.add_token_types(kinds)
    w.add_token_merges([f"{t[0]} {t[1]}" for t in tokens if len(t) == 2] or ["! !"])
    w.add_bos_token_id(s.vocab - 2)
    w.add_eos_token_id(s.vocab - 1)
    return w


def write_llama(path: Path, s: Shape, changes=None) -> Path:
    """Writes the model; `changes(name, raw)` may replace a tensor's bytes, or drop it with None."""
    rng = np.random.default_rng(s.seed)
    writer = llama_writer(path, s)
    for name, shape in tensor_shapes(s).items():
        kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
        dtype = s.dtypes.get(kind, T.F32)
        raw = random_raw(rng, shape, dtype)
        if changes is not None:
            raw = changes(name, raw)
        if raw is not None:
            writer.add_tensor(name, raw, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FEATURES = {
    "llama": {},
    "llama-moe": {"expert_count": 4, "expert_used_count": 2},
    "qwen2": {},
    "qwen3": {},
    "qwen3moe": {"expert_count": 4, "expert_used_count": 2},
    "phi3": {"attention.sliding_window": 5},
    "olmo2": {},
    "granite": {"embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 8.0},
    "gemma2": {
        "attention.sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {"attention.sliding_window": 5},
}
"""Every architecture with the keys that turn on what its GGUF files may hold."""


def write_architecture(path: Path, name: str, s: Shape = PRIME_ISH) -> Path:
    """A random model of another architecture, in F32."""
    arch = name.removesuffix("-moe")
    writer, rng = gguf.GGUFWriter(str(path), arch), np.random.default_rng(s.seed)
    sizes = {"block_count": s.layers, "context_length": s.context, "embedding_length": s.dim}
    sizes |= {"feed_forward_length": s.ffn, "vocab_size": s.vocab}
    sizes |= {"attention.head_count": s.heads, "attention.head_count_kv": s.kv_heads}
    sizes |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    scales = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": s.rope_base}
    for key, value in (sizes | scales | FEATURES[name]).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{arch}.{key}", value)
    lengths = {"D": s.dim, "N": s.heads, "K": s.kv_heads, "H": s.head_dim, "F": s.ffn, "V": s.vocab}
    lengths["E"] = FEATURES[name].get("expert_count", 0)
    tensors = dict(MODEL_TENSORS)
    for layer in range(s.layers):
        for weight, tensor in layer_tensors(ARCHITECTURES[name]).items():
            tensors[f"{layer} {weight}"] = replace(tensor, name=f"blk.{layer}.{tensor.name}")
    for tensor in {tensor.name: tensor for tensor in tensors.values()}.values():
        shape = file_shape(lengths, tensor.letters)
        writer.add_tensor(tensor.name, random_raw(rng, shape, T.F32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
