"""Policy: a printed value that refuses what JAX would silently change."""

import subprocess
import sys

import pytest

from greta_jax.errors import PrecisionError
from greta_jax.precision import Policy


def test_policy_prints_every_field():
    assert "kv=float32" in str(Policy.fp32())
    assert Policy.fp64().as_record()["compute"] == "float64"


def test_unknown_dtype_is_refused():
    with pytest.raises(PrecisionError, match="int4"):
        Policy.uniform("int4")


def test_fp64_without_x64_is_refused_with_the_remedy():
    code = (
        "from greta_jax.precision import Policy\n"
        "Policy.fp32()\n"
        "try: Policy.fp64()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("PrecisionError")
    assert "jax_enable_x64" in said.stdout
