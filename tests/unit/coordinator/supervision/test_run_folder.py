import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kilotron.coordinator.supervision.run_folder import RunFolder
from kilotron.errors import ConfigError

SOURCES = Path(__file__).parents[4] / "src"
LEAVING_A_FOLDER = """
import os
from kilotron.coordinator.supervision.run_folder import RunFolder
print(RunFolder.create().path, flush=True)
{end}
"""


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def start_owner(runtime: Path, end: str) -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING_A_FOLDER.format(end=end)],
        env={"PYTHONPATH": str(SOURCES), "XDG_RUNTIME_DIR": str(runtime)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_run_folder_is_private_and_goes_at_the_end(runtime: Path) -> None:
    with RunFolder.create() as folder:
        assert folder.path.parent == runtime
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(folder.socket_path("coordinator"))

    assert list(runtime.iterdir()) == []
    folder.remove()  # again is no error


def test_a_socket_path_that_the_kernel_refuses_is_refused_with_advice(runtime: Path) -> None:
    with RunFolder.create() as folder:
        room = 107 - len(os.fsencode(folder.path)) - 1
        assert len(folder.socket_path("x" * room)) == 107
        with pytest.raises(ConfigError, match=r"108 bytes.* 107: set XDG_RUNTIME_DIR or TMPDIR"):
            folder.socket_path("x" * (room + 1))


def test_without_a_runtime_folder_the_folder_for_temporary_files_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with RunFolder.create() as folder:
        assert folder.path.parent == tmp_path


def test_the_folder_of_a_killed_service_is_removed_by_the_next(runtime: Path) -> None:
    process, stale = start_owner(runtime, "os.kill(os.getpid(), 9)")
    process.communicate()
    (stale / "socket").touch()
    assert stale.is_dir()
    with RunFolder.create() as folder:
        assert list(runtime.iterdir()) == [folder.path]


def test_the_folder_of_a_living_service_stays(runtime: Path) -> None:
    process, other = start_owner(runtime, "input()")
    with RunFolder.create():
        assert other.is_dir()
    process.communicate("\n")


def test_a_service_in_another_pid_namespace_is_told_by_its_lock(runtime: Path) -> None:
    with RunFolder.create() as other:
        (other.path / "owner").write_text('{"pid": 4194303, "start_time": 1}')  # nobody here has that number
        with RunFolder.create():
            assert other.path.is_dir()


def test_a_pid_that_another_process_has_now_does_not_keep_a_folder(runtime: Path) -> None:
    stale = runtime / "kilotron-stale"
    stale.mkdir(mode=0o700)
    (stale / "owner").write_text(f'{{"pid": {os.getpid()}, "start_time": 1}}')
    with RunFolder.create():
        assert not stale.exists()


@pytest.mark.parametrize("owner", ["", "{}", "[]", '{"pid": "x", "start_time": 1}', '{"pid": -1', "\x00"])
def test_a_folder_that_does_not_say_whose_it_is_stays(runtime: Path, owner: str) -> None:
    odd = runtime / "kilotron-odd"
    odd.mkdir(mode=0o700)
    (odd / "owner").write_text(owner)
    with RunFolder.create():
        assert odd.is_dir()


def test_links_and_folders_open_to_others_are_not_touched(runtime: Path, tmp_path: Path) -> None:
    dead = '{"pid": 4194303, "start_time": 1}'
    private, shared = tmp_path / "private", runtime / "kilotron-shared"
    private.mkdir(mode=0o700)
    (private / "owner").write_text(dead)
    (runtime / "kilotron-link").symlink_to(private)
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "owner").write_text(dead)
    with RunFolder.create():
        assert (private / "owner").exists()
        assert shared.is_dir()


def test_a_place_that_cannot_be_written_to_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR or TMPDIR"):
        RunFolder.create()
