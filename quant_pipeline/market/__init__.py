"""Prices in, numbers out: pure functions, no files, no clock, no database."""
