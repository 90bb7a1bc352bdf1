"""A route is told from symbols, arguments and counts, whatever it was called."""

import struct
from dataclasses import replace

import pytest

from hip_engine.attestation import Observer
from hip_engine.device import Buffer, LaunchRecord, MemoryCounts, Traffic
from hip_engine.statics import StaticCode

K, V = Buffer(0x10000, 256, "kv.k"), Buffer(0x20000, 256, "kv.v")
VALU, MFMA = "attn_manual_valu_f16_h64_g4", "attn_manual_mfma_f16_h64_g4"


def record(symbol, given=False, **executed):
    """A launch; `given`: its arguments hold an address in the cache."""
    words = (1, K.address + 64, 3) if given else (1, K.address - 8, V.address + 256)
    kernarg = struct.pack("<3Q", *words)
    return LaunchRecord(symbol, "co", (1, 1, 1), (64, 1, 1), kernarg, executed)


def touching(launch, k=(0, 0), v=(0, 0)):
    """The same launch on a device that counts: (read, written) bytes of K and V."""
    traffic = {buffer: Traffic(*moved, 0, 0) for buffer, moved in ((K, k), (V, v))}
    counts = MemoryCounts(*[0] * 9, by_buffer=traffic)
    return replace(launch, memory=counts)


ROPE, APPEND = record("rope", valu=9), record("kv_append_f16", given=True, valu=9)
MANUAL = [ROPE, APPEND]
READS, WRITES = {"k": (8, 0), "v": (8, 0)}, {"k": (0, 8), "v": (0, 8)}
BOTH = {"k": (8, 8), "v": (8, 8)}
ATTENTION = record(VALU, given=True, valu=9)
OBSERVED = {
    "manual_valu": ([*MANUAL, ATTENTION], "manual/valu"),
    "the_label_does_not_count": ([*MANUAL, record(MFMA, given=True, valu=9)], "manual/valu"),
    "executed_matrix_cores_do": (
        [*MANUAL, record(VALU, given=True, valu=9, mfma=3)],
        "manual/mfma",
    ),
    "one_kernel_for_all_is_fused": ([record(MFMA, given=True, mfma=1)], "fused/mfma"),
    "gemv_on_matrix_cores_is_not_attention": (
        [*MANUAL, record("gemv_q4_k", mfma=5), ATTENTION],
        "manual/valu",
    ),
    "one_layer_differs": (
        [*MANUAL, ATTENTION, record("attn_merge_chunks", valu=1)] * 2
        + [*MANUAL, record(MFMA, given=True, mfma=1)],
        "manual/mixed",
    ),
    "an_append_that_one_layer_lacks": ([*MANUAL, ATTENTION, ATTENTION], "mixed/valu"),
    "rope_apart_from_a_fused_append": ([ROPE, ATTENTION], "mixed/valu"),
    "attention_without_the_cache": ([*MANUAL, record(VALU, valu=9)], "mixed/valu"),
    "two_kernels_hold_the_cache_of_fused": ([APPEND, ATTENTION], "mixed/valu"),
    "nothing_ran": ([], "none/none"),
    "seen_to_write_and_read": (
        [ROPE, touching(APPEND, **WRITES), touching(ATTENTION, **READS)],
        "manual/valu",
    ),
    "attention_seen_to_write_too": (
        [ROPE, touching(APPEND, **WRITES), touching(ATTENTION, **BOTH)],
        "mixed/valu",
    ),
    "seen_to_write_only_k": (
        [ROPE, touching(APPEND, k=(0, 8)), touching(ATTENTION, **READS)],
        "mixed/valu",
    ),
    "fused_seen_to_do_both": ([touching(ATTENTION, **BOTH)], "fused/valu"),
    "fused_seen_to_read_only": ([touching(ATTENTION, **READS)], "mixed/valu"),
}


@pytest.fixture(scope="module")
def code(code_object):
    return StaticCode(code_object)


def observed(code, records):
    observer = Observer(code, (K, V))
    observer.add(records)
    return observer


@pytest.mark.parametrize("case", OBSERVED)
def test_a_route_is_observed_from_what_executed(code, case):
    records, expected = OBSERVED[case]
    observer = Observer(code, (K, V))
    for one in records:  # wherever the records are cut
        observer.add([one])
    assert observer.attestation().observed == expected
    assert observer.attestation() == observer.attestation()
    assert set(observer.attestation().symbols) == {record.symbol for record in records}


def test_where_nobody_counts_the_disassembly_says_what_could_have_executed(code):
    for symbol, matmul in ((VALU, "valu"), (MFMA, "mfma")):
        seen = observed(code, [record("rope"), record("kv_append_f16", True), record(symbol, True)])
        attestation = seen.attestation()
        assert attestation.observed == f"manual/{matmul}"
        assert attestation.attention_mfma is None
        assert (attestation.attention_contains[symbol] > 0) == (matmul == "mfma")
        op = attestation.ops[-1]
        assert op.executed is None and op.contains["vmem_load"] > 0
        assert (op.contains.get("mfma", 0) > 0) == (matmul == "mfma")


def test_an_op_says_what_was_launched_and_what_it_holds_and_executed(code):
    one = record(VALU, given=True, valu=9, vmem_load=2)
    other = replace(one, grid=(2, 1, 1))
    ops = observed(code, [*MANUAL, one, *MANUAL, one, *MANUAL, other]).attestation().ops
    same = [op for op in ops if op.symbol == VALU]
    assert [(op.grid, op.launches) for op in same] == [((1, 1, 1), 2), ((2, 1, 1), 1)]
    assert same[0].executed == {"valu": 18, "vmem_load": 4} and same[0].contains is None
    assert same[0].code_object_sha256 == "co" and same[0].block == (64, 1, 1)
    assert 0 < same[0].registers.vgprs <= 512 and same[0].registers.spills == 0
