"""Measurements that the documentation rests on; `python -m sample_attention.bench --help`."""
