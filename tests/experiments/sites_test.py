"""Names and order of sites."""

import pytest

from experiments.align import sites
from experiments.align.errors import UnknownSite
from greta_jax import taps


def test_the_judge_and_the_oracle_know_the_same_sites_in_the_same_order():
    assert sites.SITES == taps.SITES


def test_places_are_in_dataflow_order():
    chosen = sites.places((1, 0), ("logits", "resid.out", "attn.norm", "embed"))
    layers = [(0, "attn.norm"), (0, "resid.out"), (1, "attn.norm"), (1, "resid.out")]
    assert chosen == [(-1, "embed"), *layers, (-1, "logits")]


def test_gretas_names_are_accepted_and_written():
    assert sites.resolve(["x_out", "attn_out"]) == ("attn.out", "resid.out")
    assert sites.resolve(["k"]) == ("attn.k", "attn.k_rope", "kv.k")
    assert sites.greta_name("attn.out") == "attn_out"
    assert sites.greta_name("attn.probs") == "attn.probs"


def test_an_unknown_site_is_refused_with_its_neighbour():
    with pytest.raises(UnknownSite, match="'attn.outt': did you mean 'attn.out'"):
        sites.resolve(["attn.outt"])


def test_row_shapes_grow_with_the_position_where_slots_count():
    dims = {"N": 6, "K": 2, "H": 10}
    assert sites.row_shape("attn.q", dims, 4) == (6, 10)
    assert sites.row_shape("attn.probs", dims, 4) == (6, 5)
    assert sites.row_shape("kv.k", dims, 4) == (5, 2, 10)
