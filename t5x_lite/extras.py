"""Libraries that are installed only with an extra of this package."""

from importlib.util import find_spec

from t5x_lite.errors import UserError


def require_library(subject: str, module: str, extra: str) -> None:
    """Check that a library is installed.

    Args:
        subject: what needs it; the error begins with this.
        module: the name under which the library is imported.
        extra: the extra that installs it.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(module) is None:
        raise UserError(f"{subject} needs {module}: pip install 't5x_lite[{extra}]'")
