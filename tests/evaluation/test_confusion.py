"""Counts of right and wrong decisions, and of classes taken for each other."""

import numpy as np
from sklearn.metrics import confusion_matrix

from scripts.evaluation.confusion import class_confusion, decision_counts, draw_confusion

CLASSES = ["cancer", "hgd", "normal"]
LABELS = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]], float)
PROBABILITIES = np.array(
    [[0.9, 0.2, 0.1], [0.3, 0.4, 0.1], [0.2, 0.5, 0.6], [0.0, 0.1, 0.4], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]
)


def shown(axes):
    """The numbers in a matrix, by row."""
    texts = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    side = max(row for row, _ in texts) + 1
    return [[texts[row, column] for column in range(side)] for row in range(side)]


def test_every_class_has_its_counts_by_label_and_prediction():
    counts = decision_counts(PROBABILITIES, LABELS)
    assert counts[0].tolist() == [[3, 0], [1, 2]]
    assert counts[1].tolist() == [[4, 0], [0, 2]]  # 0.5 is a positive prediction
    for k in range(3):
        expected = confusion_matrix(LABELS[:, k], PROBABILITIES[:, k] >= 0.5, labels=[0, 1])
        assert np.array_equal(counts[k], expected)


def test_a_class_of_no_slide_or_of_all_has_counts_too():
    assert decision_counts([[0.9], [0.1]], [[1], [1]])[0].tolist() == [[0, 0], [1, 1]]
    assert decision_counts([[0.9], [0.1]], [[0], [0]])[0].tolist() == [[1, 1], [0, 0]]


def test_slides_with_one_class_say_what_it_is_taken_for():
    # The slide with two classes and that with none count nowhere.
    assert class_confusion(PROBABILITIES, LABELS).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert class_confusion([[0.5, 0.6]], [[1, 1]]).tolist() == [[0, 0], [0, 0]]


def test_the_figure_shows_these_counts():
    *of_classes, between = draw_confusion(PROBABILITIES, LABELS, CLASSES).axes
    assert [shown(axes) for axes in of_classes] == decision_counts(PROBABILITIES, LABELS).tolist()
    assert [axes.get_title() for axes in of_classes] == CLASSES
    assert shown(between) == class_confusion(PROBABILITIES, LABELS).tolist()
    assert between.get_title() == "slides with one class (4)"
    (binary,) = draw_confusion([[0.9], [0.1]], [[1], [1]], ["high_risk"]).axes
    assert shown(binary) == [[0, 0], [1, 1]]
