"""Proofs that nothing stored or trained saw the future, each written apart from what it judges."""
