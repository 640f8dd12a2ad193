"""`sample-attention demo`: a small real model, a long real text, a question; dense and sparse."""

from __future__ import annotations

from rich.console import Console

from ..errors import PromptTooLong
from ..models import PINNED_WEIGHTS, fetch_weights, needle_prompt
from .comparison import DENSE, SPARSE
from .console import messages, step
from .report import Report
from .run import RunOptions, prepare_output, publish, report_on
from .setup import ModelOptions, as_batch, load

MODEL = "smollm2-135m"


def demo(tokens: int, threads: int | None, options: RunOptions) -> None:
    """Fetch, ask, compare, explain.

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
    say(f"[bold]1/4[/] the model: {weights.model}, {weights.size / 1e6:.0f} MB, {weights.licence}")
    with step("fetching weights (kept for the next time)"):
        fetch_weights(MODEL)
    loaded = load(ModelOptions(MODEL, device="cpu", threads=threads))
    room = loaded.context_length - options.max_new_tokens
    if tokens > room:
        raise PromptTooLong(f"--tokens {tokens}: {MODEL} accepts up to {room}; ask for fewer")
    prompt = needle_prompt(loaded.tokenizer, tokens, depth=0.5)
    count = len(prompt.token_ids)
    say(f"[bold]2/4[/] the prompt: {count:,} tokens of the Python reference with one odd fact in "
        f"the middle; it ends with:\n    {prompt.question}")  # fmt: skip
    say("[bold]3/4[/] answering twice, with every pair of tokens (dense) and with those that "
        "matter (sparse); a minute or two")  # fmt: skip
    report = report_on(loaded, as_batch(loaded, prompt.token_ids), options)
    report.content["expected_answer"] = prompt.answer
    report.content["right_answer"] = {
        name: prompt.answer in report.content["methods"][name]["text"] for name in (DENSE, SPARSE)
    }
    say("[bold]4/4[/] the result")
    publish(report, options)
    if not options.as_json:
        _explain(report, prompt.answer)


def _explain(report: Report, answer: str) -> None:
    content = report.content
    sparse = content["methods"][SPARSE]
    right = [name.replace("_", "-") for name, good in content["right_answer"].items() if good]
    tell = Console(highlight=False, soft_wrap=True, markup=False).print
    tell(f"right answer:     {answer}, given by {' and '.join(right) or 'neither'}\n")
    tell(f"What this shows: of all pairs of tokens, sparse attention computed "
         f"{100 * sparse['density']:.0f} %; the time includes choosing them.")  # fmt: skip
    if sparse["retained_mass"]["mean"] is not None:
        tell(f"The pairs that it kept carry {100 * sparse['retained_mass']['mean']:.1f} % of the "
             "attention, measured on rows that it did not choose by.")  # fmt: skip
    tell("The time to first token is that of the whole model. At this length attention is only a "
         "part of its work: on a CPU the gain is small, and grows with the prompt.")  # fmt: skip
    if len(content["timing"]["order"]) == len(content["methods"]):
        tell("Each way was timed once, so that other programs disturb it: --repeats 3 is steadier.")
