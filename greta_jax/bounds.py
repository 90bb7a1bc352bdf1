"""Elementwise bounds on what rounding may do to one op.

bound() is in fp64 and rigorous to first order in fp64's own roundoff: an evaluation in the declared
precision on the same inputs, rounded to nearest, that exceeds it has done something other than
round. A sum of unknown order has n*u*sum|a||b| (Jeannerod and Rump 2013); one of a declared order
has a bound that follows its partial sums (Higham, Accuracy and Stability, section 3.3), or a matrix
core's groups. Nothing here is a tolerance.
"""

import numpy as np

from greta_jax.bound_case import Case
from greta_jax.declared import OpPrecision
from greta_jax.graph import FINAL_NORM, LOGITS
from greta_jax.model import Oracle
from greta_jax.op_bounds import OP_BOUNDS, embedding
from greta_jax.precision import Policy, require_x64


def bound(oracle: Oracle, site: str, layer: int, inputs: dict, precision) -> np.ndarray:
    """Largest possible |got - op64(inputs)|, elementwise, in the shape that `replay` returns.

    `inputs` are those of the site's row in the oracle's table (for llama, INPUTS of
    greta_jax.graph), taken as exact; attention's three ops take q, k and v. `precision` is an
    OpPrecision or a mapping with its keys, such as {"store": "float16", "accumulate": "float32"}.
    Where the arithmetic may overflow it is inf.

    Raises:
      PrecisionError: jax x64 is off, or the declaration is unknown. SiteError: as `replay`, or an
      input is missing.
    """
    require_x64("bounds")
    declared = OpPrecision.of(precision)
    double = oracle.with_policy(Policy.fp64())
    rows = {op.site: op for op in (*double.ops, FINAL_NORM, LOGITS)}
    case = Case(double, site, rows.get(site), layer, inputs, declared)
    ref = case.ref
    with np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore"):
        error = (
            embedding(case) if site == "embed" else OP_BOUNDS[rows[site].function.__name__](case)
        )
        error = np.where(np.isnan(error), np.inf, error)
        finite_ref = np.where(np.isfinite(ref), ref, 0)
        return declared.stored(finite_ref, np.where(np.isfinite(ref), error, 0))


__all__ = ["OpPrecision", "bound"]
