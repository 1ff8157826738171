"""lm-evaluation-harness: our models against its Hugging Face backend, votes of sampled answers, and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from tests.conftest import REPOSITORY, Shell
from tests.simulated_devices import simulated

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import tokenizers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.evaluator import evaluate, simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

from t5x_lite.convert.huggingface import import_hf  # noqa: E402
from t5x_lite.convert.imported_run import write_run  # noqa: E402
from t5x_lite.data.tokenizer_files import load as load_tokenizer  # noqa: E402
from t5x_lite.evaluate.harness import (  # noqa: E402
    FewShotPrompts,
    build_harness_model,
    check_tasks,
    collect_scores,
    evaluate_tasks,
    load_tasks,
)
from t5x_lite.models.config import ModelConfig  # noqa: E402
from t5x_lite.models.spec import init_params  # noqa: E402

WINDOW = 40
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain"
WORDS = TEXT.split()
FAMILIES: dict[str, Callable[[int], Any]] = {
    "Llama": lambda vocab: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=WINDOW,
            bos_token_id=0,
            eos_token_id=1,
        )
    ),
    "GPT-2": lambda vocab: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=WINDOW, bos_token_id=1, eos_token_id=1
        )
    ),
    "T5": lambda vocab: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=vocab,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=3,
            n_positions=WINDOW,
            pad_token_id=2,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    ),
}


def train_tokenizer(family: str) -> Any:
    """Train a byte-level BPE that begins texts with <s> for Llama and ends them with </s> for T5."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    template = {"Llama": "<s> $A", "GPT-2": "$A", "T5": "$A </s>"}[family]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "<pad>"}
    if family == "Llama":
        names["bos_token"] = "<s>"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW, **names)


def write_task(folder: Path, name: str, records: list[dict[str, Any]], **config: Any) -> None:
    """Write a task's YAML, its test records, and the first four of them as training records."""
    files = {}
    for split, split_records in (("test", records), ("train", records[:4])):
        path = folder / f"{name}_{split}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in split_records))
        files[split] = str(path)
    source = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(json.dumps({**source, **config}))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write local tasks: questions with choices, texts of unequal length, and questions answered several times."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    choices = []
    for number in range(12):
        # The first contexts are empty, end in a space, and are longer than the window.
        question = ["", "the fox ", words(50)][number] if number < 3 else words(number)
        choices.append({"question": question, "choices": [words(k + 1) for k in range(3)], "answer": number % 3})
    write_task(
        folder,
        "local_choices",
        choices,
        output_type="multiple_choice",
        fewshot_split="train",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write_task(
        folder,
        "local_texts",
        [{"text": words(count)} for count in (1, 5, 30, 60)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": metric} for metric in ("word_perplexity", "bits_per_byte")],
    )
    write_task(
        folder,
        "local_votes",
        [{"question": words(3), "answer": "fox"} for _ in range(3)],
        output_type="generate_until",
        doc_to_text="{{question}}. Let us think step by step:",
        doc_to_target="{{answer}}",
        repeats=5,
        generation_kwargs={"do_sample": True, "temperature": 1.5, "top_k": 40, "max_gen_toks": 8, "until": ["\n"]},
        filter_list=[
            {
                "name": "majority",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])", "fallback": "-"},
                    {"function": "majority_vote"},
                    {"function": "take_first"},
                ],
            }
        ],
        metric_list=[{"metric": "exact_match"}],
    )
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model]:
    """Return the harness's Hugging Face backend on a model of random weights, and the same model imported."""
    folder = tmp_path_factory.mktemp("both")
    tokenizer = train_tokenizer(request.param)
    torch.manual_seed(3)  # with some other seeds a model generates no text
    hf_model = FAMILIES[request.param](len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    hf_model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "run")
    lm = HFLM(pretrained=hf_model, tokenizer=tokenizer, max_length=WINDOW, batch_size=4, device="cpu")
    return lm, t5x_lite.load(folder / "run")


def test_the_same_answers_and_likelihoods_as_the_harness_with_transformers(
    both: tuple[Any, Model], tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harness_lm, model = both
    assert model.window == WINDOW
    names = ["local_choices", "local_texts"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = simple_evaluate(harness_lm, tasks=names, num_fewshot=2, task_manager=manager, bootstrap_iters=0)
    scores, samples = evaluate_tasks(model, names, include=tasks, prompts=FewShotPrompts(2))
    for ours, reference in zip(samples["local_choices"], expected["samples"]["local_choices"], strict=True):
        assert ours["arguments"] == reference["arguments"]
        assert (ours["acc"], ours["acc_norm"]) == (reference["acc"], reference["acc_norm"])
        for score, (log_likelihood, is_greedy) in zip(ours["filtered_resps"], reference["filtered_resps"], strict=True):
            assert score.log_likelihood == pytest.approx(log_likelihood, abs=1e-3)
            assert score.is_greedy == is_greedy
    for ours, reference in zip(samples["local_texts"], expected["samples"]["local_texts"], strict=True):
        assert ours["filtered_resps"] == pytest.approx(reference["filtered_resps"], abs=1e-3)
    assert scores["local_choices/acc"] == expected["results"]["local_choices"]["acc,none"]
    assert scores["local_choices/num_fewshot"] == 2
    assert (scores["local_choices/documents"], scores["local_texts/documents"]) == (12, 4)
    assert "longer than 40 tokens and lost their beginning" in caplog.text


def test_the_same_greedy_text_as_the_harness_with_transformers(both: tuple[Any, Model]) -> None:
    harness_lm, model = both
    settings = {"until": ["fo"], "max_gen_toks": 12, "do_sample": False, "num_beams": 1}
    prompts = ["the quick brown", "a lazy dog", TEXT * 3]
    requests = [Instance("generate_until", {}, (prompt, settings), n) for n, prompt in enumerate(prompts)]
    texts = build_harness_model(model, None).generate_until(requests)
    expected = harness_lm.generate_until(requests)
    assert len(set(texts)) == len(prompts)
    if harness_lm.backend == "seq2seq":  # it adds the length of the prompt to the number of new tokens
        assert all(text.startswith(ours) for ours, text in zip(texts, expected, strict=True))
    else:
        assert texts == expected


@pytest.mark.slow
def test_a_prefix_language_model_reads_its_context_both_ways(tmp_path: Path, tasks: Path) -> None:
    """The log-likelihood equals that of the model's logits with the context marked as prefix, not the causal one."""
    train_tokenizer("GPT-2").save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    config = ModelConfig(layers=2, embed=32, heads=4, vocab=tokenizer.vocab, prefix_lm=True)
    params = init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    write_run(tmp_path / "run", config, "prefix", params, tokenizer)
    model = t5x_lite.load(tmp_path / "run")
    context = tokenizer.encode("the quick brown fox")
    continuation = tokenizer.encode(" jumps over")
    tokens = np.concatenate([context, continuation])[None]

    def log_likelihood(prefix: int) -> float:
        module = model.run.spec.model(model.params)
        is_prefix = (np.arange(tokens.shape[1] - 1) < prefix)[None].astype(int)
        states = module(tokens[:, :-1], prefix=is_prefix)
        log_probs = np.asarray(jax.nn.log_softmax(module.logits(states)))[0, len(context) - 1 :]
        return float(log_probs[np.arange(len(continuation)), continuation].sum())

    request = Instance("loglikelihood", {}, ("the quick brown fox", " jumps over"), 0)
    (score,) = build_harness_model(model, None).loglikelihood([request])
    assert score.log_likelihood == pytest.approx(log_likelihood(len(context)), abs=1e-3)
    assert abs(score.log_likelihood - log_likelihood(0)) > 0.1


def test_a_majority_of_sampled_answers_is_found_and_repeats(tiny_run: Path, tasks: Path) -> None:
    model = t5x_lite.load(tiny_run)
    _, first_samples = evaluate_tasks(model, ["local_votes"], include=tasks)
    _, second_samples = evaluate_tasks(model, ["local_votes"], include=tasks)
    for record, repeated in zip(first_samples["local_votes"], second_samples["local_votes"], strict=True):
        (texts,) = record["resps"]
        (vote,) = record["filtered_resps"]
        letters = [next((c for c in text if "a" <= c <= "z"), "-") for text in texts]
        assert len(texts) == 5
        assert len(set(texts)) > 1  # each answer is sampled by itself
        assert letters.count(vote) == max(letters.count(letter) for letter in letters)
        assert repeated["resps"] == record["resps"]


def test_a_sampled_answer_depends_on_the_seed_the_example_and_the_repeat(tiny_run: Path, tasks: Path) -> None:
    """It does not depend on the batches, nor on the number of documents."""
    answers = []
    for overrides, settings in (
        ([], {}),
        (["eval.batch_size=1"], {"limit": 2}),
        ([], {"prompts": FewShotPrompts(seed=5)}),
    ):
        model = t5x_lite.load(tiny_run, overrides=overrides)
        _, samples = evaluate_tasks(model, ["local_votes"], include=tasks, **settings)
        answers.append([record["resps"] for record in samples["local_votes"]])
    default, few, other_seed = answers
    assert few == default[:2]
    assert all(ours != theirs for ours, theirs in zip(default, other_seed, strict=True))


class ScriptedChains(LM):
    """A model that answers with the same ten chains of thought for each question."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers
        self.prompts: list[str] = []

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for number, request in enumerate(requests):
            assert request.args[1]["do_sample"]
            self.prompts.append(request.args[0])
            answer = self.numbers[number % 10]
            texts.append(f" So it is. The answer is {answer}." if answer else " I do not know 143.")
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise AssertionError("the task samples texts alone")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("the task samples texts alone")


def test_the_shipped_task_votes_over_chains_of_thought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 143 has four of ten votes, though the first chain says 133; the second question's 153 has none."""
    records = [
        {"context": "\n\nQ: What is 98 plus 45?\n\nA:", "completion": " 143"},
        {"context": "\n\nQ: What is 95 plus 58?\n\nA:", "completion": " 153"},
    ]
    (tmp_path / "gpt3_tasks").mkdir()
    path = tmp_path / "gpt3_tasks/two_digit_addition.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.chdir(tmp_path)
    model = ScriptedChains([133, 143, 0, 143, 133, 13, 143, 0, 133, 143])
    tasks = load_tasks(["addition_cot"], REPOSITORY / "configs/prompting")
    scores = collect_scores(evaluate(model, tasks, bootstrap_iters=0))
    assert (scores["addition_cot/exact_match,majority"], scores["addition_cot/exact_match,first"]) == (0.5, 0)
    assert scores["addition_cot/documents"] == 2
    assert len(model.prompts) == 20
    assert model.prompts[0].startswith("Q: What is 23 plus 58?\nA: 3 plus 8 is 11, so")
    assert model.prompts[0].count("The answer is") == 3
    assert model.prompts[-1].endswith("The answer is 143.\n\nQ: What is 95 plus 58?\nA:")


def test_the_command_prints_one_object_and_writes_records(
    tiny_run: Path, tasks: Path, t5x_lite: Shell, capfd: pytest.CaptureFixture[str]
) -> None:
    """The scores on a mesh of four devices are those of one device."""
    command = [
        "eval",
        str(tiny_run),
        "tasks=local_choices",
        "--include",
        str(tasks),
        "--limit=5",
        "window=24",
        "--json",
    ]
    folder = tiny_run / "eval/12"
    records = []
    for mesh in ([], ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]):
        if mesh:
            process = t5x_lite(*command, *mesh, env=simulated(4))
            assert process.returncode == 0, process.stderr
            scores = json.loads(process.stdout)
        else:
            assert main(command) == 0
            scores = json.loads(capfd.readouterr().out)
        assert scores["step"] == 12
        assert scores["eval/local_choices/documents"] == 5
        assert json.loads((folder / "scores.json").read_text()) == {k: v for k, v in scores.items() if k != "step"}
        records.append([json.loads(line) for line in (folder / "local_choices.jsonl").read_text().splitlines()])
    assert len(records[0]) == 5
    for of_one_device, of_mesh in zip(*records, strict=True):
        assert of_one_device["doc"] == of_mesh["doc"]
        assert of_one_device["acc"] == of_mesh["acc"]
        scores_of_choices = zip(of_one_device["filtered_resps"], of_mesh["filtered_resps"], strict=True)
        for (log_likelihood, _), (mesh_log_likelihood, _) in scores_of_choices:
            assert log_likelihood == pytest.approx(mesh_log_likelihood, abs=1e-4)


def test_an_evaluation_that_cannot_run_is_one_line_of_error(
    tiny_run: Path, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tasks)  # without the name of a file, `datasets` searches the working folder and all below it
    command = ["eval", str(tiny_run), "--include", str(tasks)]
    for arguments, message in (
        (["tasks=local_texts", "--limit=0"], "--limit: `limit` is 0: input should be greater than or equal to 1"),
        (["tasks=local_texts", "--include", str(tasks / "none")], "is not a folder"),
        (["tasks=local_texts", "window=64"], "more than the model's 32 positions (model.positions.learned.length)"),
        (["tasks=local_votes", "window=8"], "leave no room for a prompt"),
        (["tasks=local_texts", "window=0"], "`window` is 0: input should be greater than or equal to 1"),
        (["tasks=local_choices", "num_fewshot=99"], "num_fewshot=99: task local_choices has"),
        (["tasks=local_choices", "demonstrations=bm25"], "demonstrations= needs num_fewshot="),
    ):
        assert main([*command, *arguments]) == 2
        last_line = capfd.readouterr().err.strip().splitlines()[-1]
        assert last_line.startswith("t5x-lite: ")
        assert message in last_line


@pytest.mark.slow
def test_an_unknown_task_names_the_nearest_of_the_harness(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="nearest are hellaswag"):
        evaluate_tasks(t5x_lite.load(tiny_run), ["helaswag"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local_choises", "nearest are local_choices"),
        ("broken", "cannot be loaded"),
        ("no_column", "'question' is undefined"),
    ],
    ids=["unknown", "broken", "missing column"],
)
def test_a_task_that_cannot_be_loaded_is_one_line_of_error(
    name: str, message: str, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tasks)  # without the name of a file, `datasets` searches the working folder and all below it
    missing_column = {
        "task": "no_column",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "local_texts_test.jsonl")}},
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["a", "b"],
        "doc_to_target": 0,
    }
    (tasks / "no_column.yaml").write_text(json.dumps(missing_column))
    (tasks / "broken.yaml").write_text(json.dumps({"task": "broken", "dataset_path": "json", "test_split": "test"}))
    with pytest.raises(UserError, match=message) as error:
        # The index of the harness's own tasks takes many seconds.
        load_tasks([name], tasks, include_defaults=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens"])
def test_a_task_that_generates_more_than_the_window_is_refused_by_any_name_of_the_setting(
    name: str, tiny_run: Path, tasks: Path
) -> None:
    loaded = load_tasks(["local_votes"], tasks)
    loaded["tasks"]["local_votes"].config.generation_kwargs = {name: 16, "until": ["\n"]}
    model = t5x_lite.load(tiny_run).config.model
    check_tasks(loaded, model, window=32)
    with pytest.raises(UserError, match="task local_votes generates 16 tokens"):
        check_tasks(loaded, model, window=16)


def test_an_encoder_is_refused_for_tasks_that_generate_text(tiny_run: Path, tasks: Path) -> None:
    """Its loglikelihood tasks are those of test_pseudo_likelihood.py."""
    model = t5x_lite.load(tiny_run)
    encoder = model.config.model.model_copy(update={"family": "encoder"})
    model.config = model.config.model_copy(update={"model": encoder})
    check_tasks(load_tasks(["local_texts"], tasks), encoder)
    with pytest.raises(UserError, match="task local_votes generates text, which a model of family encoder does not"):
        evaluate_tasks(model, ["local_votes"], include=tasks)
