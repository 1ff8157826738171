"""Our models in EleutherAI's lm-evaluation-harness: its tasks, few-shot prompts, filters and metrics."""

import contextlib
import difflib
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.decode.generate import decoding_settings
from t5x_lite.errors import UserError
from t5x_lite.evaluate.batches import next_power_of_two
from t5x_lite.evaluate.perplexity import scoring_windows
from t5x_lite.files import write_file
from t5x_lite.progress import track_progress

NEW_TOKENS = 256
"""Tokens that are generated where a task does not say (the harness's own default)."""
FEWSHOT_SEED = 1234
"""Which examples stand in the prompts: the harness's own."""
DRAWS = 1000
"""Resamples of the documents for the standard errors of metrics that have no formula for them."""


def _harness(window: int | None, model: Any) -> Any:
    """`model` (an `api.Model`) as the harness's `LM`, reading `window` tokens at one time.

    The harness splits context from continuation as for its own Hugging Face models: spaces that end a context begin the
    continuation; a decoder's two are cut from the ids of both together. Raises a UserError where it is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.models.utils import normalize_gen_kwargs
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed; run: pip install 't5x_lite[eval]'") from None

    class Ours(TemplateLM):
        backend = "seq2seq" if model.config.model.family == "encoder_decoder" else "causal"
        max_length = model.context(window)
        eot_token_id, prefix_token_id = model.eos, model.first

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if self.backend == "seq2seq" and add_special_tokens is not False:
                return model.encoded(string).tolist()
            before = [] if add_special_tokens is False else model.beginning.tolist()
            return before + model.tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            pairs = [(np.array(own[1] or [self.prefix_token_id]), np.array(own[2])) for own in requests]
            return model.likelihood(pairs, self.max_length)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [np.array(self.tok_encode(request.args[0])) for request in requests]
            cut = [scoring_windows(ids, model.first, self.max_length, self.max_length) for ids in texts]
            likely = iter(model.likelihood([pair for own in cut for pair in own], self.max_length))
            return [sum(next(likely)[0] for _ in own) for own in cut]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            alike = defaultdict(list)
            for number, request in enumerate(requests):
                alike[json.dumps(request.args[1], sort_keys=True)].append(number)
            texts: dict[int, str] = {}
            with track_progress("generating") as advance:
                for numbers in alike.values():
                    given = normalize_gen_kwargs(requests[numbers[0]].args[1], NEW_TOKENS)
                    prompts = {n: self._prompt(requests[n].args[0], given["max_gen_toks"]) for n in numbers}
                    numbers.sort(key=lambda n: -len(prompts[n]))
                    for start in range(0, len(numbers), model.rows):
                        chosen = numbers[start : start + model.rows]
                        # Rows of one batch differ in their draws, batches in their seed.
                        made = _generated(model, [prompts[n] for n in chosen], given | {"seed": start})
                        texts |= zip(chosen, made, strict=True)
                        advance("", len(texts), len(requests))
            return [texts[number] for number in range(len(requests))]

        def _prompt(self, text: str, new: int) -> np.ndarray:
            room = self.max_length - (new if self.backend == "causal" else 0)
            if room < 1:
                raise UserError(f"{new} new tokens leave no room for a prompt in a window of {self.max_length}")
            ids = model.encoded(text)
            model.likelihood.truncated += len(ids) > room
            return ids[-room:]

    return Ours()


def _generated(model: Any, prompts: Sequence[np.ndarray], given: Mapping[str, Any]) -> list[str]:
    """Continuations under a request's settings, as the harness names them."""
    named = {"max_gen_toks": "tokens", "until": "stop", "num_beams": "beams"}
    left_out = {"do_sample"} if given["do_sample"] else {"do_sample", "temperature", "top_k", "top_p", "min_p", "seed"}
    ours = {named.get(name, name): value for name, value in given.items() if name not in left_out}
    ours["stop"] = tuple(ours["stop"])
    if ours.get("beams") == 1:  # as tasks say that there is no search
        del ours["beams"]
    if not given["do_sample"] and "beams" not in ours:
        ours["temperature"] = 0.0
    rows = min(next_power_of_two(len(prompts)), model.rows)  # few numbers, so that few programs are compiled
    filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    return model.generator.generate(filled, decoding_settings(**ours))[: len(prompts)]


def evaluate_tasks(
    model: Any,
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    window: int | None = None,
    include: Path | None = None,
    limit: int | None = None,
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Run tasks, or groups and tags of them.

    Args:
        model: an `api.Model`.
        names: as the harness knows them, or YAML files.
        num_fewshot: examples in a prompt, instead of what a task says; a task that is fixed to none keeps to it.
        window: tokens that the model reads, by default all that it can.
        include: a folder of further task YAMLs.
        limit: documents of each task at most.

    Returns:
        `<task>/<metric>` to score (behind a comma the filter, if it is not the plain one), `<task>/num_fewshot` and
        `<task>/documents`; and of each task a record a document and filter, as the harness logs it.

    Raises:
        UserError: the harness is not installed, a name that is not known, a task that cannot be loaded.
    """
    ours = _harness(window, model)
    # It prints, it warns of its own tasks, and its bootstrap would fork a process that has JAX's threads.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.evaluator import evaluate

        tasks = _load(names, include)
        for name, task in tasks["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(f"task {name} runs code that the model writes, which is not done here")
            own = task.get_config("num_fewshot")
            shots = (own or 0) if num_fewshot is None or own == 0 else num_fewshot
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        before = model.likelihood.truncated
        found = evaluate(ours, tasks, limit=limit, bootstrap_iters=DRAWS)
    if cut := model.likelihood.truncated - before:
        logging.warning("%d contexts were longer than %d tokens and lost their beginning", cut, ours.max_length)
    scores: dict[str, float] = {}
    for task, values in found["results"].items():
        numbers = {name.removesuffix(",none"): v for name, v in values.items() if name != "sample_len"}
        numbers |= {"num_fewshot": found["n-shot"].get(task), "documents": len(found["samples"].get(task, []))}
        scores |= {f"{task}/{name}": v for name, v in numbers.items() if isinstance(v, float | int) and isfinite(v)}
    return scores, found["samples"]


def _load(names: Sequence[str], include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise UserError(f"--include {include}: is not a folder")
    # The thousands that the harness brings are looked through where those of the folder do not do.
    for shipped in (False, True) if include else (True,):
        manager = TaskManager(include_path=None if include is None else str(include), include_defaults=shipped)
        unknown = [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]
        if unknown and shipped:
            near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
            hint = f"; nearest are {', '.join(near)}" if near else ""
            raise UserError(f"tasks={unknown[0]}: there is no such task{hint}")
        try:
            if not unknown:
                loaded = manager.load(list(names))
                for task in loaded["tasks"].values():  # a column that is not there is found here
                    first = next(iter(task.eval_docs))
                    task.doc_to_text(first), task.doc_to_target(first)
                return loaded
        except Exception as error:  # of YAML, of data sets and of the task's own code, of every kind
            if shipped:
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                raise UserError(f"tasks={','.join(names)}: cannot be loaded: {why}") from None
    raise AssertionError


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def save(folder: Path, scores: Mapping[str, float], samples: Mapping[str, Sequence[Any]]) -> None:
    """Write `<task>.jsonl`, a record a line, and add the scores to those in `scores.json`.

    Raises:
        UserError: a file that cannot be written.
    """
    for task, records in samples.items():
        lines = (json.dumps(record, default=_plain, ensure_ascii=False) for record in records)
        write_file(folder / f"{task.replace('/', '_')}.jsonl", "".join(f"{line}\n" for line in lines))
    path = folder / "scores.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write_file(path, json.dumps(known | dict(scores), indent=2) + "\n")
