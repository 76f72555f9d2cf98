"""Data: what is stored, what was refused, what changed later, and how features are filled."""

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces import model_charts as charts
from quant_pipeline.faces.web.shared import begin, remembered, section, show

NO_PRICES = "No price is stored yet. Run `quant ingest PATH`, or `quant demo` for sample data."


def page() -> None:
    """Show coverage, rejected and restated rows, and the features' state."""
    begin("Data", "Prices as stored, and what became of them.")
    with section("Coverage"):
        show(charts.coverage_line(remembered(_coverage)))
        _symbols(remembered(_by_symbol))
    left, right = st.columns(2)
    with left, section("Rejected rows"):
        _rejected(remembered(_by_reason))
    with right, section("Restatements"):
        _restated(remembered(_by_change))
    with section("Features"):
        _features(remembered(_health))


def _coverage(ws: Workspace) -> pd.DataFrame:
    rows = ws.published.read("coverage")
    if rows is None or not len(rows):
        raise NoData(NO_PRICES)
    found: pd.DataFrame = rows.to_pandas()
    return found.assign(ts=pd.to_datetime(found["ts"]))


def _by_symbol(ws: Workspace) -> pd.DataFrame:
    rows = ws.published.read("coverage_by_symbol")
    if rows is None:
        raise NoData(NO_PRICES)
    found: pd.DataFrame = rows.to_pandas()
    return found


def _symbols(rows: pd.DataFrame) -> None:
    st.dataframe(
        rows.rename(columns={"first_ts": "first session", "last_ts": "last session",
                             "n_bars": "bars"}),
        hide_index=True, height=240,
        column_config={"bars": st.column_config.ProgressColumn(
            format="localized", min_value=0, max_value=int(rows["n_bars"].max()) or 1)},
        alt=f"First and last session and bars of {len(rows)} symbols",
    )  # fmt: skip


def _by_reason(ws: Workspace) -> pd.DataFrame:
    rows = ws.published.read("rejected", columns=["reason"])
    _require_prices(ws, rows)
    return _counted(rows, "reason")


def _by_change(ws: Workspace) -> pd.DataFrame:
    rows = ws.published.read("restated", pc.field("change") != "relinked", ["ts", "change"])
    _require_prices(ws, rows)
    if rows is None or not len(rows):
        return pd.DataFrame({"what": [], "n": []})
    names = {"restated": "changed after it was stored", "late": "came after its window was sealed",
             "deleted": "left out later"}  # fmt: skip
    found = _counted(rows, "change")
    return found.assign(what=[names.get(c, c) for c in found["change"]])


def _require_prices(ws: Workspace, rows: pa.Table | None) -> None:
    """Raise NoData where nothing was read yet: that no row was refused would say nothing."""
    if rows is None or not len(rows):
        _coverage(ws)


def _counted(rows: pa.Table | None, column: str) -> pd.DataFrame:
    if rows is None or not len(rows):
        return pd.DataFrame({column: [], "n": []})
    counts: pd.DataFrame = rows.group_by(column).aggregate([([], "count_all")]).to_pandas()
    return counts.rename(columns={"count_all": "n"}).sort_values("n", ascending=False)


def _rejected(rows: pd.DataFrame) -> None:
    if rows.empty:
        st.success("Every row that was read is stored.", icon=":material/check_circle:")
        return
    show(charts.counted(rows, "reason", "Rows that were kept apart, by reason"))


def _restated(rows: pd.DataFrame) -> None:
    if rows.empty:
        st.success("No stored bar was changed later.", icon=":material/check_circle:")
        return
    show(charts.counted(rows, "what", "Bars that changed, by how"))
    st.caption("`quant prices restated --reach` lists them, and which models knew less.")


def _health(ws: Workspace) -> pd.DataFrame:
    """Of each partition what the newest checks said of its features."""
    found: dict[str, dict[str, object]] = {}
    for row in shown.newest_checks(ws, "features_daily"):
        found.setdefault(row.partition_key, {}).update(row.numbers)
    if not found:
        raise NoData("No features are stored yet. Run `quant train`, or `quant backfill`.")
    wanted = ["mean_null_share", "largest_null_share", "drifted_share", "median_psi",
              "largest_psi", "largest_psi_of"]  # fmt: skip
    rows = [{"partition": key} | {n: found[key].get(n) for n in wanted} for key in sorted(found)]
    return pd.DataFrame(rows)


def _worst(ws: Workspace, what: str) -> tuple[str, pd.DataFrame]:
    """The newest partition whose check named features, and their values, largest first."""
    prefix = f"{what} of "
    for row in reversed(shown.newest_checks(ws, "features_daily")):
        named = {n.removeprefix(prefix): v for n, v in row.numbers.items() if n.startswith(prefix)}
        if named:
            found = pd.DataFrame({"feature": list(named), "value": list(named.values())})
            found = found.sort_values(["value", "feature"], ascending=[False, True])
            return row.partition_key, found.reset_index(drop=True)
    return "", pd.DataFrame({"feature": [], "value": []})


def _by_feature(what: str, axis: str, title: str, form: str) -> None:
    key, rows = remembered(_worst, what)
    if len(rows):
        show(charts.by_feature(rows, axis, f"{title}, {key}", form))


def _features(rows: pd.DataFrame) -> None:
    left, right = st.columns(2)
    with left:
        show(charts.by_partition(
            rows, {"mean_null_share": "mean", "largest_null_share": "largest of a feature"},
            "share of missing values", "Missing values of features, by partition", ".1%",
        ))  # fmt: skip
        _by_feature("null_share", "share of missing values", "Most often missing", ".1%")
    with right:
        show(charts.by_partition(
            rows, {"median_psi": "median", "largest_psi": "largest"}, "stability index",
            "Drift of features from their training window",
        ))  # fmt: skip
        _by_feature("psi", "stability index", "Largest drift", ".2f")
    worst = rows.dropna(subset=["largest_psi"]).sort_values("largest_psi", ascending=False).head(5)
    if len(worst):
        told = ", ".join(f"{r.partition} {r.largest_psi_of} {r.largest_psi:.2f}"
                         for r in worst.itertuples())  # fmt: skip
        st.caption(f"Largest drift: {told}.")
