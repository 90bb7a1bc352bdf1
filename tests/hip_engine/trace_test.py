"""A trace survives whatever ends the process that writes it."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from hip_engine.engine import Engine
from hip_engine.errors import TraceDamaged
from hip_engine.taps import Taps
from hip_engine.trace import TraceFile, read_trace

SITES = ["attn.q", "kv.k", "attn.out", "logits"]
KILLED_AFTER = 7
WRITER = """
import os, signal, sys
from hip_engine.device import open_device
from hip_engine.engine import Engine
from hip_engine.taps import Taps
from hip_engine.trace import TraceFile

trace, left = TraceFile(sys.argv[2]), [int(sys.argv[3])]

def append_and_die(*site):
    trace.append(*site)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

engine = Engine.open(sys.argv[1], open_device("emulated"))
for token in (5, 6, 7):
    engine.step(token, Taps.of(sys.argv[4:], sink=append_and_die))
"""


@pytest.fixture
def traced(quantised_path, device, tmp_path):
    """The path of a whole trace of two tokens, and the steps' own taps."""
    engine = Engine.open(quantised_path, device)
    trace = TraceFile(tmp_path / "whole.trace")
    taps = Taps.of(SITES, sink=trace.append)
    steps = [engine.step(token, taps) for token in (5, 6)]
    trace.close()
    engine.close()
    return tmp_path / "whole.trace", steps


def test_a_trace_holds_what_the_taps_returned_in_the_order_of_the_launches(traced):
    path, steps = traced
    records = list(read_trace(path))
    expected = [(step, *place) for step in steps for place in step.taps]
    assert len(records) == len(expected)
    for record, (step, layer, site) in zip(records, expected, strict=True):
        assert (record.layer, record.site, record.position) == (layer, site, step.position)
        np.testing.assert_array_equal(record.array, step.taps[layer, site])


def test_a_killed_process_leaves_every_site_that_it_had_read(traced, quantised_path, tmp_path):
    path = tmp_path / "killed.trace"
    arguments = [str(quantised_path), str(path), str(KILLED_AFTER), *SITES]
    done = subprocess.run([sys.executable, "-c", WRITER, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    whole = list(read_trace(traced[0]))
    left = list(read_trace(path))
    assert len(left) == KILLED_AFTER
    for ref, got in zip(whole, left, strict=False):
        assert ref[:-1] == got[:-1]
        np.testing.assert_array_equal(ref.array, got.array)


def test_a_record_that_was_cut_off_is_left_out_and_a_changed_one_is_refused(traced):
    path, data = traced[0], traced[0].read_bytes()
    whole = list(read_trace(path))
    path.write_bytes(data[:-3])
    assert len(list(read_trace(path))) == len(whole) - 1
    changed = bytearray(data)
    changed[data.index(b"\n") + 5] ^= 1
    path.write_bytes(changed)
    with pytest.raises(TraceDamaged, match="at byte .* another crc32"):
        list(read_trace(path))


def test_a_trace_is_never_continued(tmp_path):
    TraceFile(tmp_path / "a.trace").close()
    with pytest.raises(FileExistsError):
        TraceFile(tmp_path / "a.trace")
