"""The tables of the series store. `features_daily` is made from its first written frame."""

TABLES = """
CREATE TABLE price_batches (
    batch_id BIGINT PRIMARY KEY, ingested_at TIMESTAMPTZ NOT NULL, source VARCHAR NOT NULL,
    first_changed DATE, last_changed DATE, counts VARCHAR NOT NULL);
CREATE TABLE price_versions (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, batch_id BIGINT NOT NULL,
    open DOUBLE NOT NULL, high DOUBLE NOT NULL, low DOUBLE NOT NULL, close DOUBLE NOT NULL,
    adj_index DOUBLE NOT NULL, volume DOUBLE NOT NULL);
CREATE TABLE prices_rejected (
    batch_id BIGINT NOT NULL, source VARCHAR NOT NULL, symbol VARCHAR, ts VARCHAR, open VARCHAR,
    high VARCHAR, low VARCHAR, close VARCHAR, adj_close VARCHAR, volume VARCHAR,
    reason VARCHAR NOT NULL);
CREATE TABLE sessions (ts DATE PRIMARY KEY, n_bars BIGINT NOT NULL, is_session BOOLEAN NOT NULL);
CREATE VIEW bars AS
    SELECT * FROM price_versions
    QUALIFY row_number() OVER (PARTITION BY symbol, ts ORDER BY batch_id DESC) = 1;
CREATE VIEW prices_daily AS
    SELECT bars.* FROM bars SEMI JOIN (SELECT ts FROM sessions WHERE is_session) s USING (ts);
CREATE TABLE labels (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, task_id VARCHAR NOT NULL, label DOUBLE NOT NULL,
    fwd_return DOUBLE NOT NULL, entry_ts DATE NOT NULL, exit_ts DATE NOT NULL,
    known_at DATE NOT NULL);
CREATE TABLE training_manifest (
    partition_key VARCHAR NOT NULL, task_id VARCHAR NOT NULL, n_rows BIGINT NOT NULL,
    n_symbols BIGINT NOT NULL, first_ts DATE, last_ts DATE, n_labels BIGINT NOT NULL,
    n_outside_universe BIGINT NOT NULL, n_without_features BIGINT NOT NULL,
    feature_set_id VARCHAR NOT NULL, fingerprint VARCHAR NOT NULL,
    PRIMARY KEY (partition_key, task_id));
CREATE TABLE walkforward_folds (
    partition_key VARCHAR NOT NULL, task_id VARCHAR NOT NULL, fold BIGINT NOT NULL,
    window_start DATE NOT NULL, train_start DATE NOT NULL, train_end DATE NOT NULL,
    stop_start DATE NOT NULL, stop_end DATE NOT NULL, test_start DATE NOT NULL,
    test_end DATE NOT NULL, n_train BIGINT NOT NULL, n_stop BIGINT NOT NULL,
    n_test BIGINT NOT NULL, n_purged BIGINT NOT NULL,
    PRIMARY KEY (partition_key, task_id, fold));
CREATE TABLE predictions (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, model_id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL, score DOUBLE NOT NULL, generated_at TIMESTAMPTZ NOT NULL,
    "asof" DATE NOT NULL, origin VARCHAR NOT NULL, score_percentile DOUBLE NOT NULL,
    PRIMARY KEY (symbol, ts, task_id, model_id), CHECK ("asof" < ts));
CREATE TABLE predictions_shadow (
    symbol VARCHAR NOT NULL, ts DATE NOT NULL, model_id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL, score DOUBLE NOT NULL, generated_at TIMESTAMPTZ NOT NULL,
    "asof" DATE NOT NULL, origin VARCHAR NOT NULL, score_percentile DOUBLE NOT NULL,
    PRIMARY KEY (symbol, ts, task_id, model_id), CHECK ("asof" < ts));
CREATE TABLE prediction_outcomes (
    task_id VARCHAR NOT NULL, model_id VARCHAR NOT NULL, ts DATE NOT NULL, known_at DATE NOT NULL,
    origin VARCHAR NOT NULL, n BIGINT NOT NULL, ic DOUBLE, rank_ic DOUBLE, hit_rate DOUBLE,
    base_rate DOUBLE, top_minus_bottom DOUBLE,
    PRIMARY KEY (task_id, model_id, ts));
"""

TRAINING_FRAME = """
CREATE OR REPLACE VIEW training_frame AS
    SELECT l.*, f.* EXCLUDE (symbol, ts, in_universe)
    FROM labels l JOIN features_daily f USING (symbol, ts) WHERE f.in_universe
"""
