"""Settings as YAML text that `sources.read` turns back into the same settings."""

import re

import yaml

from t5x_lite.schema.settings import Settings

_INTERPOLATION = re.compile(r"(\\*)\$\{")


class _Dumper(yaml.SafeDumper):
    """Writes strings so that they are read back as they are.

    OmegaConf reads more strings as numbers than YAML 1.1 has, such as 1e5, and `${…}` as an interpolation.
    """


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    escaped = _INTERPOLATION.sub(r"\1\1\\${", text)
    style = None
    if _looks_like_number(escaped) or not escaped.isprintable():
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=style)


_Dumper.add_representer(str, _represent_text)


def _looks_like_number(text: str) -> bool:
    digits = text.replace("_", "")
    try:
        float(digits)
    except ValueError:
        return bool(re.match(r"[-+]?[0-9.][0-9a-fA-FxXoObB.:]*$", digits))
    return True


def dump(values: Settings) -> str:
    """Return nested settings as YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
