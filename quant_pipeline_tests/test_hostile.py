"""Hostile words, settings and prices: one clear error or a counted rejection, nothing written."""

import tomllib
from collections.abc import Callable
from datetime import date
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_pipeline.errors import QuantError, SettingsError, StoreError
from quant_pipeline.faces.output import printable, strange_word
from quant_pipeline.settings import Home, Settings, load_settings
from quant_pipeline.stores.series import identifiers
from quant_pipeline_tests.homes import DATA, EVERY, SmallHome
from quant_pipeline_tests.test_cli import call, succeed

WORDS = (
    "'; DROP TABLE predictions; --", 'x" OR 1=1 --', "../../etc/passwd", "/etc/passwd", "NA",
    "a\nb", "a\0b", "\x1b[31m", "e\u0301", "\u0410", "A" * 100_000, "A" * 300, "%", "_", "", " ",
    "\ud800", "\udc80", "${HOME}", "2016-02-30",
)  # fmt: skip
COMMANDS = (
    "models show X", "models explain X", "models promote X --reason r", "models prune X",
    "predictions --symbol X", "predictions --task X", "predictions --ts X",
    "predictions explain --symbol X --ts 2016-07-20 --task up_5d",
    "prices history --symbol X --ts 2016-06-01", "features show X", "features show KMID --symbol X",
    "train --task X", "train --asof X", "score --model X", "tune --task X --asof 2016-06-30",
    "backfill --from 2016-01-01 --to 2016-02-01 --select X", "ingest X", "fetch X",
    "restore X again", "backup /proc/X",
)  # fmt: skip


@pytest.mark.parametrize(
    "word",
    [pytest.param(w, marks=[pytest.mark.long] * (i % 3 > 0)) for i, w in enumerate(WORDS)],
    ids=lambda w: ascii(w[:20]),
)
def test_no_word_of_a_command_does_more_than_name_nothing(finished, tmp_path, word):
    made = finished  # nothing may be written, so all share it
    before = made.state()
    for command in COMMANDS:
        said = call(made.root, *(part.replace("X", word, 1) for part in command.split()))
        assert said.code in (1, 2), (command, said)
        assert said.out == ""
        assert "Traceback" not in said.err
        assert len(said.err) < 1500, command
        assert "\x1b" not in said.err
    assert made.state() == before
    assert not (made.root / "again").exists()


@given(st.text())
def test_a_message_shows_no_control_character(text):
    shown = printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert printable(shown) == shown


@given(st.text(min_size=1, max_size=80).filter(lambda t: "\0" not in t))
def test_usual_words_are_not_strange(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        assert strange_word(text)
    else:
        assert not strange_word(text)


@given(
    st.lists(st.text(max_size=70) | st.from_regex(r"\A[A-Za-z][A-Za-z0-9_]{0,62}\Z"), max_size=4)
)
def test_only_names_become_identifiers(names):
    def is_name(name: str) -> bool:
        return name.isascii() and name[:1].isalpha() and len(name) < 64 and name.replace(
            "_", "a").isalnum()  # fmt: skip

    if all(map(is_name, names)):
        assert identifiers(names) == ", ".join(f'"{name}"' for name in names)
    else:
        with pytest.raises(StoreError, match="is no name of a column"):
            identifiers(names)


VALUES = (
    "1" + "0" * 30, "-1" + "0" * 30, "92233720368547758070", "inf", "-inf", "nan", "1e308", "true",
    '"../../etc/passwd"', r'"a\u0000b"', r'"a\nb"', f'"{"a" * 100_000}"', "[[1], [2]]", "{a = 1}",
    "0001-01-01", "9999-12-31", "1979-05-27T07:32:00Z",
)  # fmt: skip
KEYS = [
    (section, name, field.annotation)
    for section, group in Settings.model_fields.items()
    if section != "tasks"
    for name, field in type(group.default).model_fields.items()
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: v[:24])
def test_no_setting_takes_what_nobody_means(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "quant.toml"
    for section, name, annotation in KEYS:
        if (value == "true" and annotation is bool) or (value[0] == '"' and "path" in name):
            continue
        file.write_text(f"[{section}]\n{name} = {value}\n")
        if value[0] == '"' and len(value) < 100 and name in ("date_format", "calendar"):
            continue  # texts that are looked at where they are used
        with pytest.raises(SettingsError) as raised:
            load_settings(Home(tmp_path))
        assert len(str(raised.value)) < 1500
        assert f"  {section}" in str(raised.value)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode(errors="replace")))
def test_any_bytes_of_quant_toml_are_settings_or_one_error(tmp_path, content):
    (tmp_path / "quant.toml").write_bytes(content)
    try:
        load_settings(Home(tmp_path))
    except SettingsError:
        return
    assert set(tomllib.loads(content.decode())) <= set(Settings.model_fields)


@pytest.mark.parametrize(("text", "words"), [
    ('[alerts]\nwebhook = "https://hooks.example/T0/S3CRET"', "QUANT_ALERTS__WEBHOOK"),
    ('[store]\npostgres = "postgresql://me:S3CRET@h/db"', "QUANT_STORE__POSTGRES"),
    ('[store]\npostgres = "postgresql://h/db?password=S3CRET"', "QUANT_STORE__POSTGRES"),
    ('[alerts]\nwebhook = ["S3CRET"]', "a value not shown"),
    ('[store]\npostgres = "mysql://me:S3CRET@h/db"', "a value not shown"),
    ('[alerts]\n"webhook " = 1\nwebhook = "S3CRET"', "a value not shown"),
])  # fmt: skip
def test_a_secret_in_quant_toml_is_refused_and_not_repeated(tmp_path, text, words):
    (tmp_path / "quant.toml").write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings(Home(tmp_path))
    assert words in str(raised.value)
    assert "S3CRET" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_secret_of_the_environment_is_not_repeated(tmp_path, monkeypatch):
    for name, value in (
        ("QUANT_ALERTS__WEBHOOK", "ftp://S3CRET"), ("QUANT_STORE__POSTGRES", "S3CRET"),
        ("QUANT_ALERTS", "{S3CRET"), ("QUANT_ALERTS", '{"webhook": 7, "on": "S3CRET"}'),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SettingsError) as raised:
                load_settings(Home(tmp_path))
        assert "ftp" not in str(raised.value)
        assert "S3CRET" not in str(raised.value) or "on" in value


# --- prices


def bars(**columns: Any) -> pd.DataFrame:
    dates = pd.bdate_range("2015-06-01", periods=3)
    usual = {"symbol": "AAA", "ts": dates, "open": 10.0, "high": 10.0, "low": 10.0, "close": 10.0,
             "adj_close": 10.0, "volume": 1000.0}  # fmt: skip
    return pd.DataFrame(usual | columns)


@pytest.mark.parametrize("symbol", [
    "A'; DROP TABLE labels; --", 'A"B', "A\nB", "A\0B", "../A", "/A", "A B", "\u0410PPLE",
    "\x1b[31mA", "", " ", "A" * 1000, "\u202eCBA", "A\u200bB",
])  # fmt: skip
def test_a_symbol_that_is_none_is_a_counted_rejection(home: Callable[..., SmallHome], symbol):
    made = home()
    report = made.ingest(bars(), bars(symbol=[symbol] * 3))
    assert report.n_rejected == {"bad_symbol": 3}
    assert made.rows("SELECT DISTINCT symbol FROM bars") == [("AAA",)]
    assert made.rows("SELECT count(*) FROM rows_rejected") == [(3,)]


@pytest.mark.parametrize("name", [
    'x"; DROP TABLE bars; --', "../../x", "=cmd|' /C calc'!A0", "a\nb", "",
    "CLOSE2", "\u0441lose",
])  # fmt: skip
def test_columns_that_nobody_asked_for_are_not_even_named(home: Callable[..., SmallHome], name):
    made = home()
    made.ingest(bars().assign(**{name: "1'; DROP TABLE bars; --"}))
    file = made.root / "more.csv"
    bars(symbol="BBB").assign(**{name.replace("\n", " "): "x"}).to_csv(file, index=False)
    succeed(made.root, "ingest", str(file))
    assert made.rows("SELECT symbol, count(*) FROM bars GROUP BY 1 ORDER BY 1") == [
        ("AAA", 3), ("BBB", 3),
    ]  # fmt: skip
    assert "close" in [row[0] for row in made.rows("DESCRIBE prices_daily")]


def test_twins_of_a_symbol_are_one_and_na_is_a_ticker(home: Callable[..., SmallHome]):
    made = home()
    made.ingest(bars(symbol="NA"), bars(symbol=["brk.b", " BRK.B ", "Brk.B"]), bars(symbol="NULL"))
    found = made.rows("SELECT symbol, count(*) FROM bars GROUP BY 1 ORDER BY 1")
    assert found == [("BRK.B", 3), ("NA", 3), ("NULL", 3)]


EXTREMES = {
    "least": 1e-15, "most": 1e18, "tiny": 1e-300, "huge": 1e300, "largest": 1.7e308,
    "denormal": 5e-324,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.long] * (k not in ("most", "largest"))) for k in EXTREMES],
)
def test_prices_at_the_ends_of_what_numbers_hold_end_in_no_infinity(
    home: Callable[..., SmallHome], market: pd.DataFrame, kind
):
    """One symbol jumps there and back; the others' features and labels stay as they are."""
    few = market[market["symbol"].isin([f"S{i:03}" for i in range(6)])].copy()
    is_mad = (few["symbol"] == "S001") & (few["ts"].dt.day % 5 == 0)
    mad = few.copy()
    columns = ["open", "high", "low", "close", "adj_close"]
    mad.loc[is_mad, columns] = EXTREMES[kind]
    stored = []
    for name, frame in (("sane", few[few["symbol"] != "S001"]), ("mad", mad)):
        made = home(name, {"min_median_value = 1000.0": "min_median_value = 0.0"})
        report = made.ingest(frame)
        is_beyond = name == "mad" and kind not in ("least", "most")
        assert report.n_rejected == ({"out_of_bounds": int(is_mad.sum())} if is_beyond else {})
        made.run(DATA, "2015-06", "2015-12")
        names = [row[0] for row in made.rows("DESCRIBE features_daily") if row[1] == "FLOAT"]
        sums = " + ".join(f'(isinf("{n}"))::INT' for n in names)
        assert made.rows(f"SELECT sum({sums}) FROM features_daily") == [(0,)]
        assert made.rows("SELECT count(*) FROM labels WHERE isinf(label) OR isinf(fwd_return)") == [
            (0,)
        ]
        assert made.rows("SELECT count(*) FROM labels WHERE isnan(label)") == [(0,)]
        plain = [n for n in names if n.startswith(("K", "ROC", "MA", "STD"))]
        chosen = ", ".join(f'"{n}"' for n in plain)
        stored.append(made.rows(
            f"SELECT symbol, ts, {chosen} FROM features_daily WHERE symbol <> 'S001' ORDER BY 1, 2"
        ))  # fmt: skip
    assert repr(stored[0]) == repr(stored[1])


def test_a_symbol_may_list_delist_and_list_again(
    home: Callable[..., SmallHome], market: pd.DataFrame
):
    """No bar is carried over the gap, and no label reaches across it: the last close counts."""
    gone = (market["symbol"] == "S002") & market["ts"].between("2015-09-01", "2016-02-26")
    made = home()
    made.ingest(market[~gone])
    made.run(DATA, "2015-06", "2016-06")
    dates = [row[0] for row in made.rows(
        "SELECT ts FROM features_daily WHERE symbol = 'S002' ORDER BY 1")]  # fmt: skip
    assert not [d for d in dates if date(2015, 9, 1) <= d <= date(2016, 2, 26)]
    assert {d.year for d in dates} == {2015, 2016}
    index = dict(made.rows("SELECT ts, adj_index FROM prices_daily WHERE symbol = 'S002'"))
    labels = made.rows(
        "SELECT entry_ts, fwd_return FROM labels WHERE symbol = 'S002' AND task_id = 'ret_5d' "
        "AND entry_ts BETWEEN '2015-08-25' AND '2015-08-31' AND reason IS NULL"
    )
    assert len(labels) >= 4
    for entry, fwd_return in labels:
        expected = index[date(2015, 8, 31)] / index[entry] - 1
        assert fwd_return == pytest.approx(expected)


def test_nothing_is_written_by_an_ingest_of_nothing_usable(home: Callable[..., SmallHome]):
    made = home()
    made.ingest(bars())
    before = made.rows("SELECT count(*), max(batch_id) FROM price_batches")
    report = made.ingest(bars(close=[float("nan"), float("inf"), -1.0], adj_close=[1.0, 1.0, 1.0]))
    assert sum(report.n_rejected.values()) == 3
    assert made.rows("SELECT count(*) FROM bars") == [(3,)]
    assert made.rows("SELECT count(*) FROM price_batches") == [(before[0][0] + 1,)]


def test_every_asset_refuses_a_partition_that_is_none(finished):
    with finished.runner() as runner:
        for asset in EVERY:
            for key in ("../x", "2016-13", "'; DROP TABLE labels; --", ""):
                with pytest.raises((QuantError, Exception), match=r"[Pp]artition|grid|key"):
                    runner.materialize([asset], key, key)


def test_the_help_names_the_limits_of_files(home):
    assert "gzip unpacks to at most 200 times" in succeed(home().root, "ingest", "--help").out
