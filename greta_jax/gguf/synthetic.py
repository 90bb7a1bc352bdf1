"""Writes a GGUF of random weights in a real model's shape: `python -m greta_jax.gguf.synthetic`.

Weights have mean about zero and the variance of a fresh initialisation; quantised tensors follow
llama.cpp's Q4_K_M recipe (Q6_K for the output and for half of attn_v and ffn_down). The vocabulary
knows single bytes, so any prompt has ids: about one a character.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, TokenType
from gguf import GGMLQuantizationType as T
from tokenizers.pre_tokenizers import ByteLevel

BLOCKS_AT_A_TIME = 2**16
STD_OF_QUANT = {T.Q4_K: 258.0, T.Q6_K: 1365.0}
"""Standard deviation of a weight of random bytes, in units of the block's fp16 scale."""

OFFSET_RATIO = 7.5
"""Q4_K: minimum scale over scale that makes random weights average zero (the mean of 0 ... 15)."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a llama; letters as in WORKSPACE_NOTES.md."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int = 8192
    rope_base: float = 500000.0

    @property
    def head_dim(self) -> int:
        """D over N."""
        return self.dim // self.heads


SHAPES = {
    "llama-3-8b": ModelShape(32, 4096, 32, 8, 14336, 128256),
    "1b": ModelShape(16, 2048, 32, 8, 8192, 32000),
    "small": ModelShape(3, 256, 4, 2, 512, 320),
}


def tensors_of(shape: ModelShape) -> dict[str, tuple[tuple[int, ...], T]]:
    """Row-major shape and dtype by name."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    D, F, V = shape.dim, shape.ffn, shape.vocab
    tensors = {"token_embd.weight": ((V, D), T.Q4_K)}
    for i in range(shape.layers):
        fine = T.Q6_K if uses_more_bits(i, shape.layers) else T.Q4_K
        tensors |= {
            f"blk.{i}.attn_norm.weight": ((D,), T.F32),
            f"blk.{i}.attn_q.weight": ((q, D), T.Q4_K),
            f"blk.{i}.attn_k.weight": ((kv, D), T.Q4_K),
            f"blk.{i}.attn_v.weight": ((kv, D), fine),
            f"blk.{i}.attn_output.weight": ((D, q), T.Q4_K),
            f"blk.{i}.ffn_norm.weight": ((D,), T.F32),
            f"blk.{i}.ffn_gate.weight": ((F, D), T.Q4_K),
            f"blk.{i}.ffn_up.weight": ((F, D), T.Q4_K),
            f"blk.{i}.ffn_down.weight": ((D, F), fine),
        }
    return tensors | {
        "output_norm.weight": ((D,), T.F32),
        "output.weight": ((V, D), T.Q6_K),
    }


def uses_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def write(path: str | Path, shape: ModelShape, seed: int = 0, report=print) -> None:
    """Writes the file a few million weights at a time."""
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(seed)
    _add_keys(writer, shape)
    tensors = tensors_of(shape)
    for name, (size, dtype) in tensors.items():
        block, nbytes = GGML_QUANT_SIZES[dtype]
        stored = size if dtype == T.F32 else (*size[:-1], size[-1] // block * nbytes)
        dtype_np = np.float32 if dtype == T.F32 else np.uint8
        total = math.prod(size) // block * nbytes
        writer.add_tensor_info(name, stored, np.dtype(dtype_np), total, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out, written = writer.fout[0], 0
    for name, (size, dtype) in tensors.items():
        writer.write_padding(out, out.tell())
        for block in _random_blocks(rng, size, dtype):
            out.write(block)
            written += block.nbytes
        if report is not None and name.endswith("ffn_down.weight"):
            report(f"{name}: {written / 1e9:.2f} GB")
    writer.write_padding(out, out.tell())
    writer.close()


def _add_keys(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_name("random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    _add_vocabulary(writer, shape.vocab)


def _add_vocabulary(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Every byte, a merge (GGUF has no empty array), names that no text holds, <bos>, <eos>."""
    texts = [*sorted(ByteLevel.alphabet()), "ĠĠ"]
    unused = [f"<unused {n}>" for n in range(vocab - len(texts) - 2)]
    kinds = [TokenType.NORMAL] * len(texts) + [TokenType.UNUSED] * len(unused)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*texts, *unused, "<bos>", "<eos>"])
    writer.add_token_types([*kinds, TokenType.CONTROL, TokenType.CONTROL])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(vocab - 2)
    writer.add_eos_token_id(vocab - 1)


def _random_blocks(rng, size, dtype):
    if dtype == T.F32:
        yield np.ones(size, np.float32)
        return
    block, nbytes = GGML_QUANT_SIZES[dtype]
    scale = np.float16(size[-1] ** -0.5 / STD_OF_QUANT[dtype])
    left = math.prod(size) // block
    while left:
        n = min(left, BLOCKS_AT_A_TIME)
        raw = np.frombuffer(rng.bytes(n * nbytes), np.uint8).reshape(n, nbytes).copy()
        if dtype == T.Q4_K:
            raw[:, :4] = np.array([scale, scale * np.float16(OFFSET_RATIO)]).view(np.uint8)
        else:
            raw[:, 208:210] = np.array([scale]).view(np.uint8)
        yield raw
        left -= n


def main() -> None:
    """Parses the command line and writes one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], args.seed)


if __name__ == "__main__":
    main()
