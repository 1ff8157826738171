"""The memory that this process can use."""

from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from t5x_lite.parallel.memory import Memory, host_memory

KIB = 1024


def system_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:        1000 kB\nMemFree:          10 kB\nSwapTotal:        50 kB\n"


@pytest.mark.parametrize(
    ("files", "kibibytes"),
    [
        ({}, 1000 + 50),
        ({"sys/fs/cgroup/memory.max": "max\n"}, 1000 + 50),
        # A container that sees its group as the root, and one whose group has another name.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{300 * KIB}\n"}, 300 + 50),
        ({"proc/self/cgroup": "0::/pod/a\n", "sys/fs/cgroup/memory.max": f"{300 * KIB}\n"}, 300 + 50),
        # The limit of a group holds for the groups inside it.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/memory.max": f"{200 * KIB}\n",
                "sys/fs/cgroup/job/step/memory.max": f"{400 * KIB}\n",
            },
            200 + 50,
        ),
        # Version 1.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/slurm\n",
                "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": f"{100 * KIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            100 + 50,
        ),
    ],
)
def test_memory_is_that_of_the_machine_or_of_the_smallest_control_group(
    files: dict[str, str], kibibytes: int, tmp_path: Path
) -> None:
    root = system_files(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert host_memory(root) == kibibytes * KIB


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(tmp_path: Path) -> None:
    assert host_memory(tmp_path) is None
    Memory("this machine", None, 1).check(1e30, "arrays", "")


def test_devices_that_share_memory_need_it_together() -> None:
    memory = Memory("this machine", 1000, 4)
    memory.check(250, "arrays", "")
    with pytest.raises(UserError, match="arrays take at least 1kB, but this machine has 1kB of memory; buy some"):
        memory.check(251, "arrays", "buy some")
