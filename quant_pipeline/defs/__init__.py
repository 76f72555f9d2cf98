"""The Dagster side: grid, IO manager, assets, checks, jobs."""
