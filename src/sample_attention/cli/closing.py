"""The meaning of the numbers of a comparison, in words."""

from __future__ import annotations

from typing import Any

from .comparison import DENSE, SPARSE

AS_FAST = 0.05
"""Times that differ by less than this share are told as equal: runs of one method do too."""


HALF = 0.5
"""A density above this leaves little to gain."""


def closing_words(content: dict[str, Any]) -> list[str]:
    """One sentence or two each on time, attention kept, and text; then how to measure better.

    Args:
        content: of a report.
    """
    sparse = content["methods"][SPARSE]
    words = [_on_time(content["ttft_speedup"], sparse)]
    if sparse["sparse_layers"]:
        words.append(_on_mass(sparse, content["config"]["coverage"]))
        words.append(_on_text(same=content["same_text"]))
    if len(content["timing"]["order"]) == len(content["methods"]):
        words.append("Each way was timed once, so that other programs disturb it: --repeats 3 is "
                     "steadier.")  # fmt: skip
    return words


def answer_words(content: dict[str, Any]) -> str:
    """Which ways gave the answer that was looked for, and what it means where they differ."""
    right = {name: content["right_answer"][name] for name in (DENSE, SPARSE)}
    answer = content["expected_answer"]
    if all(right.values()):
        return f"{answer}, given by both"
    if not any(right.values()):
        return f"{answer}, given by neither: the model itself misses it here"
    if right[DENSE]:
        return f"{answer}, given by dense alone: sparse attention lost it; try a higher --coverage"
    return f"{answer}, given by sample-attention alone"


def _on_time(speedup: float, sparse: dict[str, Any]) -> str:
    if not sparse["sparse_layers"]:
        return ("Time: every layer ran dense both times, so the two times are of the same work and "
                "differ by chance.")  # fmt: skip
    if abs(speedup - 1) <= AS_FAST:
        return ("Time: both ways took about as long to the first token. At this length attention "
                "is only a part of the model's work; the gain grows with the prompt.")  # fmt: skip
    if speedup > 1:
        return (f"Time: sparse attention was {speedup:.2f} times as fast to the first token, the "
                "choosing included. That is the whole model, of which attention is a part; the "
                "gain grows with the prompt.")  # fmt: skip
    slower = f"Time: sparse attention was slower here, {1 / speedup:.2f} times the time of dense."
    if sparse["density"] > HALF:
        return (f"{slower} The likely reason: most pairs of this prompt had to be computed, so "
                "that choosing them did not pay. A lower --coverage computes fewer.")  # fmt: skip
    return (f"{slower} Likely reasons: other programs keep this machine busy, which costs its many "
            "short steps more than dense attention's few long ones, or the prompt is too short to "
            "pay. Try an idle machine, fewer --threads, or a longer prompt.")  # fmt: skip


def _on_mass(sparse: dict[str, Any], coverage: float) -> str:
    computed = f"Attention: of all pairs of tokens {100 * sparse['density']:.0f} % were computed"
    mean = sparse["retained_mass"]["mean"]
    if mean is None:
        return f"{computed}; what they carry was not measured (--held-out 4 measures it)."
    told = (f"{computed}; they carry {100 * mean:.1f} % of the attention, measured on rows that "
            "they were not chosen by.")  # fmt: skip
    aim = f"{100 * coverage:g} %"
    if mean >= coverage:
        return f"{told} That reaches the coverage asked for, {aim}."
    return f"{told} The coverage asked for, {aim}, was not reached; a higher --coverage keeps more."


def _on_text(*, same: bool) -> str:
    if same:
        return "Text: both ways wrote the same. That is one prompt: check your task with `eval`."
    return ("Text: the two differ, since sparse attention is an approximation; a higher --coverage "
            "brings them nearer.")  # fmt: skip
