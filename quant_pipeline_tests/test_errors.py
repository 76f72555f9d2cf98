"""Rules of errors: one tree, and an unknown name says what was probably meant."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_pipeline import errors
from quant_pipeline.errors import QuantError, unknown_name

TREE = {
    "SettingsError": "QuantError",
    "SourceError": "QuantError",
    "NoData": "QuantError",
    "FeatureError": "QuantError",
    "NotEnoughHistory": "QuantError",
    "DegenerateData": "QuantError",
    "GateError": "QuantError",
    "DataLate": "QuantError",
    "ProofFailed": "QuantError",
    "AlertFailed": "QuantError",
    "StoreError": "QuantError",
    "StoreBusy": "StoreError",
    "ModelFileError": "StoreError",
}
FOUND = {
    n: c for n, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
}


def test_the_public_errors_are_these() -> None:
    parents = {name: c.__base__.__name__ for name, c in FOUND.items() if c is not QuantError}
    assert parents == TREE


@pytest.mark.parametrize("name", sorted(FOUND))
def test_every_error_is_one_that_a_face_catches_and_says_what_it_is(name: str) -> None:
    assert issubclass(FOUND[name], QuantError)
    assert not issubclass(FOUND[name], (OSError, ValueError))
    assert (FOUND[name].__doc__ or "").endswith(".")
    assert str(FOUND[name]("what and why")) == "what and why"


names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(names, st.sets(names, max_size=6))
def test_an_unknown_name_is_told_with_all_that_are_known(name: str, known: set[str]) -> None:
    text = unknown_name("task", name, iter(known))
    assert text.startswith(f"No task {name}.")
    assert text.endswith(f"Known: {', '.join(sorted(known)) or 'none'}.")
    if "Did you mean" in text:
        assert text.split("Did you mean ")[1].split("?")[0] in known


def test_a_near_name_is_proposed_and_a_far_one_is_not() -> None:
    known = ["up_5d", "ret_5d", "rank_5d"]
    assert "Did you mean ret_5d?" in unknown_name("task", "ret_5", known)
    assert "Did you mean" not in unknown_name("task", "volatility", known)
