"""The implementations; `NAMES` lists them by preference, and each is imported when asked for."""

NAMES = ("hopper", "triton", "eager")
