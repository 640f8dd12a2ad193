"""Every generated task: length, answers in the prompt, the same prompts for a seed."""

import random
import re
from collections import Counter

import pytest

from sample_attention.errors import InvalidInput
from sample_attention.lab.eval import haystack
from sample_attention.lab.eval.prompts import SHORTEST_SLACK
from sample_attention.lab.eval.tasks import BABILONG, GENERATED_TASKS, RULER, parse_tasks
from sample_attention.lab.eval.tasks.babilong import STORIES
from sample_attention.lab.eval.tasks.texts import QUOTING_TASKS, TEXT_TASKS
from sample_attention.lab.models.tokens import encode
from sample_attention.lab.reading import QUOTED_TOKENS, measured_tokens, with_quotations

LENGTH = 2048


@pytest.fixture(params=GENERATED_TASKS, ids=lambda task: task.name)
def task(request):
    return request.param


def total(sample):
    return len(sample.token_ids) + sample.max_new_tokens


def test_prompts_are_as_long_as_asked_for(task, tokenizer):
    for length in (LENGTH, 3000):
        for sample in task.samples(tokenizer, length, 2, 0):
            longest_piece = 160  # a paragraph, or a line of noise, is added as a whole
            assert length - SHORTEST_SLACK - longest_piece <= total(sample) <= length


def test_the_prompt_holds_the_answer_and_the_right_answer_scores(task, tokenizer):
    for sample in task.samples(tokenizer, LENGTH, 3, 1):
        prompt = tokenizer.decode(sample.token_ids)
        assert all(answer in prompt for answer in sample.answers)
        target = tokenizer.decode(sample.target_ids)
        assert target.startswith(" ")
        assert sample.score(target) == 1
        assert sample.score("Nobody knows.") == 0
        assert sample.max_new_tokens > len(sample.target_ids)


def test_prompts_depend_on_the_seed_alone(task, tokenizer):
    first = task.samples(tokenizer, LENGTH, 2, 5)
    assert [x.token_ids for x in first] == [
        x.token_ids for x in task.samples(tokenizer, LENGTH, 2, 5)
    ]
    assert first[0].token_ids != first[1].token_ids
    assert first[0].token_ids != task.samples(tokenizer, LENGTH, 2, 6)[0].token_ids


def test_answers_do_not_depend_on_the_amount_of_filler(task):
    drafts = [task._render("key", 0.5, size) for size in (0, 40, 900)]
    assert len({draft.answers for draft in drafts}) == 1
    assert len(drafts[0].content) < len(drafts[1].content) < len(drafts[2].content)


def test_ruler_has_thirteen_tasks():
    assert len(RULER) == 13
    assert len(BABILONG) == 5
    assert [t.name for t in parse_tasks(["ruler"])] == list(RULER)


def test_the_needle_stands_at_its_depth(tokenizer):
    (task,) = parse_tasks(["needle"])
    samples = task.samples(tokenizer, LENGTH, 5, 0)
    assert [x.depth for x in samples] == [0, 0.25, 0.5, 0.75, 1]
    for sample in samples:
        text = tokenizer.decode(sample.token_ids)
        place = text.index(f"is: {sample.answers[0]}") / len(text)
        assert abs(place - sample.depth) < 0.15


@pytest.mark.parametrize(
    ("name", "needles", "answers"),
    [("niah_multikey_1", 4, 1), ("niah_multivalue", 4, 4), ("niah_multiquery", 4, 4)],
)
def test_numbers_of_needles(tokenizer, name, needles, answers):
    (task,) = parse_tasks([name])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids)
    assert text.count("One of the special magic numbers for") == needles
    assert len(sample.answers) == answers
    keys = re.findall(r"numbers for (\S+) is:", text)
    assert len(set(keys)) == (1 if name == "niah_multivalue" else 4)


def test_answers_come_in_the_order_of_the_text(tokenizer):
    (task,) = parse_tasks(["niah_multivalue"])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids)
    places = [text.index(answer) for answer in sample.answers]
    assert places == sorted(places)


def test_answers_come_in_the_order_of_the_question(tokenizer):
    (task,) = parse_tasks(["niah_multiquery"])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids)
    asked = re.search(r"magic numbers for (.*) in the text above", text)[1]
    value_of = dict(re.findall(r"numbers for (\S+) is: (\d+)", text))
    assert tuple(value_of[key] for key in re.findall(r"[a-z]+-[a-z]+", asked)) == sample.answers


@pytest.mark.parametrize("seed", range(8))
def test_the_key_that_is_asked_for_has_one_line(tokenizer, seed):
    (task,) = parse_tasks(["niah_multikey_2"])
    (sample,) = task.samples(tokenizer, 12_000, 1, seed)
    text = tokenizer.decode(sample.token_ids)
    key = re.search(r"magic number for (\S+) in the text above", text)[1]
    assert text.count(f"numbers for {key} is:") == 1


def test_every_line_is_a_needle(tokenizer):
    (task,) = parse_tasks(["niah_multikey_3"])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    lines = tokenizer.decode(sample.token_ids).split("\n\n")[1].splitlines()
    assert all(line.startswith("One of the special magic uuids for ") for line in lines)
    assert len(set(lines)) == len(lines) > 10


def test_the_chain_of_variables_stands_in_order(tokenizer):
    (task,) = parse_tasks(["vt"])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids)
    *_, last = text.split("Follow the chain.")
    chain = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", last, flags=re.MULTILINE)
    assert [name for name, _ in chain] == list(sample.answers)
    assert [source for _, source in chain[1:]] == list(sample.answers[:-1])


@pytest.mark.parametrize("length", [LENGTH, 12_000])
def test_the_common_words_are_the_most_frequent(tokenizer, length):
    (task,) = parse_tasks(["cwe"])
    (sample,) = task.samples(tokenizer, length, 1, 0)
    *_, text = tokenizer.decode(sample.token_ids).split("memorize those.\n")
    counts = Counter(re.findall(r"\d+\. (\S+)", text.partition("\nQuestion")[0]))
    top = counts.most_common(10)
    assert {word for word, _ in top} == set(sample.answers)
    assert min(n for _, n in top) > 3 * counts.most_common(11)[-1][1]


def test_the_frequent_words_are_the_most_frequent(tokenizer):
    (task,) = parse_tasks(["fwe"])
    (sample,) = task.samples(tokenizer, LENGTH, 1, 0)
    text = tokenizer.decode(sample.token_ids).split("\n")[1]
    (noise, _), *top = Counter(text.split()).most_common(4)
    assert noise == "..."
    assert tuple(word for word, _ in top) == sample.answers


PLACE = re.compile(r"(\w+) (?:went|moved|travelled|journeyed) to the (\w+)\.")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", STORIES)
def test_stories_have_the_answer_that_their_facts_give(name, seed):
    tell, labels = STORIES[name]
    story = tell(random.Random(seed))
    assert story.answer in labels
    assert _solve(name, story) == story.answer


def _solve(name, story):
    """Follow the facts, knowing nothing of how they were made."""
    if name == "qa4":
        side, middle = re.fullmatch(r"What is (\w+) of the (\w+)\?", story.asked).groups()
        opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}[side]
        relations = [re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", f) for f in story.facts]
        for a, relation, b in (match.groups() for match in relations):
            if (b, relation) == (middle, side):
                return a
            if (a, relation) == (middle, opposite):
                return b
    if name == "qa5":
        gifts = [re.fullmatch(r"(\w+) gave the (\w+) to (\w+)\.", f) for f in story.facts]
        gifts = [m.groups() for m in gifts if m]
        asked = set(re.findall(r"\w+", story.asked))
        (giver, _, taker) = next(g for g in gifts if g[1] in asked)
        return giver if story.asked.startswith("Who ") else taker
    at, holder, path, thing = {}, {}, [], re.search(r"the (\w+)|$", story.asked)[1]
    for fact in story.facts:
        if moved := PLACE.fullmatch(fact):
            at[moved[1]] = moved[2]
        elif taken := re.fullmatch(r"(\w+) picked up the (\w+)\.", fact):
            holder[taken[2]] = taken[1]
        elif put := re.fullmatch(r"(\w+) put down the (\w+)\.", fact):
            path.append(at[put[1]])
            del holder[put[2]]
        if holder.get(thing) in at:
            path.append(at[holder[thing]])
    path = [x for i, x in enumerate(path) if i == 0 or x != path[i - 1]]
    if name == "qa1":
        return at[re.search(r"Where is (\w+)", story.asked)[1]]
    return path[-1] if name == "qa2" else path[-2]


def test_passages_of_text(tokenizer):
    for task in TEXT_TASKS:
        first, second = task.passages(tokenizer, 600, 2, 0)
        assert len(first) == len(second) == 600
        assert first != second
        assert (first, second) == tuple(task.passages(tokenizer, 600, 2, 0))
    with pytest.raises(InvalidInput, match="choose a shorter length"):
        list(TEXT_TASKS[0].passages(tokenizer, 10**6, 1, 0))


def test_passages_end_in_quotations_of_themselves():
    passage = tuple(range(1000))
    quoting = with_quotations(passage, 200)
    assert quoting[:800] == passage[:800]
    tail = quoting[800:]
    assert len(tail) == 200
    starts = [tail[i] for i in range(0, 200, QUOTED_TOKENS)]
    for i, start in enumerate(starts):
        part = tail[i * QUOTED_TOKENS :][:QUOTED_TOKENS]
        assert part == passage[start : start + len(part)]
        assert start + QUOTED_TOKENS <= 800
    assert starts != sorted(starts)
    assert max(starts) - min(starts) > 500


def test_short_passages_quote_what_they_have():
    assert len(with_quotations(tuple(range(40)), 20)) == 40


def test_quoting_passages_differ_in_what_is_predicted(tokenizer):
    for task, plain in zip(QUOTING_TASKS, TEXT_TASKS, strict=True):
        (found,) = task.passages(tokenizer, 600, 1, 0)
        body = found[:450]
        assert len(found) == 600
        assert task.kind == plain.kind
        assert any(body[i : i + QUOTED_TOKENS] == found[450:498] for i in range(450))


def test_measured_tokens():
    assert measured_tokens(2048) == 512
    assert measured_tokens(131_072) == 4096


def test_names_beyond_all_pairs_differ():
    names = haystack.random_names(random.Random(0), 50_000)
    assert len(set(names)) == 50_000


def test_too_short_a_length_is_refused(tokenizer):
    (task,) = parse_tasks(["cwe"])
    with pytest.raises(InvalidInput, match="the question alone takes"):
        task.samples(tokenizer, 64, 1, 0)


@pytest.mark.parametrize("name", ["no-such", "longbench:no-such.jsonl", "other:file"])
def test_unknown_tasks_are_refused(name):
    with pytest.raises(InvalidInput, match="there is no"):
        parse_tasks([name])


def test_the_target_goes_on_from_the_prompt(tokenizer):
    (task,) = parse_tasks(["niah_single_1"])
    (sample,) = task.samples(tokenizer, 512, 1, 0)
    text = tokenizer.decode(sample.token_ids) + tokenizer.decode(sample.target_ids)
    assert encode(tokenizer, text) == sample.token_ids + sample.target_ids
