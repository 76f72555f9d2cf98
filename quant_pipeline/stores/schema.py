"""The tables of the series store. `features_daily` is made from its first written frame.

Versions, changes and seals are append-only. A version is current until a row of
price_superseded names it, so a view as of an earlier batch needs no scan for newest rows.

A good bar on a date that is no session is a version, too, but not one of prices_daily: it stands
in prices_rejected as no_session, until enough of the other symbols came and the date is one.
"""

FIRST_VERSION = 5  # the first layout of a released version: older ones are refused
MIGRATIONS: tuple[str, ...] = ()  # from FIRST_VERSION on, what makes each the next one
VERSION = FIRST_VERSION + len(MIGRATIONS)
NEWEST = 9223372036854775807
# The views of what is known now, and the macros that give the same as of a batch.
AS_OF = {
    "bars": "bars_as_of", "sessions": "sessions_as_of", "prices_daily": "prices_as_of",
    "memberships": "memberships_as_of", "renames": "renames_as_of",
}  # fmt: skip

TABLES = f"""
CREATE TABLE store_version (version BIGINT NOT NULL);
INSERT INTO store_version VALUES ({VERSION});
CREATE TABLE price_batches (
    batch_id BIGINT PRIMARY KEY, ingested_at TIMESTAMPTZ NOT NULL, kind VARCHAR NOT NULL,
    source VARCHAR NOT NULL, first_changed DATE, last_changed DATE, counts VARCHAR NOT NULL);
CREATE TABLE price_versions (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, batch_id BIGINT NOT NULL, change VARCHAR NOT NULL,
    deleted BOOLEAN NOT NULL, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE,
    adj_index DOUBLE, volume DOUBLE,
    CHECK (deleted OR (open IS NOT NULL AND high IS NOT NULL AND low IS NOT NULL
        AND close IS NOT NULL AND adj_index IS NOT NULL AND volume IS NOT NULL)));
CREATE TABLE price_superseded (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, batch_id BIGINT NOT NULL,
    by_batch_id BIGINT NOT NULL);
CREATE TABLE price_changes (batch_id BIGINT NOT NULL, ts DATE NOT NULL, kind VARCHAR NOT NULL);
CREATE TABLE rows_rejected (
    batch_id BIGINT NOT NULL, source VARCHAR NOT NULL, symbol VARCHAR, ts VARCHAR, open VARCHAR,
    high VARCHAR, low VARCHAR, close VARCHAR, adj_close VARCHAR, volume VARCHAR,
    reason VARCHAR NOT NULL);
CREATE TABLE session_versions (
    ts DATE NOT NULL, batch_id BIGINT NOT NULL, n_bars BIGINT NOT NULL,
    is_session BOOLEAN NOT NULL, why VARCHAR NOT NULL, PRIMARY KEY (ts, batch_id));
CREATE TABLE membership_versions (
    batch_id BIGINT NOT NULL, symbol VARCHAR NOT NULL, first DATE NOT NULL, last DATE);
CREATE TABLE rename_versions (
    batch_id BIGINT NOT NULL, ticker VARCHAR NOT NULL, symbol VARCHAR NOT NULL, first DATE,
    last DATE);
CREATE TABLE seals (
    partition_key VARCHAR PRIMARY KEY, "asof" DATE NOT NULL, sealed_at TIMESTAMPTZ NOT NULL,
    batch_id BIGINT NOT NULL, first_session DATE NOT NULL, last_session DATE, n_bars BIGINT,
    usual_bars DOUBLE, n_later_sessions BIGINT NOT NULL, why VARCHAR NOT NULL);
CREATE MACRO bars_as_of(b) AS TABLE
    SELECT symbol, ts, batch_id, open, high, low, close, adj_index, volume FROM price_versions v
    ANTI JOIN (FROM price_superseded WHERE by_batch_id <= b) s USING (symbol, ts, batch_id)
    WHERE v.batch_id <= b AND NOT v.deleted;
CREATE MACRO sessions_as_of(b) AS TABLE
    SELECT ts, n_bars, is_session, why FROM session_versions WHERE batch_id <= b
    QUALIFY row_number() OVER (PARTITION BY ts ORDER BY batch_id DESC) = 1;
CREATE MACRO prices_as_of(b) AS TABLE
    SELECT bars.* FROM bars_as_of(b) bars
    SEMI JOIN (SELECT ts FROM sessions_as_of(b) WHERE is_session) s USING (ts);
CREATE MACRO memberships_as_of(b) AS TABLE
    SELECT symbol, first, last FROM membership_versions WHERE batch_id = (
        SELECT max(batch_id) FROM price_batches WHERE kind = 'memberships' AND batch_id <= b);
CREATE MACRO renames_as_of(b) AS TABLE
    SELECT ticker, symbol, first, last FROM rename_versions WHERE batch_id = (
        SELECT max(batch_id) FROM price_batches WHERE kind = 'renames' AND batch_id <= b);
CREATE VIEW bars AS FROM bars_as_of({NEWEST});
CREATE VIEW sessions AS FROM sessions_as_of({NEWEST});
CREATE VIEW prices_daily AS FROM prices_as_of({NEWEST});
CREATE VIEW memberships AS FROM memberships_as_of({NEWEST});
CREATE VIEW prices_rejected AS
    FROM rows_rejected UNION ALL BY NAME
    SELECT v.batch_id, b.source, v.symbol, CAST(v.ts AS VARCHAR) AS ts,
        COLUMNS(v.* EXCLUDE (symbol, ts, batch_id, adj_index))::VARCHAR, 'no_session' AS reason
    FROM bars v JOIN price_batches b USING (batch_id)
    ANTI JOIN (SELECT ts FROM sessions WHERE is_session) s USING (ts);
CREATE VIEW prices_restated AS
    SELECT n.symbol, n.ts, n.batch_id, n.change, s.batch_id AS old_batch_id,
        o.close AS old_close, n.close, o.volume AS old_volume, n.volume,
        n.adj_index / o.adj_index - 1 AS index_change
    FROM price_versions n
    LEFT JOIN price_superseded s
        ON s.symbol = n.symbol AND s.ts = n.ts AND s.by_batch_id = n.batch_id
    LEFT JOIN price_versions o
        ON o.symbol = s.symbol AND o.ts = s.ts AND o.batch_id = s.batch_id
    WHERE n.change <> 'new';
CREATE TABLE labels (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, task_id VARCHAR NOT NULL, label DOUBLE,
    fwd_return DOUBLE, entry_ts DATE NOT NULL, exit_ts DATE NOT NULL,
    known_at DATE NOT NULL, reason VARCHAR, CHECK ((reason IS NULL) = (label IS NOT NULL)));
CREATE TABLE training_manifest (
    partition_key VARCHAR NOT NULL, task_id VARCHAR NOT NULL, n_rows BIGINT NOT NULL,
    n_symbols BIGINT NOT NULL, first_ts DATE, last_ts DATE, n_labels BIGINT NOT NULL,
    n_no_entry_bar BIGINT NOT NULL, n_no_exit_bar BIGINT NOT NULL, n_suspect_jump BIGINT NOT NULL,
    n_outside_universe BIGINT NOT NULL, n_short_history BIGINT NOT NULL,
    n_without_features BIGINT NOT NULL,
    feature_set_id VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL,
    PRIMARY KEY (partition_key, task_id));
CREATE TABLE walkforward_folds (
    partition_key VARCHAR NOT NULL, task_id VARCHAR NOT NULL, window_start DATE NOT NULL,
    fold BIGINT NOT NULL, part VARCHAR NOT NULL, block BIGINT NOT NULL, start_ts DATE NOT NULL,
    end_ts DATE NOT NULL, first_kept DATE, last_kept DATE, n_rows BIGINT NOT NULL,
    n_purged BIGINT NOT NULL, PRIMARY KEY (partition_key, task_id, fold, part, block));
CREATE TABLE predictions (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, model_id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL, score DOUBLE NOT NULL, generated_at TIMESTAMPTZ NOT NULL,
    "asof" DATE NOT NULL, origin VARCHAR NOT NULL,
    price_batch_id BIGINT NOT NULL, PRIMARY KEY (symbol, ts, task_id, model_id),
    CHECK ("asof" < ts));
CREATE VIEW predictions_champion AS FROM predictions;
CREATE TABLE predictions_shadow (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, model_id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL, score DOUBLE NOT NULL, generated_at TIMESTAMPTZ NOT NULL,
    "asof" DATE NOT NULL, origin VARCHAR NOT NULL,
    price_batch_id BIGINT NOT NULL, PRIMARY KEY (symbol, ts, task_id, model_id),
    CHECK ("asof" < ts));
CREATE TABLE prediction_outcomes (
    task_id VARCHAR NOT NULL, model_id VARCHAR NOT NULL, ts DATE NOT NULL, known_at DATE NOT NULL,
    origin VARCHAR NOT NULL, n BIGINT NOT NULL, ic DOUBLE, rank_ic DOUBLE, hit_rate DOUBLE,
    base_rate DOUBLE, top_minus_bottom DOUBLE,
    PRIMARY KEY (task_id, model_id, ts, origin));
"""

TRAINING_FRAME = """
CREATE OR REPLACE VIEW training_frame AS
    SELECT l.* EXCLUDE (reason), f.* EXCLUDE (symbol, ts, in_universe, lacks_history)
    FROM labels l JOIN features_daily f USING (symbol, ts)
    WHERE f.in_universe AND l.reason IS NULL
"""
