"""Settings of the passages that are put before prompts. Nothing here imports JAX."""

import argparse
from collections.abc import Iterator

from t5x_lite import schema
from t5x_lite.errors import UserError
from t5x_lite.schema import Config, Int, setting

PLACEHOLDERS = ("{passages}", "{prompt}")


class Passages(Config):
    """Passages that are put before prompts."""

    index: str = setting(..., "folder of an index (`t5x-lite index`)", min_length=1)
    retriever: str = setting(..., "run directory of the encoder of the queries", min_length=1)
    count: Int = setting(3, "passages before a prompt, best first", ge=1)
    template: str = setting("{passages}\n\n{prompt}", "what the model reads, of {passages} and {prompt}")

    def problems(self) -> Iterator[str]:
        """Yield an error for a template without its parts."""
        for placeholder in PLACEHOLDERS:
            if self.template.count(placeholder) != 1:
                yield f"template {self.template!r}: expected {placeholder} in it, once"


def passages_of_arguments(options: argparse.Namespace) -> Passages | None:
    """Return the settings of the command line (see `arguments.add_passage_options`); None if no index is named.

    Raises:
        UserError: an option without the others that it needs, or a wrong template.
    """
    if options.index is None:
        for name in ("retriever", "passages", "template"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for --index, which is missing")
        return None
    if not getattr(options, "prompt", True):
        raise UserError("--index puts passages before --prompt, which is missing")
    if options.retriever is None:
        raise UserError("--index needs --retriever RUN, the encoder of the queries")
    values = {"index": str(options.index), "retriever": options.retriever}
    if options.passages is not None:
        values["count"] = options.passages
    if options.template is not None:
        values["template"] = options.template
    return schema.validate(Passages, schema.Sources.of_command_line(values))
