"""Attention over a plan's pairs, by three engines: plan -> out, lse."""
