"""`quant models …`, `predictions explain / report`, `tune`, `trials` as a person meets them."""

import re
from datetime import date

from quant_pipeline_tests.homes import SmallHome
from quant_pipeline_tests.test_cli import call, succeed


def newest(made: SmallHome, task_id: str = "up_5d") -> str:
    return made.workspace.meta.models(task_id)[-1].model_id


def test_who_was_champion_on_a_date_and_why_is_one_command(finished: SmallHome) -> None:
    (row,) = succeed(
        finished.root, "models", "champions", "--task", "up_5d", "--on", "2016-07-14", "--json"
    ).json
    assert (row["from"], row["partition"]) == ("2016-07-01", "2016-07")
    assert "refit of the champion's recipe as of 2016-06-30" in row["why"]
    shown = succeed(finished.root, "models", "champions").out.splitlines()
    assert len(shown) == 1 + len(finished.workspace.meta.champions())
    nobody = succeed(finished.root, "models", "champions", "--on", "2015-07-14").out
    assert nobody.startswith("Nobody served on 2015-07-14. See")


def test_orders_tell_what_they_did_and_need_a_reason(used: SmallHome) -> None:
    first = used.workspace.meta.models("up_5d")[0].model_id[:12]
    assert call(used.root, "models", "promote", first).code == 2
    out = succeed(used.root, "models", "promote", first, "--reason", "less turnover").out
    assert out == (
        f"Model {first} serves up_5d from 2016-08-06 on: promoted by hand: less turnover.\n"
    )
    out = succeed(used.root, "models", "rollback", "--task", "up_5d", "--reason", "odd").out
    assert f"Model {newest(used)[:12]} serves up_5d from 2016-08-06 on" in out
    out = succeed(used.root, "models", "hold", "--task", "up_5d", "--reason", "audit").out
    assert out == "The champion of up_5d is held from 2016-08-06 on.\n"
    out = succeed(used.root, "models", "release", "--task", "up_5d", "--reason", "done").out
    assert out == "The champion of up_5d may be challenged again from 2016-08-06 on.\n"
    out = succeed(used.root, "models", "retire", newest(used)[:12], "--reason", "wrong").out
    assert out.startswith("It will never serve again.\nModel ")
    unknown = call(used.root, "models", "hold", "--task", "up_6d", "--reason", "audit")
    assert unknown.code == 1
    assert "Did you mean up_5d" in unknown.err
    actions = [order.action for order in used.workspace.meta.orders("up_5d")]
    assert actions == ["promote", "rollback", "hold", "release", "retire"]


def test_two_models_are_compared_by_what_differs(finished: SmallHome) -> None:
    one, other = (m.model_id[:12] for m in finished.workspace.meta.models("up_5d")[-2:])
    out = succeed(finished.root, "models", "compare", one, other).out
    assert f"a: {one}, up_5d as of 2016-06-30" in out
    assert "The settings are the same." in out
    task = finished.workspace.meta.models("ret_5d")[-1].model_id[:12]
    out = succeed(finished.root, "models", "compare", other, task).out
    assert "task.kind" in out
    assert "train.seed" not in out


def test_a_model_is_shown_in_lines_that_fit_and_whole_numbers_are_whole(
    finished: SmallHome,
) -> None:
    out = succeed(finished.root, "models", "show", newest(finished)[:12]).out
    assert out.startswith("up_5d as of 2016-07-31 (partition 2016-07), ready\n")
    assert max(map(len, out.splitlines())) <= 100
    assert not re.search(r"[{}\[\]]|\b\d+\.0000 +\d\.\d{4} +\d", out)
    model = finished.workspace.meta.model(newest(finished))
    head, *rows = out[out.index("fold  trains") :].splitlines()[:3]
    at = head.index("rounds")
    rounds = [int(row[at : at + 6]) for row in rows]
    assert rounds == [fold["rounds"] for fold in model.fold_metrics]
    assert f"  model           {model.model_id}\n" in out
    for word in ("learning_rate 0.1", "min_data_in_leaf 50", "kind classification"):
        assert word in " ".join(out.split())


def test_two_models_are_compared_in_words(finished: SmallHome) -> None:
    models = finished.workspace.meta.models
    out = succeed(finished.root, "models", "compare", *(
        models(task)[-1].model_id[:12] for task in ("up_5d", "ret_5d"))).out  # fmt: skip
    folds = out[out.index("Folds, where") :].splitlines()
    assert folds[1].split()[:6] == ["from", "to", "RankIC", "a", "RankIC", "b"]
    assert "." not in folds[2].split()[-1], "rounds are a whole number"
    assert not re.search(r"[a-z]_[a-z]", out[out.index("Folds, where") :])


def test_models_and_scores_are_explained(finished: SmallHome) -> None:
    shown = succeed(finished.root, "models", "explain", newest(finished)[:12], "--top", "3").out
    assert shown.splitlines()[0].split("  ")[0] == "feature"
    assert len(shown.splitlines()) == 4
    ((symbol, ts),) = finished.rows("SELECT symbol, ts FROM predictions ORDER BY ALL LIMIT 1")
    words = ("predictions", "explain", "--symbol", symbol.lower(), "--ts", str(ts))
    found = succeed(finished.root, *words, "--json").json
    assert [one["task"] for one in found] == ["up_5d", "ret_5d"]
    out = succeed(finished.root, *words, "--task", "up_5d", "--top", "2").out.splitlines()
    assert out[0].startswith(f"{symbol} on {ts}, up_5d, model ")
    assert [line.split()[0] for line in out[2:4]] == [
        "(base)",
        found[0]["contributions"][0]["feature"],
    ]
    assert out[6].startswith("(together)")
    assert call(finished.root, "predictions", "explain", "--symbol", "X", "--ts", str(ts)).code == 1


def test_the_report_says_when_the_settings_were_chosen(finished: SmallHome) -> None:
    out = succeed(finished.root, "predictions", "report", "--task", "up_5d").out
    assert out.startswith("up_5d, backfill, 2016-05-02 to ")
    assert "sessions NOT after the settings were chosen" in out
    assert "RankIC " in out
    assert "top-k portfolio, 20 names a tranche, 64 tranches on 64 sessions" in out
    assert re.search(r"net of costs +-?\d+\.\d\d % ± \d+\.\d\d %", out)
    assert not re.search(r"\b(is|n|net)_\w+", out), "keys are for programs"
    found = succeed(finished.root, "predictions", "report", "--json").json
    assert [group["task"] for group in found] == ["up_5d", "ret_5d"]


def test_scores_are_still_what_predictions_shows(finished: SmallHome) -> None:
    rows = succeed(finished.root, "predictions", "--task", "up_5d", "--top", "2", "--json").json
    assert len(rows) == 2
    assert rows[0]["score"] >= rows[1]["score"]


def test_settings_are_searched_counted_and_printed_to_be_copied(used: SmallHome) -> None:
    words = ("tune", "--task", "ret_5d", "--asof", "2016-06-30", "--trials", "2")
    out = succeed(used.root, *words).out
    assert out.startswith("2 trials on the folds as of 2016-06-30; RankIC over their test windows:")
    lines = out[out.index("[train]") :].splitlines()
    assert [line.split(" = ")[0] for line in lines[1:]] == [
        "learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction",
        "bagging_fraction", "lambda_l2",
    ]  # fmt: skip
    shown = succeed(used.root, "trials", "--task", "ret_5d").out
    assert shown.startswith("ret_5d: 2 recipes tried\n")
    assert "first model as of" in shown.splitlines()[1]
    assert "deflated Sharpe ratio" in shown
    found = succeed(used.root, "trials", "--json").json
    assert [one["n_trials"] for one in found] == [1, 2]


def test_files_to_prune_can_be_told_first(used: SmallHome) -> None:
    out = succeed(used.root, "models", "prune", "--keep", "1", "--dry-run").out
    assert out.startswith("To delete: ")
    n_files = len(list((used.root / "models").glob("*.joblib")))
    succeed(used.root, "models", "prune", "--keep", "1")
    champions = {c.model_id for c in used.workspace.meta.champions()}
    left = {p.stem for p in (used.root / "models").glob("*.joblib")}
    assert champions <= left
    assert len(left) <= n_files
    assert date(2016, 8, 5) == used.workspace.last_session()
