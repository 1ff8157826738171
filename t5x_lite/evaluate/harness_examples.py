"""Scores of the single examples of lm-evaluation-harness: see `evaluate.example_scores`.

Importing this file needs the harness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from t5x_lite.evaluate.example_scores import Scores, score_choices
from t5x_lite.evaluate.harness_model import HarnessModel

MATCHES = ("exact_match", "acc")
"""Metrics of the harness that say whether an example is right, 1 or 0."""


def add_example_scores(model: HarnessModel, tasks: Mapping[str, ConfigurableTask], samples: Mapping[str, Any]) -> None:
    """Write the scores of each example into its record, under `scores`.

    A task with several filters has a record of each example for each of them; the first filter counts.

    Args:
        model: the model that was evaluated.
        tasks: the tasks by name.
        samples: the harness's records by task.
    """
    for name, records in samples.items():
        first_filter = [record for record in records if record["filter"] == records[0]["filter"]]
        answers = None
        if tasks[name].OUTPUT_TYPE == "generate_until":
            answers = _score_answers(model, tasks[name], first_filter)
        for number, record in enumerate(first_filter):
            scores = _score_likelihoods(model, tasks[name], record)
            if answers is not None:
                scores.update(answers[number])
            record["scores"] = scores


def _score_likelihoods(model: HarnessModel, task: ConfigurableTask, record: Mapping[str, Any]) -> Scores:
    """Return the scores that follow from the likelihoods of a record, and from the harness's metrics of it."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return _score_choices(model, task, record)
    if task.OUTPUT_TYPE == "loglikelihood":
        log_likelihood, is_greedy = record["filtered_resps"][0]
        tokens = float(model.answer_tokens[tuple(record["arguments"][0])])
        return {"correct": float(is_greedy), "log_likelihood": float(log_likelihood), "tokens": tokens}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        (text,) = record["arguments"][0]
        tokens = len(model.tok_encode(text, add_special_tokens=False))
        return {"log_likelihood": float(record["filtered_resps"][0]), "tokens": float(tokens)}
    matches = [record[name] for name in MATCHES if name in record]
    return {"correct": float(matches[0])} if matches else {}


def _score_choices(model: HarnessModel, task: ConfigurableTask, record: Mapping[str, Any]) -> Scores:
    """Return the scores of an example with choices; none if several choices are right.

    The right choice is what `ConfigurableTask.process_results` takes.
    """
    choices = task.doc_to_choice(record["doc"])
    right = task.doc_to_target(record["doc"])
    if task.multiple_input:
        right = task.doc_to_text(record["doc"])
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices):
        return {}
    # Requests for mutual information follow those of the choices.
    log_likelihoods = [float(response[0]) for response in record["filtered_resps"][: len(choices)]]
    tokens = model.answer_tokens[tuple(record["arguments"][right])]
    return score_choices(log_likelihoods, right, tokens)


def _score_answers(
    model: HarnessModel, task: ConfigurableTask, records: Sequence[Mapping[str, Any]]
) -> list[Scores] | None:
    """Return the log-likelihoods of the right texts of a task that generates.

    Of several right texts it is the first. None if a right answer is no text, or is longer than the window.
    """
    requests = []
    for number, record in enumerate(records):
        answer = record["target"]
        if isinstance(answer, list) and answer:
            answer = answer[0]
        if not isinstance(answer, str) or not answer:
            return None
        context = record["arguments"][0][0]
        continuation = f"{task.config.target_delimiter}{answer}"
        if len(model.tok_encode(continuation, add_special_tokens=False)) >= model.max_length:
            return None
        requests.append(Instance("loglikelihood", record["doc"], (context, continuation), number))
    scores: list[Scores] = []
    for request, (log_likelihood, _) in zip(requests, model.loglikelihood(requests, disable_tqdm=True), strict=True):
        scores.append({"log_likelihood": log_likelihood, "tokens": float(model.answer_tokens[request.args])})
    return scores
