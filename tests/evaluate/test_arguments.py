"""Arguments of `t5x-lite eval`: which evaluators they choose, and which of these an option sets."""

from typing import ClassVar

import pytest

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.command import choose_evaluators, parse_request
from t5x_lite.evaluate.demonstrations import Balanced
from t5x_lite.evaluate.evaluators import EVALUATORS, Blimp, Cloze, Evaluator, FewShot, Memorisation, Perplexity, Tasks
from t5x_lite.evaluate.evaluators.evaluator import Argument
from tests.conftest import REPOSITORY

CLOZE = REPOSITORY / "configs/cloze/sst2.yaml"


def run_of_tasks(*tasks: str) -> RunConfig:
    return RunConfig.model_construct(tasks=tasks)


def test_an_option_sets_every_evaluator_that_has_it() -> None:
    words = [f"text={__file__}", "blimp=a,b", "memorisation=c", "--limit=2", "window=8", "tokens=4", "train.seed=1"]
    request, overrides = parse_request([*words, "tasks=x"], None, None)
    assert overrides == ["train.seed=1"]
    assert choose_evaluators(run_of_tasks(), request) == [
        Perplexity(text=__file__, window=8),
        Blimp(files=("a", "b"), limit=2),
        Memorisation(file="c", tokens=4),
        FewShot(tasks=("x",), limit=2, window=8),
    ]


def test_an_option_replaces_the_setting_of_a_cloze_file() -> None:
    words = [f"cloze={CLOZE}", "num_fewshot=2", "demonstrations=balanced"]
    request, _ = parse_request(words, None, 5)
    (task,) = request.evaluators
    assert isinstance(task, Cloze)
    assert (task.num_fewshot, task.demonstrations, task.limit) == (2, Balanced(), 5)
    assert task.verbalizer == {"0": "terrible", "1": "great"}


def test_tasks_of_the_run_are_not_those_of_the_harness_and_have_none_of_their_options() -> None:
    run = run_of_tasks("sst2", "rte")
    request, _ = parse_request(["tasks=sst2,arc_easy,rte", "num_fewshot=2"], None, None)
    assert choose_evaluators(run, request) == [
        Tasks(names=("sst2", "rte")),
        FewShot(tasks=("arc_easy",), num_fewshot=2),
    ]
    for words in (["seed=3"], ["limit=3"], ["window=3"]):
        request, _ = parse_request(["tasks=sst2", *words], None, None)
        with pytest.raises(UserError, match=f"{words[0][:-1]} is for tasks of lm-eval.*, not for sst2 of the run"):
            choose_evaluators(run, request)


@pytest.mark.parametrize(
    ("word", "meant"), [("tokns=8", "tokens="), ("strid=5", "stride="), ("windw=64", "window="), ("tsks=x", "tasks=")]
)
def test_a_misspelt_option_is_named_with_the_nearest_one(word: str, meant: str) -> None:
    name = word.partition("=")[0]
    with pytest.raises(UserError, match=rf"eval: unknown argument {name}=; did you mean {meant}\?; `t5x-lite eval"):
        parse_request([f"text={__file__}", word, "train.seed=1"], None, None)


def test_an_option_may_be_written_once() -> None:
    with pytest.raises(UserError, match=r"window= is given twice"):
        parse_request(["tasks=x", "window=3", "--window=4"], None, None)
    with pytest.raises(UserError, match=r"--limit and limit= are the same"):
        parse_request(["tasks=x", "limit=3"], None, 3)


def test_an_argument_that_nothing_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unread(Evaluator):
        argument: ClassVar[Argument | None] = Argument("unread", "read by nothing")

    monkeypatch.setitem(EVALUATORS, "unread", Unread)
    with pytest.raises(UserError, match=r"unread= of .*Unread needs a `field` of its Argument, or `from_argument`"):
        parse_request(["unread=x"], None, None)
