"""What the daemon looks after while the web UI is open."""

from collections.abc import Sequence

import dagster as dg

from quant_pipeline.defs.instance import bury_dead_runs
from quant_pipeline.settings import Home


def make_sensors(home: Home) -> Sequence[dg.SensorDefinition]:
    """Sensors of one home."""

    @dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
    def killed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """Frees the pools of runs whose process was killed; queued ones would wait for ever."""
        dead = bury_dead_runs(context.instance, home)
        return dg.SkipReason(
            f"Freed what {', '.join(dead)} held." if dead else "No run was killed."
        )

    return [killed_runs]
