"""Writing files: whole or not at all, several together or none, by one process at a time; and where they may go."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mxq.errors import StorageError, of_surroundings
from mxq.storage import locks, writing
from mxq.storage.writing import replacing, write_bytes, write_json, write_text

MEGABYTE = b"x" * 1_000_000


def in_child(function: Callable[[], object]) -> int:
    """The status of a child that runs ``function``: its exit code, or the signal as a negative number."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def signalling(number: signal.Signals, moment: int) -> Callable[[FrameType, str, object], Any]:
    """A trace function that sends this process a signal before the operation ``moment`` of what writes files."""
    came = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in (writing.__file__, locks.__file__, contextlib.__file__):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(came) == moment:
            signal.raise_signal(number)
        return trace

    return trace


class TestDestinations:
    @pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_a_new_file_has_the_mode_that_the_umask_leaves(self, tmp_path: Path, umask: int, wanted: int) -> None:
        before = os.umask(umask)
        try:
            write_text(tmp_path / "a", "x")
        finally:
            os.umask(before)
        assert mode(tmp_path / "a") == wanted

    @pytest.mark.parametrize("wanted", [0o600, 0o444, 0o666])
    def test_a_file_that_is_replaced_keeps_its_mode(self, tmp_path: Path, wanted: int) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(wanted)
        write_text(tmp_path / "a", "new")
        assert (mode(tmp_path / "a"), (tmp_path / "a").read_text()) == (wanted, "new")

    @pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
    def test_a_link_stays_and_leads_to_what_was_written(self, tmp_path: Path, there: bool) -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        if there:
            (folder / "real").write_text("old")
        (tmp_path / "link").symlink_to(folder / "real")
        write_json(tmp_path / "link", {"a": 1})
        assert (tmp_path / "link").is_symlink()
        assert (folder / "real").read_text() == '{\n "a": 1\n}\n'
        assert (names(tmp_path), names(folder)) == (["elsewhere", "link"], ["real"])

    def test_a_pipe_is_written_to(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        write_bytes(tmp_path / "pipe", MEGABYTE)
        reader.join(timeout=60)
        assert read == [MEGABYTE]
        assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
        assert names(tmp_path) == ["pipe"]

    def test_a_pipe_that_nobody_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        os.mkfifo(tmp_path / "pipe")
        monkeypatch.setattr(writing, "PATIENCE", 0.1)
        with pytest.raises(StorageError, match=r"pipe cannot be written: nobody reads this pipe$"):
            write_text(tmp_path / "pipe", "x")

    def test_a_device_is_written_to(self) -> None:
        before = Path("/dev/null").stat()
        write_text("/dev/null", "x")
        assert os.path.samestat(before, Path("/dev/null").stat())
        with pytest.raises(StorageError, match=r"^/dev/full cannot be written: No space left on device \(1 bytes are"):
            write_text("/dev/full", "x")

    @pytest.mark.parametrize("to", ["pipe", "file"])
    def test_its_own_output(self, tmp_path: Path, to: str) -> None:
        """Where stdout is a file, that file must not be replaced: what else is printed would be lost."""
        code = "from mxq.storage.writing import write_text\n"
        code += "print('before'); write_text('/dev/stdout', 'it\\n'); print('after')"
        command = [sys.executable, "-c", code]
        if to == "pipe":
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        else:
            with (tmp_path / "out").open("w") as stream:
                subprocess.run(command, stdout=stream, check=True)
            said = (tmp_path / "out").read_text()
        assert said.splitlines() == ["before", "it", "after"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("folder", "Is a directory"),
            ("none/a", "No such file or directory"),
            ("file/a", "Not a directory"),
            ("x" * 256, "File name too long"),
            ("x" * 255, "File name too long"),  # for its draft
            ("a\0b", "its name has a NUL"),
            ("loop", "Too many levels of symbolic links"),
        ],
    )
    def test_what_is_no_file(self, tmp_path: Path, name: str, reason: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("")
        (tmp_path / "loop").symlink_to("loop")
        before = names(tmp_path)
        with pytest.raises(StorageError, match=reason) as caught:
            write_text(tmp_path / name, "x")
        assert of_surroundings(caught.value)
        assert names(tmp_path) == before
        assert not writing.is_file(tmp_path / name)

    def test_a_long_name(self, tmp_path: Path) -> None:
        write_text(tmp_path / ("x" * 240), "x")
        with locks.alone(tmp_path / ("x" * 240), ""):
            pass
        assert names(tmp_path) == ["x" * 240]

    def test_a_folder_that_cannot_be_written(self) -> None:
        with pytest.raises(StorageError, match=r"^/proc/a cannot be written: "):
            write_text("/proc/a", "x")

    @pytest.mark.parametrize("name", ["pipe", "/dev/null"])
    def test_several_files_cannot_go_where_something_else_is(self, tmp_path: Path, name: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(StorageError, match="it is a pipe or a device"), replacing(tmp_path / "a", tmp_path / name):
            raise AssertionError
        with pytest.raises(StorageError, match="it is a pipe or a device"):
            writing.regular(tmp_path / name)
        assert names(tmp_path) == ["pipe"]


class TestNoRoom:
    def test_the_message_says_what_is_needed_and_nothing_stays(self, tmp_path: Path) -> None:
        said = tmp_path / "said"

        def run() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                write_bytes(tmp_path / "a", MEGABYTE)
            except StorageError as error:
                said.write_text(str(error))

        assert in_child(run) == 0
        needed = "File too large (1,000,000 bytes are needed, a file may have 100,000, see ulimit -f)"
        assert said.read_text() == f"{tmp_path}/a cannot be written: {needed}"
        assert names(tmp_path) == ["said"]


class TestAllOrNone:
    def paths(self, folder: Path, old: str) -> list[Path]:
        paths = [folder / name for name in "abc"]
        for path in paths:
            if path.name in old:
                path.write_text(f"old {path.name}")
        return paths

    def write(self, paths: list[Path]) -> None:
        with replacing(*paths) as drafts:
            for draft in drafts:
                draft.write_text("new")

    def contents(self, folder: Path) -> dict[str, str]:
        return {p.name: p.read_text() for p in folder.iterdir()}

    @pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
    @pytest.mark.parametrize("old", ["abc", "ab", "c", ""])
    @pytest.mark.parametrize("fails", [1, 2, 3])
    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["I/O", "Ctrl-C"])
    def test_where_one_cannot_take_its_place_all_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, old: str, fails: int, error: BaseException
    ) -> None:
        paths, rename, count = self.paths(tmp_path, old), Path.replace, 0
        before = self.contents(tmp_path)

        def replace(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == fails:
                raise error
            return rename(self, target)

        def no_links(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        if not links:
            monkeypatch.setattr(os, "link", no_links)
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises((StorageError, KeyboardInterrupt), match=r"Input/output error$|^$"):
            self.write(paths)
        assert self.contents(tmp_path) == before
        monkeypatch.undo()
        self.write(paths)
        assert self.contents(tmp_path) == dict.fromkeys("abc", "new")

    def test_one_file_interrupted_after_it_took_its_place_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.replace

        def replace(self: Path, target: Path) -> None:
            rename(self, target)
            raise KeyboardInterrupt

        (tmp_path / "a").write_text("old")
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "a", "new")
        assert self.contents(tmp_path) == {"a": "new"}

    def test_one_file_that_cannot_be_replaced_does_not_become_what_a_killed_process_had_put_by(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def replace(*_: object) -> None:
            raise OSError(5, "Input/output error")

        (tmp_path / "a").write_text("old")
        locks.beside(tmp_path / "a", "old").write_text("older")
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(StorageError, match="Input/output error"):
            write_text(tmp_path / "a", "new")
        assert (tmp_path / "a").read_text() == "old"

    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    def test_interrupted_at_any_moment_there_is_old_or_new_and_nothing_else(self, tmp_path: Path) -> None:
        """Ctrl-C comes before each of Python's operations in turn, until a run has ended before it comes."""
        moments, interrupted, seen = itertools.count(), True, set[str]()
        while interrupted:
            paths, moment = self.paths(tmp_path, "ab"), next(moments)
            sys.settrace(signalling(signal.SIGINT, moment))
            try:
                self.write(paths)
                interrupted = False
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            found = self.contents(tmp_path)
            assert found in (dict.fromkeys("abc", "new"), {"a": "old a", "b": "old b"}), moment
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            seen.add("new" if "c" in found else "old")
            for path in paths:
                path.unlink(missing_ok=True)
        gc.collect()  # what was interrupted while it was closed warns when it goes
        assert moment > 500
        assert seen == {"old", "new"}

    def test_they_take_their_places_in_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        taken, rename = [], Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, target: (taken.append(target.name), rename(self, target)))
        self.write(self.paths(tmp_path, "ab"))
        assert taken == ["a", "b", "c"]


class TestLocks:
    def test_one_at_a_time_and_the_other_is_named(self, tmp_path: Path) -> None:
        code = "import sys; from pathlib import Path; from mxq.storage import locks\n"
        code += "with locks.alone(Path(sys.argv[1]), ''): print('in', flush=True); sys.stdin.read()"
        path = tmp_path / "s.stats"
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            (tmp_path / "link").symlink_to(path)
            for name in ("s.stats", "link"):
                told = rf"{name} is in use by process {other.pid} \(.*-c.*; give another$"
                with pytest.raises(StorageError, match=told), locks.alone(tmp_path / name, "give another"):
                    raise AssertionError
            locks.tidy(tmp_path)  # what a living process holds stays
            with pytest.raises(StorageError, match="in use"), locks.alone(path, ""):
                raise AssertionError
            with locks.alone(tmp_path / "other", ""):
                pass
            other.kill()
        with locks.alone(path, ""):  # the kernel let go; what is left is taken over
            pass
        assert names(tmp_path) == ["link"]

    def test_a_name_that_none_can_have(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"cannot be used: its name has a NUL"), locks.alone(tmp_path / "\0", ""):
            raise AssertionError
        long = tmp_path / ("x" * 255)
        with pytest.raises(StorageError, match=r"cannot be used: File name too long"), locks.alone(long, ""):
            raise AssertionError

    def test_a_lock_that_somebody_removed_is_not_anothers(self, tmp_path: Path) -> None:
        lock = locks.beside(tmp_path / "a", "lock")
        with locks.alone(tmp_path / "a", "wait"):
            lock.unlink()
            other = locks.claim(lock)
        with other:
            assert other.is_there()

    def test_within_a_process_too(self, tmp_path: Path) -> None:
        with (
            locks.alone(tmp_path, ""),
            pytest.raises(StorageError, match=f"in use by process {os.getpid()} "),
            locks.alone(tmp_path, ""),
        ):
            raise AssertionError
        assert names(tmp_path) == []

    def test_a_child_does_not_keep_its_parents_lock(self, tmp_path: Path) -> None:
        """A loader's worker may outlive the process that forked it."""
        asks, answers = os.pipe(), os.pipe()

        def parent() -> None:
            with locks.alone(tmp_path, ""):
                if os.fork() == 0:
                    os.write(answers[1], b"x")  # it runs: the lock is given up by now
                    os.close(asks[1])
                    os.read(asks[0], 1)  # until the test ends
                    os._exit(0)
                os.read(answers[0], 1)
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(parent) == -signal.SIGKILL
        try:
            with locks.alone(tmp_path, ""):
                pass
        finally:
            for number in (*asks, *answers):
                os.close(number)

    def test_what_a_killed_process_left_goes(self, tmp_path: Path) -> None:
        """When the file is written again, or the folder tidied."""

        def killed() -> None:
            with replacing(tmp_path / "a", tmp_path / "b") as drafts:
                drafts[0].write_bytes(MEGABYTE)
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(killed) == -signal.SIGKILL
        assert len(names(tmp_path)) == 2
        with replacing(tmp_path / "a", tmp_path / "b") as drafts:
            for draft in drafts:
                draft.write_text("x")
        assert names(tmp_path) == ["a", "b"]
        assert in_child(killed) == -signal.SIGKILL
        assert len(names(tmp_path)) == 4
        locks.tidy(tmp_path)
        assert names(tmp_path) == ["a", "b"]

    def test_writers_of_one_file_wait_for_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        second = threading.Thread(target=write_text, args=(tmp_path / "a", "second"))
        with replacing(tmp_path / "a") as (draft,):
            second.start()
            draft.write_text("first")
        second.join(timeout=60)
        assert (tmp_path / "a").read_text() == "second"
        monkeypatch.setattr(writing, "PATIENCE", 0.0)
        with (
            replacing(tmp_path / "a"),
            pytest.raises(StorageError, match=r"a cannot be written: another process is writing it$"),
        ):
            write_text(tmp_path / "a", "third")

    def test_many_processes_write_one_file(self, tmp_path: Path) -> None:
        """Each writes its own letter, 30 times; whatever is there at any moment is of one letter alone."""

        def write(letter: str) -> None:
            for _ in range(30):
                with replacing(tmp_path / "a", tmp_path / "b") as drafts:
                    for draft in drafts:
                        draft.write_text(letter * 10_000)

        pids = []
        for letter in "xyz":
            pid = os.fork()
            if pid == 0:
                try:
                    write(letter)
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            pids.append(pid)
        while pids:
            for name in "ab":
                text = (tmp_path / name).read_text() if (tmp_path / name).exists() else ""
                assert len(set(text)) <= 1
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                assert status == 0
                pids.remove(pid)
        assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
        assert names(tmp_path) == ["a", "b"]


def test_where_files_know_no_locks_they_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with locks.alone(tmp_path, ""):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_errors_that_are_each_others_cause_are_judged_all_the_same() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not of_surroundings(first)
    second.__cause__, second.__context__ = None, OSError(5, "Input/output error")
    assert of_surroundings(first)
