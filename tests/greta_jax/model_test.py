"""The forward: prefill, decode, cache and taps."""

from dataclasses import replace

import gguf
import numpy as np
import pytest

from greta_jax.errors import ContextOverflow, GgufError, SiteError, TensorError
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff
from greta_jax.taps import LAYER_SITES, MODEL_SITES, SITES, Taps
from tests.tiny_gguf import PRIME_ISH, llama_writer, write_llama

U64, U32 = unit_roundoff("float64"), unit_roundoff("float32")


def prompt(n: int, vocab: int = 97) -> list[int]:
    return np.random.default_rng(5).integers(0, vocab, n).tolist()


def floor(oracle, step, u=U64) -> float:
    """What roundings may move a logit: as many as the sums on its way have terms, of its size."""
    c, T = oracle.config, len(step.logits_TV)
    roundings = c.layers * (4 * c.dim + c.ffn + c.heads * c.head_dim + T)
    return roundings * u * float(np.abs(step.logits_TV).max())


@pytest.fixture(scope="module")
def oracle(tiny_path):
    return Oracle.open(tiny_path, Policy.fp64())


@pytest.fixture(scope="module")
def quantised(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


@pytest.mark.parametrize("which", ["oracle", "quantised"])
def test_prefill_equals_prefill_then_decode_for_every_length(which, request):
    oracle = request.getfixturevalue(which)
    ids = prompt(19)
    whole = oracle.prefill(ids)
    for n in range(1, len(ids)):
        before = oracle.prefill(ids[:n])
        after = oracle.decode(before.cache, ids[n])
        np.testing.assert_allclose(
            after.logits_TV[0],
            whole.logits_TV[n],
            rtol=0,
            atol=floor(oracle, whole),
            err_msg=str(n),
        )
        np.testing.assert_allclose(
            before.logits_TV, whole.logits_TV[:n], rtol=0, atol=floor(oracle, whole), err_msg=str(n)
        )


def test_the_prefill_law_can_fail(oracle):
    """Decoding after the wrong prefix is far above the floor."""
    ids = prompt(12)
    wrong = oracle.decode(oracle.prefill(ids[:10]).cache, ids[11]).logits_TV[0]
    whole = oracle.prefill(ids)
    assert np.abs(wrong - whole.logits_TV[11]).max() > 1e6 * floor(oracle, whole)


def test_chunked_prefill_equals_one_prefill(oracle):
    ids = prompt(70)
    whole, cache, parts = oracle.prefill(ids), None, []
    for start, stop in ((0, 5), (5, 37), (37, 38), (38, 70)):
        step = oracle.prefill(ids[start:stop], cache=cache)
        cache, parts = step.cache, [*parts, step.logits_TV]
    np.testing.assert_allclose(
        np.concatenate(parts), whole.logits_TV, rtol=0, atol=floor(oracle, whole)
    )


def test_decoding_leaves_the_earlier_cache_valid(oracle):
    ids = prompt(9)
    cache = oracle.prefill(ids[:8]).cache
    first = oracle.decode(cache, ids[8]).logits_TV
    oracle.decode(cache, 3)
    assert np.array_equal(first, oracle.decode(cache, ids[8]).logits_TV)


@pytest.mark.parametrize("policy", [Policy.fp64, Policy.fp32])
def test_taps_do_not_change_the_result(tiny_path, policy):
    oracle, ids = Oracle.open(tiny_path, policy()), prompt(19)
    plain = oracle.prefill(ids)
    tapped = oracle.prefill(ids, Taps.everything())
    assert plain.taps == {}
    assert np.array_equal(plain.logits_TV, tapped.logits_TV)
    one = oracle.decode(plain.cache, 7)
    assert np.array_equal(one.logits_TV, oracle.decode(tapped.cache, 7, Taps(SITES)).logits_TV)


def test_every_site_has_the_shape_of_the_contract(oracle):
    c, T, before = oracle.config, 5, 18
    cache = oracle.prefill(prompt(before)).cache
    taps = oracle.prefill(prompt(T), Taps.everything(), cache).taps
    S, D, N, K, H, F, V = before + T, c.dim, c.heads, c.kv_heads, c.head_dim, c.ffn, c.vocab
    q, k, slab, slots, ffn = (T, N, H), (T, K, H), (S, K, H), (T, N, S), (T, F)
    special = {"attn.q": q, "attn.q_rope": q, "attn.out": q, "attn.k": k, "attn.v": k}
    special |= {"attn.k_rope": k, "kv.k": slab, "kv.v": slab}
    special |= {"attn.scores": slots, "attn.probs": slots, "logits": (T, V)}
    special |= {"ffn.gate": ffn, "ffn.up": ffn, "ffn.act": ffn}
    keys = [(-1, s) for s in MODEL_SITES] + [(i, s) for i in range(c.layers) for s in LAYER_SITES]
    assert set(taps) == set(keys)
    for (_, site), value in taps.items():
        assert value.shape == special.get(site, (T, D)), site
        assert value.dtype == np.float64


def test_taps_select_sites_and_layers(oracle):
    taps = oracle.prefill(prompt(4), Taps(("attn.q", "logits"), (0, 2))).taps
    assert set(taps) == {(0, "attn.q"), (2, "attn.q"), (-1, "logits")}


def test_masked_scores_are_minus_infinity_and_probabilities_sum_to_one(oracle):
    taps = oracle.prefill(prompt(6), Taps(("attn.scores", "attn.probs"), (1,))).taps
    later = np.triu(np.ones((6, 6), bool), 1)[:, None, :].repeat(6, axis=1)
    assert np.all(taps[1, "attn.scores"][later] == -np.inf)
    assert np.all(taps[1, "attn.probs"][later] == 0)
    sums = taps[1, "attn.probs"].sum(axis=-1)
    np.testing.assert_allclose(sums, 1, rtol=0, atol=8 * U64)


def test_fp32_differs_from_fp64_by_its_roundings_and_not_by_zero(tiny_path, oracle):
    single = Oracle.open(tiny_path, Policy.fp32()).prefill(prompt(20)).logits_TV
    double = oracle.prefill(prompt(20))
    assert single.dtype == np.float32
    assert 0 < np.abs(single - double.logits_TV).max() <= floor(oracle, double, U32)


def test_prompt_longer_than_the_context_is_refused(oracle):
    with pytest.raises(ContextOverflow, match="129 tokens.*context of 128"):
        oracle.prefill(prompt(129))
    full = oracle.prefill(prompt(128))
    with pytest.raises(ContextOverflow):
        oracle.decode(full.cache, 0)


def test_layer_or_site_or_token_that_does_not_exist_is_refused(oracle):
    with pytest.raises(SiteError, match="layer 3 does not exist.*0 to 2"):
        oracle.prefill([1], Taps("attn.q", (3,)))
    with pytest.raises(SiteError, match="attn.quantum"):
        Taps(("attn.quantum",))
    with pytest.raises(SiteError, match="token id 97"):
        oracle.prefill([97])
    with pytest.raises(SiteError, match="no tokens"):
        oracle.prefill([])


def test_a_shorter_context_may_be_asked_for(tiny_path):
    oracle = Oracle.open(tiny_path, Policy.fp64(), context=5)
    with pytest.raises(ContextOverflow, match="6 tokens.*context of 5"):
        oracle.prefill(prompt(6))
    for context in (0, 129):
        with pytest.raises(ContextOverflow, match=f"{context} is not within"):
            Oracle.open(tiny_path, Policy.fp64(), context=context)


def changed(tmp_path, changes):
    return write_llama(tmp_path / "changed.gguf", PRIME_ISH, changes)


def test_missing_tensor_is_refused_by_name(tmp_path):
    path = changed(tmp_path, lambda name, raw: None if name == "blk.1.ffn_up.weight" else raw)
    with pytest.raises(TensorError, match=r"blk\.1\.ffn_up\.weight' is missing"):
        Oracle.open(path, Policy.fp64())


def test_tensor_of_the_wrong_shape_is_refused(tmp_path):
    path = changed(tmp_path, lambda name, raw: raw[:-1] if name == "blk.0.ffn_up.weight" else raw)
    with pytest.raises(TensorError, match=r"ffn_up.*\(34, 24\).*\(35, 24\)"):
        Oracle.open(path, Policy.fp64())


@pytest.mark.parametrize(
    "poisoned",
    ["blk.2.attn_output", "token_embd", "blk.0.attn_norm", "output_norm", "output", "blk.1.ffn_up"],
)
def test_weights_with_nan_are_refused_with_their_number(tmp_path, poisoned):
    def poison(name, raw):
        if name == f"{poisoned}.weight":
            raw = raw.copy()
            raw.reshape(-1)[[3, 20]] = np.nan, np.inf
        return raw

    oracle = Oracle.open(changed(tmp_path, poison), Policy.fp64())
    with pytest.raises(TensorError, match=rf"{poisoned}\.weight' holds 2 NaN or inf"):
        oracle.prefill([0, 2])


@pytest.mark.parametrize(
    "factors, words",
    [
        ([1, 1, np.nan, np.inf, 1], "holds 2 divisors of 5"),
        ([1, 1, 0, -1, 1], "holds 2 divisors of 5"),
        ([1, 1, 1], r"shape \(3,\), the heads need \(5,\)"),
    ],
    ids=str,
)
def test_rope_divisors_that_divide_nothing_are_refused(tmp_path, factors, words):
    path = tmp_path / "factors.gguf"
    writer, source = llama_writer(path, PRIME_ISH), changed(tmp_path, None)
    for tensor in gguf.GGUFReader(source).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(TensorError, match=rf"rope_freqs\.weight.*{words}"):
        Oracle.open(path, Policy.fp64())


@pytest.mark.parametrize("how", ["plain", "capped logits", "saturating activations"])
def test_an_infinity_is_found_also_where_its_product_would_be_finite(tmp_path, how):
    def poison(name, raw):
        if name == "output.weight":
            raw = raw.copy()
            raw.reshape(-1)[7] = np.inf
        return raw

    saturating = how == "saturating activations"
    policy = replace(Policy.fp32(), activation="float8_e4m3fnuz") if saturating else Policy.fp64()
    oracle = Oracle.open(changed(tmp_path, poison), policy)
    if how == "capped logits":
        oracle.config = replace(oracle.config, logit_cap=3.0)
    with pytest.raises(TensorError, match=r"output\.weight' holds 1 NaN or inf"):
        oracle.prefill([1, 2])


def test_tied_embeddings_serve_as_output(tmp_path):
    path = changed(tmp_path, lambda name, raw: None if name == "output.weight" else raw)
    oracle = Oracle.open(path, Policy.fp64())
    step = oracle.prefill(prompt(3), Taps(("final.norm",)))
    embed_VD = np.asarray(oracle.weights.load("embed_VD"))
    ref = step.taps[-1, "final.norm"] @ embed_VD.T
    np.testing.assert_allclose(step.logits_TV, ref, rtol=0, atol=floor(oracle, step))


def test_model_sha256_is_the_file_s(tiny_path, oracle):
    import hashlib

    assert oracle.model_sha256 == hashlib.sha256(tiny_path.read_bytes()).hexdigest()


def test_opening_what_is_no_model_is_a_gguf_error(tmp_path):
    with pytest.raises(GgufError):
        Oracle.open(tmp_path / "absent.gguf", Policy.fp64())
