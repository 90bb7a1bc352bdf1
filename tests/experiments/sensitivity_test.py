"""A run's own statement of what it could have seen, held against errors of that size."""

import numpy as np
import pytest

from experiments.align import sensitivity
from experiments.align.verdict import Status
from tests.experiments import toy
from tests.experiments.judge_test import judge
from tests.experiments.toy import SITE

SEEN = sensitivity.of(judge(toy.engine())[2, SITE])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("token", range(toy.T))
def test_an_error_of_the_stated_size_is_found_in_any_element(token, sign):
    for element in range(toy.D):

        def push(layer, y_TD, element=element):
            spoiled = y_TD.copy()
            if layer == 2:
                pushed = np.float32(y_TD[token, element] + sign * SEEN.absolute)
                spoiled[token, element] = np.nextafter(pushed, np.float32(sign * np.inf))
            return spoiled

        assert judge(toy.engine(push))[2, SITE].status in (Status.ABOVE_FLOOR, Status.STRUCTURAL)


def test_the_statement_is_no_larger_than_twice_the_largest_floor():
    floor = max(j.floor_max for j in judge(toy.engine())[2, SITE].judgements)
    assert floor < SEEN.absolute <= 2 * floor


def test_it_is_relative_to_the_tensor_it_lies_in():
    rms = [np.sqrt((row**2).mean()) for row in toy.oracle().rows(2, SITE)]
    assert SEEN.absolute / max(rms) <= SEEN.relative <= SEEN.absolute / min(rms)


def test_where_nothing_was_judged_nothing_could_have_been_found():
    assert sensitivity.of(judge(toy.without(toy.engine(), 1, SITE))[2, SITE]) is None
