"""Eight processes at once, clocks and time zones: the same rows, whoever writes, wherever, when.

With QUANT_CROWD_SECONDS=30 (`make test-crash`) eight writers share the registry for so long.
"""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.stores.meta import Batch
from quant_pipeline.stores.series import digest_rows, query
from quant_pipeline_tests.crashing import GCC, Host, essence
from quant_pipeline_tests.homes import DATA, LEARNING, SmallHome, new_home, own_environment
from quant_pipeline_tests.test_cli import succeed
from quant_pipeline_tests.test_crash import SMALL

pytestmark = pytest.mark.skipif(
    GCC is None, reason="NO CROWD TEST: there is no gcc. Debian or Ubuntu: apt-get install gcc"
)
KEY = "2016-07"
HOUR = 3600
PLACES = {
    "UTC": 0, "America/New_York": -3 * HOUR, "Asia/Tokyo": 90 * 24 * HOUR,
    "Pacific/Kiritimati": -366 * 24 * HOUR,
}  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("crowd"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def base(market: pd.DataFrame, tmp_path_factory) -> Iterator[SmallHome]:
    """A home with models of June, and folds of July."""
    folder = tmp_path_factory.mktemp("base")
    with own_environment(folder):
        made = new_home(folder / "home", SMALL)
        made.ingest(market)
        publish_prices(made.workspace)
        made.run(DATA, "2015-06", KEY)
        made.run(LEARNING, "2016-06")
        made.run(LEARNING[:1], KEY)
        yield made


def all_of(host: Host, made: SmallHome, action: str) -> list[Any]:
    """What eight processes answer that do something at once."""
    answers = host.ask(action=action, root=str(made.root), crowd=8)
    assert [a["code"] for a in answers] == [0] * 8, "\n".join(a["said"] for a in answers)
    return [json.loads(a["said"]) for a in answers]


@pytest.mark.long
def test_of_eight_trainings_of_an_as_of_one_row_wins_and_all_return_it(host, base, tmp_path):
    made = base.copy(tmp_path / "home")
    (model_id,) = set(all_of(host, made, "train"))
    assert made.model_ids()[KEY, "up_5d"] == [model_id]
    files = {p.name for p in (made.root / "models").glob("*joblib*")}
    assert files == {f"{m.model_id}.joblib" for m in made.workspace.meta.models()}, "and no other"


def test_of_eight_writers_of_different_partitions_all_is_there(host, base, tmp_path):
    made = base.copy(tmp_path / "home")
    made.change_series("DELETE FROM labels WHERE known_at >= '2016-01-01'")
    made.change_series("DELETE FROM features_daily WHERE ts BETWEEN '2016-01-01' AND '2016-02-29'")
    assert essence(made)["labels"] != essence(base)["labels"]
    all_of(host, made, "write_part")
    for table in ("labels", "features_daily"):
        rows = []
        for home in (made, base):
            column = "known_at" if table == "labels" else "ts"
            with home.workspace.series.reading() as con:
                found = query(con, f"SELECT * FROM {table} WHERE {column} < '2016-07-01' "
                              "ORDER BY ALL")  # fmt: skip
                rows.append(digest_rows(found))
        assert rows[0] == rows[1]
    assert {b["status"] for b in made.registry(Batch)} == {"committed"}


def test_eight_writers_of_the_registry_meet_no_lock_error(host, base, tmp_path):
    made = base.copy(tmp_path / "home")
    written = all_of(host, made, "add_batches")
    assert min(written) >= 1, "each had its turn"
    stored = [b for b in made.registry(Batch) if b["table_name"] == "crowd"]
    assert len(stored) == sum(written)
    assert {b["status"] for b in stored} == {"committed"}


def test_readers_of_the_page_never_wait_for_a_writer(host, base, tmp_path):
    """The writer ends only once all of them have read; their times are for people."""
    made = base.copy(tmp_path / "home")
    _, *readers = all_of(host, made, "read_beside_a_writer")
    seconds = sorted(s for reader in readers for s in reader)
    print(f"\nreadings {len(seconds)}, p95 {seconds[int(0.95 * len(seconds))]:.3f} s")


@pytest.mark.long
def test_clock_and_zone_of_the_machine_change_nothing(host, base, tmp_path):
    """The clock is set back or ahead for one partition after another."""
    stored = []
    for zone, ahead in PLACES.items():
        shift = ahead
        made = base.copy(tmp_path / zone.replace("/", "-") / "home")
        for action in ("lgbm_model", "predictions", "prediction_outcomes"):
            key = {"action": action, "root": str(made.root), "zone": zone, "shift": shift}
            (done,) = host.ask(**key)
            assert done["code"] == 0, done["said"]
            shift = -shift
        batches = [(b["table_name"], b["partition_key"], b["task_id"], b["digest"], b["n_rows"])
                   for b in made.registry(Batch)]  # fmt: skip
        stored.append((essence(made), sorted(batches)))
    assert stored[0][0]["models"]
    assert all(other == stored[0] for other in stored[1:])


def test_the_newest_scores_are_those_of_the_newest_session(used):
    """Also if the clock that stamped them ran backwards."""
    before = succeed(used.root, "predictions", "--top", "5", "--json").json
    status = succeed(used.root, "status", "--json").json
    used.change_series(
        "UPDATE predictions SET generated_at = TIMESTAMPTZ '2030-01-01' - "
        "INTERVAL 1 DAY * date_diff('day', DATE '2010-01-01', ts)"
    )
    with used.workspace.meta.writing() as session:
        session.connection().exec_driver_sql("UPDATE batches SET written_at = '2001-01-01'")
    assert succeed(used.root, "predictions", "--top", "5", "--json").json == before
    assert succeed(used.root, "status", "--json").json == status
