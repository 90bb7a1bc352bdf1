"""Runs a GGUF of the model under llama.cpp or transformers, and compares what they computed.

python verify.py run llama.cpp MODEL.gguf --out llama.npz       (needs llama-cpp-python)
python verify.py run transformers MODEL.gguf --out torch.npz
python verify.py compare llama.npz torch.npz
python verify.py loss MODEL.gguf --tokens build/greta-tiny-32l/val.npy
"""

import argparse
import json
from pathlib import Path

import numpy as np

HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
SYSTEM = HEADER.format("system") + "You are a helpful assistant.<|eot_id|>"
CHAT = SYSTEM + HEADER.format("user") + "{}<|eot_id|>" + HEADER.format("assistant")
PROMPTS = {
    "p0_short": "Hi",
    "p4_sys": CHAT.format("Hi"),
    "p5_ba": CHAT.format("Write one short sentence about Buenos Aires."),
    "command": CHAT.format("What does the command ls do?"),
    "python": "def read_text(path):\n    ",
    "manual": "LS(1)                  User Commands                 LS(1)\n\nNAME\n",
}
BOS, START_HEADER, EOT, CONTEXT = 4091, 4093, 4095, 2048
GENERATED = 48


def greedy(prompt: list[int], logits_of) -> tuple[list[int], list[np.ndarray]]:
    """Ids chosen and the logits each was chosen from; `logits_of(tokens)` appends and evaluates."""
    rows, chosen = [logits_of(prompt)], []
    while len(chosen) < GENERATED:
        chosen.append(int(rows[-1].argmax()))
        if chosen[-1] == EOT:
            break
        rows.append(logits_of(chosen[-1:]))
    return chosen, rows[: len(chosen)]


def run_llama_cpp(model: Path) -> dict[str, tuple[list[int], list[int], list[np.ndarray]]]:
    from llama_cpp import Llama

    engine = Llama(str(model), n_ctx=CONTEXT, n_threads=2, logits_all=True, verbose=False)
    results = {}
    for name, text in PROMPTS.items():
        prompt = engine.tokenize(text.encode(), add_bos=True, special=True)
        engine.reset()

        def logits_of(tokens: list[int]) -> np.ndarray:
            engine.eval(tokens)
            return engine.scores[engine.n_tokens - 1].copy()

        results[name] = (prompt, *greedy(prompt, logits_of))
        print(name, repr(engine.detokenize(results[name][1], special=True).decode()))
    return results


def load(model: Path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32
    ).eval()


def run_transformers(model: Path) -> dict[str, tuple[list[int], list[int], list[np.ndarray]]]:
    import torch
    from transformers import AutoTokenizer

    engine = load(model)
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
    results = {}
    for name, text in PROMPTS.items():
        prompt = [BOS, *tokenizer.encode(text, add_special_tokens=False)]
        cache = [None]

        def logits_of(tokens: list[int], cache=cache) -> np.ndarray:
            with torch.no_grad():
                out = engine(torch.tensor([tokens]), past_key_values=cache[0], use_cache=True)
            cache[0] = out.past_key_values
            return out.logits[0, -1].numpy()

        results[name] = (prompt, *greedy(prompt, logits_of))
        print(name, repr(tokenizer.decode(results[name][1])))
    return results


def compare(first: Path, second: Path) -> None:
    a, b = np.load(first), np.load(second)
    for name in PROMPTS:
        same_prompt = np.array_equal(a[f"{name}.prompt"], b[f"{name}.prompt"])
        x, y = a[f"{name}.ids"], b[f"{name}.ids"]
        common = min(len(x), len(y))
        agree = int(np.argmin(np.append(x[:common] == y[:common], False)))
        shared = slice(0, min(agree + 1, common))
        difference = np.abs(a[f"{name}.logits"][shared] - b[f"{name}.logits"][shared])
        record = {"prompt": name, "same_prompt_ids": same_prompt, "greedy": [len(x), len(y)]}
        record |= {"same_greedy": agree, "logit_max": float(difference.max())}
        print(json.dumps(record | {"logit_mean": float(difference.mean())}))


def loss(model: Path, tokens: Path) -> None:
    """Nats a token in windows of the full context, the starts of documents not counted."""
    import torch

    engine = load(model)
    ids = np.load(tokens).astype(np.int64)
    opens_chat = ids[np.flatnonzero(ids == BOS) + 1] == START_HEADER
    in_chat = opens_chat[np.maximum(np.cumsum(ids == BOS) - 1, 0)]
    nats = np.full(len(ids), np.nan)
    with torch.no_grad():
        for start in range(0, len(ids) - CONTEXT - 1, CONTEXT):
            window = torch.from_numpy(ids[start : start + CONTEXT + 1])
            logits = engine(window[None, :-1]).logits[0]
            each = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            nats[start + 1 : start + CONTEXT + 1] = each.numpy()
    nats[ids == BOS] = np.nan
    print(json.dumps({"model": model.name, "tokens": int(np.isfinite(nats).sum())}))
    for kind, chosen in (("all", slice(None)), ("chats", in_chat), ("documents", ~in_chat)):
        print(json.dumps({kind: float(np.nanmean(nats[chosen]))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("engine", choices=["llama.cpp", "transformers"])
    runner.add_argument("model", type=Path)
    runner.add_argument("--out", type=Path, required=True)
    comparer = commands.add_parser("compare")
    comparer.add_argument("first", type=Path)
    comparer.add_argument("second", type=Path)
    measurer = commands.add_parser("loss")
    measurer.add_argument("model", type=Path)
    measurer.add_argument("--tokens", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "compare":
        compare(args.first, args.second)
    elif args.command == "loss":
        loss(args.model, args.tokens)
    else:
        run = run_llama_cpp if args.engine == "llama.cpp" else run_transformers
        arrays = {}
        for name, (prompt, ids, rows) in run(args.model).items():
            arrays |= {f"{name}.prompt": np.array(prompt), f"{name}.ids": np.array(ids)}
            arrays[f"{name}.logits"] = np.stack(rows)
        np.savez(args.out, **arrays)


if __name__ == "__main__":
    main()
