"""Settings and fixtures of all tests: binary64 on, and no silent promotion of dtypes or ranks."""

import os
from pathlib import Path

import jax
import pytest

from tests.tiny_gguf import PRIME_ISH, QUANTISED, write_llama

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greta-jax" / "xla"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A random llama of mutually prime sizes in F32, F16 and BF16."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", PRIME_ISH)


@pytest.fixture(scope="session")
def quantised_path(tmp_path_factory):
    """A random llama in Q4_K, Q6_K and Q8_0."""
    return write_llama(tmp_path_factory.mktemp("models") / "quantised.gguf", QUANTISED)
