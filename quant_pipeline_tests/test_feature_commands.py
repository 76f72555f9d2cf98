"""`quant features`, and the page about features: what it says is what there is and what runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from quant_pipeline.faces.features import find_features, with_table
from quant_pipeline.market.alpha158 import ALPHA158
from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed

PAGE = Path(__file__).parents[1] / "docs" / "features.md"


@pytest.fixture
def own(used: SmallHome) -> SmallHome:
    """A home with the module that the page shows."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (module,) = [block for block in blocks if "FEATURES =" in block]
    (used.root / "my_features.py").write_text(module)
    used.change_settings("[features]\n", '[features]\nmodules = ["my_features"]\n')
    return used


def test_the_table_in_the_docs_is_made_from_the_entries() -> None:
    """`make docs` writes it."""
    text = PAGE.read_text()
    assert with_table(text) == text
    assert text.count("\n| ") == 160 + 1  # 159 features, a head and the line under it


def test_list_tells_name_window_inputs_and_formula(finished: SmallHome) -> None:
    rows = succeed(finished.root, "features", "list", "--json").json
    assert [row["name"] for row in rows] == list(ALPHA158)
    assert rows[2] == {
        "name": "KMID2", "window": 0, "inputs": ["open", "high", "low", "close"],
        "sets": ["alpha158"], "formula": "(c-o)/(h-l+1e-12)",
    }  # fmt: skip
    shown = succeed(finished.root, "features", "list").out.splitlines()
    assert shown[0].split() == ["feature", "window", "inputs", "formula"]
    assert len(shown) == 160
    assert shown[-1] == "158 features; the longest window looks 60 sessions back."


def test_all_features_are_listed_without_a_home(tmp_path: Path) -> None:
    rows = succeed(tmp_path, "features", "list", "--all", "--json").json
    assert [row["name"] for row in rows] == [*ALPHA158, "MOM_12_1"]
    assert call(tmp_path, "features", "list").code == 1


def test_own_features_are_listed_after_the_set(own: SmallHome) -> None:
    rows = find_features(own.workspace)[-3:]
    assert [(r["name"], r["sets"], r["formula"]) for r in rows] == [
        ("GAP", ["own"], "o/ago(c,1)-1"),
        ("CALM20", ["own"], "calm(close, volume)"),
        ("ROC20_RANK", ["own"], "rank(ROC20) within the session's universe"),
    ]


def test_the_example_of_the_docs_has_the_values_it_says(own: SmallHome) -> None:
    found = succeed(own.root, "features", "show", "GAP", "--symbol", "S001", "--json").json
    assert found["is_in_quant_toml"]
    stored = own.rows(
        "SELECT ts, open / close * adj_index, adj_index FROM prices_daily "
        "WHERE symbol = 'S001' ORDER BY ts"
    )
    sessions = [ts for (ts,) in own.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")]
    bars = {ts: (opened, close) for ts, opened, close in stored}
    assert len(found["values"]) == 10
    for row in found["values"]:
        (at,) = [i for i, ts in enumerate(sessions) if str(ts) == row["ts"]]
        before = bars.get(sessions[at - 1])
        expected = None if before is None else bars[sessions[at]][0] / before[1] - 1
        assert (row["value"] is None) == (expected is None)
        if expected is not None:
            assert row["value"] == pytest.approx(expected, abs=1e-6)


def test_show_gives_the_stored_values_beside_the_bars(finished: SmallHome) -> None:
    words = ("features", "show", "RSV20", "--symbol", "s002", "--to", "2016-06-30", "--last", "4")
    found = succeed(finished.root, *words, "--json").json
    stored = finished.rows(
        "SELECT ts, RSV20, in_universe, f.close FROM features_daily JOIN prices_daily f "
        "USING (symbol, ts) WHERE symbol = 'S002' AND ts <= '2016-06-30' ORDER BY ts DESC LIMIT 4"
    )[::-1]
    assert [row["ts"] for row in found["values"]] == [str(ts) for ts, *_ in stored]
    values = [np.float32(row["value"]) for row in found["values"]]
    assert values == [np.float32(v) for _, v, *_ in stored]
    assert [row["close"] for row in found["values"]] == [close for *_, close in stored]
    shown = succeed(finished.root, *words).out.splitlines()
    assert shown[0] == "RSV20 = (c-min(l,20))/(max(h,20)-min(l,20)+1e-12)"
    assert shown[3].split()[-3:] == ["RSV20", "in", "universe"]
    assert len(shown) == 8


def test_a_missing_value_is_a_dash_and_never_0(finished: SmallHome) -> None:
    words = ("features", "show", "MOM_12_1", "--symbol", "S001", "--to", "2016-03-01", "--last")
    found = succeed(finished.root, *words, "1", "--json").json
    assert found["values"][0]["value"] is None
    shown = succeed(finished.root, *words, "1").out
    assert "quant.toml does not ask for it" in shown
    assert shown.splitlines()[-1].split()[-2] == "–"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("KMID3",), r"No feature KMID3\. Did you mean KMID.*159 names are known.*features list"),
        (("kmid2",), r"Did you mean KMID2"),
        (("KMID", "--symbol", "SO03"), r"No symbol SO03\. Did you mean S0.*`quant status`"),
        (("KMID", "--symbol", "S001", "--to", "2010-01-01"), r"No bar of S001 up to 2010-01-01"),
    ],
    ids=["unknown", "other case", "no symbol", "too early"],
)
def test_what_cannot_be_shown_is_said(
    finished: SmallHome, words: tuple[str, ...], message: str
) -> None:
    answer = call(finished.root, "features", "show", *words)
    assert (answer.code, answer.out) == (1, "")
    assert re.search(message, answer.err), answer.err
