"""Daily prices in, daily out-of-sample stock scores out, with proof that no score saw the future."""
