"""Workers in torch: transformers from the GGUF file, and a plain Llama forward on a GPU."""

import torch

from experiments.bench.process import peak_rss_bytes, timed

DTYPE = {"fp64": torch.float64, "fp32": torch.float32}


def measure(question: dict) -> dict:
    """Keys: side ("transformers" or "torch"), precision, tokens (a list), and what each needs."""
    return (transformers_cpu if question["side"] == "transformers" else plain_gpu)(question)


def transformers_cpu(question: dict) -> dict:
    """From GGUF file to hidden states in fp32 and logits, on the CPU."""
    from pathlib import Path

    import numpy as np
    from transformers import AutoModelForCausalLM

    path, (tokens,) = Path(question["model"]), question["tokens"]

    def load():
        dtype = DTYPE[question["precision"]]
        folder = str(path.parent)
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=dtype)

    def forward():
        with torch.inference_mode():
            out = model(ids_1T, output_hidden_states=True, use_cache=False)
        return [h.to(torch.float32).numpy() for h in out.hidden_states], out.logits.numpy()

    open_s, model = timed(load)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, tokens)
    ids_1T = torch.from_numpy(ids)[None]
    first_s, (_, logits) = timed(forward)
    again_s, _ = timed(forward)
    return {
        "open_s": open_s,
        "first_s": first_s,
        "again_s": again_s,
        "rss_bytes": peak_rss_bytes(),
        "logit_sum": float(np.abs(logits.astype(np.float64)).sum()),
    }


def plain_gpu(question: dict) -> dict:
    """A Llama of random weights in torch: F.linear, rms_norm and scaled_dot_product_attention.

    Keys: shape (of greta_jax.gguf.synthetic), precision, tokens, decoded, torch_device.
    """
    from greta_jax.gguf.synthetic import SHAPES

    where, dtype = question.get("torch_device", "cuda"), DTYPE[question["precision"]]
    with torch.inference_mode():
        model = PlainLlama(SHAPES[question["shape"]], dtype, where)
        answer = {"rate_flops": _rate(dtype, where, question.get("rate_size", 8192)), "passes": []}
        for tokens in question["tokens"]:
            ids_T = torch.randint(0, model.shape.vocab, (tokens,), device=where)
            times = [
                _synced(lambda i=ids_T: model.forward(i, model.empty()), where)[0] for _ in range(4)
            ]
            answer["passes"].append({"tokens": tokens, "first_s": times[0], "total_s": min(times)})
        answer["decode"] = _decode(model, question, where)
    if where == "cuda":
        answer["device_bytes"] = torch.cuda.max_memory_allocated()
    return answer | {"torch": torch.__version__}


def _decode(model: "PlainLlama", question: dict, where: str) -> dict:
    kv, times = model.empty(), []
    token = torch.randint(0, model.shape.vocab, (question["tokens"][0],), device=where)
    for _ in range(question.get("decoded", 32) + 1):
        spent, logits_TV = _synced(lambda t=token: model.forward(t, kv), where)
        token = logits_TV[-1:].argmax(dim=-1)
        times.append(spent)
    usual = sorted(times[1:])[len(times) // 2]
    return {"tokens_per_s": 1 / usual, "median_s": usual}


def _rate(dtype, where: str, size: int) -> float:
    x, w = (torch.randn(size, size, dtype=dtype, device=where) for _ in range(2))
    torch.mm(x, w)
    return 2.0 * size**3 / min(_synced(lambda: torch.mm(x, w), where)[0] for _ in range(4))


def _synced(function, where: str):
    def whole():
        result = function()
        if where == "cuda":
            torch.cuda.synchronize()
        return result

    return timed(whole)


class PlainLlama:
    """What a competent reader of the Llama paper writes in torch, weights resident."""

    def __init__(self, shape, dtype, where: str):
        self.shape, self.dtype, self.where = shape, dtype, where
        D, F, V, K = shape.dim, shape.ffn, shape.vocab, shape.kv_heads * shape.head_dim
        sizes = {"q": (D, D), "k": (K, D), "v": (K, D), "o": (D, D)}
        sizes |= {"gate": (F, D), "up": (F, D), "down": (D, F)}
        self.layers = [{n: self._random(*s) for n, s in sizes.items()} for _ in range(shape.layers)]
        self.embed, self.unembed = self._random(V, D), self._random(V, D)
        self.ones = torch.ones(D, dtype=dtype, device=where)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64, device=where)
        self.frequency = shape.rope_base ** -(half / shape.head_dim)

    def _random(self, rows: int, columns: int):
        w = torch.empty(rows, columns, dtype=self.dtype, device=self.where)
        return w.normal_(std=columns**-0.5)

    def empty(self) -> list:
        """A cache of no positions."""
        return [None] * self.shape.layers

    def forward(self, ids_T, kv: list):
        """Logits TV; `kv` grows by the tokens."""
        start = 0 if kv[0] is None else kv[0][0].shape[2]
        at_T = torch.arange(start, start + len(ids_T), dtype=torch.float64, device=self.where)
        angle_TR = at_T[:, None] * self.frequency
        turn = angle_TR.cos().to(self.dtype), angle_TR.sin().to(self.dtype)
        x = self.embed[ids_T]
        for index, w in enumerate(self.layers):
            x = x + self._attention(self._norm(x), w, turn, kv, index)
            h = self._norm(x)
            gate = torch.nn.functional.silu(h @ w["gate"].T)
            x = x + (gate * (h @ w["up"].T)) @ w["down"].T
        return self._norm(x) @ self.unembed.T

    def _norm(self, x):
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.ones, 1e-5)

    def _attention(self, h, w, turn, kv: list, index: int):
        T, H = len(h), self.shape.head_dim
        q, k, v = ((h @ w[n].T).view(1, T, -1, H).transpose(1, 2) for n in ("q", "k", "v"))
        q, k = self._rotated(q, turn), self._rotated(k, turn)
        if kv[index] is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(kv[index], (k, v), strict=True))
        kv[index] = k, v
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=T > 1, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(T, -1) @ w["o"].T

    @staticmethod
    def _rotated(x, turn):
        cos, sin = turn
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
