"""Published sessions add up to what `quant predictions report` says, however they are cut."""

from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from quant_pipeline.chain.judge import judge_predictions
from quant_pipeline.chain.judged import judge_sessions, publish_judged
from quant_pipeline.chain.reconcile import reconcile
from quant_pipeline.chain.shown import read_judged, recent_rank_ic
from quant_pipeline.chain.shown_stats import (
    by_age,
    by_month,
    by_quantile,
    capital,
    in_sample,
    mean_with_error,
    out_of_sample,
    portfolio_title,
    settings_warning,
)

ALL = date(2000, 1, 1), date(2100, 1, 1)


@pytest.fixture(params=["up_5d", "ret_5d"])
def task(request, finished):
    return finished.workspace.settings.task(request.param)


def groups(ws, task):
    """Each group of the report beside its published sessions."""
    judged = read_judged(ws, task)
    for found in judge_predictions(ws, task):
        of = (judged["origin"] == found["origin"]) & (
            judged["settings_known_before"] == found["settings_known_before"]
        )
        yield found, judged[of].reset_index(drop=True)


def test_sessions_and_scores_are_those_of_the_report(finished, task):
    for found, judged in groups(finished.workspace, task):
        assert len(judged) == found["n_sessions"]
        assert judged["n"].sum() == found["n_scores"]
        assert (judged["known_at"] > judged["ts"]).all()


def test_means_and_errors_are_those_of_the_report(finished, task):
    for found, judged in groups(finished.workspace, task):
        metrics = found["metrics"]
        for name in ("ic", "rank_ic"):
            mine = mean_with_error(judged[name], task.horizon)
            assert mine["mean"] == pytest.approx(metrics[name], abs=1e-12)
            assert mine["se"] == pytest.approx(metrics[f"{name}_se"], abs=1e-12)
        names = set(found["sessions"]) & set(judged.columns)
        assert {"turnover", "rank_autocorrelation", "precision_at_k"} <= names
        for name in names:
            expected = found["sessions"][name]["mean"]
            assert judged[name].mean() == pytest.approx(expected, abs=1e-12)


def test_quantiles_decay_and_portfolio_are_those_of_the_report(finished, task):
    sessions = [
        ts for (ts,) in finished.rows("SELECT ts FROM sessions WHERE is_session ORDER BY ts")
    ]
    for found, judged in groups(finished.workspace, task):
        quantiles = by_quantile(judged, task.horizon)
        assert quantiles["mean"].to_list() == pytest.approx(found["quantiles"], abs=1e-12)
        assert quantiles["se"].to_list() == pytest.approx(found["quantiles_se"], abs=1e-12)
        decay = [row for row in found["decay"] if row["rank_ic"] is not None]
        ages = by_age(judged, task.horizon)
        assert ages["age"].to_list() == [row["lag"] for row in decay]
        assert ages["mean"].to_list() == pytest.approx([r["rank_ic"] for r in decay], abs=1e-12)
        portfolio = found["portfolio"]
        assert judged["gross"].mean() == pytest.approx(portfolio["gross"], abs=1e-12)
        assert judged["net"].mean() == pytest.approx(portfolio["net"], abs=1e-12)
        made = capital(judged, sessions, task.horizon)
        assert -made["drawdown"].min() == pytest.approx(portfolio["worst_drawdown"], abs=1e-12)
        assert made["ts"].to_list() == judged["known_at"].to_list()


def test_cut_anywhere_the_sessions_are_the_same(finished, task):
    ws = finished.workspace
    whole = judge_sessions(ws, task, *ALL)
    known = sorted(set(whole["known_at"].to_pylist()))
    for cut in (known[3], known[len(known) // 2]):
        parts = [judge_sessions(ws, task, ALL[0], cut), judge_sessions(ws, task, cut, ALL[1])]
        pasted = pa.concat_tables([p for p in parts if len(p)]).to_pandas()
        pd.testing.assert_frame_equal(
            pasted.sort_values(["ts", "origin"], ignore_index=True),
            whole.to_pandas().sort_values(["ts", "origin"], ignore_index=True),
        )


def test_sessions_in_sample_for_the_settings_are_left_out_where_there_are_others(used):
    ws, task = used.workspace, used.workspace.settings.task("ret_5d")
    judged = read_judged(ws, task)
    assert in_sample(judged.assign(settings_known_before=True)) == ""
    mixed = judged.assign(settings_known_before=np.arange(len(judged)) >= 30)
    assert out_of_sample(mixed)["ts"].to_list() == judged["ts"].to_list()[30:]
    assert in_sample(mixed).startswith(f"30 of {len(judged)} sessions")
    none = judged.assign(settings_known_before=False)
    assert len(out_of_sample(none)) == len(judged)
    for name in {"2016-06", "2016-07", "2016-08"}:
        rows = ws.published.read("judged", ds.field("ts").is_valid())
        months = pc.strftime(rows["known_at"], "%Y-%m")
        mine = rows.filter(pc.equal(months, name))
        at = mine.column_names.index("settings_known_before")
        after = pa.array([name == "2016-08"] * len(mine))
        ws.published.write("judged", name, mine.set_column(at, "settings_known_before", after))
    (told,) = recent_rank_ic(ws, task)
    last = judged[judged["known_at"] >= "2016-08-01"]
    assert told["n"] == len(last) < len(judged)
    assert told["mean"] == pytest.approx(last["rank_ic"].mean())
    assert (told["is_in_sample"], told["is_short"]) == (False, True)


def test_months_are_means_of_their_sessions():
    ts = pd.to_datetime(["2020-01-30", "2020-01-31", "2020-02-03", "2021-01-04"])
    judged = pd.DataFrame({"ts": ts, "rank_ic": [0.1, 0.3, np.nan, -0.2]})
    assert by_month(judged, "rank_ic").to_dict("records") == [
        {"year": 2020, "month": 1, "mean": pytest.approx(0.2), "n": 2},
        {"year": 2021, "month": 1, "mean": pytest.approx(-0.2), "n": 1},
    ]


def made_with(ws) -> set[tuple[float, float]]:
    rows = ws.published.read("judged").to_pandas()
    return set(zip(rows["top_k"], rows["cost_bps"], strict=True))


def test_other_metrics_are_told_and_the_next_publication_judges_everything_anew(used):
    task = used.workspace.settings.task("ret_5d")
    old = read_judged(used.workspace, task)
    assert made_with(used.workspace) == {(20, 10.0)}
    used.change_settings("[train]", "[metrics]\ntop_k = 5\ncost_bps = 50\n\n[train]")
    ws = used.workspace
    assert portfolio_title(old, 5) == "Top 20 names, 5 tranches, gross and net of 10 bps"
    told = settings_warning(old, ws.settings.metrics)
    assert "top_k = 20 (quant.toml now: 5)" in told
    assert "cost_bps = 10 (quant.toml now: 50)" in told
    publish_judged(ws, ["2016-08"])
    assert made_with(ws) == {(5, 50.0)}
    new = read_judged(ws, task)
    assert settings_warning(new, ws.settings.metrics) == ""
    assert portfolio_title(new, 5) == "Top 5 names, 5 tranches, gross and net of 50 bps"
    mixed = pd.concat([old.iloc[:5], new.iloc[5:]], ignore_index=True)
    assert (
        portfolio_title(mixed, 5) == "Top 5 or 20 names, 5 tranches, gross and net of 10 or 50 bps"
    )
    assert "mixed" in settings_warning(mixed, ws.settings.metrics)
    before = old.drop(columns=["top_k", "cost_bps", "quantile", "min_names"])
    assert "unknown" in settings_warning(before, ws.settings.metrics)
    for group in judge_predictions(ws, task):
        assert new["net"].mean() == pytest.approx(group["portfolio"]["net"], abs=1e-12)


def test_judged_files_of_other_metrics_are_found_by_reconcile(used):
    used.change_settings("[train]", "[metrics]\ntop_k = 5\n\n[train]")
    ws = used.workspace
    told = [p.what for p in reconcile(ws, lambda *_: None, dry_run=False)]
    assert told
    assert all("published/judged/" in what for what in told)
    assert made_with(ws) == {(5, 10.0)}
    assert reconcile(ws, lambda *_: None, dry_run=True) == []


def test_nothing_else_is_written_when_metrics_are_the_same(used):
    ws = used.workspace
    folder = ws.home.published / "judged"
    (folder / "2016-07.parquet").write_bytes(b"damaged")
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    publish_judged(ws, ["2016-08"])
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"2016-07.parquet", "2016-08.parquet"}
