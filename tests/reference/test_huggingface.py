"""Every family against its implementation in Hugging Face Transformers: numbers, files and generated tokens."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from safetensors.numpy import load_file, save_file  # noqa: E402

import t5x_lite  # noqa: E402
from t5x_lite.cli import main  # noqa: E402
from t5x_lite.convert import huggingface  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.decode.generate import Sampling  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.models.experts.routing import routing  # noqa: E402
from tests.reference.cases import CASES, Case, make  # noqa: E402

GENERATED = 64


@pytest.fixture(scope="module", params=[name for name in CASES if name != "Switch, room for all"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield make(request.param, tmp_path_factory.mktemp("case"))


def test_logits_loss_and_every_gradient_equal_transformers(case: Case) -> None:
    logits, loss, gradients = case.differences()
    assert logits <= 1e-4
    assert loss <= 1e-5
    assert gradients <= 1e-3


def test_import_and_export_give_the_same_file_and_a_model_that_transformers_loads(case: Case, tmp_path: Path) -> None:
    export_hf(case.run, tmp_path)
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (case.folder / name).read_bytes()
    loaded = type(case.theirs).from_pretrained(tmp_path).eval()
    own = Case(case.name, case.objective, loaded, tmp_path, case.run)
    for found, expected in zip(own.their_outputs[0].values(), case.their_outputs[0].values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (case.folder, tmp_path))
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed <= {"tie_word_embeddings"}  # of T5 v1.1, which Transformers itself writes wrong


def test_switch_router_losses_equal_transformers(tmp_path: Path) -> None:
    """There both are of each stack's layers together, here the sum over layers: from the same shares and means."""
    case = make("Switch", tmp_path)
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(5, 96, (3, 12)), rng.integers(5, 96, (3, 7))
    theirs = case.theirs(
        input_ids=torch.tensor(tokens), labels=torch.tensor(targets), output_router_logits=True, return_dict=True
    )
    module = case.ours.run.blueprint.model(case.ours.params)
    module(tokens, np.concatenate([np.zeros((3, 1), int), targets[:, :-1]], axis=1))
    for side in ("encoder", "decoder"):
        (seen,) = getattr(module, side).stack.seen.get_value().values()
        layers, length = seen.tokens.shape[0], float(seen.tokens[0, 0])
        shares, means = (x.sum(0) / layers / length for x in (seen.counted, seen.probability))
        balance = float((shares * means).sum(1).mean() * shares.shape[1])
        assert balance == pytest.approx(theirs[f"{side}_aux_loss"].item(), rel=1e-5)
        z_loss = float(seen.log_z.sum() / seen.tokens.sum())
        assert z_loss == pytest.approx(theirs[f"{side}_z_loss"].item(), rel=1e-5)


def test_mixtral_router_loss_equals_transformers(tmp_path: Path) -> None:
    case = make("Mixtral", tmp_path)
    tokens = np.random.default_rng(2).integers(5, 96, (3, 12))
    theirs = case.theirs(input_ids=torch.tensor(tokens), output_router_logits=True)
    module = case.ours.run.blueprint.model(case.ours.params)
    module(tokens)
    found = routing(module, case.ours.config.model)
    assert found is not None
    assert float(found.balance) == pytest.approx(theirs.aux_loss.item(), rel=1e-5)


@pytest.fixture(scope="module", params=["T5 v1.0", "T5 v1.1", "GPT-2", "Llama 2", "Switch, room for all", "Mixtral"])
def generating(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp("generating"), noise=1.0)


def test_greedy_generation_makes_the_same_tokens(generating: Case) -> None:
    prompts = [np.array([7, 8, 9, 10, 11, 12, 13, 14], np.int32), np.array([20, 21, 22, 23, 24], np.int32)]
    sampling = Sampling(tokens=GENERATED, temperature=0)
    *_, found = generating.ours.generator.stream_tokens(prompts, sampling)
    generating.theirs.generation_config.eos_token_id = None
    for prompt, row in zip(prompts, found, strict=True):
        out = generating.theirs.generate(
            input_ids=torch.tensor(prompt[None], dtype=torch.long),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=GENERATED,
            use_cache=False,
            pad_token_id=0,
        )[0].numpy()
        assert row.tolist() == out[-GENERATED:].tolist()
    assert len(set(found.reshape(-1).tolist())) > 3  # a model that repeats one token would prove little


def test_cached_decoding_equals_uncached(generating: Case) -> None:
    prompt = np.array([7, 8, 9, 10, 11, 12, 13, 14], np.int32)
    *_, made = generating.ours.generator.stream_tokens([prompt], Sampling(tokens=GENERATED, temperature=0))
    if generating.ours.config.model.family == "encoder_decoder":
        logits = generating.ours.logits(prompt, np.concatenate([[0], made[0, :-1]]))[0]
    else:
        logits = generating.ours.logits(np.concatenate([prompt, made[0, :-1]]))[0, len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == made[0].tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make("Llama 2", tmp_path_factory.mktemp("llama"))


def test_sharded_files_go_in_and_out(llama: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    import_hf(tmp_path / "shards", tmp_path / "run")
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    export_hf(tmp_path / "run", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    state = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in llama.theirs.state_dict().items())


def test_bfloat16_weights_come_back_as_bfloat16(llama: Case, tmp_path: Path) -> None:
    half = type(llama.theirs).from_pretrained(llama.folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    import_hf(tmp_path / "half", tmp_path / "run")
    assert {str(leaf.dtype) for leaf in _leaves(t5x_lite.load(tmp_path / "run").params)} == {"float32"}
    export_hf(tmp_path / "run", tmp_path / "out")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "half" / name).read_bytes()


def _leaves(tree: dict) -> list:
    return [leaf for part in tree.values() for leaf in (_leaves(part) if isinstance(part, dict) else [part])]


def test_tensors_that_do_not_fit_are_all_named_in_one_error(llama: Case, tmp_path: Path) -> None:
    tensors = load_file(llama.folder / "model.safetensors")
    tensors["model.norm.extra"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
    (tmp_path / "config.json").write_text((llama.folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refused:
        import_hf(tmp_path, tmp_path / "run")
    parts = ("missing model.norm.weight [32]", "unexpected model.norm.extra [32]", "up_proj.weight is [3, 3], expected")
    assert all(part in str(refused.value) for part in parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "config.json: cannot be read"),
        ({"config.json": "{"}, "config.json: cannot be read"),
        ({"config.json": '{"model_type": "resnet"}'}, "'resnet' is not one of t5, mt5"),
        ({"config.json": '{"model_type": "gpt2"}', "pytorch_model.bin": ""}, "no .safetensors file is there"),
        ({"config.json": '{"model_type": "gpt2"}', "model.safetensors": "torn"}, "model.safetensors: cannot be read"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["import", "hf", str(tmp_path), str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_the_shell_imports_and_exports(llama: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "hf", str(llama.folder), str(tmp_path / "run")]) == 0
    assert "no tokenizer came with it" in capsys.readouterr().out
    assert main(["export", "hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main(["import", "hf", str(llama.folder), str(tmp_path / "run")]) == 2
    assert main(["generate", str(tmp_path / "run"), "--prompt", "x"]) == 2
    assert "it has none" in capsys.readouterr().err


def test_a_model_trained_here_is_exported_as_the_type_that_holds_it(tiny_run: Path, tmp_path: Path) -> None:
    export_hf(tiny_run, tmp_path)
    model, ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval(), t5x_lite.load(tiny_run)
    tokens = np.arange(3, 19)[None]
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor(tokens)).logits.numpy(), ours.logits(tokens), atol=1e-5)
