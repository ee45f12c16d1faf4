"""Altitudes against decimal.Decimal, and the load order groups against the official ranges."""

from __future__ import annotations

import decimal
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackfs.altitude import GROUPS, AltitudeError, canonical, check_group, compare, sort_key

DIGITS = st.text("0123456789", max_size=40)
ALTITUDES = st.builds(
    lambda whole, point, fraction: whole + (point + fraction if point else ""),
    DIGITS,
    st.sampled_from(["", "."]),
    DIGITS,
).filter(lambda text: any(each != "." for each in text))
NEARBY = st.builds(
    lambda zeros, whole, fraction, more: f"{'0' * zeros}{whole}.{fraction}{'0' * more}",
    st.integers(0, 3),
    st.integers(0, 20),
    st.text("019", max_size=3),
    st.integers(0, 3),
)
WIDE = decimal.Context(prec=200)


@given(ALTITUDES | NEARBY, ALTITUDES | NEARBY)
def test_order_is_decimals_order(one: str, other: str) -> None:
    first, second = WIDE.create_decimal(one), WIDE.create_decimal(other)
    assert compare(one, other) == (first > second) - (first < second)
    assert (sort_key(one) == sort_key(other)) == (first == second) == (canonical(one) == canonical(other))


@given(ALTITUDES)
def test_canonical_keeps_the_value_and_is_stable(text: str) -> None:
    short = canonical(text)
    assert WIDE.create_decimal(short) == WIDE.create_decimal(text)
    assert canonical(short) == short
    assert "." not in short or not short.endswith(("0", "."))
    assert short == "0" or short.startswith("0.") or not short.startswith("0")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("03333.100", "3333.1"),
        ("03333", "3333"),
        ("0", "0"),
        ("000.000", "0"),
        (".5", "0.5"),
        ("385100.", "385100"),
        ("9007199254740993", "9007199254740993"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    ],
)
def test_canonical(text: str, short: str) -> None:
    assert canonical(text) == short


def test_the_documented_order() -> None:
    assert compare("03333", "100.123456") == 1
    assert compare("3333", "03333.0") == 0
    assert compare("389998.99", "389999") == -1
    assert compare("9007199254740992", "9007199254740993") == -1  # equal as floats


@pytest.mark.parametrize(
    "text", ["", ".", "1.2.3", "-1", "+1", "1e3", " 1", "1 ", "1\n", "0x10", "1,5", "\u0663", "\u00b2", "inf"]
)
def test_what_is_no_altitude(text: str) -> None:
    for function in (canonical, sort_key):
        with pytest.raises(AltitudeError, match="is not an altitude"):
            function(text)


def test_groups_do_not_overlap_and_stand_in_order() -> None:
    groups = list(GROUPS.values())
    for upper, lower in itertools.pairwise(groups):
        assert lower.low <= lower.high < upper.low <= upper.high
    assert len(groups) == 26


@pytest.mark.parametrize(
    ("altitude", "group", "inside"),
    [
        ("360000", "FSFilter Activity Monitor", True),
        ("389998.99", "FSFilter Activity Monitor", True),
        ("389999.999", "FSFilter Activity Monitor", True),
        ("390000", "FSFilter Activity Monitor", False),
        ("359999.9999999999999999999999", "FSFilter Activity Monitor", False),
        ("0360000", "FSFilter Activity Monitor", True),
        ("329999", "FSFilter Anti-Virus", True),
        ("175000", "FSFilter Imaging", True),
        ("175001", "FSFilter Imaging", False),
        ("19999.9", "FSFilter Infrastructure", True),
        ("20000", "FSFilter Infrastructure", False),
        ("0", "FSFilter Infrastructure", True),
        ("141000", "FSFilter Encryption", True),
        ("1410000", "FSFilter Encryption", False),
        ("14100", "FSFilter Encryption", False),
    ],
)
def test_ranges(altitude: str, group: str, inside: bool) -> None:
    assert GROUPS[group].contains(altitude) is inside
    check_group(altitude, group, "a reason lets every altitude through")
    if inside:
        check_group(altitude, group)
    else:
        for reason in (None, "", "  "):
            with pytest.raises(AltitudeError, match=f"outside {GROUPS[group].low}-{GROUPS[group].high}"):
                check_group(altitude, group, reason)


def test_an_unknown_group_is_refused_whatever_the_reason() -> None:
    with pytest.raises(AltitudeError, match="not a load order group"):
        check_group("360000", "Activity Monitor", "because")
