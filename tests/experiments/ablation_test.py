"""Ablation studies: one pass equals many runs, bad factors are refused, searches are minimal."""

import csv
import json

import numpy as np
import pytest

from experiments import flags, precision_ablation
from experiments.ablation import evaluate, factors, search, studies
from experiments.align import tokens
from experiments.align.errors import AlignError
from experiments.report import html, pages, run_file
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import Taps

IDS = (3, 1, 4, 1, 5, 9, 2)
TEXTS = ("kv=fp8", "compute=fp32", "pv=fp16/1", "activation=bf16@ffn.act", "weight=fp16")


@pytest.fixture(scope="module")
def oracle(tiny_path):
    return Oracle.open(tiny_path, Policy.fp64())


@pytest.fixture(scope="module")
def parsed(oracle):
    return [factors.parse(text, oracle.config.layers) for text in TEXTS]


@pytest.fixture(scope="module")
def costs(oracle, parsed):
    policies = [factors.combined(Policy.fp64(), [factor]) for factor in parsed]
    return policies, evaluate.costs(oracle, policies, IDS)


@pytest.mark.parametrize("index", range(len(TEXTS)), ids=TEXTS)
def test_one_pass_over_many_policies_is_bit_for_bit_many_runs(oracle, costs, index):
    policy, cost = costs[0][index], costs[1][index]
    ref = oracle.prefill(IDS, taps=Taps.everything())
    got = oracle.with_policy(policy).prefill(IDS, taps=Taps.everything())
    for place in ref.taps:
        if place == (-1, "final.norm"):
            continue
        assert cost.sites[place] == evaluate.site_error(ref.taps[place], got.taps[place]), place
    np.testing.assert_array_equal(cost.kl_T, tokens.kl_nats(ref.logits_TV, got.logits_TV))


def test_a_streamed_model_gives_the_same_bits_and_decodes_each_matrix_once(
    tiny_path, costs, monkeypatch
):
    policies, expected = costs
    streamed = Oracle.open(tiny_path, Policy.fp64(), resident=False)
    decoded = []
    original = type(streamed.weights)._decode

    def counted(self, name, layer, *more):
        decoded.append((self.store, name, layer))
        return original(self, name, layer)

    monkeypatch.setattr(type(streamed.weights), "_decode", counted)
    found = evaluate.costs(streamed, policies, IDS)
    for one, other in zip(found, expected, strict=True):
        assert one.sites == other.sites
        np.testing.assert_array_equal(one.kl_T, other.kl_T)
    in_layers = [key for key in decoded if key[2] >= 0]
    assert len(in_layers) == len(set(in_layers)) > 0


def test_the_reference_itself_costs_nothing(oracle):
    (cost,) = evaluate.costs(oracle, [Policy.fp64()], IDS)
    assert all(error.max == 0 for error in cost.sites.values())
    assert not cost.kl_T.any() and cost.flips == ()


def test_a_factor_at_one_layer_leaves_the_layers_before_it_exact(costs):
    cost = costs[1][TEXTS.index("pv=fp16/1")]
    assert all(e.max == 0 for (layer, _), e in cost.sites.items() if layer == 0)
    assert cost.sites[1, "attn.out"].max > 0


def test_kl_is_that_of_the_two_distributions():
    ref, got = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    np.testing.assert_allclose(tokens.kl_nats(ref, got + 7), [expected])
    assert np.isinf(tokens.kl_nats(ref, got * np.nan)).all()


@pytest.mark.parametrize(
    "text", ["kv=fp8", "compute=fp16@attn.proj+ffn.down", "pv=fp16/31", "kv=int8/0-15", *TEXTS]
)
def test_a_factor_reads_back_as_it_was_written(text):
    assert str(factors.parse(text, 32)) == text


REFUSED = {
    "kv": "write FIELD=VALUE",
    "kw=fp8": "no field 'kw'",
    "kv=fp9": "fp9",
    "compute=fp8": "compute",
    "pv=fp16/32": "layers 0 to 31",
    "pv=fp16/7-3": "layers 0 to 31",
    "compute=fp16@attn.prj": "attn.prj",
    "order=split:0": "split:0",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_factor_that_nobody_has_is_refused_in_one_line(text):
    with pytest.raises(AlignError, match=REFUSED[text]) as refusal:
        factors.parse(text, 32)
    assert "\n" not in str(refusal.value)


def test_studies_make_the_policies_they_are_named_after(parsed):
    base, count = Policy.fp64(), len(TEXTS)

    def names(study, chosen=parsed):
        return [v.name for v in studies.variants(study, base, chosen, layers=2)]

    assert names("one_factor") == list(TEXTS)
    assert names("cumulative")[-1] == " ".join(TEXTS)
    assert len(names("pairs")) == count + count * (count - 1) // 2
    assert names("by_layer", parsed[:1]) == ["kv=fp8/0", "kv=fp8/1"]
    assert names("by_site", parsed[:1]) == ["kv=fp8@kv.k", "kv=fp8@kv.v"]


def test_a_pair_shows_what_it_costs_beyond_its_parts():
    rows = [made_up_summary(name, kl) for name, kl in (("a", 1.0), ("b", 2.0), ("a b", 3.5))]
    table = studies.table("pairs", rows, budget_nats=1.5)
    shown = {row[0]: (row[-2], row[-1]) for row in table.rows}
    assert shown == {"a b": (0.5, "beyond"), "b": (None, "beyond"), "a": (None, "within")}


def made_up_summary(name, kl):
    return studies.Summary(name, kl, 0.1, kl, 0, 10, "", ())


class Additive:
    """A model whose layers cost what they cost, one by one, with an interaction of the last two."""

    def __init__(self, own, together=0.0):
        self.own, self.together, self.calls = own, together, 0

    def __call__(self, policies):
        self.calls += len(policies)
        return [self.cost({rule.first for rule in policy.rules}) for policy in policies]

    def cost(self, low):
        pair = {len(self.own) - 2, len(self.own) - 1} <= low
        return sum(self.own[n] for n in low) + self.together * pair


LOW = factors.Factor("kv", "float8_e4m3fnuz")


@pytest.mark.parametrize(
    "budget, kept", [(100.0, ()), (9.0, (3,)), (5.0, (1, 3)), (0.5, (0, 1, 2, 3)), (0.0, range(5))]
)
def test_the_search_keeps_the_fewest_layers_that_meet_the_budget(budget, kept):
    model = Additive([1.0, 4.0, 2.0, 8.0, 0.25])
    found = search.kv_layers(Policy.fp64(), LOW, 5, budget, model)
    assert found.kept == tuple(kept) and found.met
    assert found.kl == model.cost(set(range(5)) - set(kept)) <= budget
    assert found.evaluations == model.calls


def test_an_interaction_that_the_ranking_misses_is_pruned_not_kept():
    model = Additive([3.0, 2.0, 1.0, 1.0], together=5.0)
    found = search.kv_layers(Policy.fp64(), LOW, 4, 6.0, model)
    assert found.met
    for layer in found.kept:
        low = set(range(4)) - (set(found.kept) - {layer})
        assert model.cost(low) > 6.0


def run(out_dir, *arguments):
    argv = ["precision_ablation.py", f"--out_dir={out_dir}", "--prompt=p0_short", *arguments]
    main, doc = precision_ablation.main, precision_ablation.__doc__
    return flags.run(main, doc, argv, more=precision_ablation.options.FLAGS)


@pytest.fixture(scope="module")
def small_study(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("study")
    assert run(out_dir, "--factors=kv=fp16,kv=fp8", "--quiet") == flags.EXIT_PASS
    return out_dir


def test_fp8_costs_more_than_fp16_and_every_tensor_is_in_the_table(small_study):
    with (small_study / "precision_ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 32 * 19 + 1)
    worst = {row["variant"]: row["relative_rms"] for row in rows if row["site"] == "logits"}
    assert float(worst["kv=fp8"]) > float(worst["kv=fp16"]) > 0
    lines = (small_study / "precision_ablation.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["variant"] * 2 + ["tokens"] * 2


def test_the_page_of_a_study_answers_first_and_is_small(small_study):
    page = pages.page(run_file.read(small_study / "precision_ablation_run.json"))
    titles = [section.title for section in page.sections]
    assert titles == ["Cost at the logits", "Growth through depth", "Where the costliest errs"]
    assert page.sentences[0].startswith("kv=fp8 costs most")
    assert page.command.endswith("--prompt=p0_short --factors=kv=fp16,kv=fp8")
    assert len(html.render(page)) < html.LIMIT_BYTES


@pytest.mark.parametrize(
    "argument",
    ["--factors=", "--factors=kv=fp8,kv=fp8", "--kl_budget=0", "--study=all", "--factors=kv=fp9"],
)
def test_bad_input_is_one_line_and_exit_2(argument, tmp_path, capsys):
    assert run(tmp_path, argument, "--quiet") == flags.EXIT_USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_engine_errs_like_the_cache_it_declares(tmp_path):
    assert run(tmp_path, "--factors=kv=fp16,kv=fp8", "--compare=engine", "--quiet") == 0
    rows = run_file.read(tmp_path / "precision_ablation_run.json").more["engine"]
    nearest = [row["nearest ablation"] for row in rows]
    assert len(rows) > 15 and nearest.count("kv=fp16") > len(rows) / 2
