"""Measurements that the documentation rests on; `sample-attention bench --help`."""
