"""The right answers that metrics get, by the task."""

import pytest

from t5x_lite.evaluate.tasks import _with_question
from t5x_lite.tasks import TaskSpec, find_task


def test_answers_of_multirc_are_judged_by_question() -> None:
    record = {"question": 7, "answer": "b", "label": 1}
    assert _with_question(1, record, find_task("multirc")) == {"question": 7, "label": 1}


@pytest.mark.parametrize("metrics", [["accuracy", "exact_match"], ["squad"], ["bleu"]])
def test_an_answer_to_a_question_is_its_text(metrics: list[str]) -> None:
    """Closed-book question answering has the same columns (Roberts et al. 2020)."""
    task = TaskSpec.model_validate(
        {
            "about": "questions",
            "columns": {"question": "question", "answer": "answer"},
            "objective": "text_to_text",
            "inputs": "{question}",
            "targets": "{answer}",
            "metrics": metrics,
        }
    )
    assert _with_question("yes", {"question": "is it?", "answer": "yes"}, task) == "yes"
