"""Every model type against its implementation in Hugging Face Transformers: numbers, files and generated tokens."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from safetensors.numpy import load_file, save_file  # noqa: E402

import t5x_lite  # noqa: E402
from t5x_lite.cli import main  # noqa: E402
from t5x_lite.convert import MODEL_TYPES  # noqa: E402
from t5x_lite.convert.config_table import ForeignModel  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.convert.imported_run import write_run  # noqa: E402
from t5x_lite.decode.generate import Sampling  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.models.config import ModelConfig  # noqa: E402
from t5x_lite.models.experts.activity import router_loss  # noqa: E402
from t5x_lite.trees import flatten_names  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.reference.cases import Case, make  # noqa: E402
from tests.reference.tiny_models import TINY_MODELS, VOCAB  # noqa: E402

GENERATED = 64
WEIGHTS_FILE = "model.safetensors"
SLOW_MODELS = {
    "Llama, biases of attention",
    "Llama 3.1, context",
    "Llama, YaRN, context",
    "Llama, dynamic",
    "XLM-R",
    "XLM, one language",
    "XLM, sinusoidal",
    "Qwen3-MoE, one expert",
    "BERT, MLM alone",
    "ALBERT, groups",
    "ELECTRA generator",
    "DeBERTa",
    "DeBERTa-v2",
    "EuroBERT",
    "EuroBERT, tied",
    "Llama, biases",
    "Llama, linear",
    "Llama, YaRN",
    "OPT without biases",
    "Qwen3, windows",
    "Gemma",
    "Gemma 2",
    "GPT-NeoX, sequential",
    "LongT5, local",
    "BART",
    "Falcon 7B",
    "Falcon 40B",
    "BLOOM",
    "ModernBERT",
    "ModernBERT decoder",
    "SmolLM3",
    "Falcon 11B",
    "Falcon, sequential",
    "Mamba-2, tied",
    "Hawk",
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
    "RecurrentGemma",
    "Gemma 3",
    "DeepSeek-V3, halves",
    "Qwen3-Next",
    "T5Gemma",
    "Qwen3-MoE, probabilities",
    "T5Gemma, untied",
    "Qwen2-MoE",
}
"""Variants of models that other tests compare too."""
LARGER_GRADIENT_DIFFERENCES = {"Qwen3-Next": 7.5e-5}
"""Bounds of models whose gradients differ more: the delta rule is a long chain of products in float32."""
NOT_EXPORTED = {"BART": "final_logits_bias"}
"""Tensors of zeros that no model of ours has."""
COMPARED_MODELS = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW_MODELS else ())
    for name in TINY_MODELS
    if name != "Switch, room for all"
]
GENERATING_MODELS = ["GPT-2", "Switch, room for all", "Mixtral"]
SLOW_GENERATING_MODELS = (
    "Qwen3",
    "Mistral",
    "OLMo 2",
    "Gemma",
    "Falcon 7B",
    "OPT",
    "T5 v1.0",
    "T5 v1.1",
    "Llama 2",
    "Gemma 2",
    "Gemma 3",
    "GPT-NeoX",
    "Falcon 40B",
    "Mamba-2",
    "RecurrentGemma",
    "DeepSeek-V2",
    "DeepSeek-V3",
    "gpt-oss",
    "Qwen3-Next",
    "T5Gemma, untied",
    "ModernBERT decoder",
    "SmolLM3",
    "Llama 3.1",
    "Qwen2",
    "Qwen3-MoE",
    "Qwen2-MoE",
)
GENERATING_MODELS += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW_GENERATING_MODELS]


@pytest.fixture(scope="module", params=COMPARED_MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield make(request.param, tmp_path_factory.mktemp("case"))


def test_logits_loss_and_every_gradient_equal_transformers(case: Case) -> None:
    differences = case.differences()
    # Three times the largest differences of docs/results/parity.md.
    assert differences.logits <= 3e-5
    assert differences.loss <= 5e-6
    assert differences.gradients <= LARGER_GRADIENT_DIFFERENCES.get(case.name, 1.5e-5)


def test_import_and_export_give_the_same_file_and_a_model_that_transformers_loads(case: Case, tmp_path: Path) -> None:
    export_hf(case.run, tmp_path)
    if case.name in NOT_EXPORTED:
        tensors = load_file(case.folder / WEIGHTS_FILE)
        assert not tensors.pop(NOT_EXPORTED[case.name]).any()
        save_file(tensors, case.folder / WEIGHTS_FILE, {"format": "pt"})
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (case.folder / WEIGHTS_FILE).read_bytes()
    exported_model = type(case.theirs).from_pretrained(tmp_path).eval()
    exported = Case(case.name, case.objective, exported_model, tmp_path, case.run)
    assert exported.their_outputs.logits.keys() == case.their_outputs.logits.keys()
    for name, expected in case.their_outputs.logits.items():
        np.testing.assert_array_equal(exported.their_outputs.logits[name], expected)
    assert (tmp_path / "generation_config.json").exists() == case.theirs.can_generate()
    if case.theirs.can_generate():
        for name in ("bos", "eos", "pad", "decoder_start"):
            theirs = getattr(case.theirs.generation_config, f"{name}_token_id")
            assert getattr(exported_model.generation_config, f"{name}_token_id") == theirs
    before = json.loads((case.folder / "config.json").read_text())
    after = json.loads((tmp_path / "config.json").read_text())
    changed = changed_fields(before, after)
    assert changed <= {"tie_word_embeddings"}  # of T5 v1.1, which Transformers itself writes wrong


def changed_fields(before: dict, after: dict) -> set[str]:
    """The fields that two configs have with different values, also in the configs of a model's parts."""
    changed = set()
    for key in before.keys() & after.keys():
        if key in {"encoder", "decoder"}:
            changed |= changed_fields(before[key], after[key])
        elif before[key] != after[key]:
            changed.add(key)
    return changed


class RecordingConfig(dict):
    """A config.json that records which fields are looked at."""

    def __init__(self, config: dict) -> None:
        super().__init__(config)
        self.fields_read: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self.fields_read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.fields_read.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: object = None) -> object:
        self.fields_read.add(name)
        return super().get(name, default)


def test_every_config_field_that_is_read_is_declared(case: Case) -> None:
    config = RecordingConfig(json.loads((case.folder / "config.json").read_text()))
    model_type = MODEL_TYPES[case.model_type]
    model_type.read_settings(ForeignModel(config, load_file(case.folder / WEIGHTS_FILE).keys()))
    assert config.fields_read <= model_type.config.fields_read()


@pytest.mark.slow
def test_switch_router_losses_equal_transformers(tmp_path: Path) -> None:
    """From our statistics. Transformers takes all layers of a stack together; our own losses are sums over layers."""
    case = make("Switch", tmp_path)
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, VOCAB, (3, 12))
    targets = rng.integers(5, VOCAB, (3, 7))
    outputs = case.theirs(
        input_ids=torch.tensor(tokens), labels=torch.tensor(targets), output_router_logits=True, return_dict=True
    )
    module = case.ours.run.spec.model(case.ours.params)
    start = np.zeros((3, 1), int)
    module(tokens, np.concatenate([start, targets[:, :-1]], axis=1))
    for side in ("encoder", "decoder"):
        (statistics,) = getattr(module, side).stack.activity.get_value().values()
        layers = statistics.tokens.shape[0]
        length = float(statistics.tokens[0, 0])
        token_shares = statistics.counted.sum(0) / layers / length
        mean_probabilities = statistics.probability.sum(0) / layers / length
        experts = token_shares.shape[1]
        balance = float((token_shares * mean_probabilities).sum(1).mean() * experts)
        assert balance == pytest.approx(outputs[f"{side}_aux_loss"].item(), rel=1e-5)
        z_loss = float(statistics.squared_log_z.sum() / statistics.tokens.sum())
        assert z_loss == pytest.approx(outputs[f"{side}_z_loss"].item(), rel=1e-5)


def test_mixtral_router_loss_equals_transformers(tmp_path: Path) -> None:
    case = make("Mixtral", tmp_path)
    tokens = np.random.default_rng(2).integers(5, VOCAB, (3, 12))
    outputs = case.theirs(input_ids=torch.tensor(tokens), output_router_logits=True)
    module = case.ours.run.spec.model(case.ours.params)
    module(tokens)
    loss = router_loss(module, case.ours.config.model)
    assert loss is not None
    assert float(loss.balance) == pytest.approx(outputs.aux_loss.item(), rel=1e-5)


@pytest.fixture(scope="module", params=GENERATING_MODELS)
def generating_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp("generating"), noise=1.0)


def test_greedy_generation_makes_the_same_tokens(generating_case: Case) -> None:
    prompts = [np.array([7, 8, 9, 10, 11, 12, 13, 14], np.int32), np.array([20, 21, 22, 23, 24], np.int32)]
    *_, generated = generating_case.ours.generator.stream_tokens(prompts, Sampling(tokens=GENERATED, temperature=0))
    generating_case.theirs.generation_config.eos_token_id = None
    for prompt, row in zip(prompts, generated, strict=True):
        expected = generating_case.theirs.generate(
            input_ids=torch.tensor(prompt[None], dtype=torch.long),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=GENERATED,
            use_cache=False,
            pad_token_id=0,
        )[0].numpy()
        assert row.tolist() == expected[-GENERATED:].tolist()
    assert len(set(generated.reshape(-1).tolist())) > 3  # a model that repeats one token would prove little


def test_cached_decoding_equals_uncached(generating_case: Case) -> None:
    model = generating_case.ours
    prompt = np.array([7, 8, 9, 10, 11, 12, 13, 14], np.int32)
    *_, generated = model.generator.stream_tokens([prompt], Sampling(tokens=GENERATED, temperature=0))
    if model.config.model.family == "encoder_decoder":
        start = [model.config.model.start_token]
        logits = model.logits(prompt, np.concatenate([start, generated[0, :-1]]))[0]
    else:
        logits = model.logits(np.concatenate([prompt, generated[0, :-1]]))[0, len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == generated[0].tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("Llama 2", tmp_path_factory.mktemp("llama"))


def test_weights_in_several_files_are_imported_and_exported(llama: Case, tmp_path: Path) -> None:
    llama.theirs.save_pretrained(tmp_path / "files", max_shard_size="20KB")
    assert len(list((tmp_path / "files").glob("*.safetensors"))) > 2
    import_hf(tmp_path / "files", tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "out", max_file_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    exported_weights = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, values in llama.theirs.state_dict().items():
        assert torch.equal(values, exported_weights[name])


def test_a_second_export_leaves_no_weights_of_the_first(llama: Case, tmp_path: Path) -> None:
    import_hf(llama.folder, tmp_path / "run")
    out = tmp_path / "out"
    export_hf(tmp_path / "run", out, max_file_bytes=20_000)
    export_hf(tmp_path / "run", out)
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]
    export_hf(tmp_path / "run", out, max_file_bytes=20_000)
    assert not (out / "model.safetensors").exists()
    assert (out / "model.safetensors.index.json").exists()


def test_bfloat16_weights_come_back_as_bfloat16(llama: Case, tmp_path: Path) -> None:
    half_precision_model = type(llama.theirs).from_pretrained(llama.folder, dtype=torch.bfloat16)
    half_precision_model.save_pretrained(tmp_path / "half")
    import_hf(tmp_path / "half", tmp_path / "run")
    params = flatten_names(t5x_lite.load(tmp_path / "run").params)
    assert {str(values.dtype) for values in params.values()} == {"float32"}
    export_hf(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == (tmp_path / "half" / WEIGHTS_FILE).read_bytes()


def test_tensors_that_do_not_fit_are_all_named_in_one_error(llama: Case, tmp_path: Path) -> None:
    tensors = load_file(llama.folder / WEIGHTS_FILE)
    tensors["model.norm.extra"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
    (tmp_path / "config.json").write_text((llama.folder / "config.json").read_text())
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError) as raised:
        import_hf(tmp_path, tmp_path / "run")
    message = str(raised.value)
    assert "missing model.norm.weight [32]" in message
    assert "unexpected model.norm.extra [32]" in message
    assert "up_proj.weight is [3, 3], expected" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json; name the folder of a Hugging Face model"),
        ({"config.yaml": ""}, "has no config.json; it is a run already"),
        ({"config.json": "{"}, "config.json: cannot be read"),
        ({"config.json": '{"model_type": "resnet"}'}, "'resnet' is not one of t5, mt5"),
        ({"config.json": '{"model_type": "gpt_neoxx"}'}, "gpt_oss; did you mean gpt_neox?"),
        ({"config.json": '{"model_type": "gpt2"}', "pytorch_model.bin": ""}, "no .safetensors file is there"),
        ({"config.json": '{"model_type": "gpt2"}', "model.safetensors": "torn"}, "model.safetensors: cannot be read"),
    ],
)
def test_a_folder_without_a_model_is_refused_in_one_line(
    files: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["import", "hf", str(tmp_path), str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3])
def test_an_index_cannot_name_files_outside_its_folder(llama: Case, tmp_path: Path, name: object) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text((llama.folder / "config.json").read_text())
    (tmp_path / WEIGHTS_FILE).write_bytes((llama.folder / WEIGHTS_FILE).read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match="which is not in its folder"):
        import_hf(folder, tmp_path / "run")


def test_nothing_is_written_over_what_is_read(llama: Case, tmp_path: Path) -> None:
    import_hf(llama.folder, tmp_path / "run")
    with pytest.raises(UserError, match="is read by this command and would be overwritten"):
        export_hf(tmp_path / "run", tmp_path / "run")
    with pytest.raises(UserError, match="is read by this command and would be overwritten"):
        import_hf(llama.folder, llama.folder)


def test_the_command_line_imports_and_exports(llama: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "hf", str(llama.folder), str(tmp_path / "run")]) == 0
    assert "no tokenizer came with it" in capsys.readouterr().out
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main(["import", "hf", str(llama.folder), str(tmp_path / "run")]) == 2
    assert main(["generate", str(tmp_path / "run"), "--prompt", "x"]) == 2
    assert "it has none" in capsys.readouterr().err


def test_a_model_trained_here_is_exported_as_the_model_type_that_can_hold_it(tiny_run: Path, tmp_path: Path) -> None:
    export_hf(tiny_run, tmp_path)
    exported_model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = np.arange(3, 19)[None]
    with torch.no_grad():
        logits = exported_model(torch.tensor(tokens)).logits.numpy()
    ours = t5x_lite.load(tiny_run)
    np.testing.assert_allclose(logits, ours.logits(tokens), atol=1e-5)
    exported_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the quick  brown\n fox, naïve 漢字"
    assert exported_tokenizer(text)["input_ids"] == ours.encode_text(text).tolist()
    assert exported_tokenizer.eos_token_id == exported_model.config.eos_token_id == ours.eos


def test_a_trained_quickstart_is_exported_as_a_model_that_transformers_computes_equally(
    prose: Path, tmp_path: Path
) -> None:
    settings = ("train.steps=2", "optimizer.warmup_steps=0", "model.embed=48", "model.heads=2", "train.seq_len=128")
    data = (f"data.files={prose}/*.txt", "data.validation_fraction=0.2", f"data.cache_dir={tmp_path}/cache")
    run = tmp_path / "run"
    config = str(REPOSITORY / "configs/quickstart.yaml")
    assert main(["train", config, f"run_dir={run}", *settings, *data, "tokenizer.unigram.vocab=300"]) == 0
    export_hf(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = np.random.default_rng(0).integers(3, 300, (2, 100))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(t5x_lite.load(run).logits(tokens), expected, atol=1e-4)


WORDS = ["<unk>", "<s>", "</s>", "<|im_end|>", "hello", "world"]


@pytest.fixture(scope="module")
def chat_model(llama: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer that puts <s> before every text and ends answers with <|im_end|>."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(llama.folder, folder)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<s>",
        "add_bos_token": True,
        "chat_template": "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def chat_run(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_hf(chat_model, tmp_path_factory.mktemp("chat_run") / "run").folder


def test_an_export_of_adapters_has_the_special_tokens_and_the_length_of_the_model_that_they_adapt(
    chat_model: Path, chat_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("hello world\n" * 40)
    config = {
        "adapt": {"from": str(chat_run), "method": "lora"},
        "data": {"files": f"{tmp_path}/text.txt", "document": "line", "validation_files": f"{tmp_path}/text.txt"},
        "train": {"steps": 1, "batch_size": 2, "seq_len": 8, "peak_flops": 1e9},
    }
    (tmp_path / "lora.yaml").write_text(json.dumps(config))
    words = [f"run_dir={tmp_path / 'lora'}", f"data.cache_dir={tmp_path}/cache", "data.prepare_processes=1"]
    assert main(["train", str(tmp_path / "lora.yaml"), *words]) == 0
    export_hf(tmp_path / "lora", tmp_path / "out")
    source = json.loads((chat_model / "config.json").read_text())
    exported = json.loads((tmp_path / "out/config.json").read_text())
    assert exported["bos_token_id"] == WORDS.index("<s>")
    assert exported["eos_token_id"] == WORDS.index("<|im_end|>")
    assert exported["max_position_embeddings"] == source["max_position_embeddings"]


def test_the_export_of_a_decoder_for_vectors_ends_texts_as_its_training_did(chat_run: Path, tmp_path: Path) -> None:
    base = t5x_lite.load(chat_run)
    head = {"outputs": 0, "pool": "last"}
    model = ModelConfig.model_validate({**base.config.model.model_dump(mode="json"), "head": head})
    write_run(tmp_path / "run", model, None, base.params, base.tokenizer)
    export_hf(tmp_path / "run", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = t5x_lite.load(tmp_path / "run")
    token_ids = tokenizer("hello world")["input_ids"]
    assert token_ids == ours.encode_text("hello world").tolist() == [1, 4, 5, 3]
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        vector = theirs(torch.tensor([token_ids])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(ours.embed(["hello world"])[0], vector, atol=1e-5)


def test_special_tokens_are_those_of_the_folder_and_not_those_of_their_names(chat_model: Path, tmp_path: Path) -> None:
    import_hf(chat_model, tmp_path / "run")
    model = t5x_lite.load(tmp_path / "run")
    theirs = transformers.AutoTokenizer.from_pretrained(chat_model)
    assert model.tokenizer.eos == theirs.eos_token_id == 3
    assert model.encode_text("hello world").tolist() == [1, 4, 5]
    assert pickle.loads(pickle.dumps(model.tokenizer)).eos == 3
    export_hf(tmp_path / "run", tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (exported.eos_token, exported.bos_token) == (theirs.eos_token, theirs.bos_token)
    assert exported.chat_template == theirs.chat_template
    assert exported("hello world")["input_ids"] == theirs("hello world")["input_ids"]


def test_a_cased_vocabulary_keeps_its_capitals(tmp_path: Path) -> None:
    case = make("BERT", tmp_path / "case")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello"]
    (case.folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for is_lowercase, expected in ((False, 5), (True, 6)):
        (case.folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": is_lowercase}))
        run = tmp_path / f"run-{is_lowercase}"
        import_hf(case.folder, run)
        assert t5x_lite.load(run).tokenizer.encode("Hello").tolist() == [expected]


@pytest.mark.parametrize("name", ["BERT, MLM alone", "Llama 2"])
def test_padding_that_a_mask_names_does_not_change_the_logits(name: str, tmp_path: Path) -> None:
    case = make(name, tmp_path)
    text = np.array([7, 8, 9, 10, 11])
    padded = np.array([7, 8, 9, 10, 11, 0, 0, 0])
    mask = padded > 0
    logits = case.ours.logits(padded, mask=mask)[0, : len(text)]
    np.testing.assert_allclose(logits, case.ours.logits(text)[0], atol=1e-5)
    with torch.no_grad():
        expected = case.theirs(torch.tensor(padded[None]), attention_mask=torch.tensor(mask[None].astype(int))).logits
    np.testing.assert_allclose(logits, expected[0, : len(text)].numpy(), atol=1e-4)
    with pytest.raises(UserError, match="the mask has the shape"):
        case.ours.logits(padded, mask=mask[:3])
