"""A process whose forks are killed or damaged at one of their writes, and what they leave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from quant_pipeline.chain.reconcile import not_repaired, reconcile
from quant_pipeline.stores.meta import Champion
from quant_pipeline.stores.series import columns_of, digest_rows, query
from quant_pipeline_tests.homes import TABLES, SmallHome

GCC = shutil.which("gcc")
EVERY = int(os.environ.get("QUANT_CRASH_EVERY", "149"))


class Host:
    """The process whose forks are killed."""

    def __init__(self, folder: Path) -> None:
        library = folder / "crash.so"
        source = Path(__file__).with_name("crash.c")
        subprocess.run(
            [str(GCC), "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quant_pipeline_tests.crash_host", str(library)],
            env={**os.environ, "LD_PRELOAD": str(library)}, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip

    def do(self, action: str, made: SmallHome, at: int = 0, how: str = "before") -> dict[str, Any]:
        """Do something; at its at-th call it is killed, or calls begin to fail."""
        (answer,) = self.ask(action=action, root=str(made.root), at=at, how=how)
        return answer

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """What came of a request, of each process that it started."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answers: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        return answers

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def essence(made: SmallHome) -> dict[str, Any]:
    """All that is stored but for when it was."""
    toml = made.root / "quant.toml"
    found: dict[str, Any] = {"quant.toml": toml.read_text() if toml.exists() else None}
    if not (made.root / "data" / "quant.duckdb").exists():
        return found
    with made.workspace.series.reading("test") as con:
        for table in TABLES:
            if table != "predictions" and columns_of(con, table):
                found[table] = digest_rows(query(con, f"SELECT * FROM {table} ORDER BY ALL"))
    found["scores"] = made.scores()
    found["models"] = made.model_ids()
    found["champions"] = [
        (c["task_id"], c["partition_key"], c["model_id"]) for c in made.registry(Champion)
    ]
    found["orders"] = {(o.action, o.model_id) for o in made.workspace.meta.orders("up_5d")}
    return found


def look(made: SmallHome) -> list[str]:
    """What is left to do after reconciling."""
    if not (made.root / "data" / "quant.duckdb").exists():
        return []
    problems = reconcile(made.workspace, lambda *_: None, dry_run=False)
    return [f"{p.invariant}: {p.what}" for p in not_repaired(problems)]
