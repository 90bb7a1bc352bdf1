"""Error budgets: total = local + propagated, and the residual that shows whether they close.

`op64` is the op replayed in fp64, `in_got` what the engine's op really read, `in_ref` the oracle's
own inputs. Then out_got - out_ref is the sum of
  out_got - op64(in_got)       local: this op's own fault,
  op64(in_got) - op64(in_ref)  propagated: inherited through the inputs,
  op64(in_ref) - out_ref       the closure residual: nothing but the oracle's own rounding.
"""

from dataclasses import dataclass

import numpy as np

from experiments.align.floors import ratio
from experiments.align.metrics import difference


@dataclass(frozen=True)
class Budget:
    """Errors, and |residual| over what rounding allows, elementwise."""

    total: np.ndarray
    local: np.ndarray
    propagated: np.ndarray
    closure_residual: np.ndarray
    closure_ratio: np.ndarray


def budget(
    ref: np.ndarray,
    got: np.ndarray,
    op64_ref: np.ndarray,
    op64_got: np.ndarray,
    closure_bound: np.ndarray,
) -> Budget:
    """Splits got - ref. `closure_bound` bounds |op64(in_ref) - ref|: the oracle's own rounding."""
    total = difference(got, ref)
    local = difference(got, op64_got)
    propagated = difference(op64_got, op64_ref)
    # Where the engine's values are not finite, only the oracle's own part can be checked.
    clean = np.isfinite(total) & np.isfinite(local) & np.isfinite(propagated)
    with np.errstate(invalid="ignore"):
        residual = np.where(clean, total - local - propagated, difference(op64_ref, ref))
    # Five fp64 subtractions and additions of these terms were needed to form the residual.
    finite = [np.where(np.isfinite(a), np.abs(a), 0.0) for a in (ref, got, op64_ref, op64_got)]
    allowed = closure_bound + 5 * np.finfo(np.float64).eps * sum(finite)
    return Budget(total, local, propagated, residual, ratio(residual, allowed))
