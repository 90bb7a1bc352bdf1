"""Collecting taps: what is kept, and that memory is shared only where slabs only grew."""

import numpy as np

from experiments.under_test import Taken

RNG = np.random.default_rng(1)


def slabs(tokens):
    """The slab after each of `tokens` appends, as separate arrays."""
    whole_SKH = RNG.standard_normal((tokens, 2, 3)).astype(np.float32)
    return [whole_SKH[: t + 1].copy() for t in range(tokens)]


def collect(per_step, layers=(1,), place=(1, "kv.k")):
    taken = Taken(layers)
    for value in per_step:
        taken.add({place: value})
    return taken.rows().get(place)


def test_slabs_that_only_grew_are_views_of_the_last():
    steps = slabs(5)
    rows = collect(steps)
    assert all(row.base is steps[-1] for row in rows)
    for row, step in zip(rows, steps, strict=True):
        np.testing.assert_array_equal(row, step)


def test_a_slot_that_was_overwritten_is_seen_as_it_was_at_each_step():
    steps = slabs(5)
    steps[3][1] = 7.0
    steps[4][1] = 7.0
    rows = collect(steps)
    for row, step in zip(rows, steps, strict=True):
        np.testing.assert_array_equal(row, step)
    assert not np.array_equal(rows[2][1], rows[3][1])


def test_nan_in_a_kept_slot_is_kept_and_not_taken_for_a_change():
    steps = slabs(3)
    for step in steps:
        step[0, 0, 0] = np.nan
    assert all(row.base is steps[-1] for row in collect(steps))


def test_of_other_layers_only_the_output_is_kept():
    row_1D = np.ones((1, 4), np.float32)
    assert collect([row_1D] * 3, place=(0, "resid.out")).shape == (3, 4)
    assert collect([row_1D] * 3, place=(0, "ffn.down")) is None
    assert collect([row_1D] * 3, place=(-1, "embed")).shape == (3, 4)
    assert collect(slabs(2), place=(0, "kv.k")) is None
