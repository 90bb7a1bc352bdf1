"""Random transformers models of every architecture, and the GGUF that llama.cpp makes of each."""

import importlib
import math
from dataclasses import dataclass, field

import gguf
import numpy as np
import torch
import transformers

from greta_jax.architectures import ARCHITECTURES
from tests.third_voice.torch_voice import in_double, interleaved

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
    experts_implementation="eager",
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
    "mlp.gate": "ffn_gate_inp",
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
    """An architecture: its model type, what its config adds, and the GGUF keys that say so.

    factors: tensors of RoPE divisors. context: what the oracle is opened with.
    """

    architecture: str
    model_type: str
    config: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)
    length: int = 24
    factors: dict = field(default_factory=dict)
    context: int | None = None


def rope(kind: str, **parameters) -> dict:
    """A config's rope_parameters."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def by_layer(base: float, kind: str, **parameters) -> dict:
    """The same where only the layers without a window are scaled."""
    local = {"rope_type": "default", "rope_theta": 10000.0}
    wide = {"rope_type": kind, "rope_theta": base, **parameters}
    return {"rope_parameters": {"sliding_attention": local, "full_attention": wide}}


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
SHALLOW, ONE = {"num_hidden_layers": 2}, {"num_hidden_layers": 1}
NO_WINDOW = {"sliding_window": None}
FAR = 1100
LLAMA31 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA31 |= {"original_max_position_embeddings": 256}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
YARN |= {"rope.scaling.original_context_length": 64}
LONG, SHORT = [1.0, 1.25, 2.0, 4.5, 9.0], [1.0, 1.0, 1.125, 1.25, 1.5]
LONGROPE = rope("longrope", long_factor=LONG, short_factor=SHORT, attention_factor=1.375)
LONGROPE["original_max_position_embeddings"] = 64
LONGROPE_KEYS = {
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": 1.375,
}
LONGROPE_TENSORS = {"rope_factors_long": LONG, "rope_factors_short": SHORT}
MIXTRAL = dict(num_local_experts=5, num_experts_per_tok=2)
EXPERT_KEYS = {"expert_count": 5, "expert_used_count": 2}
QWEN3MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=28)
QWEN3MOE |= dict(norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
OLMO3_TYPES = ["sliding_attention"] * 3 + ["full_attention"]
CASES = {
    "llama": Case("llama", "llama"),
    "llama_far": Case("llama", "llama", SHALLOW, length=FAR),
    "llama_tied": Case("llama", "llama", {"tie_word_embeddings": True}),
    "llama31_far": Case("llama", "llama", SHALLOW | rope("llama3", **LLAMA31), length=FAR),
    "llama_linear": Case(
        "llama",
        "llama",
        rope("linear", factor=4.0),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "mistral_window": Case("llama", "mistral", {"sliding_window": 5}, SLIDING),
    "mixtral": Case("llama", "mixtral", MIXTRAL | NO_WINDOW, EXPERT_KEYS),
    "mixtral_far": Case("llama", "mixtral", MIXTRAL | ONE | NO_WINDOW, EXPERT_KEYS, FAR),
    "qwen2": Case("qwen2", "qwen2", {"head_dim": 6}),
    "qwen2_yarn_far": Case(
        "qwen2",
        "qwen2",
        SHALLOW | rope("yarn", factor=4.0, original_max_position_embeddings=64) | {"head_dim": 6},
        YARN,
        length=FAR,
    ),
    "qwen3": Case("qwen3", "qwen3"),
    "qwen3_far": Case("qwen3", "qwen3", SHALLOW, length=FAR),
    "qwen3_yarn_far": Case(
        "qwen3",
        "qwen3",
        SHALLOW
        | rope(
            "yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0, beta_slow=2.0
        ),
        YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
        length=FAR,
    ),
    "qwen3moe": Case(
        "qwen3moe", "qwen3_moe", QWEN3MOE, EXPERT_KEYS | {"expert_feed_forward_length": 28}
    ),
    "phi3": Case("phi3", "phi3", {"head_dim": 6, "sliding_window": None}),
    "phi3_window": Case("phi3", "phi3", {"head_dim": 6, "sliding_window": 5}, SLIDING),
    "phi3_longrope_far": Case(
        "phi3",
        "phi3",
        SHALLOW | LONGROPE | {"sliding_window": None, "hidden_size": 60},
        LONGROPE_KEYS | {"attention.sliding_window": 0},
        FAR,
        LONGROPE_TENSORS,
    ),
    "phi3_longrope_short": Case(
        "phi3",
        "phi3",
        SHALLOW | LONGROPE | {"sliding_window": None, "hidden_size": 60},
        LONGROPE_KEYS,
        factors=LONGROPE_TENSORS,
        context=64,
    ),
    "phi3_partial": Case(
        "phi3",
        "phi3",
        rope("default", partial_rotary_factor=0.4)
        | {"sliding_window": None, "hidden_size": 60, "partial_rotary_factor": 0.4},
        {"rope.dimension_count": 4},
    ),
    "olmo2": Case("olmo2", "olmo2", {"head_dim": 6}),
    "olmo3": Case(
        "olmo2",
        "olmo3",
        {"head_dim": 6, "sliding_window": 5, "layer_types": (OLMO3_TYPES * 2)[:7]}
        | by_layer(10000.0, "yarn", factor=4.0, original_max_position_embeddings=64),
        SLIDING
        | YARN
        | {"attention.sliding_window_pattern": [t[0] == "s" for t in (OLMO3_TYPES * 2)[:7]]},
    ),
    "olmo2_far": Case("olmo2", "olmo2", ONE | {"head_dim": 6}, length=FAR),
    "granite": Case("granite", "granite", GRANITE | {"head_dim": 6}, GRANITE_KEYS),
    "granite_far": Case("granite", "granite", GRANITE | ONE | {"head_dim": 6}, GRANITE_KEYS, FAR),
    "gemma2": Case("gemma2", "gemma2", GEMMA | CAPS, CAPS | SLIDING),
    "gemma2_far": Case("gemma2", "gemma2", SHALLOW | GEMMA | CAPS, CAPS | SLIDING, length=FAR),
    "gemma3": Case("gemma3", "gemma3_text", GEMMA, SLIDING),
    "gemma3_linear_far": Case(
        "gemma3",
        "gemma3_text",
        SHALLOW | GEMMA | {"layer_types": OLMO3_TYPES[2:]} | by_layer(1e6, "linear", factor=8.0),
        SLIDING
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
        | {"attention.sliding_window_pattern": 2},
        length=FAR,
    ),
}
"""FAR cases reach positions over 1,000."""


def build(case: Case):
    """A random transformers model in float64 whose weights are fp32 values, and its module."""
    config = transformers.AutoConfig.for_model(case.model_type, **SIZES | case.config)
    config._attn_implementation = "eager"
    mapping = transformers.AutoModelForCausalLM._model_mapping
    module = importlib.import_module(mapping[type(config)].__module__)
    with in_double(module):
        torch.manual_seed(0)
        model = mapping[type(config)](config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values = torch.round(values * 64) / 256
            if "norm" in name and not case.architecture.startswith("gemma"):
                values = values + 1
        else:
            values = values * 1.5 * parameter.shape[-1] ** -0.5
        parameter.data = values.to(torch.float32).to(torch.float64)
    for factors in llama31_factors(case, SIZES["head_dim"]).values():
        as_in_the_file(model.model.rotary_emb, factors, SIZES["head_dim"])
    return model, module


def as_in_the_file(rotary, factors: list[float], head_dim: int) -> None:
    """Gives transformers the divisors that a GGUF keeps, which are its own rounded to fp32."""
    exact = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    kept = exact / torch.tensor(factors, dtype=torch.float32).to(torch.float64)
    change = (kept / rotary.inv_freq - 1).abs().max()
    assert 0 < change <= torch.finfo(torch.float32).eps
    rotary.inv_freq = kept


def write(path, case: Case, model) -> None:
    """The model as llama.cpp's converter would write it, in F32."""
    arch, config = case.architecture, model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // 6
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
    parameters = config.rope_parameters
    writer.add_rope_freq_base(parameters.get("full_attention", parameters)["rope_theta"])
    for key, value in case.keys.items():
        writer.add_key_value(f"{arch}.{key}", value, *value_type(value))
    for name, values in (case.factors | llama31_factors(case, head_dim)).items():
        writer.add_tensor(f"{name}.weight", np.asarray(values, np.float32))
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name.startswith("lm_head")):
            for tensor_name, values in gguf_tensors(case, name, tensor.numpy(), head_dim):
                writer.add_tensor(tensor_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def value_type(value) -> tuple:
    """GGUF's type of a value, and of an array's items."""
    kinds = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    kinds |= {str: gguf.GGUFValueType.STRING, bool: gguf.GGUFValueType.BOOL}
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY, kinds[type(value[0])]
    return (kinds[type(value)],)


def llama31_factors(case: Case, head_dim: int) -> dict[str, list[float]]:
    """`rope_freqs`: by how much Llama 3.1 divides each frequency, as the converter computes it."""
    parameters = case.config.get("rope_parameters", {})
    if parameters.get("rope_type") != "llama3":
        return {}
    low, high = (parameters[f"{end}_freq_factor"] for end in ("low", "high"))
    context, factors = parameters["original_max_position_embeddings"], []
    for i in range(0, head_dim, 2):
        length = 2 * math.pi * parameters["rope_theta"] ** (i / head_dim)
        smooth = min(max((context / length - low) / (high - low), 0), 1)
        factors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return {"rope_freqs": factors}


def gguf_tensors(case: Case, name: str, values: np.ndarray, head_dim: int):
    """llama.cpp's tensors of one of transformers'."""
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        layer = name.split(".")[2]
        yield f"blk.{layer}.ffn_gate_exps.weight", single(gate)
        yield f"blk.{layer}.ffn_up_exps.weight", single(up)
        return
    if name.endswith("experts.down_proj"):
        yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", single(values)
        return
    if case.architecture.startswith("gemma") and "norm" in name:
        values = values + 1
    rotated = "q_proj" in name or "k_proj" in name
    if rotated and ARCHITECTURES[case.architecture].rope == "interleaved":
        values = interleaved(values.T, head_dim).reshape(values.shape[1], -1).T
    yield gguf_name(case, name), single(values)


def gguf_name(case: Case, name: str) -> str:
    module, kind = name.rsplit(".", 1)
    names = NAMES | (POST_NORMED if ARCHITECTURES[case.architecture].post_norms else {})
    if module.startswith("model.layers."):
        layer, module = module.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{names[module]}.{kind}"
    return f"{names[module]}.{kind}"


def single(values: np.ndarray) -> np.ndarray:
    """The same numbers in fp32, which they must be."""
    assert np.array_equal(values, values.astype(np.float32))
    return np.ascontiguousarray(values.astype(np.float32))
