"""What a step cost: seconds, and the most memory that its process held meanwhile."""

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg

SECONDS, PEAK_MEMORY = "seconds", "peak_memory_mb"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Starts when it is made. On Linux the peak is the step's own, elsewhere the process's."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        with suppress(OSError):  # not Linux, or not allowed
            _RESET.write_text("5")  # the peak of resident memory is what is held now

    def tell(self, context: dg.AssetExecutionContext) -> None:
        """Metadata of each partition of the step."""
        keys = context.partition_keys
        for key in keys:
            context.add_asset_metadata(self.read(len(keys)), partition_key=key)

    def read(self, n_partitions: int = 1) -> dict[str, Any]:
        """Numbers for each of the partitions of a run, seconds in equal shares."""
        seconds = (time.perf_counter() - self.began) / n_partitions
        return {SECONDS: round(seconds, 3), PEAK_MEMORY: round(peak_memory_mb(), 1)}


def peak_memory_mb() -> float:
    """The most memory that the process held since it was last set back, in MiB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
