import numpy as np
import pytest

from hip_engine.device import Buffer
from hip_engine.errors import LaunchError
from hip_engine.gfx942.code_object import Argument
from hip_engine.hip import arguments

POINTER = Argument("x", 0, 8, "global_buffer")
COUNT = Argument("n", 8, 4, "by_value")
SCALE = Argument("scale", 12, 4, "by_value")
ALL = (POINTER, COUNT, SCALE)


def test_arguments_are_packed_at_their_offsets():
    packed = arguments.pack("k", ALL, (Buffer(0x1234, 8, "b"), -2, 0.5))
    assert packed == (
        (0x1234).to_bytes(8, "little") + b"\xfe\xff\xff\xff" + np.float32(0.5).tobytes()
    )


BAD_ARGUMENTS = {
    "too_few": ((1, 2), "takes 3 arguments, was given 2"),
    "too_large": ((1, 1 << 32, 0.5), "n = 4294967296"),
    "wrong_width": ((1, np.int64(1), 0.5), "n is 4 bytes"),
    "no_number": ((1, "two", 0.5), "n = 'two'"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused_by_name(case):
    args, message = BAD_ARGUMENTS[case]
    with pytest.raises(LaunchError, match=message):
        arguments.pack("k", ALL, args)
