"""The third voice: transformers' own forward in binary64, its tensors read out by hooks."""

import gc
from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch
from transformers import AutoModelForCausalLM, modeling_rope_utils
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_grad_enabled(False)


class DoubleTorch:
    """The torch module, except that what asks for binary32 by name gets binary64.

    transformers computes norms, softmax and rotations in binary32 whatever the model's dtype.
    """

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def in_double(module) -> ExitStack:
    """While open, `module` computes in binary64 also where it says float32 or .float().

    So do the functions that compute RoPE's frequencies for all modules.
    """
    stack = ExitStack()
    for patched in (module, modeling_rope_utils):
        stack.enter_context(mock.patch.object(patched, "torch", DoubleTorch()))
    stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
    return stack


def load(path, module) -> torch.nn.Module:
    """The model of a GGUF file in float64 with eager attention; `module` is its modeling file."""
    with in_double(module):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float64, attn_implementation="eager"
        )
    gc.collect()
    assert next(model.parameters()).dtype == torch.float64
    return model.eval()


def run(model, module, token_ids) -> dict[tuple[int, str], np.ndarray]:
    """Every site of a forward over all tokens, head elements still in transformers' order."""
    taken: dict[tuple[int, str], np.ndarray] = {}

    def keep(layer, site, tensor):
        assert tensor.dtype == torch.float64, (site, tensor.dtype)
        taken[layer, site] = tensor.detach()[0].numpy().copy()

    def out(layer, site):
        return lambda mod, args, output: keep(
            layer, site, output[0] if isinstance(output, tuple) else output
        )

    def into(layer, site):
        return lambda mod, args: keep(layer, site, args[0])

    original = module.eager_attention_forward

    def attention(mod, query, key, value, mask, scaling, **kwargs):
        result, probs = original(mod, query, key, value, mask, scaling, **kwargs)
        layer, groups = mod.layer_idx, mod.num_key_value_groups
        scores = query @ module.repeat_kv(key, groups).transpose(2, 3) * scaling
        keep(layer, "attn.q_rope", query.transpose(1, 2))
        keep(layer, "attn.k_rope", key.transpose(1, 2))
        keep(layer, "kv.k", key.transpose(1, 2))
        keep(layer, "kv.v", value.transpose(1, 2))
        keep(layer, "attn.scores", scores.transpose(1, 2))
        keep(layer, "attn.probs", probs.transpose(1, 2))
        keep(layer, "attn.out", result)
        return result, probs

    with ExitStack() as stack:
        stack.enter_context(in_double(module))
        stack.enter_context(mock.patch.object(module, "eager_attention_forward", attention))
        for hook in hooks(model, out, into):
            stack.callback(hook.remove)
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits
    keep(-1, "logits", logits)
    return taken


def hooks(model, out, into):
    """One hook a site that a module's input or output shows."""
    core = model.model
    yield core.embed_tokens.register_forward_hook(out(-1, "embed"))
    yield core.norm.register_forward_hook(out(-1, "final.norm"))
    for i, layer in enumerate(core.layers):
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm.register_forward_hook(out(i, "attn.norm"))
        yield attention.q_proj.register_forward_hook(out(i, "attn.q"))
        yield attention.k_proj.register_forward_hook(out(i, "attn.k"))
        yield attention.v_proj.register_forward_hook(out(i, "attn.v"))
        yield attention.o_proj.register_forward_hook(out(i, "attn.proj"))
        yield layer.post_attention_layernorm.register_forward_pre_hook(into(i, "resid.mid"))
        yield layer.post_attention_layernorm.register_forward_hook(out(i, "ffn.norm"))
        yield mlp.gate_proj.register_forward_hook(out(i, "ffn.gate"))
        yield mlp.up_proj.register_forward_hook(out(i, "ffn.up"))
        yield mlp.down_proj.register_forward_pre_hook(into(i, "ffn.act"))
        yield mlp.down_proj.register_forward_hook(out(i, "ffn.down"))
        yield layer.register_forward_hook(out(i, "resid.out"))


def interleaved(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Head elements from transformers' half-split order to GGUF's interleaved one."""
    halves = x.reshape(*x.shape[:-1], -1, 2, head_dim // 2) if x.ndim == 2 else None
    if halves is None:
        halves = x.reshape(*x.shape[:-1], 2, head_dim // 2)
    return np.swapaxes(halves, -1, -2).reshape(*halves.shape[:-2], head_dim)
