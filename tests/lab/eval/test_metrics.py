"""Scores, each on outputs that are right, partly right and wrong."""

import math
from functools import partial

import pytest

from sample_attention.lab.eval import metrics
from sample_attention.lab.statistics import mean_interval, paired_difference, paired_ratio

one_place = partial(metrics.one_label, labels=("kitchen", "garden"))
one_class = partial(metrics.named_class, classes=("Food", "Food type", "Animal"))

CASES = [
    (metrics.contains_all, " it is 12 and Ab", ("12", "aB", "77", "x1"), 0.5),
    (metrics.contains_any, "the answer: PARIS", ("London", "Paris"), 1),
    (metrics.contains_any, "Rome", ("London", "Paris"), 0),
    (one_place, " kitchen. Then the garden.", ("kitchen",), 1),
    (one_place, " kitchen or garden", ("kitchen",), 0),
    (one_place, "\n", ("kitchen",), 0),
    (metrics.token_f1, "The cat sat, quietly", ("a cat sat",), 0.8),
    (metrics.token_f1, "dog", ("a cat", "the dog!"), 1),
    (metrics.token_f1, "", ("cat",), 0),
    (metrics.character_f1, "北京。", ("北京市",), 0.8),
    (metrics.rouge_l, "a b c d", ("a x c d",), 0.75),
    (metrics.rouge_l, "z", ("a b",), 0),
    (metrics.right_numbers, "3, or 3 or 4", ("3",), 2 / 3),
    (metrics.right_numbers, "none", ("3",), 0),
    (metrics.paragraph_number, "Paragraph 12", ("Paragraph 12",), 1),
    (metrics.paragraph_number, "Paragraph 1", ("Paragraph 12",), 0),
    (one_class, "Food type", ("Food type",), 1),
    (one_class, "Animal or Food", ("Animal",), 0.5),
    (one_class, "plant", ("Animal",), 0),
    (metrics.code_similarity, "\n# note\nreturn x\nrest", ("return x",), 1),
    (metrics.first_number, "it is 71.5 or 3", ("71.5",), 1),
    (metrics.first_number, "no", ("3",), 0),
    (metrics.last_number, "The return value is 12.", ("12",), 1),
    (metrics.last_number, "12 or so", ("12",), 0),
    (metrics.leading_numbers, "1, -2, 9, 4", ("1", "-2", "3", "4"), 0.5),
    (metrics.contains_word, 'it is "abc-1".', ("ABC-1",), 1),
    (metrics.contains_word, "abc-12", ("abc-1",), 0),
    (metrics.option_letter, "The answer is B.", ("B",), 1),
    (metrics.option_letter, "Because of A", ("B",), 0),
]


@pytest.mark.parametrize(("metric", "output", "answers", "score"), CASES)
def test_scores(metric, output, answers, score):
    assert math.isclose(metric(output, answers), score)


def test_an_interval_holds_the_mean_and_narrows():
    few, many = mean_interval([0.0, 1.0] * 5), mean_interval([0.0, 1.0] * 500)
    assert few.mean == many.mean == 0.5
    assert 0 <= few.low < many.low < 0.5 < many.high < few.high <= 1
    assert mean_interval([1.0]) == (1, 1, 1)


def test_what_prompts_share_cancels_out_of_a_difference():
    dense = [float(i) for i in range(40)]
    ours = [x - 1 - 0.1 * (i % 2) for i, x in enumerate(dense)]
    change = paired_difference(ours, dense)
    assert change.low < change.mean < change.high < -1
    assert change.high - change.low < 0.05
    alone = mean_interval(ours)
    assert alone.high - alone.low > 5


def test_a_ratio_is_that_of_the_means_over_tasks():
    dense, ours = [[1.0, 1.0], [0.5, 0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5, 0.5]]
    share = paired_ratio(ours, dense)
    assert math.isclose(share.mean, 1 / 1.5)
    assert share.low < share.mean < share.high <= 1
    assert paired_ratio(dense, dense) == (1, 1, 1)
    assert paired_ratio([[0.0]], [[0.0]]) is None
    assert paired_ratio([[1.0, 0.5]], [[1.0, 0.0]]).high <= 2
