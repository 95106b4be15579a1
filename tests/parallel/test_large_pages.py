import os
import sys

import pytest

from optimas_jax.parallel.large_pages import use_large_pages


@pytest.fixture
def started(monkeypatch):
    """What was started instead: (program, arguments, tunables)."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append((*call, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return calls


def setting(tmp_path, text):
    path = tmp_path / "enabled"
    path.write_text(text, encoding="ascii")
    return path


def test_asks_where_large_pages_are_given_on_request(tmp_path, started, monkeypatch):
    use_large_pages(setting(tmp_path, "always [madvise] never\n"))
    assert started == [(sys.executable, sys.orig_argv, "glibc.malloc.hugetlb=1")]
    use_large_pages(setting(tmp_path, "always [madvise] never\n"))
    assert len(started) == 1  # it runs with the tunable now
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    use_large_pages(setting(tmp_path, "always [madvise] never\n"))
    assert started[1][2] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n"])
def test_does_nothing_where_there_is_nothing_to_ask_for(tmp_path, started, text):
    use_large_pages(setting(tmp_path, text))
    assert not started


def test_does_nothing_on_other_systems(tmp_path, started, monkeypatch):
    use_large_pages(tmp_path / "absent")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    use_large_pages(setting(tmp_path, "always [madvise] never\n"))
    assert not started


def test_can_be_turned_off(tmp_path, started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    use_large_pages(setting(tmp_path, "always [madvise] never\n"))
    assert not started
