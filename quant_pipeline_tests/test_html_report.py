"""The report: one file that needs nothing else and says what the page says."""

import re
from datetime import date
from html.parser import HTMLParser

import pandas as pd
import pytest

from quant_pipeline.chain import shown
from quant_pipeline.chain.judge import judge_predictions
from quant_pipeline.errors import NoData, SettingsError
from quant_pipeline.faces.html_report import write_report


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def report(finished, tmp_path) -> str:
    ws = finished.workspace
    target = tmp_path / "report.html"
    told = write_report(ws, ws.settings.task("ret_5d"), None, None, target)
    assert told["sessions"] > 40
    return target.read_text()


def test_it_needs_nothing_from_elsewhere(report):
    reader = Elements()
    reader.feed(report)
    assert not [tag for tag, _ in reader.found if tag in ("script", "link", "img", "iframe")]
    outside = re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", report)
    assert not outside, outside
    assert "url(http" not in report
    assert len(report) < 2_000_000


def test_every_picture_is_drawn_and_named(report):
    reader = Elements()
    reader.feed(report)
    pictures = [given for tag, given in reader.found if tag == "svg"]
    assert len(pictures) == 10
    assert all(len(given["aria-label"] or "") > 20 for given in pictures)


def test_its_numbers_are_those_of_the_command(finished, report):
    ws = finished.workspace
    (found,) = judge_predictions(ws, ws.settings.task("ret_5d"))
    metrics = found["metrics"]
    assert f"<td>RankIC</td><td>{metrics['rank_ic']:+.4f}</td>" in report
    assert f"<td>{metrics['rank_ic_se']:.4f}</td><td>0</td>" in report
    assert f"{found['portfolio']['net']:+.3%}" in report
    assert "gross" in report
    assert "net of 10 bps" in report


def test_accuracy_stands_beside_what_the_commoner_class_reaches(finished, tmp_path):
    ws = finished.workspace
    task = ws.settings.task("up_5d")
    write_report(ws, task, None, None, tmp_path / "up.html")
    (found,) = judge_predictions(ws, task)
    judged = shown.read_judged(ws, task)
    share = judged["base_rate"].mean()
    assert share == pytest.approx(found["metrics"]["base_rate"], abs=0.01)
    cells = re.search(r"<td>accuracy</td>(.*?)</tr>", (tmp_path / "up.html").read_text())
    assert cells is not None
    mean, _, base, _ = re.findall(r"<td>(.*?)</td>", cells[1])
    assert mean == f"{judged['accuracy'].mean():.4f}"
    assert base == f"{max(share, 1 - share):.4f}"


def test_a_range_is_kept_to_and_an_empty_one_refused(finished, tmp_path):
    ws = finished.workspace
    task = ws.settings.task("up_5d")
    told = write_report(ws, task, date(2016, 6, 1), date(2016, 6, 30), tmp_path / "june.html")
    assert date(2016, 6, 1) <= told["first_ts"] <= told["last_ts"] <= date(2016, 6, 30)
    with pytest.raises(NoData, match="No session of up_5d"):
        write_report(ws, task, date(2030, 1, 1), None, tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()
    with pytest.raises(SettingsError, match="no folder"):
        write_report(ws, task, None, None, tmp_path / "nowhere" / "report.html")


def test_the_portfolio_is_labelled_with_what_it_was_made_with(used, tmp_path):
    used.change_settings("[train]", "[metrics]\ntop_k = 5\ncost_bps = 50\n\n[train]")
    ws = used.workspace
    write_report(ws, ws.settings.task("ret_5d"), None, None, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Top 20 names, 5 tranches, gross and net of 10 bps" in text
    assert "top_k = 20 (quant.toml now: 5)" in text
    assert "<code>quant score</code> or <code>quant reconcile</code>" in text


def relabel(home, n_inside: int) -> None:
    """Say that the settings were chosen after so many judged sessions."""
    for file in sorted((home.root / "data" / "published" / "judged").glob("*.parquet")):
        rows = pd.read_parquet(file)
        days = sorted(shown.read_judged(home.workspace, ret_5d(home))["ts"].unique())
        after = pd.to_datetime(rows["ts"]) >= [*days, pd.Timestamp.max][n_inside]
        rows.assign(settings_known_before=after).to_parquet(file, index=False)


def ret_5d(home):
    return home.workspace.settings.task("ret_5d")


def test_sessions_in_sample_for_the_settings_are_left_out_or_named(used, tmp_path):
    judged = shown.read_judged(used.workspace, ret_5d(used))
    n = len(judged)
    relabel(used, 30)
    write_report(used.workspace, ret_5d(used), None, None, tmp_path / "some.html")
    text = (tmp_path / "some.html").read_text()
    assert f"30 of {n} sessions are left out" in text
    assert f"<td>RankIC</td><td>{judged['rank_ic'].iloc[30:].mean():+.4f}</td>" in text
    assert "Too few sessions for these standard errors" in text
    relabel(used, n)
    write_report(used.workspace, ret_5d(used), None, None, tmp_path / "none.html")
    text = (tmp_path / "none.html").read_text()
    assert f"{n} of {n} sessions, shaded below, may have led" in text
