"""Every architecture's row against transformers in fp64, on random models written to GGUF."""

import importlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
import transformers

from greta_jax.architectures import ARCHITECTURES
from greta_jax.errors import SiteError
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import Taps
from tests.third_voice.torch_voice import in_double, interleaved

RELATIVE = 1e-10
"""The agreement that issue 3 demands."""

SIZES = dict(
    vocab_size=61,
    hidden_size=36,
    intermediate_size=52,
    num_hidden_layers=7,  # gemma3: one layer in six sees everything
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=2048,
    rms_norm_eps=2.0**-17,
    tie_word_embeddings=False,
    pad_token_id=0,
    attn_implementation="eager",
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""transformers' module to llama.cpp's tensor; POST_NORMED architectures differ in one."""

POST_NORMED = {"post_attention_layernorm": "post_attention_norm"}


@dataclass(frozen=True)
class Case:
    """An architecture: its model type, what its config adds, and the GGUF keys that say so."""

    architecture: str
    model_type: str
    config: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    length: int = 24


GEMMA = dict(sliding_window=5, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=10)
SLIDING = {"attention.sliding_window": 5}
GRANITE = dict(
    embedding_multiplier=12.0,
    residual_multiplier=0.25,
    attention_multiplier=0.125,
    logits_scaling=8.0,
)
GRANITE_KEYS = {
    "embedding_scale": 12.0,
    "residual_scale": 0.25,
    "attention.scale": 0.125,
    "logit_scale": 8.0,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
CASES = {
    "llama": Case("llama", "llama"),
    "llama_far": Case("llama", "llama", {"num_hidden_layers": 2}, length=1100),
    "llama_tied": Case("llama", "llama", {"tie_word_embeddings": True}),
    "mistral_window": Case("llama", "mistral", {"sliding_window": 5}, SLIDING),
    "qwen2": Case("qwen2", "qwen2", {"head_dim": 6}),
    "qwen3": Case("qwen3", "qwen3"),
    "qwen3_far": Case("qwen3", "qwen3", {"num_hidden_layers": 2}, length=1100),
    "phi3": Case("phi3", "phi3", {"head_dim": 6, "sliding_window": None}),
    "phi3_window": Case("phi3", "phi3", {"head_dim": 6, "sliding_window": 5}, SLIDING),
    "olmo2": Case("olmo2", "olmo2", {"head_dim": 6}),
    "granite": Case("granite", "granite", GRANITE | {"head_dim": 6}, GRANITE_KEYS),
    "gemma2": Case("gemma2", "gemma2", GEMMA | CAPS, CAPS | SLIDING),
    "gemma3": Case("gemma3", "gemma3_text", GEMMA, SLIDING),
}


def build(case: Case):
    """A random transformers model in float64 whose weights are fp32 values, and its module."""
    config = transformers.AutoConfig.for_model(case.model_type, **SIZES | case.config)
    config._attn_implementation = "eager"
    mapping = transformers.AutoModelForCausalLM._model_mapping
    name = mapping[type(config)].__module__
    module = importlib.import_module(name)
    with in_double(module):
        torch.manual_seed(0)
        model = mapping[type(config)](config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values = torch.round(values * 64) / 256
            if "norm" in parameter_name and not case.architecture.startswith("gemma"):
                values = values + 1
        else:
            values = values * 1.5 * parameter.shape[-1] ** -0.5
        parameter.data = values.to(torch.float32).to(torch.float64)
    return model, module


def write(path, case: Case, model) -> None:
    """The model as llama.cpp's converter would write it, in F32."""
    arch, config = case.architecture, model.config
    head_dim = getattr(config, "head_dim", None) or SIZES["hidden_size"] // 6
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    for key, value in case.keys.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{arch}.{key}", value)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name.startswith("lm_head")):
            writer.add_tensor(gguf_name(case, name), gguf_values(case, name, tensor, head_dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(case: Case, name: str) -> str:
    module, kind = name.rsplit(".", 1)
    names = NAMES | (POST_NORMED if ARCHITECTURES[case.architecture].post_norms else {})
    if module.startswith("model.layers."):
        layer, module = module.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{names[module]}.{kind}"
    return f"{names[module]}.{kind}"


def gguf_values(case: Case, name: str, tensor: torch.Tensor, head_dim: int) -> np.ndarray:
    values = tensor.numpy()
    if case.architecture.startswith("gemma") and "norm" in name:
        values = values + 1
    rotated = "q_proj" in name or "k_proj" in name
    if rotated and ARCHITECTURES[case.architecture].rope == "interleaved":
        values = interleaved(values.T, head_dim).reshape(values.shape[1], -1).T
    assert np.array_equal(values, values.astype(np.float32))
    return np.ascontiguousarray(values.astype(np.float32))


def run(model, module, ids) -> dict:
    """Sites of transformers' forward that every architecture shows alike."""
    taken = {}
    original = module.eager_attention_forward

    def attention(mod, query, key, value, *args, **kwargs):
        result, probs = original(mod, query, key, value, *args, **kwargs)
        kept = {"attn.q_rope": query, "kv.k": key, "kv.v": value, "attn.probs": probs}
        for site, tensor in kept.items():
            taken[mod.layer_idx, site] = tensor.transpose(1, 2)[0].numpy().copy()
        taken[mod.layer_idx, "attn.out"] = result[0].numpy().copy()
        return result, probs

    def keep(layer, site):
        def hook(mod, args, output):
            output = output[0] if isinstance(output, tuple) else output
            taken[layer, site] = output[0].numpy().copy()

        return hook

    with ExitStack() as stack:
        stack.enter_context(in_double(module))
        stack.enter_context(mock.patch.object(module, "eager_attention_forward", attention))
        for i, layer in enumerate(model.model.layers):
            for part, site in (
                (layer, "resid.out"),
                (layer.self_attn.o_proj, "attn.proj"),
                (layer.mlp.down_proj, "ffn.down"),
            ):
                stack.callback(part.register_forward_hook(keep(i, site)).remove)
        stack.callback(model.model.norm.register_forward_hook(keep(-1, "final.norm")).remove)
        logits = model(torch.tensor([ids]), use_cache=False).logits
    taken[-1, "logits"] = logits[0].numpy()
    return taken


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_architecture_agrees_with_transformers_site_by_site(name, tmp_path):
    case = CASES[name]
    with torch.no_grad():
        model, module = build(case)
        path = tmp_path / "model.gguf"
        write(path, case, model)
        ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], case.length).tolist()
        theirs = run(model, module, ids)
    oracle = Oracle.open(path, Policy.fp64())
    sites = tuple({site for _, site in theirs})
    ours = oracle.prefill(ids, Taps(sites)).taps
    assert set(ours) == set(theirs) and len(sites) == 10
    for (layer, site), got in ours.items():
        ref = theirs[layer, site]
        if site in ("attn.q_rope", "kv.k") and oracle.config.row.rope == "interleaved":
            ref = interleaved(ref, oracle.config.head_dim)
        worst = np.abs(got - ref.reshape(got.shape)).max()
        assert worst <= RELATIVE * np.abs(ref).max(), (layer, site, worst)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_decode_equals_prefill_in_other_architectures(name, tmp_path):
    case = CASES[name]
    with torch.no_grad():
        model, _ = build(case)
        write(tmp_path / "model.gguf", case, model)
    oracle = Oracle.open(tmp_path / "model.gguf", Policy.fp64())
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], 18)
    whole = oracle.prefill(ids).logits_TV[-1]
    last = oracle.decode(oracle.prefill(ids[:-1]).cache, int(ids[-1])).logits_TV[0]
    assert np.abs(whole - last).max() < 1e-12 * np.abs(whole).max()
    with (
        pytest.raises(SiteError, match="has no attn.post_norm") if name == "qwen2" else ExitStack()
    ):
        from greta_jax.replay import replay

        replay(oracle, "attn.post_norm", 0, {"attn.proj": np.ones((2, oracle.config.dim))})
