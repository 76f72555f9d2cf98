"""What `quant predictions report` prints of one group of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from quant_pipeline.faces.output import cell, count, print_table

# Title, metric, the metric that chance reaches, or its value.
SHOWN: tuple[tuple[str, str, str | float | None], ...] = (
    ("RankIC", "rank_ic", 0.0),
    ("RankIC, every horizon-th session", "rank_ic_every_hth", 0.0),
    ("RankICIR", "rank_icir", 0.0),
    ("IC", "ic", 0.0),
    ("ICIR", "icir", 0.0),
    ("accuracy", "accuracy", "accuracy_base"),
    ("precision", "precision", "base_rate"),
    ("recall", "recall", None),
    ("AUC", "auc", 0.5),
    ("average precision", "average_precision", "base_rate"),
    ("log loss", "log_loss", "log_loss_base"),
    ("Brier score", "brier", "brier_base"),
    ("mean squared error", "mse", "mse_base"),
    ("R²", "r2", 0.0),
    ("precision of the top k", "precision_at_k", "precision_at_k_base"),
    ("NDCG of the top k", "ndcg_at_k", "ndcg_at_k_base"),
    ("top minus bottom, gross", "top_minus_bottom", 0.0),
)


def flat(group: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A group as one row: what is nested is named by its path; lists stay as they are.

    >>> flat({"task": "up_5d", "metrics": {"ic": 0.1}})
    {'task': 'up_5d', 'metrics.ic': 0.1}
    """
    row: dict[str, Any] = {}
    for name, value in group.items():
        row |= flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {path + name: value}
    return row


def show_group(group: dict[str, Any]) -> None:
    """One group: metrics beside chance and trivial scores, then what a portfolio made of it."""
    metrics, portfolio = group["metrics"], group["portfolio"]
    when = "after" if group["settings_known_before"] else "NOT after"
    typer.echo(
        f"{group['task']}, {group['origin']}, {group['first_ts']} to {group['last_ts']}: "
        f"{count(group['n_sessions'], 'session')}, {count(group['n_scores'], 'score')}; "
        f"sessions {when} the settings were chosen"
    )
    if metrics["is_short"]:
        typer.echo("Too few sessions for these standard errors: under ten horizons.")
    print_table([_row(group, *shown) for shown in SHOWN if metrics.get(shown[1]) is not None])
    print_table(
        [
            {
                "on the same rows": row["score"], "RankIC": row["rank_ic"],
                "± s.e.": row["rank_ic_se"], "the score there": row["score_rank_ic"],
                "± s.e. ": row["score_rank_ic_se"], "top minus bottom": row["top_minus_bottom"],
                "± s.e.  ": row["top_minus_bottom_se"],
            }
            for row in group["baselines"]
        ]
    )  # fmt: skip
    sessions = group["sessions"]
    lines = {
        "quantiles, low to high score": _with_errors(group["quantiles"], group["quantiles_se"]),
        "RankIC by age of the score": "  ".join(
            f"{d['lag']}: {d['rank_ic']:+.4f} ± {_number(d['rank_ic_se'])}"
            for d in group["decay"] if d["rank_ic"] is not None
        ),
        "turnover of the top quantile, a session": _of(sessions["turnover"]),
        "rank autocorrelation, one session": _of(sessions["rank_autocorrelation"]),
        "traded value of the top quantile, a session": _amount(sessions["capacity_top_quantile"]),
        "traded value of its median name": _amount(sessions["capacity_median_name"]),
        "share of the top k that ties decided": _number(metrics["tied_at_k"]),
    }  # fmt: skip
    if "calibration" in group:
        lines["calibration, mean score: share of ones"] = "  ".join(
            f"{b['mean_score']:.3f}: {b['share_of_ones']:.3f} ({b['n']:,})"
            for b in group["calibration"] if b["n"]
        )  # fmt: skip
    for title, text in lines.items():
        typer.echo(f"{title}: {text}")
    _show_portfolio(portfolio)


def _show_portfolio(portfolio: Mapping[str, Any]) -> None:
    """What holding the top k would have made: each tranche is held for the horizon."""
    typer.echo(
        f"top-k portfolio, {_mean(portfolio['n_names'])} names a tranche, "
        f"{cell(portfolio['n_tranches'], 'n_tranches')} tranches on "
        f"{cell(portfolio['n_sessions'], 'n_sessions')} sessions"
        + (", too few for these standard errors" if portfolio["is_short"] else "")
    )
    lines = {
        "a tranche, gross": f"{_percent(portfolio['gross'])} ± {_percent(portfolio['gross_se'])}",
        "net of costs": f"{_percent(portfolio['net'])} ± {_percent(portfolio['net_se'])}",
        "Sharpe ratio, net, a year": _number(portfolio["net_sharpe"]),
        "worst drawdown": _percent(portfolio["worst_drawdown"]),
        "bought anew a tranche": _percent(portfolio["turnover"]),
        "chosen though tied": _percent(portfolio["tied"]),
        "names without a price": _mean(portfolio["n_unpriced"]),
    }
    for title, text in lines.items():
        typer.echo(f"  {title:<26}{text}")
    typer.echo("")


def _mean(value: float | None) -> str:
    """A mean number of things: 20, or 19.8."""
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.2f} %"


def _row(group: dict[str, Any], title: str, name: str, base: str | float | None) -> dict[str, Any]:
    """A metric over all rows; if each session has one, too, their mean with its error."""
    metrics, by_session = group["metrics"], group["sessions"].get(name, {})
    is_mean = f"{name}_se" in metrics
    return {
        "metric": title,
        "value": metrics[name],
        "mean of sessions": metrics[name] if is_mean else by_session.get("mean"),
        "± s.e.": metrics[f"{name}_se"] if is_mean else by_session.get("se"),
        "chance": metrics.get(base) if isinstance(base, str) else base,
    }


def _with_errors(values: Sequence[float | None], errors: Sequence[float | None]) -> str:
    pairs = zip(values, errors, strict=True)
    return "  ".join("–" if v is None else f"{v:+.4f} ± {_number(e)}" for v, e in pairs)


def _of(found: dict[str, float | None]) -> str:
    return f"{_number(found['mean'])} ± {_number(found['se'])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _amount(found: dict[str, float | None]) -> str:
    return "–" if found["mean"] is None else f"{found['mean']:,.0f}"
