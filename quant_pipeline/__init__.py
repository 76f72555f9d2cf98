"""Daily prices in, daily out-of-sample stock scores out; no score saw the future."""
