"""The implementations; `NAMES` lists them by preference, and none is imported before it is asked."""

NAMES = ("eager",)
