"""What an engine's errors did to the next token: divergence, margins, and tokens that flipped."""

from dataclasses import dataclass

import numpy as np

TOP_K = 10
"""Of how many most likely tokens the sets are compared."""


def log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted_TV = logits_TV.astype(np.float64) - logits_TV.max(axis=1, keepdims=True)
    return shifted_TV - np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))


def kl_nats(ref_TV: np.ndarray, got_TV: np.ndarray) -> np.ndarray:
    """KL(ref || got) of each token; infinite where `got` is not finite."""
    ref, got = log_softmax(ref_TV), log_softmax(got_TV)
    with np.errstate(invalid="ignore"):
        found_T = (np.exp(ref) * (ref - got)).sum(axis=1)
    return np.where(np.isfinite(found_T), np.maximum(found_T, 0.0), np.inf)


@dataclass(frozen=True)
class Mean:
    """Mean and largest of one number a token; `error` is the standard error of the mean."""

    mean: float
    error: float
    max: float
    at: int

    @classmethod
    def of(cls, values_T: np.ndarray) -> "Mean":
        """One token has no spread to estimate: its error is not a number that exists, but inf."""
        T = len(values_T)
        finite = np.isfinite(values_T).all()
        spread = float(values_T.std(ddof=1) / np.sqrt(T)) if T > 1 and finite else np.inf
        at = int(np.argmax(values_T))
        return cls(float(values_T.mean()), spread, float(values_T[at]), at)


@dataclass(frozen=True)
class Flip:
    """A position at which the engine's most likely token is another than the oracle's.

    margin: how far apart the oracle holds the two.
    """

    position: int
    ref: int
    got: int
    margin: float


@dataclass(frozen=True)
class Tokens:
    """All tokens of one prompt. `margin_T`: the oracle's first logit over its second;
    `margin_change_T`: the engine's change of that difference."""

    kl_T: np.ndarray
    margin_T: np.ndarray
    margin_change_T: np.ndarray
    same_top1_T: np.ndarray
    shared_top_k_T: np.ndarray
    top_k: int
    flips: tuple[Flip, ...]

    @property
    def kl(self) -> Mean:
        return Mean.of(self.kl_T)

    @property
    def closest(self) -> int:
        """The position that came nearest to flipping, or went furthest beyond it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            left_T = np.where(
                self.margin_change_T < 0, self.margin_T / -self.margin_change_T, np.inf
            )
        return int(np.argmin(left_T))

    def sentence(self) -> str:
        T, kl = len(self.kl_T), self.kl
        same = int((self.shared_top_k_T == self.top_k).sum())
        error = f" ± {kl.error:.1e}" if np.isfinite(kl.error) else ""
        return (
            f"KL {kl.mean:.2e}{error} nats a token, largest {kl.max:.2e} at position {kl.at}; "
            f"same top-1 at {int(self.same_top1_T.sum())}, same top-{self.top_k} at {same} of {T}; "
            f"smallest margin {self.margin_T.min():.3g} at position {int(self.margin_T.argmin())}, "
            f"largest change of a margin {np.abs(self.margin_change_T).max():.2e}"
        )

    def record(self) -> dict:
        """Plain values for JSON, one number a token where the name says so."""
        kl = self.kl
        return {
            "kl_mean": kl.mean,
            "kl_mean_standard_error": kl.error,
            "kl_max": kl.max,
            "kl_max_position": kl.at,
            "kl_by_token": self.kl_T,
            "margin_by_token": self.margin_T,
            "margin_change_by_token": self.margin_change_T,
            "same_top1": int(self.same_top1_T.sum()),
            "top_k": self.top_k,
            "shared_top_k_by_token": self.shared_top_k_T,
        }


def compare(ref_TV: np.ndarray, got_TV: np.ndarray) -> Tokens:
    """Of the oracle's logits and the engine's, every token of a prompt."""
    ref_TV, got_TV = ref_TV.astype(np.float64), got_TV.astype(np.float64)
    rows = np.arange(len(ref_TV))
    k = min(TOP_K, ref_TV.shape[1])
    first_T, second_T = np.argsort(-ref_TV, axis=1, kind="stable")[:, :2].T
    got_T = got_TV.argmax(axis=1)
    margin_T = ref_TV[rows, first_T] - ref_TV[rows, second_T]
    change_T = _change(ref_TV, got_TV, rows, first_T, second_T)
    tops = [np.argpartition(-logits, k - 1, axis=1)[:, :k] for logits in (ref_TV, got_TV)]
    shared_T = [len(np.intersect1d(a, b)) for a, b in zip(*tops, strict=True)]
    lost_T = ref_TV[rows, first_T] - ref_TV[rows, got_T]
    flips = tuple(
        Flip(int(t), int(first_T[t]), int(got_T[t]), float(lost_T[t]))
        for t in np.flatnonzero(first_T != got_T)
    )
    return Tokens(
        kl_nats(ref_TV, got_TV),
        margin_T,
        change_T,
        first_T == got_T,
        np.array(shared_T),
        k,
        flips,
    )


def _change(ref_TV, got_TV, rows, first_T, second_T) -> np.ndarray:
    """By how much a margin moved; infinite where the engine's logits are not finite."""
    with np.errstate(invalid="ignore"):
        margins = [side[rows, first_T] - side[rows, second_T] for side in (ref_TV, got_TV)]
        moved_T = margins[1] - margins[0]
    return np.where(np.isnan(moved_T), -np.inf, moved_T)
