"""Models: all of them, who served when, one in full, and two side by side."""

from bisect import bisect_left
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.faces import model_charts as charts
from quant_pipeline.faces.charts import number
from quant_pipeline.faces.web.shared import (
    NOTHING,
    begin,
    choose_task,
    of,
    plus_minus,
    remembered,
    section,
    show,
)
from quant_pipeline.ml.metrics import calibration_bins
from quant_pipeline.ml.targets import make_target
from quant_pipeline.settings import Task
from quant_pipeline.stores.meta import Model

NO_MODEL = "No model has been trained yet. Run `quant train`, or `quant demo` for sample data."
# Metrics in the order of their columns, what chance or a constant reaches, their names; the unit.
METRICS = {
    "rank_ic": ("RankIC", None, ""), "accuracy": ("accuracy", "accuracy_base", "%"),
    "auc": ("AUC", None, ""), "top_minus_bottom": ("top minus bottom", None, "%"),
    "precision_at_k": ("precision, top k", "precision_at_k_base", "%"),
    "ndcg_at_k": ("NDCG, top k", "ndcg_at_k_base", ""),
    "mse": ("MSE", "mse_base", ""), "ic": ("IC", None, ""),
    "precision": ("precision", "base_rate", "%"), "log_loss": ("log loss", "log_loss_base", ""),
}  # fmt: skip


def page() -> None:
    """Show models of a task; the newest one in full, unless another is chosen."""
    begin("Models", "Metrics are of the folds' test windows, never of what a model learned from.")
    with section():
        task = choose_task(st.columns([2, 5])[0])
        models: list[Model] = remembered(_models, of(task))
        if not models:
            raise NoData(NO_MODEL)
        _list(models)
        with section():
            show(charts.champions_line(remembered(_champions)))
        ids = [m.model_id for m in reversed(models)]
        by_id = {m.model_id: m for m in models}

        def named(model_id: str | None) -> str:
            m = by_id.get(model_id or "")
            return f"{m.model_id[:12]}, as of {m.asof}, {m.status}" if m else "none"

        left, right = st.columns(2)
        one = str(left.selectbox("One model in full", ids, format_func=named))
        others = [None, *(i for i in ids if i != one)]
        other = right.selectbox("Beside it", others, format_func=named)
        if other is not None:
            _beside(by_id[one], by_id[other])
        _model(task, by_id[one])


def _models(ws: Workspace, task: Task) -> list[Model]:
    return ws.meta.models(task.task_id)


def _list(models: list[Model]) -> None:
    rows = [
        {
            "as of": m.asof, "model": m.model_id[:12], "status": m.status,
            "RankIC": m.metrics.get("rank_ic"), "± s.e.": m.metrics.get("rank_ic_se"),
            "accuracy": m.metrics.get("accuracy"), "base": m.metrics.get("accuracy_base"),
            "rounds": m.rounds, "rows": m.n_rows, "RankIC by month": _monthly(m),
        }
        for m in reversed(models)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).dropna(axis="columns", how="all")
    shape = {name: st.column_config.NumberColumn(format="%.4f")
             for name in ("RankIC", "± s.e.", "accuracy", "base")}  # fmt: skip
    st.dataframe(
        frame, hide_index=True, height=min(38 + 35 * len(rows), 300),
        column_config={
            **shape, "rows": st.column_config.NumberColumn(format="localized"),
            "RankIC by month": st.column_config.LineChartColumn(width="medium"),
        },
        alt=f"{len(rows)} models, newest as-of first",
    )  # fmt: skip


def _monthly(model: Model) -> list[float]:
    series = _series(model).dropna()
    months = pd.DatetimeIndex(series.index).to_period("M")
    return [round(float(v), 4) for v in series.groupby(months).mean()]


def _series(model: Model) -> "pd.Series[float]":
    """RankIC of the folds' test sessions."""
    kept = model.test_series
    return pd.Series(np.array(kept["rank_ic"], np.float64), pd.to_datetime(kept["ts"]))


def _champions(ws: Workspace) -> pd.DataFrame:
    recipes = {m.model_id: m.recipe for m in ws.meta.models()}
    end = shown.read_stored_shown(ws).last_session
    rows: list[dict[str, Any]] = []
    for task in ws.settings.tasks:
        found = ws.meta.champions(task.task_id)
        for i, champion in enumerate(found):
            after = found[i + 1].from_ts if i + 1 < len(found) else max(end, champion.from_ts)
            before = recipes.get(found[i - 1].model_id) if i else None
            is_same = before is None or before == recipes.get(champion.model_id)
            rows.append(
                {
                    "task": task.task_id, "model": champion.model_id[:12],
                    "from": champion.from_ts, "to": after, "why": champion.why,
                    "kind": "same recipe" if is_same else "another recipe",
                }
            )  # fmt: skip
    if not rows:
        raise NoData("No partition has been scored yet, so no model has served: `quant score`.")
    return pd.DataFrame(rows).astype({"from": "datetime64[ns]", "to": "datetime64[ns]"})


def _model(task: Task, model: Model) -> None:
    st.subheader(f"Model {model.model_id[:12]} as of {model.asof}")
    _require_file(model)
    m = model.metrics
    cells = st.columns(4)
    cells[0].metric("RankIC", plus_minus(m.get("rank_ic"), m.get("rank_ic_se"), ".3f"))
    cells[1].metric("Learned from", f"{model.n_rows:,} rows",
                    help=f"Sessions {model.first_ts} to {model.last_ts}.")  # fmt: skip
    cells[2].metric("Rounds", f"{model.rounds:,}")
    cells[3].metric("Status", model.status)
    show(charts.timeline_of_folds([_with_purge(task, model, f) for f in model.fold_metrics]))
    _folds(model)
    left, right = st.columns(2)
    with left:
        show(charts.importance_bars(model.importance))
    with right:
        if task.kind == "classification":
            with section():
                _calibration(task, model)
        rows = [{"setting": k, "value": str(v)} for k, v in _flat(model.settings).items()]
        st.dataframe(
            pd.DataFrame(rows), hide_index=True, height=330, alt="Every setting of the model"
        )


def _require_file(model: Model) -> None:
    """Say so if the model's file is not there, or is not the one that was registered."""
    with section():
        remembered(_open_model, model.model_id)


def _open_model(ws: Workspace, model_id: str) -> bool:
    return bool(read_boosters(ws, ws.meta.model(model_id)))


def _with_purge(task: Task, model: Model, fold: dict[str, Any]) -> dict[str, Any]:
    """A fold with the last session whose label was known before the next window, as trained."""
    sessions = remembered(_sessions)
    gap = task.label_span + int(model.settings["folds"]["embargo_sessions"]) + 1

    def kept(next_start: str) -> str:
        at = bisect_left(sessions, date.fromisoformat(next_start)) - gap
        return str(sessions[max(at, 0)])

    return dict(fold) | {
        "train_kept_end": kept(fold["stop_start"]), "stop_kept_end": kept(fold["test_start"]),
    }  # fmt: skip


def _sessions(ws: Workspace) -> list[date]:
    return shown.read_stored_shown(ws).sessions


def _folds(model: Model) -> None:
    """Metrics of each fold's test window, the important ones first, beside what chance reaches."""
    found = [(str(f["fold"]), f) for f in model.fold_metrics] + [("all", model.metrics)]
    rows = pd.DataFrame([{"fold": name} | _numbers_of(metrics) for name, metrics in found])
    st.dataframe(
        rows.dropna(axis="columns", how="all"), hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.2f" if "%" in name else "%.4f")
            for name in rows.columns if name != "fold"
        },
        alt="Metrics of each fold's test window, with what chance reaches",
    )  # fmt: skip


def _numbers_of(found: dict[str, Any]) -> dict[str, float | None]:
    """Each metric, its error and its base rate: no two columns may have the same name."""
    columns: dict[str, float | None] = {}
    for i, (name, (title, base, unit)) in enumerate(METRICS.items()):
        of, times, space = f" {unit}" if unit else "", 100 if unit else 1, " " * i
        for heading, key in ((f"{title}{of}", name), (f"± s.e.{of}{space}", f"{name}_se"),
                             (f"base{of}{space}", base)):  # fmt: skip
            value = found.get(key) if key else None
            columns[heading] = None if value is None else value * times
    return columns


def _metrics_of(found: dict[str, Any]) -> dict[str, str]:
    """Metrics in words, each beside its base rate where it has one."""
    rows = {}
    for name, (title, base, unit) in METRICS.items():
        if found.get(name) is not None:
            form = ".2%" if unit else ".4f"
            error = found.get(f"{name}_se")
            text = number(found[name], form) + (f" ± {error:{form}}" if error is not None else "")
            if base is not None:
                text += f" (base {number(found.get(base), form)})"
            rows[title] = text
    return rows


def _calibration(task: Task, model: Model) -> None:
    rows = remembered(_calibrated, of(task), model.model_id)
    if not rows:
        st.info("No score of this model has a known outcome, so its calibration is not known yet.")
        return
    show(charts.calibration(rows, "Calibration of its stored scores"))


def _calibrated(ws: Workspace, task: Task, model_id: str) -> list[dict[str, float]]:
    scored = shown.scores_with_returns(ws, ws.meta.model(model_id)).sort_values(["ts", "symbol"])
    if scored.empty:
        return []
    ts = scored["ts"].to_numpy().astype("datetime64[D]")
    fwd_return = scored["fwd_return"].to_numpy(np.float64)
    target = make_target(task, ts, label_of(task, fwd_return), fwd_return)
    return calibration_bins(target, scored["score"].to_numpy(), is_even=True)


def label_of(task: Task, fwd_return: np.ndarray) -> np.ndarray:
    """Whether returns are above the task's threshold: 1 or 0."""
    found: np.ndarray = (fwd_return > task.threshold).astype(np.float64)
    return found


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _beside(a: Model, b: Model) -> None:
    """Two models: RankIC through time, metrics, and the settings that differ."""
    st.subheader("Side by side")
    names = [f"{m.model_id[:8]}, {m.asof}" for m in (a, b)]
    parts = []
    for name, model in zip(names, (a, b), strict=True):
        series = _series(model).rolling(63, min_periods=15).mean()
        parts.append(pd.DataFrame({"ts": series.index, "rank_ic": series.values, "model": name}))
    left, right = st.columns([3, 2])
    with left:
        show(charts.two_models(pd.concat(parts, ignore_index=True)))
    with right:
        both = [_metrics_of(m.metrics) for m in (a, b)]
        titles = list(dict.fromkeys([*both[0], *both[1]]))
        frame = {n: [m.get(t, NOTHING) for t in titles] for n, m in zip(names, both, strict=True)}
        st.dataframe(pd.DataFrame({"metric": titles, **frame}), hide_index=True,
                     alt="Metrics of both models")  # fmt: skip
    settings = [_flat(m.settings) for m in (a, b)]
    changed = [
        k for k in {**settings[0], **settings[1]} if settings[0].get(k) != settings[1].get(k)
    ]
    if changed:
        rows = [{"setting": k, **{n: str(s.get(k, NOTHING)) for n, s in
                                  zip(names, settings, strict=True)}} for k in changed]  # fmt: skip
        st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Settings that differ")
    else:
        st.caption("Both were trained with the same settings.")
