"""Turns what data.py and train.py wrote into one GGUF, as llama.cpp's converter and quantiser do.

    python export.py --tokenizer build/greta-tiny-32l/tokenizer.json --hf build/hf \\
        --out build/greta-tiny-32l-f16.gguf
    python export.py --quantize build/greta-tiny-32l-f16.gguf --out greta-tiny-32l-Q4_K_M.gguf

The second command needs `pip install llama-cpp-python`, which nothing else in the project does.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

L, D, N, K, H, FFN = 32, 256, 8, 2, 64, 512
CONTEXT, ROPE_BASE, RMS_EPS = 2048, 500000.0, 1e-5
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
NAME = "Greta Tiny 32L"
Q4_K_M = 15
CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp: rows (half, i) of a head become (i, half)."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def tensors(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """GGUF names to arrays: matrices in f16 with Q and K permuted, norms in f32."""
    renamed = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(L):
        for theirs, ours in LAYER_TENSORS.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = permute(weight, N if ours == "attn_q" else K)
            renamed[f"blk.{layer}.{ours}.weight"] = weight
    return {
        name: weight.astype(np.float32 if weight.ndim == 1 else np.float16)
        for name, weight in renamed.items()
    }


def add_model_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_basename("greta-tiny")
    writer.add_finetune("Instruct")
    writer.add_size_label("25M")
    writer.add_description("A 25 M parameter Llama trained to test inference engines with")
    writer.add_license("other")
    writer.add_license_name("see the model card")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation", "testing"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(L)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(N)
    writer.add_head_count_kv(K)
    writer.add_key_length(H)
    writer.add_value_length(H)
    writer.add_rope_dimension_count(H)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPS)


def add_tokenizer_keys(writer: gguf.GGUFWriter, path: Path) -> None:
    tokenizer = json.loads(path.read_text())
    ids = dict(tokenizer["model"]["vocab"])
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids |= special
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    types = [
        gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[BOS])
    writer.add_eos_token_id(ids[EOT])
    writer.add_eot_token_id(ids[EOT])
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_f16(tokenizer: Path, hf: Path, out: Path) -> None:
    from safetensors.numpy import load_file

    state: dict[str, np.ndarray] = {}
    for shard in sorted(hf.glob("model-*.safetensors")):
        state |= load_file(shard)
    writer = gguf.GGUFWriter(out, "llama")
    add_model_keys(writer)
    add_tokenizer_keys(writer, tokenizer)
    for name, weight in tensors(state).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, out: Path) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = Q4_K_M
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params)
    if failed:
        raise RuntimeError(f"llama.cpp could not quantise {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--hf", type=Path, help="folder of safetensors shards")
    parser.add_argument("--quantize", type=Path, help="an f16 GGUF to quantise")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.quantize:
        quantize(args.quantize, args.out)
    else:
        write_f16(args.tokenizer, args.hf, args.out)


if __name__ == "__main__":
    main()
