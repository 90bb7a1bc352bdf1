"""One emulated MI300X with the kernels loaded, for all tests of the engine."""

import pytest

from hip_engine import kernels
from hip_engine.device import open_device
from tests.hip_engine.bench import Bench


@pytest.fixture(scope="session")
def device():
    return open_device("emulated")


@pytest.fixture(scope="session")
def code_object():
    return kernels.build()


@pytest.fixture(scope="session")
def bench(device, code_object):
    return Bench(device, code_object)
