"""The evidence counts what kernels do, and says so when they miss an aim."""

import dataclasses

import pytest

from experiments.evidence import model, survey
from experiments.evidence.counted import Counter
from experiments.evidence.issue import issue_slots
from experiments.evidence.shapes import SHAPES
from experiments.evidence.tables import kernel_row
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import Route

CODE = [
    Instruction(0, 8, "v_fma_f32 v0, v1, v2, v3", "v_fma_f32", ()),
    Instruction(8, 4, "s_cbranch_scc1 65000", "s_cbranch_scc1", (), target=8),
    Instruction(12, 8, "v_mfma_f32_16x16x16_f16 v[0:3], v[4:5], v[6:7], v[0:3]", "v_mfma", ()),
    Instruction(20, 4, "v_add_f32_e32 v0, v1, v2", "v_add_f32_e32", ()),
]
WORK = model.Work(bytes=131072, clocks=2000, flight_bytes=32768, resident=3, round_trips=3)


def test_issue_slots_are_weighted_by_how_often_a_block_ran():
    slots = issue_slots(CODE, {0: 3, 12: 5, 400: 7})
    assert (slots["HWVALU"], slots["HWXDL"], slots["HWBranch"]) == (3 + 5, 5 * 4, 3)
    assert issue_slots(CODE, {0: 3, 12: 0})["HWXDL"] == 0


def test_a_launch_is_bound_by_what_takes_longest():
    many = 100 * model.COMPUTE_UNITS
    free = model.model(WORK, many, model.MEASURED_BPS)
    least = many * WORK.bytes / model.MEASURED_BPS
    assert free.bound == "memory" and least < free.seconds < 1.01 * least
    slow = dataclasses.replace(WORK, clocks=10 * WORK.bytes)
    assert model.model(slow, many, model.MEASURED_BPS).bound == "issue"
    one_load = dataclasses.replace(WORK, flight_bytes=1024, resident=1)
    starved = model.model(one_load, many, model.MEASURED_BPS)
    assert starved.bound == "loads in flight" and starved.seconds > 10 * free.seconds
    assert model.model(WORK, 1, model.MEASURED_BPS).bound in ("loads in flight", "round trips")


def test_littles_law_is_where_loads_in_flight_stop_to_matter():
    enough = dataclasses.replace(WORK, clocks=0, flight_bytes=model.LITTLE_BYTES, resident=1)
    whole = model.COMPUTE_UNITS
    at_peak = model.model(enough, whole, model.PEAK_BPS).seconds - enough.start_s
    assert at_peak == pytest.approx(whole * enough.bytes / model.PEAK_BPS)


@pytest.fixture(scope="module")
def valu():
    counter = Counter(SHAPES[1].H, "f16")
    return counter.attention(SHAPES[1], Route("manual", "valu"), KV_TYPES["float16"], 4096)


@pytest.mark.slow
def test_attention_of_eight_heads_reads_k_and_v_once_and_16_bytes_a_lane(valu):
    attention, merge = valu
    row = kernel_row("70B f16", attention)
    assert survey.shortcomings([row], []) == []
    assert row["bytes_over_least"] == row["wide_share"] == row["line_efficiency"] == 1
    assert row["spills"] == 0 and row["mfma"] == 0 and row["loads_in_flight"] >= 8
    assert attention.grid == (16, 8, 1) and merge.grid == (128, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spills": 3}, "spills 3 registers"),
        ({"bytes_over_least": 2.0}, "reads K and V 2.000 times"),
        ({"wide_share": 0.5}, "50.0% of K and V by 16-byte loads"),
    ],
)
def test_a_kernel_that_misses_an_aim_is_named(valu, change, text):
    row = kernel_row("70B f16", valu[0]) | change
    (found,) = survey.shortcomings([row], [])
    assert found.startswith("attn_manual_valu_f16_h128_g8 (70B f16)") and text in found


def test_a_slow_shape_is_named_where_there_is_an_aim():
    row = {"kernel": "attn_x", "for": "8B", "fraction_of_4.2": 0.5, "limit_of_4.2": 0.79}
    row["bound_at_4.2"] = "issue"
    aimed = row | {"B": 1, "context": 32768, "shape": "B 1, 32k"}
    short = row | {"B": 1, "context": 4096, "shape": "B 1, 4k"}
    (found,) = survey.shortcomings([], [aimed, short])
    assert found == (
        "attn_x (8B, B 1, 32k): modelled 50% of 4.2 TB/s, bound by issue; "
        "round trips and bytes alone leave 79%"
    )
