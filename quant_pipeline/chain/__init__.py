"""What each asset does, without Dagster: read from the stores, compute, say what to store."""
