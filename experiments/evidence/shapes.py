"""The models and batches that kernels are judged for, and the matrices of one token's pass."""

from dataclasses import dataclass

BATCHES = (1, 4, 64)
CONTEXTS = (4096, 32768, 131072)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; letters as in WORKSPACE_NOTES.md."""

    name: str
    D: int
    N: int
    K: int
    H: int
    F: int
    V: int

    @property
    def G(self) -> int:
        return self.N // self.K

    @property
    def matrices(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Rows of the matrices that share a launch, and their columns."""
        q, kv = self.N * self.H, self.K * self.H
        return {
            "qkv": ((q, kv, kv), self.D),
            "proj": ((self.D,), q),
            "gate, up": ((self.F, self.F), self.D),
            "down": ((self.D,), self.F),
            "logits": ((self.V,), self.D),
        }


SHAPES = (
    Shape("8B", 4096, 32, 8, 128, 14336, 128256),
    Shape("70B", 8192, 64, 8, 128, 28672, 128256),
)
