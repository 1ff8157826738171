"""The findings of `t5x-lite doctor`: collected, as JSON, and as aligned lines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from t5x_lite.doctor import installed
from t5x_lite.doctor.devices import Devices, find_devices
from t5x_lite.doctor.run_checks import Check, check_folder, check_run
from t5x_lite.errors import UserError
from t5x_lite.plugins import load_plugins
from t5x_lite.progress import format_si

Row = tuple[str, str, str]
"""A mark, a name and a text."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation.

    Attributes:
        versions: of this package, Python and the direct dependencies; None if one is not installed.
        extras: what each extra lacks.
        devices: those that JAX sees.
        checks: of a config, or of the current folder.
        problems: everything that is wrong, one line each.
    """

    versions: Mapping[str, str | None]
    extras: Mapping[str, Sequence[str]]
    devices: Devices
    checks: Sequence[Check]
    problems: Sequence[str]

    def as_json(self) -> dict[str, object]:
        """Return the findings as one object; `ok` is true if nothing is wrong."""
        return {"ok": not self.problems, **asdict(self)}


def diagnose(config: Path | None, overrides: Sequence[str]) -> Diagnosis:
    """Look at the installation, and at all that a config needs.

    Args:
        config: the file of a run's config, or the name of a shipped one; None checks the current folder alone.
        overrides: settings that replace those of the config.
    """
    devices = find_devices()
    if config is None:
        checks = [_check_current_folder()]
    else:
        checks = check_run(config, overrides)
    checks = [*checks, *_check_plugins()]
    problems = [f"missing dependency: {name}; pip install t5x_lite" for name in installed.core_problems()]
    if devices.problem:
        problems.append(devices.problem)
    problems += [f"{check.name}: {check.detail}" for check in checks if not check.is_ok]
    return Diagnosis(installed.versions(), installed.extras(), devices, checks, problems)


def _check_current_folder() -> Check:
    try:
        return Check("current folder", True, check_folder("."))
    except UserError as error:
        return Check("current folder", False, str(error))


def _check_plugins() -> list[Check]:
    """Return a check for each component of other packages, or one that fails because of the first broken one."""
    try:
        plugins = load_plugins()
    except UserError as error:
        return [Check("plugins", False, str(error))]
    return [Check(f"plugin {plugin.name}", True, f"{plugin.kind}, of {plugin.package}") for plugin in plugins]


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the findings as aligned lines: versions, devices, extras, checks, and at the end what is wrong."""
    sections = {
        "versions": _version_rows(diagnosis.versions),
        "devices": _device_rows(diagnosis.devices),
        "extras": _extra_rows(diagnosis.extras),
        "checks": [(_mark(check.is_ok), check.name, check.detail) for check in diagnosis.checks],
    }
    all_rows = [row for rows in sections.values() for row in rows]
    width = max(len(name) for _, name, _ in all_rows)
    lines = []
    for title, rows in sections.items():
        lines.append(title)
        for mark, name, text in rows:
            lines.append(f"  {mark:<2}  {name:<{width}}  {text}")
    if diagnosis.problems:
        lines.append("problems")
        lines += [f"  {problem}" for problem in diagnosis.problems]
    else:
        lines.append("no problems")
    return "\n".join(lines)


def _version_rows(versions: Mapping[str, str | None]) -> list[Row]:
    return [(_mark(version is not None), name, version or "not installed") for name, version in versions.items()]


def _device_rows(devices: Devices) -> list[Row]:
    if not devices.count:
        return [(_mark(False), "JAX", devices.problem)]
    memory = ""
    if devices.memory_bytes is not None:
        memory = f", {format_si(devices.memory_bytes)}B"
    return [(_mark(not devices.problem), devices.platform, f"{devices.count} × {devices.kind}{memory}")]


def _extra_rows(extras: Mapping[str, Sequence[str]]) -> list[Row]:
    rows = []
    for name, lacking in extras.items():
        if lacking:
            rows.append(("-", name, f"not installed: {', '.join(lacking)}; pip install 't5x_lite[{name}]'"))
        else:
            rows.append((_mark(True), name, "installed"))
    return rows


def _mark(is_ok: bool) -> str:
    return "ok" if is_ok else "!!"
