"""Trains greta-tiny-32l and writes Hugging Face shards, the loss curve and a summary.

    python train.py --data build/greta-tiny-32l --out build/hf --steps 2000 --device cuda

Module names and the RoPE halves are those of transformers' LlamaForCausalLM.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

L, D, N, K, H, FFN, V = 32, 256, 8, 2, 64, 512, 4096
CONTEXT, ROPE_BASE, RMS_EPS = 2048, 500000.0, 1e-5
BOS, EOS = 4091, 4095
INIT_STD = 0.04
SHARDS = 4


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS) * weight


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def rope_tables(device: str) -> tuple[Tensor, Tensor]:
    frequency = ROPE_BASE ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
    angle_TH = torch.outer(torch.arange(CONTEXT, dtype=torch.float64), frequency).repeat(1, 2)
    return angle_TH.cos().float().to(device), angle_TH.sin().float().to(device)


def rope(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    low, high = x_BNTH.float().chunk(2, dim=-1)
    rotated = torch.cat([-high, low], dim=-1)
    return (x_BNTH * cos_TH + rotated * sin_TH).to(x_BNTH.dtype)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(D, N * H, bias=False)
        self.k_proj = nn.Linear(D, K * H, bias=False)
        self.v_proj = nn.Linear(D, K * H, bias=False)
        self.o_proj = nn.Linear(N * H, D, bias=False)

    def forward(self, x: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, N, H).transpose(1, 2)
        k = self.k_proj(x).view(B, T, K, H).transpose(1, 2)
        v = self.v_proj(x).view(B, T, K, H).transpose(1, 2)
        q, k = rope(q, cos_TH, sin_TH), rope(k, cos_TH, sin_TH)
        k, v = (t.repeat_interleave(N // K, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, N * H))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(D, FFN, bias=False)
        self.up_proj = nn.Linear(D, FFN, bias=False)
        self.down_proj = nn.Linear(FFN, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(), Attention()
        self.post_attention_layernorm, self.mlp = Norm(), FeedForward()

    def forward(self, x: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos_TH, sin_TH)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Layer() for _ in range(L))
        self.norm = Norm()


class Head(nn.Linear):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy in nats; the start of the next document is nobody's to predict."""
        target = target.masked_fill(target == BOS, -100)
        return F.cross_entropy(super().forward(x).float().flatten(0, 1), target.flatten())


class Llama(nn.Module):
    """Residual outputs start 1/sqrt(2L) smaller, so the sum over 32 layers starts near one."""

    def __init__(self):
        super().__init__()
        self.model = Body()
        self.lm_head = Head(D, V, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=INIT_STD / math.sqrt(2 * L) if residual else INIT_STD)

    def forward(self, tokens: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        x = self.model.embed_tokens(tokens[:, :-1])
        cos_TH, sin_TH = (table[: x.shape[1]] for table in tables)
        for layer in self.model.layers:
            x = layer(x, cos_TH, sin_TH)
        return self.lm_head(self.model.norm(x), tokens[:, 1:])


class Windows:
    """Random windows of the token stream, every other one moved to the next document's start."""

    def __init__(self, tokens: Tensor, length: int, seed: int):
        self.tokens, self.length = tokens, length
        self.starts = torch.nonzero(tokens.cpu() == BOS).flatten()
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, count: int) -> Tensor:
        last = len(self.tokens) - self.length - 1
        start = torch.randint(last, (count,), generator=self.generator)
        following = torch.searchsorted(self.starts, start).clamp(max=len(self.starts) - 1)
        start[::2] = self.starts[following[::2]].clamp(max=last)
        return self.window(start)

    def window(self, start: Tensor) -> Tensor:
        index = start[:, None] + torch.arange(self.length + 1)
        return self.tokens[index.to(self.tokens.device)].long()


@torch.no_grad()
def validate(model: Llama, windows: Windows, tables, autocast, batch: int) -> float:
    """Nats a token over all of the validation stream, in windows of the full context."""
    starts = torch.arange(0, len(windows.tokens) - windows.length - 1, windows.length)
    total = 0.0
    for chunk in starts.split(batch):
        with autocast():
            total += model(windows.window(chunk), tables).item() * len(chunk)
    return total / len(starts)


def unigram_nats(train: np.ndarray, val: np.ndarray) -> float:
    """Cross-entropy of the validation tokens under the training frequencies (plus one)."""
    counts = np.bincount(train[train != BOS], minlength=V) + 1.0
    return float(-np.log(counts / counts.sum())[val[val != BOS]].mean())


def learning_rate(step: int, args: argparse.Namespace) -> float:
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def save(model: Llama, out: Path) -> None:
    """f16 shards with the index that transformers reads."""
    state = {name: weight.detach().half().cpu() for name, weight in model.state_dict().items()}
    index = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        names = [name for name in state if shard_of(name) == shard]
        save_file({name: state[name].contiguous() for name in names}, out / file)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (out / "model.safetensors.index.json").write_text(text)


def shard_of(name: str) -> int:
    if ".layers." in name:
        return int(name.split(".")[2]) * SHARDS // L
    return 0 if "embed" in name else SHARDS - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what data.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=CONTEXT)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--validate_every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(args.seed)
    train, val = (np.load(args.data / f"{split}.npy") for split in ("train", "val"))
    on_device = [torch.from_numpy(split.astype(np.int32)).to(args.device) for split in (train, val)]
    windows = Windows(on_device[0], args.length, args.seed)
    val_windows = Windows(on_device[1], args.length, args.seed)
    model, tables = Llama().to(args.device), rope_tables(args.device)
    if args.device != "cpu":
        for module in (*model.model.layers, model.lm_head):
            module.compile()
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)

    def autocast():
        return torch.autocast(args.device, dtype=torch.bfloat16)

    rows, started, recent = [], time.monotonic(), []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        with autocast():
            loss = model(windows.sample(args.batch), tables)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if (step + 1) % args.validate_every == 0 or step + 1 == args.steps:
            val_loss = validate(model, val_windows, tables, autocast, args.batch)
            seconds = time.monotonic() - started
            rows.append([step + 1, torch.stack(recent).mean().item(), val_loss, round(seconds, 1)])
            recent = []
            print("step {} train {:.4f} val {:.4f} ({} s)".format(*rows[-1]), flush=True)

    save(model, args.out)
    with open(args.out / "loss_curve.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["step", "train_nats", "val_nats", "seconds"], *rows]
        )
    summary = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
    summary |= {"parameters": sum(p.numel() for p in model.parameters()), "val_nats": rows[-1][2]}
    summary |= {"tokens": args.steps * args.batch * args.length, "seconds": rows[-1][3]}
    summary |= {"unigram_nats": unigram_nats(train, val), "torch": torch.__version__}
    (args.out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
