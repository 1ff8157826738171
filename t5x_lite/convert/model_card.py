"""The model card of an export: README.md as the Hugging Face Hub reads it, with a picture of the training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from t5x_lite import config as configuration
from t5x_lite.convert.config_table import ForeignConfig
from t5x_lite.data import hub_datasets
from t5x_lite.data.cleaning.clean_unit import step_name
from t5x_lite.data.config import MixedSource
from t5x_lite.evaluate.report import draw_report
from t5x_lite.files import read_json_object, write_file
from t5x_lite.metrics_file import is_number, step_records
from t5x_lite.models.config import ModelConfig
from t5x_lite.run_dir import Run
from t5x_lite.run_layout import METRICS_FILE

CARD_FILE = "README.md"
PICTURE_FILE = "report.png"
AUTO_CLASSES = {"decoder": "AutoModelForCausalLM", "encoder_decoder": "AutoModelForSeq2SeqLM"}
SENTENCE_LIBRARY = "sentence-transformers"


def write_model_card(run: Run, step: int, folder: Path, config: ForeignConfig, name: str) -> None:
    """Write README.md, and the curves if the run has been trained here.

    Args:
        run: the run.
        step: the step whose weights are exported.
        folder: the folder of the export.
        config: the content of its config.json.
        name: the name by which the export is loaded: of a model of the Hub, or of a folder.
    """
    lines = [line for line in step_records(run.folder / METRICS_FILE) if line["step"] <= step]
    sections = [
        _metadata(run, config),
        f"# {name}\n",
        _introduction(run, step, config),
        _usage(run.config.model, config, name),
        _training(run, lines),
        _data(run),
        _results(lines, run.results_folder(step) / "scores.json"),
    ]
    if lines:
        draw_report([run.folder], folder / PICTURE_FILE)
        sections.append(f"![Training curves]({PICTURE_FILE})\n")
    sections.append(_commands(run, step))
    write_file(folder / CARD_FILE, "\n".join(filter(None, sections)))


def _metadata(run: Run, config: ForeignConfig) -> str:
    """Return the YAML block that the Hub reads."""
    metadata: dict[str, object] = {"library_name": "transformers"}
    if run.config.model.gives_vectors:
        metadata["library_name"] = SENTENCE_LIBRARY
        metadata["pipeline_tag"] = "sentence-similarity"
    elif run.config.model.family == "decoder":
        metadata["pipeline_tag"] = "text-generation"
    names = []
    for source in run.config.data.sources:
        names += [hub_datasets.parse(name).name for name in source.files if name.startswith(hub_datasets.SCHEME)]
    datasets = [name for name in dict.fromkeys(names) if not name.startswith((".", "/", "~"))]
    if datasets:
        metadata["datasets"] = datasets
    metadata["tags"] = ["t5x_lite", "jax", str(config["model_type"])]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"


def _introduction(run: Run, step: int, config: ForeignConfig) -> str:
    kind = run.config.model.family.replace("_", "-")
    origin = f"trained for {step:,} steps by t5x_lite"
    if run.huggingface_config and not step:
        origin = "imported into t5x_lite and exported again"
    return (
        f"A {kind} of {run.spec.parameters:,} parameters, {origin}, as `{config['model_type']}` of Transformers, with "
        f"weights in {config['dtype']}.\n"
    )


def _usage(model: ModelConfig, config: ForeignConfig, name: str) -> str:
    """Return a section with the Python that loads the export."""
    if model.gives_vectors:
        code = f'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("{name}")\n'
        return f"## Use\n\n```python\n{code}```\n"
    architectures = config.get("architectures") or ["AutoModel"]
    loader = AUTO_CLASSES.get(model.family, str(architectures[0]))
    code = f'from transformers import AutoTokenizer, {loader}\n\nmodel = {loader}.from_pretrained("{name}")\n'
    code += f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
    if model.family in AUTO_CLASSES:
        code += 'inputs = tokenizer("…", return_tensors="pt")\nprint(tokenizer.decode(model.generate(**inputs)[0]))\n'
    return f"## Use\n\n```python\n{code}```\n"


def _training(run: Run, lines: Sequence[Mapping[str, object]]) -> str:
    """Return a section with the settings of training that are read first; empty for imported weights."""
    if not lines:
        return ""
    train = run.config.train
    tokens = lines[-1].get("tokens")
    rows = [
        ("steps", f"{lines[-1]['step']:,} of {train.steps:,}"),
        ("tokens", f"{tokens:,}" if isinstance(tokens, int) else "unknown"),
        ("batch", f"{train.batch_size:,} sequences of {train.seq_len:,} tokens"),
        _describe_objective(run),
        *_describe_adaptation(run),
        ("optimizer", _component_name(run, "optimizer", "method")),
        ("learning rate", f"{run.config.optimizer.learning_rate:g}"),
        ("seed", str(train.seed)),
    ]
    return "## Training\n\n" + _table(("setting", "value"), rows)


def _describe_objective(run: Run) -> tuple[str, str]:
    if run.config.tasks:
        return ("tasks", ", ".join(run.config.tasks))
    return ("objective", _component_name(run, "objective"))


def _describe_adaptation(run: Run) -> list[tuple[str, str]]:
    """Return the run that was adapted and the method; empty for a run from random weights."""
    if run.config.adapt is None:
        return []
    return [("adapted run", run.config.adapt.source), ("adaptation", _component_name(run, "adapt", "method"))]


def _component_name(run: Run, *keys: str) -> str:
    """Return the name of a component of the run's config, such as its objective."""
    value: object = run.config.model_dump(mode="json")
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
    if isinstance(value, dict):
        return next(iter(value))
    return str(value)


def _data(run: Run) -> str:
    """Return a section with the sources of text; empty if they are not known."""
    rows = [_describe_source(source) for source in run.config.data.sources if source.files]
    if not rows:
        return ""
    return "## Data\n\n" + _table(("source", "files", "weight", "cleaning"), rows)


def _describe_source(source: MixedSource) -> tuple[str, ...]:
    weight = "by size" if source.weight is None else str(source.weight)
    cleaning = ", ".join(map(step_name, source.cleaning)) or "none"
    return (source.name, ", ".join(f"`{name}`" for name in source.files), weight, cleaning)


def _results(lines: Sequence[Mapping[str, object]], scores_file: Path) -> str:
    """Return a section with the last loss, and the last value of each metric of evaluation."""
    results: dict[str, object] = {}
    for line in lines:
        for name, value in line.items():
            if name == "loss" or name.startswith("eval/"):
                results[name] = value
    if scores_file.is_file():
        results.update(read_json_object(scores_file))
    rows = [(f"`{name}`", _format_number(value)) for name, value in results.items() if is_number(value)]
    if not rows:
        return ""
    note = "\nLosses are those of the objective; `loss` is that of the last batch.\n"
    return "## Results\n\n" + _table(("metric", "value"), rows) + note


def _format_number(value: float) -> str:
    """Return a count with separators, and another number with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _commands(run: Run, step: int) -> str:
    """Return a section with the commands that make the export, and the config."""
    export = f"t5x-lite export hf {run.config.run_dir} FOLDER --step {step}"
    if run.huggingface_config and not step:
        return f"## Commands\n\n```bash\nt5x-lite import hf SOURCE {run.config.run_dir}\n{export}\n```\n"
    config = configuration.dump(run.config)
    return (
        f"## Commands\n\n```bash\nt5x-lite train config.yaml\n{export}\n```\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{config.rstrip()}\n```\n\n</details>\n"
    )
