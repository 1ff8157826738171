"""The tokenizer and the data of a run, opened by its config."""

from pathlib import Path

from t5x_lite.config import RunConfig
from t5x_lite.config_files import SHIPPED_CONFIGS
from t5x_lite.data.open_data import open_data
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_config import TokenizerFile
from t5x_lite.data.tokenizer_files import from_file
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE, read_chat_template
from t5x_lite.data.training_data import PipelineSettings, TrainingData
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.errors import UserError
from t5x_lite.local_copies import local_file, local_path
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.run_dir import load_stored_tokenizer
from t5x_lite.run_weights import source_run
from t5x_lite.storage import file_exists


def open_tokenizer(config: RunConfig) -> Tokenizer:
    """Return the tokenizer of a run.

    A run keeps the tokenizer that it began with, because its weights belong to the ids of that one. A new run takes the
    tokenizer of the run that it adapts, unless `adapt.new_tokenizer` is set, or else loads or trains the one that its
    config describes; its chat template is that of `data.chat_template`, if that is set.

    Raises:
        UserError: `tokenizer.file.path` holds another tokenizer than the run began with; no text to train one on.
    """
    run_dir = local_path(str(config.run_dir))
    stored = load_stored_tokenizer(run_dir)
    if stored is None:
        return _new_tokenizer(config)
    if isinstance(config.tokenizer, TokenizerFile) and file_exists(config.tokenizer.path):
        configured = from_file(config.tokenizer)
        if configured.fingerprint != stored.fingerprint:
            raise UserError(
                f"tokenizer.file.path {config.tokenizer.path}: is not the tokenizer that {config.run_dir} began "
                "with; restore the file, or choose another run_dir"
            )
    return stored


def _new_tokenizer(config: RunConfig) -> Tokenizer:
    """Return the tokenizer that a new run begins with."""
    if config.adapt is not None and not config.adapt.new_tokenizer:
        tokenizer = source_run(config).tokenizer
    else:
        tokenizer = load_or_train_tokenizer(config.tokenizer, config.data, tables_as_text=bool(config.tasks))
    if config.data.chat_template:
        template = read_chat_template(_template_path(config.data.chat_template))
        tokenizer.settings = {**tokenizer.settings, CHAT_TEMPLATE: template}
    return tokenizer


def _template_path(name: str) -> Path:
    """Return the path of a chat template: a file, or a shipped template by its name, such as `tulu`."""
    shipped = SHIPPED_CONFIGS / "chat" / f"{name}.jinja"
    path = local_file(name)
    if shipped.is_file() and not path.is_file():
        return shipped
    return path


def open_run_data(config: RunConfig, tokenizer: Tokenizer) -> TrainingData:
    """Open the data that a run's config names.

    Raises:
        UserError: no text or no records, or a tokenizer that the objective cannot use.
    """
    return open_data(pipeline_settings(config, tokenizer), tokenizer, config.tasks)


def example_context(config: RunConfig, tokenizer: Tokenizer) -> ExampleContext:
    """Return the settings of a run that each of its examples depends on."""
    return ExampleContext(
        seq_len=config.train.seq_len,
        vocabulary=tokenizer.vocabulary(),
        family=config.model.family,
        num_virtual_tokens=config.method.num_virtual_tokens,
        start_token=config.model.start_token,
    )


def pipeline_settings(config: RunConfig, tokenizer: Tokenizer) -> PipelineSettings:
    """Return the settings of a run that decide its examples and batches."""
    return PipelineSettings(
        data=config.data,
        objective=config.require_objective(),
        context=example_context(config, tokenizer),
        seed=config.train.seed,
        validation_batch_size=config.eval.batch_size or config.train.batch_size,
        max_validation_batches=config.eval.batches,
        stages=config.stages,
    )
