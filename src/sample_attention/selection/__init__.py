"""Parts of the selection that every backend shares: which rows, which bins, how lists join."""
