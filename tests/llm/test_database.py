"""Tapes on file systems of several machines, which share no memory."""

from pathlib import Path

import pytest
from fakes import request

from optimas_jax.core.types import Outcome
from optimas_jax.llm.base import Completion
from optimas_jax.llm.tapes import database
from optimas_jax.llm.tapes.database import is_remote
from optimas_jax.llm.tapes.tape import Tape, TapeError

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/vdb /home/local/fast xfs rw 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw,flock 0 0
//server/share /mnt/a\\040share cifs rw 0 0
bucket /mnt/bucket fuse.gcsfuse rw 0 0
systemd-1 /net autofs rw 0 0
server:/net /net nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/root/run", False),
        ("/dev/shm/run", False),
        ("/home/me/run", True),
        ("/homes/run", False),
        ("/home/local/fast/run", False),
        ("/scratch/run", True),
        ("/mnt/a share/run", True),
        ("/mnt/bucket", True),
        ("/net/run", True),
    ],
)
def test_a_file_system_is_known_by_where_it_is_mounted(path, remote):
    assert is_remote(Path(path), MOUNTS) is remote


def test_without_a_list_of_mounts_a_path_counts_as_local(tmp_path):
    assert not is_remote(tmp_path, "")


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """Mounts a kind of file system at the folder of the test."""

    def mount(kind):
        mounts = tmp_path / "mounts"
        mounts.write_text(f"server:/x {tmp_path} {kind} rw 0 0\n")
        monkeypatch.setattr(database, "_MOUNTS", mounts)

    monkeypatch.setattr(database, "_LOCKED_SECONDS", 0.0)
    return mount


def setting(tape, name):
    return tape._database.connection.execute(f"PRAGMA {name}").fetchone()[0]


def put(tape, text):
    tape.put([(request(text), Completion("x", Outcome.OK, 1, 1))])


def test_a_tape_changes_its_journal_with_the_file_system(tmp_path, mount):
    path = tmp_path / "tape.sqlite"
    local, remote = ("wal", "normal"), ("delete", "exclusive")
    kinds = [("ext4", local), ("nfs4", remote), ("lustre", remote), ("xfs", local)]
    for number, (kind, expected) in enumerate(kinds):
        mount(kind)
        tape = Tape(path)
        assert (setting(tape, "journal_mode"), setting(tape, "locking_mode")) == expected
        put(tape, str(number))
        assert path.with_name("tape.sqlite-shm").exists() is (expected == local)
        assert len(tape) == number + 1
        tape.close()


def test_a_second_user_of_a_tape_on_a_network_is_refused_with_the_way_out(tmp_path, mount):
    mount("nfs")
    tape = Tape(tmp_path / "tape.sqlite")
    put(tape, "a")
    with pytest.raises(TapeError, match=r"locked.*another process uses the tape, wait for its end"):
        Tape(tmp_path / "tape.sqlite")
    tape.close()
    later = Tape(tmp_path / "tape.sqlite")
    assert len(later) == 1
    later.close()
