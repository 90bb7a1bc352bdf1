"""Every site of transformers' forward, whatever the architecture, in binary64."""

from contextlib import ExitStack
from unittest import mock

import numpy as np
import torch

from tests.third_voice.torch_voice import in_double


class Taken:
    """The tensors of one forward by (layer, site)."""

    def __init__(self):
        self.tensors: dict[tuple[int, str], np.ndarray] = {}

    def keep(self, layer: int, site: str, tensor: torch.Tensor) -> None:
        """One site's tensor, the batch of one taken off."""
        assert tensor.dtype == torch.float64, (site, tensor.dtype)
        self.tensors[layer, site] = tensor.detach()[0].numpy().copy()

    def output(self, layer: int, *sites: str):
        """A hook that keeps a module's result, cut in equal parts if there are several sites."""

        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            for site, part in zip(sites, output.chunk(len(sites), dim=-1), strict=True):
                self.keep(layer, site, part)

        return hook

    def normed(self, layer: int, site: str):
        """A hook that keeps normed heads: Gemma's come with the heads before the tokens."""

        def hook(module, args, output):
            heads_first = output.dim() == 4 and output.shape[1] < output.shape[2]
            self.keep(layer, site, output.transpose(1, 2) if heads_first else output)

        return hook

    def input(self, layer: int, site: str):
        """A hook that keeps a module's first argument."""

        def hook(module, args, kwargs):
            self.keep(layer, site, args[0] if args else kwargs["hidden_states"])

        return hook


def run(model, module, ids, row) -> dict[tuple[int, str], np.ndarray]:
    """Every site; head elements still in transformers' order. `row`: the architecture's."""
    taken = Taken()
    original = module.eager_attention_forward

    def attention(mod, query, key, value, mask, scaling, **kwargs):
        result, probs = original(mod, query, key, value, mask, scaling=scaling, **kwargs)
        layer, cap = mod.layer_idx, kwargs.get("softcap")
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * scaling
        scores = scores if cap is None else torch.tanh(scores / cap) * cap
        kept = {"attn.q_rope": query, "attn.k_rope": key, "kv.k": key, "kv.v": value}
        kept |= {"attn.scores": scores, "attn.probs": probs}
        for site, tensor in kept.items():
            taken.keep(layer, site, tensor.transpose(1, 2))
        taken.keep(layer, "attn.out", result)
        return result, probs

    with ExitStack() as stack:
        stack.enter_context(in_double(module))
        stack.enter_context(mock.patch.object(module, "eager_attention_forward", attention))
        for i, layer in enumerate(model.model.layers):
            for handle in hooks(taken, i, layer, row):
                stack.callback(handle.remove)
        final = model.model.norm.register_forward_hook(taken.output(-1, "final.norm"))
        stack.callback(final.remove)
        logits = model(torch.tensor([ids]), use_cache=False).logits
    taken.keep(-1, "logits", logits)
    return taken.tensors


def hooks(taken: Taken, i: int, layer, row):
    """The hooks of one layer's modules."""
    attention, mlp = layer.self_attn, layer.mlp

    def result(module, *sites):
        return module.register_forward_hook(taken.output(i, *sites))

    def argument(module, site, layer_index=i):
        hook = taken.input(layer_index, site)
        return module.register_forward_pre_hook(hook, with_kwargs=True)

    if i == 0:
        yield argument(layer, "embed", -1)
    if row.fused:
        yield attention.qkv_proj.register_forward_hook(fused_qkv(taken, i, attention))
    else:
        for letter in "qkv":
            yield result(getattr(attention, f"{letter}_proj"), f"attn.{letter}")
    if row.qk_norm:
        for letter in "qk":
            norm = getattr(attention, f"{letter}_norm")
            yield norm.register_forward_hook(taken.normed(i, f"attn.{letter}_norm"))
    yield result(attention.o_proj, "attn.proj")
    if row.pre_norms:
        before_ffn = layer.pre_feedforward_layernorm if row.post_norms else None
        before_ffn = before_ffn or layer.post_attention_layernorm
        yield result(layer.input_layernorm, "attn.norm")
        yield result(before_ffn, "ffn.norm")
        yield argument(before_ffn, "resid.mid")
    else:
        yield argument(mlp, "resid.mid")
    if row.post_norms:
        yield result(layer.post_attention_layernorm, "attn.post_norm")
        yield result(layer.post_feedforward_layernorm, "ffn.post_norm")
    if row.experts:
        yield mlp.register_forward_hook(mixture(taken, i))
    else:
        if row.fused:
            yield result(mlp.gate_up_proj, "ffn.gate", "ffn.up")
        else:
            yield result(mlp.gate_proj, "ffn.gate")
            yield result(mlp.up_proj, "ffn.up")
        yield argument(mlp.down_proj, "ffn.act")
        yield result(mlp.down_proj, "ffn.down")
    yield result(layer, "resid.out")


def fused_qkv(taken: Taken, i: int, attention):
    """Keeps q, k and v of one matrix's result."""

    def hook(module, args, output):
        kv = attention.num_key_value_heads * attention.head_dim
        sizes = (output.shape[-1] - 2 * kv, kv, kv)
        for letter, part in zip("qkv", output.split(sizes, dim=-1), strict=True):
            taken.keep(i, f"attn.{letter}", part)

    return hook


def mixture(taken: Taken, i: int):
    """Keeps what the experts' module computes inside, for all experts, from its own parameters."""

    def hook(block, args, output):
        x_TD = args[0][0]
        logits_TE, weights_TX, chosen_TX = block.gate(x_TD)
        gate_up = torch.einsum("td,efd->tef", x_TD, block.experts.gate_up_proj)
        gate_TEF, up_TEF = gate_up.chunk(2, dim=-1)
        act_TEF = block.experts.act_fn(gate_TEF) * up_TEF
        experts_TED = torch.einsum("tef,edf->ted", act_TEF, block.experts.down_proj)
        route_TE = torch.zeros_like(logits_TE).scatter(1, chosen_TX, weights_TX)
        kept = {"ffn.router": logits_TE, "ffn.route": route_TE, "ffn.experts": experts_TED}
        kept |= {"ffn.gate": gate_TEF, "ffn.up": up_TEF, "ffn.act": act_TEF}
        for site, tensor in kept.items():
            taken.keep(i, site, tensor[None])
        taken.keep(i, "ffn.down", output)

    return hook
