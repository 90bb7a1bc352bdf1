"""Draws loss_curve.svg from loss_curve.csv and the unigram entropy.

python plot.py --unigram_nats 6.737
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unigram_nats", type=float, required=True)
    args = parser.parse_args()
    with open(HERE / "loss_curve.csv") as file:
        rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    plt.rcParams["svg.hashsalt"] = "greta-tiny-32l"
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [row["step"] for row in rows]
    axes.axhline(args.unigram_nats, color="0.6", linestyle="--", label="unigram entropy")
    axes.plot(steps, [row["train_nats"] for row in rows], label="training")
    axes.plot(steps, [row["val_nats"] for row in rows], label="validation")
    axes.set(xlabel="step (65,536 tokens each)", ylabel="nats a token", ylim=(0, 7))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(HERE / "loss_curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
