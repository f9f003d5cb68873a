"""Experiments: presets, runs, the ledger, and what the paper and the slides claim."""
