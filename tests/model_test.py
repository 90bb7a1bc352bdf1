"""The shipped model is the one that its card, its checksums and the design promise."""

import functools
import hashlib
from collections import Counter
from pathlib import Path

import gguf
import pytest

FOLDER = Path(__file__).parent.parent / "models" / "greta-tiny-32l"
FILE = FOLDER / "greta-tiny-32l-Q4_K_M.gguf"
L, D, N, K, H, FFN, V = 32, 256, 8, 2, 64, 512, 4096
SPECIALS = {
    "<|begin_of_text|>": 4091,
    "<|end_of_text|>": 4092,
    "<|start_header_id|>": 4093,
    "<|end_header_id|>": 4094,
    "<|eot_id|>": 4095,
}
KEYS = {
    "general.architecture": "llama",
    "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "llama.block_count": L,
    "llama.context_length": 2048,
    "llama.embedding_length": D,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": N,
    "llama.attention.head_count_kv": K,
    "llama.attention.key_length": H,
    "llama.attention.value_length": H,
    "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5, rel=1e-6),
    "llama.rope.dimension_count": H,
    "llama.rope.freq_base": 500000.0,
    "llama.vocab_size": V,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.bos_token_id": SPECIALS["<|begin_of_text|>"],
    "tokenizer.ggml.eos_token_id": SPECIALS["<|eot_id|>"],
    "tokenizer.ggml.eot_token_id": SPECIALS["<|eot_id|>"],
    "tokenizer.ggml.add_bos_token": True,
}
# Columns first, as GGUF's `ne` lists them.
LAYER_SHAPES = {
    "attn_norm": (D,),
    "attn_q": (D, N * H),
    "attn_k": (D, K * H),
    "attn_v": (D, K * H),
    "attn_output": (N * H, D),
    "ffn_norm": (D,),
    "ffn_gate": (D, FFN),
    "ffn_up": (D, FFN),
    "ffn_down": (FFN, D),
}
SHAPES = {"token_embd.weight": (D, V), "output_norm.weight": (D,), "output.weight": (D, V)}
SHAPES |= {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(L)
    for name, shape in LAYER_SHAPES.items()
}
Q4_K, Q6_K, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "F32"))
PROMPT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.fixture(scope="module")
def reader():
    return gguf.GGUFReader(FILE)


def value(reader, key):
    return reader.fields[key].contents()


def test_the_file_is_the_one_its_card_and_checksums_name():
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert (FOLDER / "SHA256SUMS").read_text() == f"{digest}  {FILE.name}\n"
    assert digest in (FOLDER / "README.md").read_text()
    assert FILE.stat().st_size < 20e6


@pytest.mark.parametrize("key", KEYS)
def test_metadata_holds_what_the_design_promises(reader, key):
    assert value(reader, key) == KEYS[key]


def test_tensors_have_the_promised_names_and_shapes(reader):
    assert {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors} == SHAPES


def test_matrices_are_quantised_as_q4_k_m_and_norms_are_not(reader):
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {F32}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {Q4_K, Q6_K}
    six_bit = Counter(name.split(".")[-2] for name, kind in kinds.items() if kind == Q6_K)
    assert six_bit == {"output": 1, "attn_v": L // 2, "ffn_down": L // 2}


def test_special_tokens_are_control_tokens_and_the_rest_are_normal(reader):
    tokens = value(reader, "tokenizer.ggml.tokens")
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(set(tokens)) == len(kinds) == V
    control = {tokens[i]: i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL}
    assert control == SPECIALS
    assert set(kinds) == {gguf.TokenType.NORMAL, gguf.TokenType.CONTROL}


def test_every_merge_makes_a_token_and_every_byte_is_one(reader):
    tokens = set(value(reader, "tokenizer.ggml.tokens"))
    merges = value(reader, "tokenizer.ggml.merges")
    assert {merge.replace(" ", "") for merge in merges} < tokens
    assert V == 256 + len(merges) + len(SPECIALS)


def test_transformers_loads_it_and_it_greets(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # transformers rebuilds this map, 20 ms each, for every one of 423 modules.
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, gguf_file=FILE.name, dtype=torch.float32
    )
    config = model.config
    assert (config.head_dim, config.num_key_value_heads) == (H, K)
    assert config.rope_parameters["rope_theta"] == KEYS["llama.rope.freq_base"]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hi"},
    ]
    assert (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        == PROMPT
    )
    prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
    assert int(prompt.input_ids[0, 0]) == SPECIALS["<|begin_of_text|>"]
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=12)
    text = tokenizer.decode(answer[0, prompt.input_ids.shape[1] :])
    assert text == "Hello! How can I help you today?<|eot_id|>"
