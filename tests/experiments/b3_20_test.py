"""B3.20 end to end on the trained model and the emulated device: what passes, what must fail."""

import json

import pytest

from experiments import b3_20, flags
from experiments.align import faults, records
from hip_engine.kv_types import KV_TYPES

ARGUMENTS = ("--prompt=p5_ba", "--layers=0,1,31")


@pytest.fixture(scope="module")
def clean_run(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("clean")
    return run(out_dir, *ARGUMENTS, f"--save_floors={out_dir / 'floors.json'}")


@pytest.fixture(scope="module")
def r7_run(tmp_path_factory):
    fault = "--inject_fault=kv_base_of_layer_0"
    layers = "--layers=0,1,2,31"
    return run(tmp_path_factory.mktemp("r7"), ARGUMENTS[0], layers, fault)


class Run:
    """Exit code, the summary's text and the records of one run."""

    def __init__(self, code, out_dir):
        self.code, self.out_dir = code, out_dir
        self.text = (out_dir / "b3_20_matrix_summary.txt").read_text()
        paths = out_dir.glob("b3_20_*_run_attn_verify.jsonl")
        self.records = [record for path in sorted(paths) for record in records.read(path)]

    def of(self, event):
        return [record for record in self.records if record["event"] == event]


def run(out_dir, *arguments):
    argv = ["b3_20.py", f"--out_dir={out_dir}", *arguments]
    return Run(flags.run(b3_20.main, b3_20.__doc__, argv), out_dir)


def test_the_engine_as_it_is_passes(clean_run):
    assert clean_run.code == flags.EXIT_PASS
    assert clean_run.text.splitlines()[-1] == "b3_20: PASS (exit 0), 3 of 32 layers judged"
    assert "first divergence" not in clean_run.text


def test_the_bits_of_norms_rotations_sums_and_the_cache_are_those_predicted(clean_run):
    modelled = {"attn.norm", "ffn.norm", "final.norm", "attn.q_rope", "attn.k_rope"}
    modelled |= {"kv.k", "kv.v", "resid.mid", "resid.out"}
    record = json.loads((clean_run.out_dir / "b3_20_run.json").read_text())
    by_site = {row["site"]: row for row in record["floors"]["p5_ba"]}
    assert {site for site, row in by_site.items() if row["bits_modelled"]} == modelled
    assert not any(row["bits_differ"] for row in by_site.values())
    assert all(0 <= row["ablation_over_bound"] <= 1 for row in by_site.values())
    assert "floors from bound and ablation agree" in clean_run.text
    assert "the engine's are the same" in clean_run.text


@pytest.mark.slow
def test_other_bits_within_the_floor_are_counted_and_do_not_fail(tmp_path):
    decoy = "--inject_fault=norm_divides_by_the_root"
    found = run(tmp_path, "--prompt=p0_short", "--layers=0", decoy)
    assert found.code == flags.EXIT_PASS
    assert "are others (attn.norm, ffn.norm, final.norm)" in found.text


def test_the_margin_of_the_next_token_is_accounted_for(clean_run):
    [attribution] = clean_run.of("summary")[0]["next_tokens"]["attributions"]
    left = attribution["change"] - attribution["sum_of_contributions"]
    assert abs(left) < 0.05 * abs(attribution["change"])
    assert "layers 2-30, not judged" in clean_run.text


def test_the_run_says_what_it_could_not_have_seen(clean_run):
    assert "looked at: 3 of 32 layers, 20 of 22 sites, all 8 query and 2 kv heads" in clean_run.text
    assert "not looked at: layers 2-30" in clean_run.text
    for record in clean_run.of("site_verify"):
        judged = record["verdict"] != "fused"
        assert (record["smallest_error_detected"] is not None) == judged


def test_propagated_errors_of_attention_are_split_among_q_k_and_v(clean_run):
    for record in clean_run.of("attn_decode_verify"):
        assert set(record["propagated_through"]) == {"attn.q_rope", "kv.k", "kv.v"}
        assert record["split_closure_ratio"] <= 1 and record["closure_ratio"] <= 1


def test_floors_are_held_against_the_file_that_an_earlier_run_saved(clean_run, tmp_path):
    stored = json.loads((clean_run.out_dir / "floors.json").read_text())
    for row in stored["floors"]["p5_ba"]:
        if row[:2] == [0, "attn.out"]:
            row[2] /= 2
    path = tmp_path / "floors.json"
    path.write_text(json.dumps(stored))
    check = (ARGUMENTS[0], "--layers=0", f"--check_floors={path}")
    found = run(tmp_path, *check)
    assert found.code == flags.EXIT_FAIL
    reasons = found.of("summary")[0]["reasons"]
    assert len(reasons) == 1 and "attn.out of layer 0 is looser" in reasons[0]
    argv = ["b3_20.py", f"--out_dir={tmp_path}", *check, "--kv_dtype=float32"]
    assert flags.run(b3_20.main, b3_20.__doc__, argv) == flags.EXIT_USAGE


def test_layer_zeros_kv_base_for_every_layer_is_found_where_it_is(r7_run):
    assert r7_run.code == flags.EXIT_FAIL
    first = r7_run.of("summary")[0]["first_divergence"]
    assert (first["layer"], first["site"], first["kind"]) == (1, "attn.out", "local")
    assert first["clean_before"] == first["judged_before"] > 0
    assert first["clean_layers"] == [0]
    assert "first divergence: attn.out of layer 1, position 0" in r7_run.text
    assert "judged layers that are clean throughout: 0" in r7_run.text
    assert "assertion: attn.out of layer 1, position 0: Assertion assert_trees" in r7_run.text


def test_layer_zeros_kv_base_is_named(r7_run):
    assert "p5_ba: named: kv_base_of_layer_0 (" in r7_run.text
    naming = r7_run.of("summary")[0]["naming"]
    assert naming["named"] == "kv_base_of_layer_0"
    assert naming["patterns"][0] == "all judged layers but 0"
    best, next_best, *_ = naming["residuals_over_floor"].values()
    assert best < 1 and next_best > 1000
    record = json.loads((r7_run.out_dir / "b3_20_run.json").read_text())
    assert record["naming"]["p5_ba"] == naming


def test_an_engine_without_a_fault_has_nothing_named(clean_run):
    assert clean_run.of("summary")[0]["naming"] is None
    assert "named" not in clean_run.text and "known mistakes, " not in clean_run.text


def test_layer_zeros_kv_base_is_seen_from_addresses_too(r7_run):
    by_layer = {r["layer"]: r for r in r7_run.of("attn_decode_verify")}
    assert by_layer[0]["kv_invariant_ok"] and by_layer[0]["k_read_offset_bytes"] == 0
    assert not by_layer[1]["kv_invariant_ok"] and by_layer[1]["k_read_offset_bytes"] is None
    assert "live slot never read" in by_layer[1]["kv_error"]
    stride = by_layer[1]["kv_layer_stride_bytes"]
    assert stride <= by_layer[1]["k_write_offset_bytes"] < 2 * stride


def test_the_fault_is_gone_after_the_run_that_injected_it(r7_run, tmp_path):
    assert r7_run.code == flags.EXIT_FAIL
    assert run(tmp_path, "--prompt=p0_short", "--layers=0,1").code == flags.EXIT_PASS


def test_the_first_record_is_the_configuration_and_the_last_the_summary(clean_run):
    assert clean_run.records[0]["event"] == "config"
    config = clean_run.records[0]["config"]
    assert config["prompt"] == ["p5_ba"] and config["route"] == "manual/valu"
    assert config["sources"]["layers"] == "flag" and config["sources"]["route"] == "default"
    assert clean_run.records[-1]["event"] == "summary"
    assert clean_run.records[-1]["exit_code"] == 0
    assert all(record["config"] == config for record in clean_run.records[:-1])


def test_attn_decode_verify_records_keep_gretas_field_names(clean_run):
    names = """event phase layer seq_len_used pos_id_used kernel_path matmul_route num_heads
    num_heads_kv head_dim attn_out_ref_hash attn_out_mae kv_base_ptr_k kv_base_ptr_v
    kv_layer_stride_bytes kv_pos k_read_offset_bytes v_read_offset_bytes k_write_offset_bytes
    v_write_offset_bytes kv_invariant_ok kv_error""".split()
    for tensor in ("q", "k", "v", "attn_out", "x_out"):
        names += [f"{tensor}_{what}" for what in ("hash", "min", "max", "mean")]
    names += "prompt_id token_id model_sha256 commit route_observed verdict floor_max".split()
    names += ["local_max", "propagated_max"]
    verify = clean_run.of("attn_decode_verify")
    assert [(r["layer"], r["kv_pos"]) for r in verify] == [
        (layer, position) for layer in (0, 1, 31) for position in (13, 14)
    ]
    for record in verify:
        assert set(names) <= record.keys()
        assert record["kernel_path"], record["matmul_route"] == ("manual", "valu")


def test_every_stored_site_of_every_token_was_judged(clean_run):
    sites = {(r["layer"], r["site"]): r for r in clean_run.of("site_verify")}
    assert len(sites) == 3 * 19 + 3
    assert {r["tokens"] for r in sites.values()} == {15}
    assert {r["verdict"] for r in sites.values()} == {"exact", "within_floor", "fused"}


def test_the_route_matrix_has_all_nine_combinations(clean_run):
    for route in ("manual", "fused", "auto"):
        for matmul in ("valu", "mfma", "auto"):
            assert f"{route}/{matmul}" in clean_run.text
    assert "token differs" not in clean_run.text and "not attested" not in clean_run.text


def test_records_hold_only_json_numbers(clean_run):
    for path in clean_run.out_dir.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "gate, why",
    [("--nokv_invariants", "KV invariants were not checked"), ("--nodecode_ref", "nothing was")],
)
def test_a_gate_that_did_not_run_is_not_a_pass(gate, why, tmp_path):
    found = run(tmp_path, "--prompt=p0_short", "--layers=0", gate)
    assert found.code == flags.EXIT_INCONCLUSIVE
    assert why in found.text


ROUTES = ("manual/mfma", "fused/valu", "fused/mfma")


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_passes_and_is_what_its_name_says(route, tmp_path):
    found = run(tmp_path, "--prompt=p0_short", "--layers=0,1", f"--route={route}")
    assert found.code == flags.EXIT_PASS
    summary = found.of("summary")[0]
    assert summary["route_observed"] == route
    assert (summary["attention_mfma"] > 0) == route.endswith("mfma")


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", [k for k in KV_TYPES if k != "float16"])
def test_every_cache_type_passes_within_floors_of_its_own(kv_dtype, tmp_path):
    found = run(tmp_path, *ARGUMENTS, f"--kv_dtype={kv_dtype}")
    assert found.code == 0, found.text
    (config,) = found.of("config")
    assert config["engine_precision"]["kv.k"]["store"] == kv_dtype
    judged = [record for record in found.of("site_verify") if record["site"] in ("kv.k", "kv.v")]
    assert judged and all(record["verdict"] in ("exact", "within_floor") for record in judged)


# All 32 layers over many tokens; all prompts, routes and cache types: suites/endurance.yaml.
ENDURANCE = (
    ("fused/valu", "float32"),
    ("manual/mfma", "bfloat16"),
    ("fused/valu", "float8_e4m3fnuz"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("route", "kv_dtype"), ENDURANCE)
def test_every_site_of_every_layer_stays_within_its_floor(route, kv_dtype, tmp_path):
    chosen = ("--prompt=p0_short", "--layers=all", "--max_tokens=12")
    found = run(tmp_path, *chosen, f"--route={route}", f"--kv_dtype={kv_dtype}")
    assert found.code == 0, found.text
    assert {record["layer"] for record in found.of("site_verify")} == set(range(-1, 32))


@pytest.mark.parametrize("route", ROUTES)
def test_layer_zeros_kv_base_is_found_on_every_route(route, tmp_path):
    arguments = ("--prompt=p0_short", "--layers=0,1", "--inject_fault=kv_base_of_layer_0")
    found = run(tmp_path, *arguments, f"--route={route}")
    assert found.code == flags.EXIT_FAIL
    first = found.of("summary")[0]["first_divergence"]
    assert (first["layer"], first["site"], first["clean_layers"]) == (1, "attn.out", [0])
    same = found.of("summary")[0]["naming"]["candidates"]
    assert set(same) == {"kv_base_of_layer_0", "kv_base_of_previous_layer"}, "equal at layer 1"


def test_a_kernel_that_faults_is_a_failure_that_names_it(tmp_path):
    """GRETA's R6: the KV append launched for query heads. Here it reads beyond k and is stopped."""
    fault = "--inject_fault=kv_append_for_query_heads"
    found = run(tmp_path, "--prompt=p0_short", "--layers=0", fault)
    assert found.code == flags.EXIT_FAIL
    assert "device fault: p0_short: kv_append_f16" in found.text


HERE_TOO = ("newest_key_dropped", "kv_writer_of_another_stride", "rope_position_off_by_one")
"""The whole corpus is run by mutation_score: tests/experiments/mutation_test.py."""


@pytest.mark.parametrize("name", HERE_TOO)
def test_a_fault_is_found_where_it_is(name, tmp_path):
    found = run(tmp_path, "--prompt=p0_short", "--layers=0,1", f"--inject_fault={name}")
    assert found.code == flags.EXIT_FAIL
    first = found.of("summary")[0]["first_divergence"]
    assert (first["layer"], first["site"]) == faults.FAULTS[name].found_at
