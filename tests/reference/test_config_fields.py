"""Every field of Transformers' configs, changed to another value: the same logits as theirs, or a refusal."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")


from safetensors.numpy import load_file, save_file  # noqa: E402

import t5x_lite  # noqa: E402
from t5x_lite.convert.huggingface import export_hf, import_hf  # noqa: E402
from t5x_lite.errors import UserError  # noqa: E402
from t5x_lite.trees import flatten_names  # noqa: E402
from tests.reference.cases import Case, make  # noqa: E402
from tests.reference.tiny_models import LINEAR_ROPE, TINY_MODELS, VOCAB, YARN_ROPE  # noqa: E402

WEIGHTS_FILE = "model.safetensors"
COMPARED_MODELS = [name for name in TINY_MODELS if name != "Switch, room for all"]
OTHER_NAMES = {
    "relu": "gelu",
    "gelu": "relu",
    "gelu_new": "relu",
    "gelu_pytorch_tanh": "relu",
    "silu": "gelu",
    "gated-gelu": "gated-silu",
}
"""Other legal values of fields that name an activation."""


@pytest.fixture(scope="module", params=COMPARED_MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(request.param, tmp_path_factory.mktemp("case"))


Cases = Callable[[str], Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """A function that returns the case of a tiny model, which is built once. Its files must not be changed."""

    @cache
    def build(name: str) -> Case:
        return make(name, tmp_path_factory.mktemp("case"))

    return build


def other_values(value: object) -> Iterator[object]:
    """Other values of the same type."""
    if isinstance(value, bool):
        yield not value
    elif value is None:
        yield from (True, 3)
    elif isinstance(value, int):
        yield from (value + 1, value * 2)
    elif isinstance(value, float):
        yield from (value * 2 + 0.1,)
    elif isinstance(value, str):
        yield OTHER_NAMES.get(value, "another")


def load_changed(case: Case, folder: Path, name: str, value: object) -> object | None:
    """Transformers' model of the same files with one field changed; None if Transformers itself refuses it."""
    shutil.copytree(case.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    model_class: Any = type(case.theirs)
    try:
        model, info = model_class.from_pretrained(folder, output_loading_info=True)
    except Exception:  # whatever their checks raise
        return None
    if info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"]:
        return None
    return model.eval()


@pytest.mark.slow
def test_a_changed_field_gives_their_logits_or_is_refused(case: Case, tmp_path: Path) -> None:
    fields = case.theirs.config.to_dict()
    # These name files and versions. Sizes change the shapes of the weights, which import checks.
    left_out = {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}
    if case.objective == "span_corruption":
        left_out.add("pad_token_id")  # it is what the comparison itself pads the targets with
    compared = []
    wrong = []
    for name in sorted(fields.keys() - left_out):
        for number, value in enumerate(other_values(fields[name])):
            folder = tmp_path / f"{name}-{number}"
            theirs = load_changed(case, folder, name, value)
            try:
                import_hf(folder, folder / "run")
            except UserError:
                continue
            if theirs is None:
                continue
            changed = Case(case.name, case.objective, theirs, folder, folder / "run")
            try:
                their_logits = changed.their_outputs.logits
            except Exception:  # a value that their model cannot compute with
                continue
            compared.append(name)
            is_same = all(np.array_equal(their_logits[key], case.their_outputs.logits[key]) for key in their_logits)
            if is_same and changed.ours.config.model == case.ours.config.model:
                continue
            difference = changed.differences().logits
            if difference > 1e-4:
                wrong.append(f"{name}={value!r} differs by {difference:.2g}")
    assert not wrong
    assert compared


def change_files(case: Case, folder: Path, config: dict | None = None, tensors: dict | None = None) -> None:
    """Write the files of a case with other fields and further tensors."""
    folder.mkdir()
    settings = json.loads((case.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    save_file({**load_file(case.folder / WEIGHTS_FILE), **(tensors or {})}, folder / WEIGHTS_FILE)


UNTIED = {
    "GPT-2": ("lm_head.weight", "transformer.wte.weight"),
    "OPT": ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    "GPT-Neo": ("lm_head.weight", "transformer.wte.weight"),
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Mixtral", ("rope_theta", "rope_parameters")),
        ("SmolLM3", ("rope_theta", "rope_parameters")),
        ("Mistral", ("sliding_window",)),
        ("ALBERT", ("hidden_act",)),
    ],
)
def test_a_missing_field_has_the_default_of_transformers(
    cases: Cases, name: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    case = cases(name)
    shutil.copytree(case.folder, tmp_path / "without")
    config = json.loads((tmp_path / "without/config.json").read_text())
    rest = {key: value for key, value in config.items() if key not in fields}
    (tmp_path / "without/config.json").write_text(json.dumps(rest))
    shutil.copytree(tmp_path / "without", tmp_path / "filled")
    filled = transformers.AutoConfig.from_pretrained(tmp_path / "without").to_dict()
    (tmp_path / "filled/config.json").write_text(json.dumps({**rest, **{key: filled.get(key) for key in fields}}))
    models = [import_hf(tmp_path / folder, tmp_path / f"{folder}_run").config.model for folder in ("without", "filled")]
    assert models[0] == models[1]


@pytest.mark.parametrize("name", UNTIED)
def test_an_output_matrix_of_its_own_is_imported_and_exported(name: str, cases: Cases, tmp_path: Path) -> None:
    case = cases(name)
    output, embedding = UNTIED[name]
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=load_file(case.folder / WEIGHTS_FILE)[embedding].shape).astype(np.float32)
    change_files(case, tmp_path / "untied", {"tie_word_embeddings": False}, {output: matrix})
    theirs = type(case.theirs).from_pretrained(tmp_path / "untied").eval()
    import_hf(tmp_path / "untied", tmp_path / "run")
    untied = Case(name, case.objective, theirs, tmp_path / "untied", tmp_path / "run")
    assert untied.differences().logits <= 1e-4
    assert np.abs(untied.their_outputs.logits["logits"] - case.their_outputs.logits["logits"]).max() > 0.1
    export_hf(tmp_path / "run", tmp_path / "out")
    again = type(case.theirs).from_pretrained(tmp_path / "out").eval()
    exported = Case(name, case.objective, again, tmp_path / "out", tmp_path / "run")
    np.testing.assert_array_equal(exported.their_outputs.logits["logits"], untied.their_outputs.logits["logits"])


@pytest.mark.parametrize(
    ("name", "tensor", "original"),
    [
        ("GPT-2", "lm_head.weight", "transformer.wte.weight"),
        ("T5 v1.0", "lm_head.weight", "shared.weight"),
        ("T5 v1.0", "encoder.embed_tokens.weight", "shared.weight"),
        ("BERT", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_stored_copy_of_a_tied_matrix_changes_nothing(
    name: str, tensor: str, original: str, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name)
    weights = load_file(case.folder / WEIGHTS_FILE)
    change_files(case, tmp_path / "copy", tensors={tensor: weights[original]})
    import_hf(tmp_path / "copy", tmp_path / "run")
    with_copy = Case(name, case.objective, case.theirs, tmp_path / "copy", tmp_path / "run")
    assert with_copy.differences().logits <= 1e-4


def test_the_module_that_predicts_a_further_token_is_left_out(cases: Cases, tmp_path: Path) -> None:
    case = cases("Qwen3-Next, biases")
    change_files(case, tmp_path / "more", tensors={"mtp.fc.weight": np.ones((32, 64), np.float32)})
    import_hf(tmp_path / "more", tmp_path / "run")
    weights = flatten_names(case.ours.params)
    for name, array in flatten_names(t5x_lite.load(tmp_path / "run").params).items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("GPT-2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported (only True)"),
        ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("GPT-2", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported (only null)"),
        ("GPT-2", {"brand_new": 7}, "the field brand_new=7 is not known"),
        ("GPT-2", {"activation_function": []}, "the field 'activation_function' has the value [], expected"),
        ("GPT-2", {"tie_word_embeddings": False}, "tie_word_embeddings=false, and lm_head.weight is not stored"),
        ("GPT-2", {"n_layer": True}, "the field 'n_layer' has the value True, expected a number"),
        ("RoBERTa", {"pad_token_id": 0}, "pad_token_id=0 is not supported (only 1)"),
        ("RoBERTa", {"max_position_embeddings": True}, "'max_position_embeddings' has the value True"),
        ("BERT", {"is_decoder": True}, "is_decoder=True is not supported (only False)"),
        ("ALBERT, groups", {"num_hidden_groups": 3}, "num_hidden_groups=3 and inner_group_num=2 is not supported"),
        ("XLM", {"causal": True}, "causal=True is not supported (only False)"),
        ("XLM", {"asm": True}, "asm=True is not supported (only False)"),
        ("XLM", {"n_words": VOCAB + 1}, "vocab_size and n_words name one number, found 2"),
        ("OPT", {"enable_bias": False}, "unexpected model.decoder.layers.0.fc1.bias"),
        ("Mistral", {"attention_bias": True}, "attention_bias=True is not supported (only False)"),
        ("Qwen2", {"attention_bias": False}, "attention_bias=False is not supported (only True)"),
        ("DeepSeek-V2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported (only greedy"),
        ("DeepSeek-V2", {"norm_topk_prob": True}, "norm_topk_prob=True is not supported (only False)"),
        ("DeepSeek-V2", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05 is not supported (only 1e-06)"),
        (
            "DeepSeek-V2",
            {"rope_parameters": {**YARN_ROPE, "mscale_all_dim": 0.7}},
            "rope_parameters.mscale_all_dim is supported with rope_type yarn and both of",
        ),
        ("DeepSeek-V3", {"first_k_dense_replace": 3}, "first has 3 of 3 layers"),
        ("gpt-oss", {"rope_parameters": None}, "the field 'rope_parameters' is missing"),
        ("gpt-oss", {"swiglu_alpha": 1.0}, "swiglu_alpha=1.0 is not supported (only 1.702)"),
        (
            "gpt-oss",
            {"quantization_config": {"quant_method": "mxfp4"}},
            "the weights are quantized (mxfp4), which is not read; save the model as bfloat16 first: Transformers does",
        ),
        ("Llama 2", {"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized (gptq)"),
        ("Qwen2-MoE", {"shared_expert_intermediate_size": 18}, "=18 is not a multiple of moe_intermediate_size=12"),
        ("Qwen2-MoE", {"layer_types": ["sliding_attention"] * 2}, "layer_types of qwen2_moe other than full_attention"),
        ("T5Gemma", {"encoder": None}, "the field 'encoder' is missing"),
        ("T5Gemma", {"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
        ("Qwen3-MoE", {"num_experts": 5}, "num_experts and num_local_experts must give one number"),
        ("Qwen3-MoE", {"decoder_sparse_step": 0}, "decoder_sparse_step=0 is not a number from 1"),
        (
            "Qwen3-MoE",
            {"num_hidden_layers": 10**30},
            "num_hidden_layers=1000000000000000000000000000000 is not a number",
        ),
        ("ALBERT", {"inner_group_num": 10**30}, "inner_group_num=1000000000000000000000000000000 is not a number"),
        ("ALBERT", {"inner_group_num": 9999}, "num_hidden_layers * inner_group_num="),
        ("Llama 2", {"num_hidden_layers": 10_001}, "num_hidden_layers=10001 is not a number from 1 to 10,000"),
        (
            "Qwen3, windows",
            {"num_hidden_layers": 10_000, "layer_types": None, "max_window_layers": 5000},
            "10000 layers without a repeat; patterns of up to 512 can be compiled",
        ),
        ("Gemma 2", {"layer_types": ["full_attention"]}, "layer_types lists 1 layers, but num_hidden_layers is 5"),
        (
            "Qwen3, windows",
            {"layer_types": ["full_attention"]},
            "layer_types lists 1 layers, but num_hidden_layers is 4",
        ),
        ("Gemma 2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("Gemma 3", {"rope_parameters": LINEAR_ROPE}, "rope_parameters must have full_attention and sliding_attention"),
        ("Gemma 3", {"sliding_window": None}, "the field 'sliding_window' is missing"),
        ("Llama, dynamic", {"max_position_embeddings": None}, "the field 'max_position_embeddings' is missing"),
        ("Llama 2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ("Llama 2", {"rope_parameters": 1}, "a value of rope_parameters or rope_theta or rope_scaling"),
        ("Llama 2", {"rope_parameters": {"rope_theta": "NaN"}}, "theta"),
        ("Llama 2", {"rope_parameters": {"rope_theta": float("inf")}}, "theta"),
        ("Llama 2", {"num_attention_heads": None}, "the field 'num_attention_heads' is missing"),
        ("Mistral", {"sliding_window": 0}, "window"),
        ("T5 v1.0", {"decoder_start_token_id": 5}, "decoder_start_token_id=5 is not supported (only 0)"),
        ("T5 v1.0", {"dense_act_fn": "gelu"}, "dense_act_fn='gelu' contradicts feed_forward_proj='relu'"),
    ],
)
def test_a_config_that_asks_for_another_computation_is_refused(
    name: str, config: dict, message: str, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name)
    change_files(case, tmp_path / "changed", config)
    with pytest.raises(UserError) as raised:
        import_hf(tmp_path / "changed", tmp_path / "run")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["Llama 3.1", "Llama, YaRN"])
def test_the_original_length_of_a_scaling_is_by_default_that_of_the_config(
    name: str, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name)
    config = json.loads((case.folder / "config.json").read_text())
    rope = {key: value for key, value in config["rope_parameters"].items() if key != "original_max_position_embeddings"}
    change_files(case, tmp_path / "changed", {"rope_parameters": rope, "max_position_embeddings": 20})
    theirs = type(case.theirs).from_pretrained(tmp_path / "changed").eval()
    import_hf(tmp_path / "changed", tmp_path / "run")
    tokens = np.random.default_rng(0).integers(5, 90, (1, 60))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(t5x_lite.load(tmp_path / "run").logits(tokens), expected, atol=1e-4)
    assert np.abs(case.ours.logits(tokens) - expected).max() > 1e-3


def test_weights_that_are_no_finite_numbers_are_refused(cases: Cases, tmp_path: Path) -> None:
    case = cases("GPT-2")
    name = "transformer.ln_f.weight"
    weight = load_file(case.folder / WEIGHTS_FILE)[name]
    for kind, values, message in (
        ("nan", np.full_like(weight, np.nan), "has values that are NaN or infinite"),
        ("infinite", np.full_like(weight, np.inf), "has values that are NaN or infinite"),
        ("integers", np.ones(weight.shape, np.int32), "is of type I32; only F32, BF16, F16 are read"),
    ):
        change_files(case, tmp_path / kind, tensors={name: values})
        with pytest.raises(UserError, match=f"{name} {message}"):
            import_hf(tmp_path / kind, tmp_path / "run")
        assert not (tmp_path / "run").exists()


MASKS = {
    "GPT-2": "transformer.h.0.attn.bias",
    "GPT-Neo": "transformer.h.0.attn.attention.bias",
    "GPT-NeoX": "gpt_neox.layers.0.attention.bias",
}
"""A causal mask of older files."""


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
@pytest.mark.parametrize("name", MASKS)
def test_the_masks_of_older_files_are_left_out_whatever_their_type(
    name: str, dtype: type, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name)
    mask = np.tril(np.ones((1, 1, 64, 64), dtype))
    change_files(case, tmp_path / "masks", tensors={MASKS[name]: mask})
    import_hf(tmp_path / "masks", tmp_path / "run")
    weights = flatten_names(case.ours.params)
    for array_name, array in flatten_names(t5x_lite.load(tmp_path / "run").params).items():
        np.testing.assert_array_equal(array, weights[array_name], err_msg=array_name)


def test_an_unused_tensor_may_be_of_any_type_but_one_with_a_place_may_not(cases: Cases, tmp_path: Path) -> None:
    case = cases("BERT")
    name = "bert.pooler.dense.bias"
    bias = {name: np.ones(load_file(case.folder / WEIGHTS_FILE)[name].shape, np.int8)}
    change_files(case, tmp_path / "used", tensors=bias)
    with pytest.raises(UserError, match=f"{name} is of type I8; only F32, BF16, F16 are read"):
        import_hf(tmp_path / "used", tmp_path / "run")
    change_files(cases("BERT, MLM alone"), tmp_path / "unused", tensors=bias)
    import_hf(tmp_path / "unused", tmp_path / "run")


def test_the_fast_gelu_of_transformers_is_the_tanh_form(cases: Cases, tmp_path: Path) -> None:
    case = cases("GPT-NeoX")
    theirs = load_changed(case, tmp_path / "changed", "hidden_act", "gelu_fast")
    import_hf(tmp_path / "changed", tmp_path / "run")
    changed = Case(case.name, case.objective, theirs, tmp_path / "changed", tmp_path / "run")
    assert changed.differences().logits <= 1e-4
    assert changed.ours.config.model.dense_feedforward.activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("BERT", "bert"),
        ("Megatron BERT", "bert"),
        ("EuroBERT", "model"),
        ("RoBERTa", "roberta"),
        ("ALBERT", "albert"),
        ("ELECTRA", "electra"),
        pytest.param("DeBERTa", "deberta", marks=pytest.mark.slow),
        pytest.param("DeBERTa-v3", "deberta", marks=pytest.mark.slow),
    ],
)
def test_an_encoder_without_a_head_gives_transformers_states(
    name: str, base: str, cases: Cases, tmp_path: Path
) -> None:
    case = cases(name)
    encoder = getattr(case.theirs, base)
    encoder.save_pretrained(tmp_path / "encoder")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    import_hf(tmp_path / "encoder", tmp_path / "run")
    model = t5x_lite.load(tmp_path / "run")
    assert model.config.model.outputs == ()
    tokens = np.random.default_rng(0).integers(5, 90, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).last_hidden_state.numpy()
    module = model.spec.model(model.params)
    states = np.asarray(module(tokens, segment_ids=np.ones_like(tokens)))
    np.testing.assert_allclose(states, expected, atol=1e-4)
    export_hf(tmp_path / "run", tmp_path / "out")
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(tokens)).last_hidden_state.numpy(), expected, atol=1e-6)


def test_only_the_files_of_the_model_are_read(tmp_path: Path) -> None:
    case = make("Llama 2", tmp_path / "case")
    weights = {"unrelated": np.zeros((2, 2), np.float32)}
    for extra in ("adapter_model.safetensors", "consolidated.safetensors"):
        save_file(weights, case.folder / extra)
    import_hf(case.folder, tmp_path / "run")
    (case.folder / WEIGHTS_FILE).rename(case.folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"has no model\.safetensors but .*; rename the one that holds the model"):
        import_hf(case.folder, tmp_path / "other")
