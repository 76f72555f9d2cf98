"""Whether the stores agree with one another, and what a crash left behind cleared away.

I1 every ready model has a file whose sha256 is its id. I2 every model file is what its name says.
I3 and I5 every recorded slice of a table is stored with its count and digest, and what was pending
is settled by its digest. I4 every score's model is registered. I6 every frozen fingerprint is that
of the rows. I7 what is published equals the tables.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from quant_pipeline.chain.blocks import in_blocks
from quant_pipeline.chain.frame import fingerprint_partitions, read_rows
from quant_pipeline.chain.judged import is_judged_with
from quant_pipeline.chain.outcomes import publish_outcomes
from quant_pipeline.chain.predict import publish_predictions
from quant_pipeline.chain.prices import publish_prices
from quant_pipeline.chain.slices import stored_digest
from quant_pipeline.chain.stale import read_stored, stale_data
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData
from quant_pipeline.settings import alike
from quant_pipeline.stores.meta import Written
from quant_pipeline.stores.model_files import MODEL_ID
from quant_pipeline.stores.published import Published, is_whole
from quant_pipeline.stores.series import query, read_manifests

TABLES = (
    "features_daily", "labels", "training_frame", "walkforward_folds", "predictions",
    "prediction_outcomes", "predictions_shadow", "price_batches", "seals",
)  # fmt: skip
SCORES = ("predictions", "predictions_shadow")
AT_ONCE = 24  # slices of one connection
YOUNG_SECONDS = 3600.0  # a file that is being written
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something that does not hold: the invariant, what is wrong, and what mends it.

    `repair` does, where that is possible; else `advice` says what to do.
    """

    invariant: str
    what: str
    advice: str
    repair: Callable[[], None] | None = None


def reconcile(ws: Workspace, tell: Tell, *, dry_run: bool) -> list[Problem]:
    """Look for what does not hold, and repair what can be, unless it is a dry run.

    Safe beside a running pipeline, and a second time it finds only what cannot be repaired.
    """
    looks = {
        "registry": _registry, "model files": _files, "models": _models, "leftovers": _leftovers,
        "slices": _slices, "scores": _scores, "fingerprints": _fingerprints,
        "published": _published,
    }  # fmt: skip
    found = []
    for i, (name, look) in enumerate(looks.items()):
        tell(f"checking {name}", i, len(looks))
        for problem in look(ws):
            if problem.repair is not None and not dry_run:
                problem.repair()
            found.append(problem)
    return found


def _files(ws: Workspace) -> Iterator[Problem]:
    """I2; a file that is not what its name says is never opened, and moved aside."""
    for path in sorted(ws.home.models.glob("*.joblib")):
        if not MODEL_ID.fullmatch(path.stem) or not ws.files.is_intact(path.stem):

            def move(path: Path = path) -> None:
                aside = path.parent / "damaged"
                aside.mkdir(exist_ok=True)
                path.rename(aside / path.name)

            what = f"models/{path.name} does not have the sha256 of its name"
            yield Problem("I2", what, "moved to models/damaged", move)


def _registry(ws: Workspace) -> Iterator[Problem]:
    """Whether the registry's file is whole, and each model's row as it was recorded."""
    for what in ws.meta.damages():
        yield Problem("I1", f"the registry: {what}", "restore the registry from a backup")


def _models(ws: Workspace) -> Iterator[Problem]:
    """I1; the same data gives the same file again."""
    for model in ws.meta.trained():
        if model.status == "ready" and not ws.files.is_intact(model.model_id):
            what = f"model {model.model_id[:12]} of {model.task_id} has no file with its sha256"
            advice = f"restore it, or `quant train --asof {model.asof} --task {model.task_id}`"
            yield Problem("I1", what, advice)


def _leftovers(ws: Workspace) -> Iterator[Problem]:
    """Files of killed writers, and models that were never registered."""
    known = {model.model_id for model in ws.meta.trained()}
    before = time.time() - YOUNG_SECONDS
    hidden = [p for root in (ws.home.models, ws.home.published) for p in root.rglob(".*.??????*")]
    strange = [p for p in ws.home.models.glob("*.joblib") if p.stem not in known]
    for path in sorted({*hidden, *strange}):
        if path.is_file() and path.stat().st_mtime < before:
            what = f"{path.relative_to(ws.home.root)} was left by a killed writer"

            def delete(path: Path = path) -> None:
                path.unlink(missing_ok=True)

            yield Problem("leftover", what, "deleted", delete)


def _slices(ws: Workspace) -> Iterator[Problem]:
    """I3 and I5: what is recorded is what is stored."""
    known = {"", *(task.task_id for task in ws.settings.tasks)}
    for table in TABLES:
        slices = [
            batches for batches in ws.meta.unsettled_batches(table)
            if table in SCORES or batches[0][0].task_id in known  # quant.toml has it still
        ]  # fmt: skip
        for i in range(0, len(slices), AT_ONCE):  # writers wait for one part only
            with ws.series.reading("reconciling") as con:
                part = [(b, *stored_digest(ws, con, b[0][0])) for b in slices[i : i + AT_ONCE]]
            for batches, n_rows, digest in part:
                yield from _slice(ws, batches, n_rows, digest)


def _slice(
    ws: Workspace, batches: Sequence[tuple[Written, bool]], n_rows: int, digest: str
) -> Iterator[Problem]:
    """Settle what is pending, newest first, until one batch is what is stored."""
    for batch, is_pending in batches:
        is_stored = n_rows == batch.n_rows and (digest == batch.digest or not n_rows)
        if is_pending:
            yield _settled(ws, batch, is_stored=is_stored)
        elif not is_stored:
            yield _differs(batch, n_rows)
        if is_stored:
            return


def _settled(ws: Workspace, batch: Written, *, is_stored: bool) -> Problem:
    what = f"{_named(batch)} was being written when its writer was killed"
    if is_stored:

        def commit() -> None:
            ws.meta.commit_batches([batch.id])

        return Problem("I5", what, "all of it is stored: recorded so", commit)

    def drop() -> None:
        ws.meta.drop_pending(batch.id)

    return Problem("I5", what, "nothing of it is stored: the record before counts", drop)


def _differs(slice_: Written, n_rows: int) -> Problem:
    what = (
        f"{_named(slice_)} was recorded with {slice_.n_rows} rows, and {n_rows} are stored or have "
        "other values"
    )
    if slice_.table_name in ("price_batches", "seals"):
        advice = "restore a backup, or ingest its files again: `quant ingest PATH`"
        return Problem("I5", what, advice)
    if slice_.table_name in SCORES:
        advice = "scores are never made anew: restore a backup, or `quant score` that partition"
        return Problem("I3", what, advice)
    advice = f"`quant backfill --select {slice_.table_name}` for {slice_.partition_key}"
    return Problem("I5", what, advice)


def _named(slice_: Written) -> str:
    task = f" {slice_.task_id}" if slice_.task_id else ""
    return f"{slice_.table_name} {slice_.partition_key}{task}"


def _scores(ws: Workspace) -> Iterator[Problem]:
    """I4, and that no score is without a record (I3)."""
    slices = [batches[0][0] for batches in ws.meta.unsettled_batches("predictions")]
    recorded = {(slice_.partition_key, slice_.task_id) for slice_ in slices}
    by_day = ws.series.query("SELECT task_id, ts, count(*) AS n FROM predictions GROUP BY ALL")
    stored: Counter[tuple[str, str]] = Counter()
    for row in by_day.to_pylist():
        stored[ws.grid.key(row["ts"]), row["task_id"]] += row["n"]
    for key, task_id in sorted(stored.keys() - recorded):
        what = f"{stored[key, task_id]} scores of {key} {task_id} belong to no recorded batch"
        yield Problem("I3", what, "restore the registry from a backup")
    known = {model.model_id for model in ws.meta.trained()}
    for table in ("predictions", "predictions_shadow", "prediction_outcomes"):
        rows = ws.series.query(f"SELECT model_id, count(*) AS n FROM {table} GROUP BY model_id")
        for row in sorted(rows.to_pylist(), key=lambda row: row["model_id"]):
            if row["model_id"] not in known:
                what = f"{row['n']} rows of {table} are of model {row['model_id'][:12]}, which is "
                yield Problem("I4", what + "not registered", "restore the registry from a backup")


def _fingerprints(ws: Workspace) -> Iterator[Problem]:
    """I6, of partitions that nothing has made stale."""
    try:
        stale = stale_data(ws, read_stored(ws))
    except NoData:
        return
    names = tuple(feature.name for feature in ws.features)
    for tasks in alike(ws.settings.tasks):
        with ws.series.reading("reconciling") as con:
            said = {task.task_id: read_manifests(con, task.task_id) for task in tasks}
        known = {key for found in said.values() for key in found}
        fresh = sorted(key for key in known if not any(key in why for why in stale.values()))
        every = ws.grid.keys(fresh[0], fresh[-1]) if fresh else []
        for keys in in_blocks(ws, every, len(names)) if every else ():
            first, last = ws.grid.window(keys[0])[0], ws.grid.asof(keys[-1])
            with ws.series.reading("reconciling") as con:
                rows, labels = read_rows(con, list(said), date.min, last, names, first)
            prints = fingerprint_partitions(ws, rows, labels, keys, tasks)
            for task_id, key in ((t, k) for t in said for k in keys if k in fresh and k in said[t]):
                if said[task_id][key]["fingerprint"] != prints[task_id][key]:
                    what = f"the rows of {key} {task_id} do not have their fingerprint any more"
                    advice = f"`quant backfill --select training_frame` for {key}"
                    yield Problem("I6", what, advice)


def _published(ws: Workspace) -> Iterator[Problem]:
    """I7; published anew where it differs."""
    with tempfile.TemporaryDirectory(dir=ws.home.data) as folder:
        made = Path(folder)
        publish_everything(replace(ws, published=Published(made)))
        wanted = {p.relative_to(made): p.read_bytes() for p in sorted(made.rglob("*.parquet"))}
    there = ws.home.published
    stored = {p.relative_to(there) for p in there.rglob("[!.]*.parquet")}
    wrong = [
        name for name in sorted(stored | wanted.keys())
        if name not in stored or not _is_current(ws, wanted.get(name), there / name)
    ]  # fmt: skip
    for name in wrong:

        def mend(name: Path = name) -> None:
            if name in wanted:
                ws.published.write_bytes(name.parent.name, name.stem, wanted[name])
            else:
                (there / name).unlink(missing_ok=True)

        is_old = name in stored
        what = f"data/published/{name} {'differs from its table' if is_old else 'is missing'}"
        yield Problem("I7", what, "published anew", mend)


# What they come from may be written anew before they are: they are of the time of the scores.
OF_THEN = ("judged", "returns", "newest_features")


def _is_current(ws: Workspace, wanted: bytes | None, file: Path) -> bool:
    if wanted is not None and file.parent.name in OF_THEN:
        is_ours = file.parent.name != "judged" or is_judged_with(file, ws.settings.metrics)
        return is_ours and is_whole(file)
    return wanted == file.read_bytes()


def publish_everything(ws: Workspace) -> None:
    """Publish every table for readers."""
    publish_prices(ws)
    with ws.series.reading("publishing") as con:
        days = query(
            con, "SELECT ts FROM predictions UNION SELECT known_at FROM prediction_outcomes"
        )
    keys = sorted({ws.grid.key(day) for day in days.column(0).to_pylist()})
    publish_predictions(ws, keys)
    publish_outcomes(ws, keys)


def not_repaired(found: Sequence[Problem]) -> list[Problem]:
    """Problems that somebody has to look at."""
    return [problem for problem in found if problem.repair is None]
