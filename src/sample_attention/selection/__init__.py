"""Parts of the selection that every backend shares: which rows, which classes, how lists join."""
