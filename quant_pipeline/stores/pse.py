"""Philippine prices of 2010 to 2021: taken out of a wheel that pip downloads, never imported."""

import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from quant_pipeline.errors import SourceError
from quant_pipeline.market.validate import PRICE_SCHEMA
from quant_pipeline.stores.sources import read_bytes

PSE_REQUIREMENT = "fastquant==0.1.8.1"
PSE_WHEEL = "fastquant-0.1.8.1-py3-none-any.whl"
PSE_SHA256 = "c7fac4401dba39ee237632025431f63cf5d207ee30a4857c4df6fa1f1316be97"
PSE_MEMBER = "fastquant/data/merged_stock_data.zip"
MAX_WHEEL_BYTES = 1 << 26
PIP_SECONDS = 900


def fetch_pse(
    folder: Path,
    *,
    requirement: str = PSE_REQUIREMENT,
    wheel: str = PSE_WHEEL,
    expected_sha256: str = PSE_SHA256,
) -> Path:
    """Put Philippine prices of 2010 to 2021 into ``folder/pse.parquet``; a whole one stays.

    They come out of a wheel that pip downloads, or that lies in `folder` already. It is neither
    installed nor imported, and not even opened unless its sha256 is the expected one. Volume is
    traded value over close, rounded; adj_close is null. Wrong prices stay in for validation.
    """
    target = folder / "pse.parquet"
    if target.exists() and _is_whole(target, expected_sha256):
        return target
    own = folder / wheel
    if own.exists():
        content, origin = read_bytes(own, MAX_WHEEL_BYTES), str(own)
    else:
        content, origin = _download(requirement, own), f"{requirement} as downloaded"
    digest = sha256(content).hexdigest()
    if digest != expected_sha256:
        raise SourceError(
            f"{origin} has sha256 {digest}, expected {expected_sha256}, so it was not opened. "
            "Remove it if it lies in the folder, and check where pip takes its packages from."
        )
    table, n_undated = _unfold(_merged_csv(content, origin))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(table, target, {"wheel_sha256": digest, "n_undated": str(n_undated)})
    except OSError as error:
        raise SourceError(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def _download(requirement: str, own: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="quant-") as folder:
        try:
            done = subprocess.run(
                [*command, *quiet, "--dest", folder, requirement],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=PIP_SECONDS,
                check=False,
            )
            output = done.stderr
        except subprocess.TimeoutExpired:
            output = f"gave up after {PIP_SECONDS} s"
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) == 1:
            return wheels[0].read_bytes()
    reason = (output.strip().splitlines() or ["no reason given"])[-1]
    raise SourceError(
        f"pip could not download {requirement} ({reason}). Check the network and pip's index, or "
        f"get that wheel elsewhere, place it at {own} and run again."
    )


def _merged_csv(wheel: bytes, origin: str) -> bytes:
    """Bytes of the one CSV in the zip in the wheel."""
    try:
        with zipfile.ZipFile(BytesIO(wheel)) as outer:
            packed = outer.read(PSE_MEMBER)
        with zipfile.ZipFile(BytesIO(packed)) as inner:
            (member,) = inner.namelist()
            return inner.read(member)
    except (zipfile.BadZipFile, KeyError, ValueError, zlib.error) as error:
        raise SourceError(f"{origin} does not hold one CSV in {PSE_MEMBER} ({error}).") from error


def _unfold(content: bytes) -> tuple[pa.Table, int]:
    """Long table from a wide one headed by symbols and fields; and how many rows had no date."""
    symbols, fields = (line.decode().split(",")[1:] for line in content.splitlines()[:2])
    wide = pd.read_csv(BytesIO(content), header=None, skiprows=2, index_col=0)
    days = pd.to_datetime(pd.Series(wide.index, dtype="str"), format="%Y-%m-%d", errors="coerce")
    has_day = days.notna().to_numpy()
    ts = days.to_numpy()[has_day].astype("datetime64[D]")
    cells = wide.to_numpy(dtype=np.float64)[has_day]
    names = sorted(set(symbols))
    place = {key: i for i, key in enumerate(zip(symbols, fields, strict=True))}
    quotes = {
        field: cells[:, [place[name, field] for name in names]].T
        for field in ("open", "high", "low", "close", "value")
    }
    row, column = np.nonzero(~np.all([np.isnan(q) for q in quotes.values()], axis=0))
    long = {field: q[row, column] for field, q in quotes.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        volume = np.rint(long.pop("value") / long["close"])
    volume[~np.isfinite(volume)] = np.nan
    columns = {
        "symbol": pa.array(np.array(names, dtype=object)[row], pa.string()),
        "ts": pa.array(ts[column], pa.date32()),
        **{field: pa.array(values, from_pandas=True) for field, values in long.items()},
        "adj_close": pa.nulls(len(row), pa.float64()),
        "volume": pa.array(volume, from_pandas=True),
    }
    return pa.table(columns, schema=PRICE_SCHEMA), int((~has_day).sum())


def _write_whole(table: pa.Table, target: Path, facts: Mapping[str, str]) -> None:
    """Write a Parquet file that is there either whole or not at all."""
    facts = {**facts, "n_rows": str(table.num_rows)}
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            pq.write_table(
                table.replace_schema_metadata(facts),
                file,
                compression="zstd",
                write_page_checksum=True,
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_whole(target: Path, wheel_sha256: str) -> bool:
    """Tell whether a file was made from that wheel and every page still has its checksum.

    Raises SourceError for a readable file that was not written here: it is not ours to replace.
    """
    try:
        with pq.ParquetFile(target, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError):
        return False
    facts = table.schema.metadata or {}
    if b"wheel_sha256" not in facts:
        raise SourceError(f"{target} was not made by `quant fetch`. Move it away and run again.")
    is_rows = facts.get(b"n_rows") == str(table.num_rows).encode()
    return is_rows and facts[b"wheel_sha256"] == wheel_sha256.encode()
