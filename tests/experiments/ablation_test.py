"""Ablation studies: one pass equals many runs, bad factors are refused, searches are minimal."""

import csv
import json

import numpy as np
import pytest

from experiments import flags, precision_ablation
from experiments.ablation import evaluate, explained, factors, search, studies
from experiments.ablation.evaluate import Cost, SiteError
from experiments.align import tokens
from experiments.align.errors import AlignError
from experiments.report import html, pages, run_file
from greta_jax import weights
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
    assert cost.sites.keys() == ref.taps.keys()
    for layer, site in ref.taps:
        theirs = ref.taps[layer, site], got.taps[layer, site]
        expected = evaluate.site_error(site, *theirs, len(IDS))
        found = cost.sites[layer, site]
        assert found.max == expected.max, (layer, site)
        # Padding is in the sums as zeros, so their order is another.
        np.testing.assert_allclose(
            (found.rms, found.signal), (expected.rms, expected.signal), rtol=1e-12
        )
    np.testing.assert_array_equal(cost.kl_T, tokens.kl_nats(ref.logits_TV, got.logits_TV))


def test_a_streamed_model_gives_the_same_bits(tiny_path, costs):
    policies, expected = costs
    streamed = Oracle.open(tiny_path, Policy.fp64(), resident=False)
    for one, other in zip(evaluate.costs(streamed, policies, IDS), expected, strict=True):
        assert one.sites == other.sites
        np.testing.assert_array_equal(one.kl_T, other.kl_T)


def test_each_chunk_is_decoded_once_for_all_policies(tiny_path, costs, monkeypatch):
    policies, _ = costs
    assert {"float16", "float64"} <= {policy.weight for policy in policies}
    # Chunks of few rows, so that a matrix of this small model has several.
    monkeypatch.setattr(weights.accelerator, "chunk_weights", lambda: 2**9)
    streamed = Oracle.open(tiny_path, Policy.fp64(), resident=False)
    expected = streamed.prefill(IDS).logits_TV
    decoded = []
    original = weights.dequantize_blocks

    def counted(raw, dtype, store):
        decoded.append((raw.ctypes.data, store))
        return original(raw, dtype, store)

    monkeypatch.setattr(weights, "dequantize_blocks", counted)
    found = evaluate.costs(streamed, policies, IDS)
    assert {store for _, store in decoded} == {"float64"}
    tensors = len(streamed.file.tensors)
    assert len(decoded) == len(set(decoded)) > 2 * tensors
    monkeypatch.setattr(weights, "dequantize_blocks", original)
    for policy, cost in zip(policies, found, strict=True):
        got = streamed.with_policy(policy).prefill(IDS).logits_TV
        np.testing.assert_array_equal(cost.kl_T, tokens.kl_nats(expected, got))


def test_equal_policies_are_computed_once_until_they_differ(oracle, monkeypatch):
    texts = ["pv=fp16/1", "kv=fp8/1", "activation=bf16@ffn.act/1"]
    policies = [factors.combined(Policy.fp64(), [factors.parse(t, 2)]) for t in texts]
    ran = []
    original = Oracle.applying

    def counted(self, op, layer, tensors):
        ran.append((layer, op.site))
        return original(self, op, layer, tensors)

    monkeypatch.setattr(Oracle, "applying", counted)
    evaluate.costs(oracle, policies, IDS)
    in_first = [site for layer, site in ran if layer == 0]
    assert len(in_first) == len(set(in_first)) == len(oracle.ops)
    assert [ran.count((1, site)) for site in ("attn.q", "kv.k", "attn.out", "ffn.down")] == [
        *(1, 2, 3, 4)
    ]


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


def made_up_summary(name, kl, growth=()):
    return studies.Summary(name, kl, 0.1, kl, 0, 10, "attn.out of layer 1", 0.5, 0.01, growth)


def test_a_study_answers_in_words():
    one = [made_up_summary("pv=fp16/31", 1e-5, ((0, 0.0), (1, 0.1), (2, 0.3)))]
    text = " ".join(studies.sentences("one_factor", one, 1e-3))
    assert "pv=fp16/31 costs 1e-05 ± 0.1 nats a token; 0 of 10 tokens flip." in text
    assert "at attn.out of layer 1; at the logits it is 0.01" in text
    assert "from 0.1 to 0.3" in text and "within the budget of 0.001" in text
    rows = [made_up_summary(name, kl) for name, kl in (("a", 1.0), ("b", 2.0), ("a b", 3.5))]
    assert "interaction is of a with b: together they cost 0.5 nats more than the 3 of" in " ".join(
        studies.sentences("pairs", rows, 1.0)
    )
    rows = [made_up_summary(name, kl) for name, kl in (("a", 1.0), ("a b", 3.5), ("a b c", 4.0))]
    assert "The step that adds most is b: 2.5 of the 4 nats" in " ".join(
        studies.sentences("cumulative", rows, 1.0)
    )
    rows = [made_up_summary(name, kl) for name, kl in (("x@attn.q", 1.0), ("x@attn.k", 3.5))]
    assert "Beyond the budget by themselves: x@attn.k (3.5)." in " ".join(
        studies.sentences("by_site", rows, 2.0)
    )


class Additive:
    """A model whose parts cost what they cost, one by one, with an interaction of the last two."""

    def __init__(self, own, together=0.0, base=0.0):
        self.own, self.together, self.base, self.calls = own, together, base, 0

    def __call__(self, policies):
        self.calls += len(policies)
        return [self.cost({rule.first for rule in policy.rules}) for policy in policies]

    def cost(self, low):
        pair = {len(self.own) - 2, len(self.own) - 1} <= low
        return self.base + sum(self.own[n] for n in low) + self.together * pair


LOW = factors.Factor("kv", "float8_e4m3fnuz")


def kept_of(model, budget, layers):
    parts, names = studies.parts("keep_layers", LOW, layers)
    chosen, found = search.search(Policy.fp64(), parts, budget, model)
    kept = tuple(names[n] for n in chosen)
    shared = dict(low=str(LOW), stays="fp16", unit="layer", parts=names, budget_nats=budget)
    return chosen, search.Kept(**shared, kept=kept, **found)


@pytest.mark.parametrize(
    "budget, kept", [(100.0, ()), (9.0, (3,)), (5.0, (1, 3)), (0.5, (0, 1, 2, 3)), (0.0, range(5))]
)
def test_the_search_keeps_the_fewest_layers_that_meet_the_budget(budget, kept):
    model = Additive([1.0, 4.0, 2.0, 8.0, 0.25])
    chosen, found = kept_of(model, budget, 5)
    assert chosen == tuple(kept) and found.met
    assert found.kl == model.cost(set(range(5)) - set(kept)) <= budget
    assert found.evaluations == model.calls


def test_an_interaction_that_the_ranking_misses_is_pruned_not_kept():
    model = Additive([3.0, 2.0, 1.0, 1.0], together=5.0)
    chosen, found = kept_of(model, 6.0, 4)
    assert found.met
    for layer in chosen:
        low = set(range(4)) - (set(chosen) - {layer})
        assert model.cost(low) > 6.0


@pytest.mark.parametrize(
    "budget, base, words",
    [
        (100.0, 0.0, "no layer must stay fp16; in all 5 it costs 15.2 nats a token, within"),
        (9.0, 0.0, "layer 3 must stay fp16; the other 4 of 5 can take it, for 7.25 nats a token"),
        (5.0, 0.5, "layers 1, 3 must stay fp16; the other 3 of 5 can take it, for 3.75 nats"),
        (0.1, 0.0, "every layer must stay fp16 (the budget of 0.1; all 5 at kv=fp8 cost 15.2"),
        (5.0, 6.0, "no choice of layers meets the budget of 5 nats a token; fp16 in every one"),
    ],
)
def test_the_search_answers_in_words(budget, base, words):
    _, found = kept_of(Additive([1.0, 4.0, 2.0, 8.0, 0.25], base=base), budget, 5)
    assert words in found.sentence()


def made_up_cost(rms, distance=None):
    error = SiteError(rms, rms, 1.0)
    apart = {} if distance is None else {(0, "attn.out"): distance}
    return {"p": Cost({(0, "attn.out"): error}, np.zeros(2), (), (), apart)}


@pytest.mark.parametrize(
    "engine, declared, distances, answer",
    [
        (0.0, 0.0, (0.1, 0.2), "exact"),
        (0.1, 0.1, (0.1, 0.12), "as declared"),
        (0.1, 0.1, (0.02, 0.12), "as declared: kv=fp16"),
        (0.3, 0.1, (0.3, 0.02), "departs: pv=fp16"),
        (0.3, 0.1, (0.3, 0.35), "departs, unexplained"),
        (0.1, 0.0, (0.1, 0.1), "departs, unexplained"),
    ],
)
def test_a_departure_of_the_engine_is_explained_by_a_choice_or_not(
    engine, declared, distances, answer
):
    """What the engine holds is near what a choice computes, or not: size proves nothing."""
    first, second = distances
    costs = {"kv=fp16": made_up_cost(0.3, first), "pv=fp16": made_up_cost(0.3, second)}
    costs |= {explained.DECLARED: made_up_cost(declared, 0.0)}
    own = made_up_cost(engine)
    (row,) = explained.rows(costs, own)
    assert row.answer == answer
    text = " ".join(explained.sentences([row], own))
    assert ("no choice of this study explains it: attn.out" in text) == ("unexplained" in answer)
    assert ("explained: attn.out (pv=fp16)" in text) == (answer == "departs: pv=fp16")


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
    assert len(rows) == 2 * (1 + 32 * 19 + 2)
    worst = {row["variant"]: row["relative_rms"] for row in rows if row["site"] == "logits"}
    assert float(worst["kv=fp8"]) > float(worst["kv=fp16"]) > 0
    lines = (small_study / "precision_ablation.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["variant"] * 2 + ["tokens"] * 2


def test_the_page_of_a_study_answers_first_and_is_small(small_study):
    page = pages.page(run_file.read(small_study / "precision_ablation_run.json"))
    titles = [section.title for section in page.sections]
    assert titles == ["Cost at the logits", "Growth through depth", "Where it errs"]
    assert page.sentences[0].startswith("kv=fp8 costs most")
    assert page.command.endswith("--prompt=p0_short --factors=kv=fp16,kv=fp8")
    assert len(html.render(page)) < html.LIMIT_BYTES


def test_what_overflows_is_drawn_as_such_and_breaks_no_page(small_study, tmp_path):
    stored = json.loads((small_study / "precision_ablation_run.json").read_text())
    row, places = stored["more"]["rows"][1], stored["more"]["places"]["kv=fp8"]
    row |= {"kl_mean": "inf", "kl_sem": "nan", "worst_error": "inf"}
    row["growth"][3][1] = places[40][2] = "inf"
    for cells in stored["more"]["table"]["rows"]:
        cells[1:4] = ["inf", "nan", "inf"] if cells[0] == "kv=fp8" else cells[1:4]
    (tmp_path / "precision_ablation_run.json").write_text(json.dumps(stored))
    page = pages.page(run_file.read(tmp_path / "precision_ablation_run.json"))
    assert "Where it errs" in [section.title for section in page.sections]
    assert "Under kv=fp8, the costliest" in html.render(page)


@pytest.mark.parametrize(
    "argument",
    [
        *("--factors=", "--factors=kv=fp8,kv=fp8", "--kl_budget=0", "--study=all"),
        *("--factors=kv=fp9", "--base=kv=fp9", "--study=pairs --factors=kv=fp8"),
        *("--layers=0", "--route=fused/mfma", "--inject_fault=scores_in_fp16"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argument, tmp_path, capsys):
    assert run(tmp_path, *argument.split(), "--quiet") == flags.EXIT_USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_terminal_says_what_took_how_long(tmp_path, capsys):
    assert run(tmp_path, "--factors=kv=fp16/31") == flags.EXIT_PASS
    text = capsys.readouterr().out
    assert "Where the time went" in text
    last = text.splitlines()[-1]
    assert last.startswith("precision_ablation: MEASURED (exit 0), 1 policies on ")


def test_fp8_layers_are_searched_from_an_fp16_cache(tmp_path, capsys):
    arguments = ("--study=keep_layers", "--factors=kv=fp8/28-31", "--base=kv=fp16")
    assert run(tmp_path, *arguments, "--kl_budget=3e-4") == flags.EXIT_PASS
    found = run_file.read(tmp_path / "precision_ablation_run.json")
    (kept,) = found.more["kept"]
    assert kept["stays"] == "fp16" and kept["parts"] == ["28", "29", "30", "31"]
    assert 0 < len(kept["kept"]) < 4 and kept["kl"] <= 3e-4 < kept["kl_all_low"]
    assert found.lines[0].startswith("kv=fp8/28-31: layer") and "must stay fp16" in found.lines[0]
    titles = [section.title for section in pages.page(found).sections]
    assert titles[0] == "What can take kv=fp8/28-31"


def test_the_engine_errs_as_declared_and_its_cache_explains_most(tmp_path):
    assert run(tmp_path, "--factors=kv=fp16,kv=fp8", "--compare=engine", "--quiet") == 0
    rows = run_file.read(tmp_path / "precision_ablation_run.json").more["engine"]
    answers = [row["answer"] for row in rows]
    assert len(rows) > 15 and not any("departs" in answer for answer in answers)
    assert answers.count("as declared: kv=fp16") > len(rows) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, explanation",
    [("fp32_cache_of_fp16_numbers", "kv=fp16"), ("newest_key_dropped", "unexplained")],
)
def test_a_faulty_engine_departs_and_the_fault_is_a_choice_or_not(tmp_path, fault, explanation):
    arguments = ("--factors=kv=fp16,score=fp16,compute=fp16", "--compare=engine", "--quiet")
    assert run(tmp_path, *arguments, f"--inject_fault={fault}") == flags.EXIT_PASS
    rows = run_file.read(tmp_path / "precision_ablation_run.json").more["engine"]
    (found,) = [row["answer"] for row in rows if row["site"] == "attn.out"]
    assert found.startswith("departs") and explanation in found
