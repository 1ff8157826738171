"""A model as EleutherAI's lm-evaluation-harness calls it. Importing this file needs the harness."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from t5x_lite.decode.generate import decoding_settings, truncate_prompt
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.harness import NEW_TOKENS
from t5x_lite.evaluate.likelihood import TargetScore
from t5x_lite.evaluate.perplexity import scoring_windows
from t5x_lite.integers import next_power_of_two
from t5x_lite.objectives.features import Pair
from t5x_lite.progress import track_progress

SETTING_NAMES = {
    "max_gen_toks": "tokens",
    "min_new_tokens": "min_tokens",
    "until": "stop",
    "num_beams": "beams",
}
"""Names of generation settings: the harness's and ours, where they differ."""

SAMPLING_SETTINGS = {"temperature", "top_k", "top_p", "min_p", "seed"}

TokenizedRequest: TypeAlias = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation as texts, the ids of the context, and those of the continuation."""


class HarnessModel(TemplateLM):
    """Our model behind the harness's `LM` interface.

    Context and continuation are separated as in the harness's own Hugging Face models: spaces at the end of a context
    move to the continuation, and the ids of a decoder's context and continuation are cut from those of both together.

    Args:
        model: the model.
        window: tokens that the model reads at one time, by default all that it can.
        seed: seed of sampled answers, unless the settings of a task have one.

    Attributes:
        answer_tokens: number of tokens of each continuation that was scored, by context and continuation.
    """

    def __init__(self, model: EvaluationModel, window: int | None, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.answer_tokens: dict[tuple[str, str], int] = {}
        has_encoder = model.config.model.family == "encoder_decoder"
        self.backend = "seq2seq" if has_encoder and model.config.scores_left_to_right else "causal"
        self.max_length = model.resolve_window(window)
        self._eot_token_id = model.eos
        self._prefix_token_id = model.prefix_token_id

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self._eot_token_id

    @property
    def prefix_token_id(self) -> int:
        """The context of a continuation without one."""
        return self._prefix_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the ids of a text."""
        if self.backend == "seq2seq" and add_special_tokens is not False:
            return self.model.encode_text(string).tolist()
        token_ids = self.model.tokenizer.encode(string).tolist()
        if add_special_tokens is False:
            return token_ids
        return self.model.bos_ids.tolist() + token_ids

    def _loglikelihood_tokens(self, requests: Sequence[TokenizedRequest], **_: object) -> list[TargetScore]:
        pairs = []
        for (context_text, continuation_text), context, continuation in requests:
            self.answer_tokens[context_text, continuation_text] = len(continuation)
            inputs = self.model.empty_context
            if context_text and context:
                inputs = np.array(context, np.int32)
            pairs.append((inputs, np.array(continuation, np.int32)))
        return self.model.likelihood(pairs, self.max_length)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, every token given as many preceding ones as fit."""
        pairs: list[Pair] = []
        ends = []
        for request in requests:
            pairs.extend(self._windows(np.array(self.tok_encode(request.args[0]), np.int32)))
            ends.append(len(pairs))
        scores = self.model.likelihood(pairs, self.max_length)
        log_likelihoods = []
        start = 0
        for end in ends:
            log_likelihoods.append(sum(score.log_likelihood for score in scores[start:end]))
            start = end
        return log_likelihoods

    def _windows(self, token_ids: Int[np.ndarray, "_"]) -> list[Pair]:
        """Cut a text into inputs and targets; where all tokens but one are read, every window is by itself."""
        if self.model.config.scores_left_to_right:
            room = self.max_length - len(self.model.soft_prompt_ids)
            return scoring_windows(token_ids, self.prefix_token_id, room, room)
        special = self.model.likelihood.tokens_read((token_ids[:0], token_ids[:0]))
        room = self.max_length - special
        if room < 1:
            raise UserError(
                f"window={self.max_length} leaves no room for a text beside {special} special tokens; "
                f"set window to {special + 1} or more"
            )
        return [(token_ids[:0], token_ids[start : start + room]) for start in range(0, len(token_ids), room)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each request. Requests of equal settings share batches.

        A sampled answer depends on the seed, the example and the number of the repeat alone.
        """
        groups = defaultdict(list)
        for number, request in enumerate(requests):
            settings = request.args[1]
            groups[json.dumps(settings, sort_keys=True)].append(number)
        texts: dict[int, str] = {}
        with track_progress("generating") as advance:
            for numbers in groups.values():
                for texts_of_batch in self._generate_batches(requests, numbers):
                    texts.update(texts_of_batch)
                    advance("", len(texts), len(requests))
        return [texts[number] for number in range(len(requests))]

    def _generate_batches(self, requests: Sequence[Instance], numbers: Sequence[int]) -> Iterator[dict[int, str]]:
        """Yield the continuations of requests of equal settings, batch by batch, by the number of the request."""
        settings = {"seed": self.seed, **normalize_gen_kwargs(requests[numbers[0]].args[1], NEW_TOKENS)}
        streams = random_streams(requests)
        prompts = {}
        for number in numbers:
            context = requests[number].args[0]
            prompts[number] = self._encode_prompt(context, settings["max_gen_toks"])
        longest_first = sorted(numbers, key=lambda number: -len(prompts[number]))
        size = self.model.eval_batch_size
        for start in range(0, len(longest_first), size):
            batch = longest_first[start : start + size]
            texts = self._generate([prompts[number] for number in batch], settings, streams[batch])
            yield dict(zip(batch, texts, strict=True))

    def _encode_prompt(self, text: str, new_tokens: int) -> Int[np.ndarray, "_"]:
        """Return the virtual tokens and the last ids of a prompt, as many as fit beside a decoder's new tokens.

        BOS is cut first, as in the harness's own Hugging Face models.
        """
        room = self.max_length
        if self.backend == "causal":
            room -= new_tokens
        if room < 1:
            raise UserError(
                f"{new_tokens} new tokens (max_gen_toks) leave no room for a prompt in a window of {self.max_length}; "
                f"set window to {new_tokens + 1} or more"
            )
        token_ids = self.model.encode_text(text)
        if len(token_ids) > room:
            self.model.likelihood.truncated_inputs += 1
        return truncate_prompt(token_ids, self.model.soft_prompt_ids, room)

    def _generate(
        self,
        prompts: Sequence[Int[np.ndarray, "_"]],
        settings: Mapping[str, object],
        streams: Int[np.ndarray, "prompts 2"],
    ) -> list[str]:
        """Continue prompts under a request's settings."""
        # A few batch sizes only, so that few programs are compiled.
        rows = min(next_power_of_two(len(prompts)), self.model.eval_batch_size)
        padding = rows - len(prompts)
        padded_streams = np.pad(streams, ((0, padding), (0, 0)))
        decoding = decoding_settings(**_translate_settings(settings))
        texts = self.model.generator.generate([*prompts, *[prompts[-1]] * padding], decoding, padded_streams)
        return texts[: len(prompts)]


def random_streams(requests: Sequence[Instance]) -> Int[np.ndarray, "requests 2"]:
    """Return the number of each request's example in its task, and how often the same request came before.

    The harness lists a request once for each of the task's `repeats`.
    """
    repeats: Counter[tuple[str | None, int, int]] = Counter()
    streams = []
    for request in requests:
        example = request.idx if request.doc_id is None else request.doc_id
        key = (request.task_name, example, request.idx)
        streams.append((example, repeats[key]))
        repeats[key] += 1
    return np.array(streams, np.int32).reshape(-1, 2)


def _translate_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """Translate the harness's generation settings into those of `Sampling` or `Beam`."""
    samples = bool(settings["do_sample"])
    translated = {}
    for name, value in settings.items():
        if name != "do_sample" and (samples or name not in SAMPLING_SETTINGS):
            translated[SETTING_NAMES.get(name, name)] = value
    # Tasks without a beam search say so by one beam.
    if translated.get("beams") == 1:
        del translated["beams"]
    if not samples and "beams" not in translated:
        translated["temperature"] = 0.0
    return translated
