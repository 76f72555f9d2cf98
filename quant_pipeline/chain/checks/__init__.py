"""Checks of what is stored: numbers, thresholds from [checks] of quant.toml, and words."""
