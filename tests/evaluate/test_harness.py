"""lm-evaluation-harness: our models against its own Hugging Face backend, prompts that draw and vote, the command."""

import json
import os
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
from tests.conftest import Shell

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import tokenizers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.evaluator import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

from t5x_lite.convert.huggingface import import_hf  # noqa: E402
from t5x_lite.convert.imported_run import write_run  # noqa: E402
from t5x_lite.evaluate.harness import _harness, evaluate_tasks  # noqa: E402
from t5x_lite.models.config import ModelConfig  # noqa: E402
from t5x_lite.models.transformer import init_params  # noqa: E402

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


def _tokenizer(family: str) -> Any:
    """Byte-level BPE that begins texts with <s> for Llama and ends them with </s> for T5, as theirs do."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    trained.train_from_iterator([TEXT] * 3, trainer)
    template = {"Llama": "<s> $A", "GPT-2": "$A", "T5": "$A </s>"}[family]
    trained.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if family == "Llama" else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=WINDOW, **names)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tasks: questions with choices, texts of unequal length, and sums thought aloud several times."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    def write(name: str, records: list[dict[str, Any]], **config: Any) -> None:
        for split, own in (("test", records), ("train", records[:4])):
            (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own))
        files = {split: str(folder / f"{name}_{split}.jsonl") for split in ("test", "train")}
        own = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps(own | config))

    choices = [
        # Contexts that end in a space, that are empty, and that are longer than the window.
        {"question": ["", "the fox ", words(50)][n] if n < 3 else words(n), "choices": [words(k + 1) for k in range(3)]}
        for n in range(12)
    ]
    choices = [one | {"answer": n % 3} for n, one in enumerate(choices)]
    write(
        "local_choices",
        choices,
        output_type="multiple_choice",
        fewshot_split="train",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    write(
        "local_texts",
        [{"text": words(count)} for count in (1, 5, 30, 60)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": metric} for metric in ("word_perplexity", "bits_per_byte")],
    )
    write(
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
    """The harness's own backend on a model of random weights, and the same model imported."""
    folder, tokenizer = tmp_path_factory.mktemp("both"), _tokenizer(request.param)
    torch.manual_seed(3)  # with some others a model says nothing
    theirs = FAMILIES[request.param](len(tokenizer)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    theirs.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "run")
    lm = HFLM(pretrained=theirs, tokenizer=tokenizer, max_length=WINDOW, batch_size=4, device="cpu")
    return lm, t5x_lite.load(folder / "run")


def test_the_same_answers_and_likelihoods_as_the_harness_with_transformers(
    both: tuple[Any, Model], tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, model = both
    assert model.window == WINDOW
    names = ["local_choices", "local_texts"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = simple_evaluate(theirs, tasks=names, num_fewshot=2, task_manager=manager, bootstrap_iters=0)
    scores, found = evaluate_tasks(model, names, include=tasks, num_fewshot=2)
    for own, other in zip(found["local_choices"], expected["samples"]["local_choices"], strict=True):
        assert own["arguments"] == other["arguments"]
        assert (own["acc"], own["acc_norm"]) == (other["acc"], other["acc_norm"])
        for (ours, greedy), (likely, best) in zip(own["filtered_resps"], other["filtered_resps"], strict=True):
            assert ours == pytest.approx(likely, abs=1e-3)
            assert greedy == best
    for own, other in zip(found["local_texts"], expected["samples"]["local_texts"], strict=True):
        assert own["filtered_resps"] == pytest.approx(other["filtered_resps"], abs=1e-3)
    assert scores["local_choices/acc"] == expected["results"]["local_choices"]["acc,none"]
    assert scores["local_choices/num_fewshot"] == 2
    assert (scores["local_choices/documents"], scores["local_texts/documents"]) == (12, 4)
    assert "longer than 40 tokens and lost their beginning" in caplog.text


def test_greedy_text_is_that_of_the_harness_with_transformers(both: tuple[Any, Model]) -> None:
    theirs, model = both
    settings = {"until": ["fo"], "max_gen_toks": 12, "do_sample": False, "num_beams": 1}
    prompts = ["the quick brown", "a lazy dog", TEXT * 3]
    requests = [Instance("generate_until", {}, (prompt, settings), n) for n, prompt in enumerate(prompts)]
    found, expected = _harness(None, model).generate_until(requests), theirs.generate_until(requests)
    assert len(set(found)) == len(prompts)
    if theirs.backend == "seq2seq":  # it adds the prompt's length to the tokens that are asked for
        assert all(text.startswith(ours) for ours, text in zip(found, expected, strict=True))
    else:
        assert found == expected


@pytest.mark.slow
def test_a_prefix_language_model_reads_its_context_both_ways(tmp_path: Path, tasks: Path) -> None:
    """Log-likelihoods from the model's logits of one text, with its context marked; they differ from causal ones."""
    tokenizer = _tokenizer("GPT-2")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    read = t5x_lite.data.tokenizer.load(tmp_path / "tokenizer")
    config = ModelConfig(layers=2, embed=32, heads=4, vocab=read.vocab, prefix_lm=True)
    params = init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    write_run(tmp_path / "run", config, "causal", params, read)
    model = t5x_lite.load(tmp_path / "run")
    context, text = read.encode("the quick brown fox"), read.encode(" jumps over")
    whole = np.concatenate([context, text])[None]

    def likelihood(prefix: int) -> float:
        module = model.run.blueprint.model(model.params)
        states = module(whole[:, :-1], prefix=(np.arange(whole.shape[1] - 1) < prefix)[None].astype(int))
        log_p = np.asarray(jax.nn.log_softmax(module.logits(states)))[0, len(context) - 1 :]
        return float(log_p[np.arange(len(text)), text].sum())

    request = Instance("loglikelihood", {}, ("the quick brown fox", " jumps over"), 0)
    ((found, _),) = _harness(None, model).loglikelihood([request])
    assert found == pytest.approx(likelihood(len(context)), abs=1e-3)
    assert abs(found - likelihood(0)) > 0.1


def test_drawn_answers_are_voted_on(tiny_run: Path, tasks: Path) -> None:
    model = t5x_lite.load(tiny_run)
    _, found = evaluate_tasks(model, ["local_votes"], include=tasks)
    (again,) = evaluate_tasks(model, ["local_votes"], include=tasks)[1].values()
    for record, repeated in zip(found["local_votes"], again, strict=True):
        (texts,), (vote,) = record["resps"], record["filtered_resps"]
        letters = [next((c for c in text if "a" <= c <= "z"), "-") for text in texts]
        assert len(texts) == 5
        assert len(set(texts)) > 1  # drawn apart
        assert letters.count(vote) == max(letters.count(letter) for letter in letters)
        assert repeated["resps"] == record["resps"]  # and the same the next time


def test_the_command_prints_one_object_and_writes_records(
    tiny_run: Path, tasks: Path, t5x_lite: Shell, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a mesh of four devices the scores are those of one."""
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
    folder, records = tiny_run / "eval/12", []
    for mesh in ([], ["mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]):
        if mesh:
            simulated = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
            done = t5x_lite(*command, *mesh, env=os.environ | simulated)
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
        else:
            assert main(command) == 0
            found = json.loads(capfd.readouterr().out)
        assert found["step"] == 12
        assert found["eval/local_choices/documents"] == 5
        assert json.loads((folder / "scores.json").read_text()) == {k: v for k, v in found.items() if k != "step"}
        records.append([json.loads(line) for line in (folder / "local_choices.jsonl").read_text().splitlines()])
    assert len(records[0]) == 5
    for one, four in zip(*records, strict=True):
        assert one["doc"] == four["doc"]
        assert one["acc"] == four["acc"]
        for ours, theirs in zip(one["filtered_resps"], four["filtered_resps"], strict=True):
            assert ours[0] == pytest.approx(theirs[0], abs=1e-4)


def test_what_cannot_be_run_is_one_line(
    tiny_run: Path, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The index of the tasks that the harness brings takes many seconds.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_path, **_: TaskManager(None, include_path, False))
    monkeypatch.chdir(tasks)  # without a file's name, `datasets` looks through all that lies below the working folder
    nowhere = {"task": "no_column", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    nowhere |= {"dataset_kwargs": {"data_files": {"test": str(tasks / "local_texts_test.jsonl")}}}
    nowhere |= {"doc_to_text": "{{question}}", "doc_to_choice": ["a", "b"], "doc_to_target": 0}
    (tasks / "no_column.yaml").write_text(json.dumps(nowhere))
    (tasks / "broken.yaml").write_text(json.dumps({"task": "broken", "dataset_path": "json", "test_split": "test"}))
    command = ["eval", str(tiny_run), "--include", str(tasks)]
    for wrong, said in (
        (["tasks=local_choises"], "nearest are local_choices"),
        (["tasks=broken"], "cannot be loaded"),
        (["tasks=no_column"], "'question' is undefined"),
        (["tasks=local_texts", "--limit=0"], "expected a number of documents"),
        (["tasks=local_texts", "--include", str(tasks / "none")], "is not a folder"),
        (["tasks=local_texts", "window=64"], "more than the model's 32 learned positions"),
        (["tasks=local_votes", "window=8"], "leave no room for a prompt"),
    ):
        assert main([*command, *wrong]) == 2
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("t5x-lite: ")
        assert said in last


@pytest.mark.slow
def test_the_nearest_of_the_tasks_that_the_harness_brings(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="nearest are hellaswag"):
        evaluate_tasks(t5x_lite.load(tiny_run), ["helaswag"])


def test_an_encoder_is_refused(tiny_run: Path, tasks: Path) -> None:
    model = t5x_lite.load(tiny_run)
    encoder = model.config.model.model_copy(update={"family": "encoder"})
    model.config = model.config.model_copy(update={"model": encoder})
    with pytest.raises(UserError, match="from left to right"):
        evaluate_tasks(model, ["local_texts"], include=tasks)
