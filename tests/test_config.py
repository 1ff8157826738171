"""Configs: merging, overrides, and errors that name the key, where it was set and what to write instead."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from t5x_lite import config, schema
from t5x_lite.best_metric import best_checkpoint_notice
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions import Learned, Rotary
from t5x_lite.models.positions.rope_scaling import Llama3Scaling, YarnScaling
from t5x_lite.train.optimizers.adamw import AdamW
from t5x_lite.train.schedules.linear import Linear

SMALL = "model: {layers: 2, embed: 8, heads: 2}\ntrain: {steps: 10, batch_size: 4, seq_len: 8}\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def load_error(path: Path, *overrides: str) -> str:
    """Return the one-line message of the error that a config raises."""
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_files_and_overrides_win(tmp_path: Path, small: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("base: [small.yaml]\ntrain: {steps: 20}\noptimizer: {method: {adamw: {b1: 0.8}}}\n")
    loaded = config.load(child, ["train.seq_len=4", "--optimizer.method.adamw.b2=0.5"])
    assert (loaded.train.steps, loaded.train.seq_len, loaded.train.batch_size) == (20, 4, 4)
    method = loaded.optimizer.method
    assert isinstance(method, AdamW)
    assert (method.b1, method.b2) == (0.8, 0.5)
    assert loaded.run_dir == "runs/child"


def test_a_component_of_another_name_replaces_the_one_of_the_base(small: Path) -> None:
    small.write_text(SMALL.replace("heads: 2", "heads: 2, positions: {rotary: {theta: 5}}"))
    assert config.load(small, ["model.positions.rotary.theta=7"]).model.positions == Rotary(theta=7)
    assert config.load(small, ["model.positions.learned.length=64"]).model.positions == Learned(length=64)


def test_numbers_in_scientific_notation_are_accepted(small: Path) -> None:
    assert config.load(small, ["train.steps=1e5"]).train.steps == 100_000
    assert config.load(small, ["optimizer.learning_rate=3e-4"]).optimizer.learning_rate == 3e-4


def test_an_evaluator_of_the_run_that_is_configured_runs_in_that_form_alone(small: Path) -> None:
    loaded = config.load(small, ["eval.evaluators=[{samples: {prompts: [a]}},{validation: {every_steps: 3}}]"])
    assert [(type(evaluator).__name__, evaluator.every_steps) for evaluator in loaded.evaluators] == [
        ("Samples", None),
        ("Validation", 3),
    ]
    assert [type(evaluator).__name__ for evaluator in config.load(small).evaluators] == ["Validation"]


def test_a_resolved_config_repeats_the_run(small: Path) -> None:
    overrides = [
        "model.pattern=[{attention: dense},{feedforward: glu}]",
        "tokenizer=character",
        "eval.evaluators=[validation,{few_shot: {tasks: arc_easy, every_steps: 5}},{perplexity: {text: book.txt}}]",
    ]
    loaded = config.load(small, overrides)
    values = yaml.safe_load(config.dump(loaded))
    assert [list(evaluator) for evaluator in values["eval"]["evaluators"]] == [
        ["validation"],
        ["few_shot"],
        ["perplexity"],
    ]
    assert config.RunConfig.model_validate(values) == loaded


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stpes=3", ("train.stpes", "command line", "`train.steps`")),
        ("model.norm_place=pree", ("model.norm_place", "'pree'", "did you mean pre?")),
        ("train.steps=many", ("train.steps", "'many'", "integer")),
        ("train.steps=true", ("train.steps", "integer")),
        ("model.positions=rotery", ("model.positions", "learned, sinusoidal, rotary", "did you mean rotary?")),
        ("optimizer.method.adamw.beta1=0.9", ("optimizer.method.adamw.beta1", "`optimizer.method.adamw.b1`")),
        ("model.heads=3", ("embed 8", "heads 3", "head_dim")),
        ("model.positions.learned.length=4", ("train.seq_len 8", "length 4")),
        ("train.microbatches=3", ("train.batch_size 4", "microbatches 3")),
        ("model.kv_heads=3", ("heads 2", "kv_heads 3")),
        ("model.layers=0", ("model.layers", "greater than or equal to 1")),
        (
            "model={shared_layers: true, pattern: [{attention: dense}, {attention: {local: {window: 4}}}, {}]}",
            ("layers 2", "3 layers"),
        ),
        ("mesh.data=0", ("mesh", "≥ 1")),
        ("mesh.expert=2", ("mesh.expert 2", "no experts to shard")),
        ("model.pattern=[{attention: {local: {window: 0}}}]", ("window", "greater than or equal to 1")),
        ("model.pattern=[{attention: {strided: {stride: -1}}}]", ("stride", "greater than or equal to 1")),
        ("model.pattern=[{attention: {fixed: {stride: 4, summary: 5}}}]", ("summary 5", "stride 4")),
        ("model={heads: 1, pattern: [{attention: strided}]}", ("share=heads", "heads 1", "share=both")),
        ("model.pattern=[{attention: block_global}]", ("block_global is for encoders",)),
        ("model.pattern=[{attention: transient_global}]", ("transient_global is for encoders", "positions: relative")),
        (
            "model={attention_sinks: true, positions: relative, pattern: [{attention: transient_global}]}",
            ("attention_sinks are not for attention transient_global",),
        ),
        ("model.feedforward.moe={experts: 4, router: {top_k: {k: 8}}}", ("a token to 8 of 4 experts",)),
        ("model.decoder_attention=[dense]", ("decoder_attention is for an encoder_decoder",)),
        (
            "model={family: encoder_decoder, pattern: [{}, {}, {}], decoder_attention: [dense, dense]}",
            ("decoder_attention has 2 layers, the pattern 3",),
        ),
        ("model.decoder_embedding=separate", ("decoder_embedding: separate is for an encoder_decoder",)),
        ("model.feedforward.moe={experts: 2, router: {top_k: {k: 3}}}", ("3 of 2 experts",)),
        ("model.feedforward.moe.dispatch.capacity.factor=0", ("factor", "greater than 0")),
        ("model.feedforward.moe.router=expert_choice", ("expert_choice is for encoders",)),
        ("model.feedforward.moe={router: expert_choice, dispatch: dropless}", ("expert_choice", "dropless")),
        ("model.feedforward.moe.router=swich", ("did you mean switch?",)),
        ("model.generator.embd=3", ("unknown key `model.generator.embd`", "`model.generator.embed`")),
        ("objective=span_coruption", ("objective", "did you mean span_corruption?")),
        ("tasks=3", ("command line", "`tasks` is 3")),
        ("tasks=[3]", ("command line", "`tasks.0` is 3")),
        ("steps", ("dotted.key=value",)),
        (
            "eval.evaluators=[few_shto]",
            ("eval.evaluators.0", "validation, tasks, perplexity", "did you mean few_shot?"),
        ),
        ("eval.evaluators=[tasks]", ("eval.evaluators: tasks: the run learns none", "few_shot")),
        ("data.files=", ("`data.files` has no value: expected a list; [] is an empty one",)),
        ("objective=[causal]", ("`objective` is ['causal']",)),
        ("eval.evaluators=few_shot", ("eval.evaluators", "expected a list, such as [few_shot]")),
        ("eval.evaluators={perplexity: {text: x}}", ("expected a list, such as [{perplexity: {text: x}}]",)),
        ("eval.evaluators=[{few_shot: {}}]", ("`eval.evaluators.0.few_shot.tasks` must be given",)),
        (
            "eval.evaluators=[validation,{perplexity: {text: x, windo: 3}}]",
            ("eval.evaluators.1.perplexity.windo", "`eval.evaluators.1.perplexity.window`"),
        ),
        ("model.pattern=[{attentoin: dense}]", ("model.pattern.0.attentoin", "`model.pattern.0.attention`")),
        ("model.pattern=[{colour: red}]", ("`t5x-lite train --help-config` lists the keys of `model.pattern.N`",)),
        ("model.pattern=[]", ("`model.pattern` is []: expected a list with at least 1 item",)),
        ("data.validation_split=test", ("validation_split=test is for TFDS and data sets of the Hub",)),
        ("data.split=test", ("split=test is for TFDS and data sets of the Hub",)),
        ("data.mixture=[{name: ../a, files: x}]", ("mixture name '../a' is part of the name of a folder",)),
        (
            "optimizer={warmup_steps: 4, schedule: {cosine: {decay_end: 0.1}}}",
            ("warmup_steps 4 leaves no step for the decay", "optimizer.schedule.cosine.decay_end"),
        ),
        (
            "eval.evaluators=[{samples: {prompts: [a], tokens: 9999}}]",
            ("samples: tokens 9999 leave no room for a prompt in the model's",),
        ),
        (
            "eval.evaluators=[{perplexity: {text: x, window: 9999}}]",
            ("perplexity: window 9999 is larger than the model's",),
        ),
        ("eval.evaluators=[{perplexity: {text: x, stride: 9999}}]", ("stride 9999 is larger than the window",)),
        (
            "eval.evaluators=[{few_shot: {tasks: [x], window: 9999}}]",
            ("few-shot tasks: window 9999 is larger than the model's",),
        ),
    ],
)
def test_an_error_is_one_line_that_names_the_key_and_the_remedy(
    small: Path, override: str, parts: tuple[str, ...]
) -> None:
    message = load_error(small, override)
    for part in parts:
        assert part in message


def test_meshes_that_do_not_fit_the_experts_are_refused(small: Path) -> None:
    experts = "model.feedforward.moe.experts=8"
    assert "mesh.expert 3 does not divide the 8 experts" in load_error(small, experts, "mesh.expert=3")
    ragged = "model.feedforward.moe.dispatch.dropless.kernel=ragged"
    assert "needs mesh.tensor=1" in load_error(small, experts, ragged, "mesh.tensor=2")
    assert "stages run together" in load_error(small, experts, ragged, "mesh.expert=2", "mesh.pipeline=2")


ELECTRA = "model={family: electra, outputs: [detection], layers: 4, generator: {layers: 2, embed: 8, heads: 2}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.generator.heads=3"], "embed 8 is not a multiple of heads 3"),
        (
            ["model.positions=rotary", "model.generator.embed=6"],
            "generator: rotary positions need an even head_dim, found 3 of 3",
        ),
        (["model.first=[{},{}]"], "generator: first has 2 of 2 layers; at least one must be of the pattern"),
        (
            ["model.shared_layers=true", "model.shared_groups=2", "model.generator.layers=3"],
            "generator: layers: 3 repeats of the pattern cannot be cut into 2 equal groups",
        ),
    ],
)
def test_a_generator_has_the_problems_of_a_model(small: Path, overrides: list[str], message: str) -> None:
    assert config.load(small, [ELECTRA, "objective=replaced_token"]).model.generator_model.head_dim == 4
    assert message in load_error(small, ELECTRA, "objective=replaced_token", *overrides)
    # What is wrong with both models is said once.
    assert load_error(small, ELECTRA, "objective=replaced_token", "model.prefix_lm=true").count("prefix_lm is for") == 1


def test_overrides_that_name_two_components_are_refused(small: Path) -> None:
    wrong = ["optimizer.schedule=linear", "optimizer.schedule.wsd.decay=0.5"]
    with pytest.raises(UserError, match=r"`optimizer\.schedule\.wsd\.decay` contradicts `optimizer\.schedule=linear`"):
        config.load(small, wrong)
    assert config.load(small, wrong[::-1]).optimizer.schedule == Linear()
    assert config.load(small, ["optimizer.schedule=wsd", wrong[1]]).optimizer.schedule.decay_share == 0.5


def test_the_tokenizer_of_an_adapted_run_cannot_be_set(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config.dump(config.load(small)))
    with pytest.raises(UserError, match=r"`tokenizer`: the run has the tokenizer of adapt\.from; remove the setting"):
        config.load(small, [f"adapt.from={tmp_path}", "tokenizer=bytes"])


def test_a_copy_that_no_objective_reads_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config.dump(config.load(small)))
    with pytest.raises(UserError, match=r"objective causal does not read; set adapt\.method=full"):
        config.load(small, [f"adapt.from={tmp_path}", "adapt.method=reference"])


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("objective", ["grpo", "ppo"])
def test_answers_are_not_sampled_after_soft_tokens(small: Path, objective: str, method: str) -> None:
    values = schema.read(config.RunConfig, small).values
    values["objective"] = {objective: {"verifier": "exact_match", "answer_len": 4}}
    values["adapt"] = {"from": "runs/base", "method": {method: {"length": 2}}}
    values["tasks"] = "prompts"
    with pytest.raises(UserError, match=f"objective {objective} samples answers without virtual tokens"):
        schema.validate(config.RunConfig, schema.Sources(values, {}))


@pytest.mark.parametrize("method", ["head", {"features": {"layers": 2}}])
def test_a_policy_is_not_trained_by_its_head_alone(small: Path, method: object) -> None:
    values = schema.read(config.RunConfig, small).values
    values["objective"] = {"ppo": {"verifier": "exact_match", "answer_len": 4}}
    values["adapt"] = {"from": "runs/base", "method": method}
    values["tasks"] = "prompts"
    values["model"] = {**values["model"], "head": {"outputs": 1, "pool": "none"}}
    with pytest.raises(UserError, match=r"objective ppo trains the model, and adapt.method (head|features) the head"):
        schema.validate(config.RunConfig, schema.Sources(values, {}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"mixture": [{"name": "a", "files": "x"}]},
            "data.mixture is for text: the records of `tasks` are in data.files",
        ),
        ({"cleaning": ["exact"]}, "data.cleaning is for text"),
    ],
)
def test_settings_of_text_are_not_for_tasks(small: Path, data: dict[str, object], message: str) -> None:
    values = schema.read(config.RunConfig, small).values
    values["data"] = {**data, "validation_files": "x"}
    values["objective"] = "text_to_text"
    values["tasks"] = "sst2"
    with pytest.raises(UserError, match=message):
        schema.validate(config.RunConfig, schema.Sources(values, {}))


def test_the_end_of_a_document_is_that_of_its_source(small: Path) -> None:
    source = {"name": "a", "files": "x", "parts": "none", "packing": "documents"}
    values = schema.read(config.RunConfig, small).values
    values["objective"] = "sequence_autoencoder"
    values["model"] = {**values["model"], "positions": "none", "pattern": [{"mixer": "lstm"}]}
    values["data"] = {"mixture": [{**source, "end_of_document": False}], "end_of_document": True}
    schema.validate(config.RunConfig, schema.Sources(values, {}))
    values["data"] = {"mixture": [{**source, "end_of_document": True}], "end_of_document": False}
    with pytest.raises(UserError, match=r"objective sequence_autoencoder .* found .* end_of_document=true"):
        schema.validate(config.RunConfig, schema.Sources(values, {}))


def test_documents_that_attend_to_each_other_are_no_texts_of_their_own(small: Path) -> None:
    values = schema.read(config.RunConfig, small).values
    values["objective"] = "span_corruption"
    values["data"] = {"files": "x", "packing": "documents", "separate_documents": False}
    with pytest.raises(UserError, match="span_corruption takes each document of a row as a text of its own"):
        schema.validate(config.RunConfig, schema.Sources(values, {}))


def test_a_list_is_not_called_too_short_because_an_item_is_wrong(small: Path) -> None:
    assert "at least" not in load_error(small, "model.pattern=[{attention: dens}]")


def test_an_error_in_a_file_names_its_line(small: Path) -> None:
    small.write_text(SMALL + "data:\n  formt: text\n")
    assert f"{small}:4: unknown key `data.formt`; did you mean `data.format`?" in load_error(small)


def test_an_error_in_a_base_names_the_base(tmp_path: Path, small: Path) -> None:
    small.write_text(SMALL + "checkpoint: {kep: 3}\n")
    (tmp_path / "child.yaml").write_text("base: small.yaml\n")
    assert f"{small}:3" in load_error(tmp_path / "child.yaml")


def test_missing_broken_and_circular_files_are_refused(tmp_path: Path, small: Path) -> None:
    assert f"did you mean {small}?" in load_error(tmp_path / "smal.yaml")
    (tmp_path / "broken.yaml").write_text("model: {layers: 2\ntrain: [")
    assert "broken.yaml:" in load_error(tmp_path / "broken.yaml")
    (tmp_path / "twice.yaml").write_text("model: {layers: 2}\nmodel: {layers: 3}\n")
    assert "model" in load_error(tmp_path / "twice.yaml")
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    assert "includes itself" in load_error(tmp_path / "loop.yaml")


def test_only_settings_that_affect_the_result_count_as_changed(small: Path) -> None:
    old = config.load(small)
    new = config.load(small, ["mesh.fsdp=2", "eval.every_steps=3", "train.seed=1"])
    assert config.changed(old, new) == {"train.seed": (0, 1)}


def test_every_setting_is_explained(small: Path) -> None:
    explanations = {explanation.key: explanation for explanation in schema.explain(config.RunConfig)}
    assert all(explanation.description for explanation in explanations.values())
    assert explanations["train.batch_size"].unit == "sequences"
    assert explanations["model.positions"].type.split(" | ")[:3] == ["learned", "sinusoidal", "rotary"]
    assert "optimizer.method.muon.momentum" in explanations


def test_defaults_are_explained_as_yaml_writes_them() -> None:
    explanations = {explanation.key: explanation for explanation in schema.explain(config.RunConfig)}
    for explanation in explanations.values():
        assert not {"None", "True", "False"} & {explanation.default, *explanation.type.split(" | ")}
    scaling = explanations["model.positions.rotary.scaling"]
    assert (scaling.type, scaling.default) == ("linear | dynamic | llama3 | yarn | null", "null")
    expert = explanations["model.feedforward.moe.expert"]
    assert (expert.type, expert.default) == ("mlp | glu | null", "null")
    assert explanations["model.tied"].default == "true"


def test_the_items_of_a_list_are_explained_with_their_settings() -> None:
    explanations = {explanation.key: explanation for explanation in schema.explain(config.RunConfig)}
    evaluators = explanations["eval.evaluators"]
    assert (evaluators.type, evaluators.default) == (
        "list of validation | tasks | perplexity | few_shot | blimp | samples | cloze | attention_map | memorisation",
        "[]",
    )
    assert explanations["eval.evaluators.N.few_shot.tasks"].default == "required"
    assert explanations["model.pattern.N.attention.local.window"].default == "256"
    assert explanations["data.mixture.N.name"].default == "required"


def test_help_and_config_errors_do_not_import_jax(small: Path) -> None:
    code = "import sys, t5x_lite.cli, t5x_lite.config, t5x_lite.models.config; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


TEXT_PIECES = (
    *("1", "e", "5", ".", "-", "+", "_", "0", "x", "nan", "inf", "0o7", "0b1", "1:30", "2001-01-01", "no", "null", "~"),
    *("$", "{", "}", "${", "\\", "\\\\", "env:HOME", "'", '"', ":", "#", " ", "\n", "\t", "[", "]", "?", "???", "!"),
    *("&", "*", "|", ">", "%", "@", "`", ",", "=", "<<", "\r", "é", "\u2028", "\x85", "\x07", "\ufeff", "\U0001f600"),
)


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_read_back_as_it_was_written(small: Path, tmp_path: Path, seed: int) -> None:
    """Texts of signs that YAML or OmegaConf read as numbers, dates, interpolations, comments and so on."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices(TEXT_PIECES, k=rng.randint(0, 7))) for _ in range(100)]
    loaded = config.load(small).model_copy(update={"tasks": tuple(texts)})
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(loaded))
    assert tuple(schema.read(config.RunConfig, path).values["tasks"]) == loaded.tasks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.sample_prompt=[MASK] is",
            "signs of YAML, as in train.sample_prompt='\"[MASK] is\"'",
        ),
        (
            "train.sample_prompt=no",
            "is False, expected a text; on the command line, quote it twice",
        ),
        (
            "eval.evaluators=[{cloze: {files: a, pattern: '{b} {mask}', verbalizer: {0: c, 1: d}}}]",
            'verbalizer`: the name 0 is not a text; write it in quotes, as in {"0": …}',
        ),
        ("train.sample_prompt=a # b", "YAML takes the part from # on as a comment"),
        ("train.sample_prompt=\udcff", "is not valid UTF-8"),
        ("optimizer.learning_rate=.inf", "should be a finite number"),
        ("optimizer.learning_rate=.nan", "should be a finite number"),
        ("train.steps=3000000000", "should be less than or equal to 2147483647"),
        ("train.seed=4294967296", "should be less than or equal to 2147483647"),
        ("train.peak_flops=0", "should be greater than 0"),
        ("train.hang_minutes=1e30", "should be less than or equal to 1000000"),
        ("model.prefix_lm=true", "objective causal trains no prefix; set objective=prefix"),
        ("task_form=head", "task_form: head is the form of `tasks`, and the run has none"),
        ("tasks=[sst2,cola,sst2]", "tasks: sst2 is named twice"),
        (
            "eval.evaluators=[{blimp: {files: a}}, {blimp: {files: b}}, {blimp: {files: a}}]",
            "eval.evaluators.2 repeats another one",
        ),
        ("data.workers=10000", "should be less than or equal to 1024"),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_a_remedy(small: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        config.load(small, [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("switch/base_8", [], "routers of experts balance the tokens of all rows: set it to microbatch"),
        (
            "finetune/quickstart_contrastive",
            ["objective=retrieval", "tasks=[retrieval]"],
            "objective retrieval compares all rows of a batch",
        ),
        ("finetune/quickstart_contrastive", [], "objective contrastive compares all rows of a batch"),
    ],
)
def test_replicas_do_not_sum_once_in_a_step_what_needs_all_rows(name: str, overrides: list[str], message: str) -> None:
    config.load(name, overrides)
    with pytest.raises(UserError, match=message):
        config.load(name, [*overrides, "train.data_reduction=step"])


def test_a_misspelt_group_is_of_the_command_line(small: Path) -> None:
    assert load_error(small, "trian.steps=5") == "command line: unknown key `trian`; did you mean `train`?"


def test_bases_that_are_shared_are_read_once(small: Path, tmp_path: Path) -> None:
    """Each of 40 files has the next one as its base twice: 2^40 paths lead to the last."""
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"base: [{number + 1}.yaml, {number + 1}.yaml]\n")
    (tmp_path / "40.yaml").write_text(small.read_text())
    assert config.load(tmp_path / "0.yaml").model == config.load(small).model


def test_a_file_of_many_unknown_keys_is_refused_in_one_line(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text(f"base: {small}\n" + "".join(f"key{number}: 1\n" for number in range(500)))
    with pytest.raises(UserError, match=r"unknown key `key0`.* and 480 more"):
        config.load(path)


@pytest.mark.parametrize("content", ["[1, 2]", "model: 3", "a: [", "[" * 3000, "{}"])
def test_a_run_to_adapt_whose_config_is_damaged_is_refused(small: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"^adapt\.from .*config\.yaml: "):
        config.load(small, [f"adapt.from={tmp_path}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('run_dir=""', "`run_dir` is '': string should have at least 1 character"),
        ('data.cache_dir=""', "`data.cache_dir` is '': string should have at least 1 character"),
        ('checkpoint.folder=""', "`checkpoint.folder` is '': string should have at least 1 character"),
        ('run_dir="a\\0b"', "run_dir has a NUL character"),
        ('data.cache_dir="a\\0b"', "cache_dir has a NUL character"),
        ('data.files=["a", "b\\0"]', "files has a NUL character"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused(override: str, message: str, tiny_config: Path) -> None:
    with pytest.raises(UserError, match=message):
        config.load(tiny_config, [override])


def test_the_home_folder_is_expanded_and_local_folders_are_not_in_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load(tiny_config, ["run_dir=~/runs/a"]).run_dir == f"{tmp_path}/runs/a"
    assert config.load(tiny_config, ["run_dir=gs://bucket/a"]).run_dir == "gs://bucket/a"
    assert config.load(tiny_config, ["data.cache_dir=gs://bucket/cache"]).data.cache_dir == "gs://bucket/cache"
    with pytest.raises(SystemExit) as stop:
        main(["report", "runs/a", "--to", "gs://bucket/a.png"])
    assert stop.value.code == 2
    assert "gs://bucket/a.png must be a local path" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "true", "some words"])
def test_a_file_that_is_one_value_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert f"expected a mapping of settings at the top, found '{text}'" in load_error(path)


@pytest.mark.parametrize(
    ("written", "kinds"), [(None, ()), ("dense", (Dense(),)), ({"local": {"window": 4}}, (Local(window=4),))]
)
def test_runs_of_earlier_versions_have_one_attention_of_the_decoder_or_null(
    written: object, kinds: tuple[AttentionKind, ...]
) -> None:
    sizes = {"family": "encoder_decoder", "layers": 2, "embed": 16, "heads": 2}
    model = ModelConfig.model_validate({**sizes, "decoder_attention": written})
    assert model.decoder_attention == kinds


def test_the_scaling_of_positions_is_read_under_its_earlier_names() -> None:
    settings = {"factor": 4.0, "original_length": 64, "fast": 30.0, "slow": 2.0, "whole_pairs": False}
    scaling = Rotary.model_validate({"stretch": {"yarn": settings}}).scaling
    assert scaling == YarnScaling(factor=4.0, original_length=64, beta_fast=30.0, beta_slow=2.0, truncate=False)
    assert Rotary.model_validate({"stretch": None}) == Rotary()
    assert Rotary.model_validate({"stretch": "llama3"}).scaling == Llama3Scaling()


@pytest.mark.parametrize("objective", ["[classify]", "5"])
def test_an_objective_of_a_wrong_type_is_refused_beside_tasks_too(small: Path, objective: str) -> None:
    assert "`objective` is" in load_error(small, "tasks=sst2", f"objective={objective}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("run_dir=a", "branch.from=./a"), "branch.from: ./a is the run_dir of this run; choose another run_dir"),
        (
            ("run_dir=a", "distillation.teacher=a"),
            "distillation.teacher: a is the run_dir of this run",
        ),
        (
            ("data.files=[]", "data.mixture=[{name: a, files: x, weight: 1}, {name: b, files: y}]"),
            "give every source a weight or none; b has none",
        ),
        (
            ("data.files=x", "data.mixture=[{name: a, files: x}]"),
            "not both; files=[] takes back those of a base config",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(small: Path, overrides: tuple[str, ...], message: str) -> None:
    assert message in load_error(small, *overrides)


UNWEIGHTED = "data.mixture=[{name: a, files: x}, {name: b, files: y}]"
WEIGHTED = "data.mixture=[{name: a, files: x, weight: 1}, {name: b, files: y, weight: 2}]"


@pytest.mark.parametrize(
    ("override", "others", "reason"),
    [
        ("data.mixture_by=tokens", (), "the run has no data.mixture"),
        ("data.mixture_alpha=0.3", (), "the run has neither data.mixture nor tasks"),
        ("data.mixture_alpha=0.3", (WEIGHTED,), "every source of data.mixture has a weight"),
        ("data.mixture_limit=7", (), "the run has no tasks"),
        ("data.columns=[text,label]", (), "the run has no tasks"),
        (
            "data.validation_by=position",
            ("data.validation_files=x",),
            "the validation text is that of data.validation_files",
        ),
        (
            "data.validation_by=position",
            ("data.files=x", "data.format=tfds", "data.validation_split=test"),
            "the validation text is that of data.validation_split",
        ),
        (
            "data.validation_by=position",
            ("data.validation_files=x", "tasks=sst2"),
            "the validation records of tasks are separate",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(small: Path, override: str, others: tuple[str, ...], reason: str) -> None:
    key = override.partition("=")[0]
    message = f"command line: `{key}` has no effect, because {reason}; remove it"
    assert load_error(small, override, *others) == message
    config.load(small, others)


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.mixture_by=tokens", WEIGHTED),
        ("data.mixture_alpha=0.3", UNWEIGHTED),
        ("data.mixture_alpha=0.3", "tasks=[sst2,cola]"),
        ("data.mixture_limit=7", "data.columns=[text,label]", "tasks=sst2"),
        ("data.validation_by=position",),
        ("data.mixture_by=examples", "data.mixture_alpha=1", "data.columns=[]"),
    ],
)
def test_a_setting_with_an_effect_or_of_the_default_is_accepted(small: Path, overrides: tuple[str, ...]) -> None:
    config.load(small, overrides)


def test_the_best_metric_of_a_shipped_config_is_for_its_own_tasks(small: Path) -> None:
    changed = config.load(
        "finetune/bert_sst2", ["adapt=null", "tasks=cola", "model={family: encoder, layers: 2, embed: 8, heads: 2}"]
    )
    assert changed.checkpoint.best_metric == "eval/sst2/accuracy"
    message = load_error(small, "checkpoint.best_metric=eval/sst2/accuracy")
    assert "no evaluator of the run reports eval/sst2/accuracy" in message


def test_settings_of_shipped_configs_and_of_runs_may_have_no_effect(small: Path, tmp_path: Path) -> None:
    """The shipped one waits for the languages of a mixture; that of a run was written before it was refused."""
    assert config.load("mt5/small", ["data.files=x"]).data.mixture_alpha == 0.3
    written = SMALL + "data: {files: x, mixture_alpha: 0.3}\n"
    small.write_text(written)
    assert load_error(small) == (
        f"{small}:3: `data.mixture_alpha` has no effect, because the run has neither data.mixture nor tasks; remove it"
    )
    run = tmp_path / "config.yaml"
    run.write_text(written + "checkpoint: {best: highest}\n")
    assert config.load(run).data.mixture_alpha == 0.3
    assert "`data.mixture_by` has no effect" in load_error(run, "data.mixture_by=tokens")


def test_the_highest_loss_is_not_the_best(small: Path) -> None:
    message = "`checkpoint.best` is highest, and checkpoint.best_metric is eval/loss, whose highest value is the worst"
    assert load_error(small, "checkpoint.best=highest").startswith(f"command line: {message}")
    config.load(small, ["checkpoint.best=highest", "checkpoint.best_metric=eval/accuracy"])
    child = small.with_name("child.yaml")
    child.write_text("base: [small.yaml, base/finetune_bert]\nadapt: null\n")
    assert message in load_error(child)


@pytest.mark.parametrize(
    ("eval_steps", "checkpoint_steps", "steps", "rare"),
    [(5, 4, 60, True), (6, 4, 60, True), (4, 12, 60, False), (12, 4, 60, False), (5, 60, 60, False)],
)
def test_checkpoints_that_are_seldom_evaluated_are_told(
    small: Path, eval_steps: int, checkpoint_steps: int, steps: int, rare: bool
) -> None:
    intervals = [f"eval.every_steps={eval_steps}", f"checkpoint.every_steps={checkpoint_steps}", f"train.steps={steps}"]
    told = best_checkpoint_notice(config.load(small, intervals))
    assert (told is not None) == rare
    if told is not None:
        by_hand = [step for step in range(1, steps) if step % eval_steps == 0 and step % checkpoint_steps == 0]
        assert f"among those of every {by_hand[0]} steps" in told
        assert best_checkpoint_notice(config.load(small, [*intervals, "checkpoint.keep_best=0"])) is None


def test_a_problem_of_several_settings_is_where_the_command_line_has_set_one_of_them(small: Path) -> None:
    message = "`model`: embed 8 is not a multiple of heads 3; change one of them or give `head_dim`"
    assert load_error(small, "model.heads=3") == f"command line: {message}"
    small.write_text(SMALL.replace("heads: 2", "heads: 3"))
    assert load_error(small, "train.seed=1") == f"{small}:1: {message}"
    assert load_error(small, "model.heads=2", "optimizer.warmup_steps=9", "train.steps=3") == (
        "command line: optimizer.warmup_steps 9 is more than train.steps 3"
    )


def test_a_run_whose_evaluations_rank_no_checkpoint_says_so(small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config.dump(config.load(small)))
    settings = [f"adapt={{from: {tmp_path}, method: reference}}", "tasks=verified", "data.files=none.jsonl"]
    run = config.load(small, [*settings, "objective={grpo: {verifier: contains, answer_len: 4}}"])
    told = best_checkpoint_notice(run)
    assert told is not None
    assert "no evaluator of the run reports eval/loss" in told
    assert "eval/verified/reward" in told


def test_the_state_of_xlnets_last_token_is_that_of_a_text(tmp_path: Path) -> None:
    """Yang et al. 2019, §2.5: the input is [A, SEP, B, SEP, CLS]."""
    (tmp_path / "config.yaml").write_text(config.dump(config.load("xlnet/base")))
    run = config.load("finetune/bert_sst2", [f"adapt.from={tmp_path}"])
    assert run.model.head is not None
    assert run.model.head.pool == "last"


def test_of_components_of_two_kinds_the_kinds_are_named(small: Path) -> None:
    masked = "model={family: encoder, positions: {rotary: {theta: 5000}}, output_transform: true}"
    new = config.load(small, [masked, "objective=masked"])
    differences = config.changed(config.load(small), new)
    assert differences["objective"] == ("causal", "masked")
    assert differences["model.positions"] == ("learned", "rotary")
    assert differences["model.output_transform"] == (False, True)
    assert not any(key.startswith(("objective.", "model.positions.")) for key in differences)
    theta = config.load(small, [masked.replace("5000", "6000"), "objective=masked"])
    assert config.changed(new, theta) == {"model.positions.rotary.theta": (5000.0, 6000.0)}


def test_a_mixture_says_how_to_take_back_what_a_base_config_sets(small: Path) -> None:
    mixture = "data.mixture=[{name: a, files: x, document: line}]"
    message = load_error(small, "data.document=paragraph", mixture)
    assert 'document must be set in each of its sources alone; document="file" takes back' in message
    config.load(small, ["data.document=paragraph", mixture, 'data.document="file"'])
