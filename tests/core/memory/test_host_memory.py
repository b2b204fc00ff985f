"""Memory that a process may use, read from control groups laid out as version 1 and version 2 lay them out."""

import os
from pathlib import Path

import pytest
import torch

from core.memory.host_memory import host_memory_share, kernel_oom_kills, memory_share_bytes

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with 64 GiB available and no limit."""
    mount, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    mount.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: {96 * 2**20} kB\nMemAvailable: {64 * 2**20} kB\n")
    (proc / "self/cgroup").write_text("0::/\n")
    return mount, proc


def limit_group(folder: Path, *, limit: str, used_bytes: int = 0, cache_bytes: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used_bytes}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache_bytes}\n")


def test_without_a_limit_the_machine_decides(machine):
    mount, proc = machine
    limit_group(mount, limit="max")
    assert host_memory_share(mount=mount, proc=proc) == 64 * GIB
    assert host_memory_share(mount=mount, proc=proc, num_processes=4) == 16 * GIB


def test_the_tightest_group_above_the_process_decides(machine):
    mount, proc = machine
    (proc / "self/cgroup").write_text("0::/pod/job/worker\n")
    limit_group(mount / "pod/job/worker", limit="max")
    limit_group(mount / "pod/job", limit=str(8 * GIB))
    limit_group(mount / "pod", limit=str(32 * GIB))
    assert host_memory_share(mount=mount, proc=proc) == 8 * GIB


def test_what_others_use_is_taken_off_but_not_the_page_cache(machine):
    mount, proc = machine
    limit_group(mount, limit=str(8 * GIB), used_bytes=5 * GIB, cache_bytes=2 * GIB)
    assert host_memory_share(mount=mount, proc=proc) == 5 * GIB


def test_version_1_is_understood_and_its_endless_limit_does_not_decide(machine):
    mount, proc = machine
    (proc / "self/cgroup").write_text("4:cpu,cpuacct:/job\n3:memory:/job\n0::/\n")
    folder = mount / "memory/job"
    folder.mkdir(parents=True)
    (mount / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "memory.limit_in_bytes").write_text(f"{6 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{2 * GIB}\n")
    assert host_memory_share(mount=mount, proc=proc) == 4 * GIB


def test_a_group_path_of_the_host_that_the_container_cannot_see_falls_back_to_its_own_root(machine):
    mount, proc = machine
    (proc / "self/cgroup").write_text("0::/kubepods/burstable/pod7\n")
    limit_group(mount, limit=str(3 * GIB))
    assert host_memory_share(mount=mount, proc=proc) == 3 * GIB


def test_a_group_over_its_limit_leaves_nothing_rather_than_less(machine):
    mount, proc = machine
    limit_group(mount, limit=str(GIB), used_bytes=2 * GIB)
    assert host_memory_share(mount=mount, proc=proc) == 0


def test_kernel_kills_are_counted_in_both_versions(machine):
    mount, proc = machine
    assert kernel_oom_kills(mount=mount, proc=proc) == 0
    (mount / "memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    assert kernel_oom_kills(mount=mount, proc=proc) == 3
    (mount / "memory.events").unlink()
    (proc / "self/cgroup").write_text("3:memory:/\n")
    (mount / "memory").mkdir()
    (mount / "memory/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert kernel_oom_kills(mount=mount, proc=proc) == 2


def test_this_machine_gives_a_share_between_nothing_and_all_it_has():
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory_share_bytes(torch.device("cpu")) <= total_bytes
    assert kernel_oom_kills() >= 0


def test_sharing_among_nobody_is_refused():
    with pytest.raises(ValueError, match="num_processes=0"):
        memory_share_bytes(torch.device("cpu"), num_processes=0)
