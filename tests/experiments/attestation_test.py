"""A route is what executed, never what was asked for."""

import pytest

from experiments.align.attestation import why_not_attested


@pytest.mark.parametrize("route, mfma", [("manual/valu", 0), ("fused/mfma", 64)])
def test_a_route_that_executed_is_attested(route, mfma):
    assert why_not_attested(route, route, mfma) == ""


@pytest.mark.parametrize(
    "route, observed, mfma, why",
    [
        ("fused/valu", "manual/valu", 0, "manual kernels executed"),
        ("manual/mfma", "manual/valu", 0, "0 matrix-core instructions"),
        ("manual/mfma", "manual/mfma", 0, "0 matrix-core instructions"),
        ("manual/valu", "manual/mfma", 8, "8 matrix-core instructions"),
        ("manual/valu", "none/none", 0, "none kernels executed"),
        ("manual/valu", "manual/valu", None, "nothing says which units"),
    ],
)
def test_a_label_without_its_kernel_is_not(route, observed, mfma, why):
    assert why in why_not_attested(route, observed, mfma)


@pytest.mark.parametrize("route, code", [("manual/valu", {"a": 0}), ("fused/mfma", {"a": 8})])
def test_where_nobody_counts_the_code_of_every_attention_kernel_must_say_so(route, code):
    assert why_not_attested(route, route, None, code) == ""
    mixed = code | {"b": 0 if code["a"] else 8}
    assert "b contains" in why_not_attested(route, route, None, mixed)
