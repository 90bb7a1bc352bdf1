"""A second opinion on the oracle: a Llama's forward in torch, from the file to logits, in fp64.

Written from the paper, with gguf-py's reader and its dequantisation, and nothing of greta_jax. It
is optional: whoever has no torch is told so.
"""

import importlib.util
from pathlib import Path

import numpy as np

SUPPORTED = "llama"
BEYOND = ("expert_count", "rope.scaling.type")


def absent(path: str | Path) -> str:
    """Why there is no second opinion on this file; empty if there is one."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import gguf

    fields = gguf.GGUFReader(path).fields
    name = fields["general.architecture"].contents()
    if (
        name != SUPPORTED
        or f"{name}.expert_count" in fields
        or f"{name}.rope.scaling.type" in fields
    ):
        return f"the torch forward is for plain {SUPPORTED} files, without experts or scaled RoPE"
    return ""


class TorchLlama:
    """One file; a layer's weights are decoded when they are needed."""

    def __init__(self, path: str | Path):
        import gguf
        import torch

        self._torch, self._dequantize = torch, gguf.dequantize
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._keys = {name: field.contents() for name, field in reader.fields.items()}
        self.layers = self._keys["llama.block_count"]
        self.heads = self._keys["llama.attention.head_count"]
        self.kv_heads = self._keys.get("llama.attention.head_count_kv", self.heads)
        self._eps = self._keys["llama.attention.layer_norm_rms_epsilon"]

    def forward(self, token_ids) -> tuple[np.ndarray, np.ndarray]:
        """The residual stream after each layer [L, T, D], and the logits [T, V]."""
        torch = self._torch
        with torch.inference_mode():
            x = self._weight("token_embd")[torch.as_tensor(token_ids)]
            streams = []
            for layer in range(self.layers):
                x = x + self._attention(self._norm(x, f"blk.{layer}.attn_norm"), layer)
                h = self._norm(x, f"blk.{layer}.ffn_norm")
                gate, up = (self._times(h, f"blk.{layer}.ffn_{name}") for name in ("gate", "up"))
                x = x + self._times(gate / (1 + torch.exp(-gate)) * up, f"blk.{layer}.ffn_down")
                streams.append(x.numpy())
            output = "output" if "output.weight" in self._tensors else "token_embd"
            logits = self._times(self._norm(x, "output_norm"), output)
        return np.stack(streams), logits.numpy()

    def _weight(self, name: str):
        tensor = self._tensors[f"{name}.weight"]
        values = self._dequantize(tensor.data, tensor.tensor_type)
        return self._torch.from_numpy(np.asarray(values, np.float64))

    def _times(self, x, name: str):
        return x @ self._weight(name).T

    def _norm(self, x, name: str):
        mean = (x * x).mean(dim=-1, keepdim=True)
        return x * self._torch.rsqrt(mean + self._eps) * self._weight(name)

    def _attention(self, h, layer: int):
        torch, T = self._torch, len(h)
        q, k, v = (self._times(h, f"blk.{layer}.attn_{name}") for name in "qkv")
        q = self._rotated(q.view(T, self.heads, -1))
        k = self._rotated(k.view(T, self.kv_heads, -1))
        v = v.view(T, self.kv_heads, -1)
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, dim=1) for x in (k, v))
        scores = torch.einsum("tnh,snh->nts", q, k) / q.shape[-1] ** 0.5
        ahead = torch.arange(T)[None, :] - torch.arange(T)[:, None]
        window = self._keys.get("llama.attention.sliding_window") or T
        scores = scores.masked_fill((ahead > 0) | (ahead <= -window), -torch.inf)
        out = torch.einsum("nts,snh->tnh", torch.softmax(scores, dim=-1), v)
        return self._times(out.reshape(T, -1), f"blk.{layer}.attn_output")

    def _rotated(self, x):
        torch, H = self._torch, x.shape[-1]
        base = self._keys.get("llama.rope.freq_base", 10000.0)
        frequency = base ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
        if "rope_freqs.weight" in self._tensors:
            frequency = frequency / self._weight("rope_freqs")
        turn = torch.polar(
            torch.ones(len(x), H // 2, dtype=torch.float64),
            torch.arange(len(x), dtype=torch.float64)[:, None] * frequency,
        )
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn[:, None]).reshape(x.shape)
