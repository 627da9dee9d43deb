"""Digests of files: read once for fingerprints, again where an artefact is verified."""

import os
from pathlib import Path

import pytest

from pipeline.core import artefact
from pipeline.core.artefact import Manifest, changed_file, describe_outputs, file_sha256, folder_state, remove


def test_a_file_is_read_once_for_fingerprints_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    read_sha256 = artefact.read_sha256
    monkeypatch.setattr(artefact, "read_sha256", lambda path: (read.append(path), read_sha256(path))[1])
    file = tmp_path / "weights"
    file.write_text("one")
    before = folder_state(tmp_path)
    assert folder_state(tmp_path) == before == [["weights", file_sha256(file)]] and read == [file]
    os.utime(file, ns=(0, 0))
    file.with_suffix(".new").write_text("two")
    file.with_suffix(".new").rename(file)  # another inode of the same size
    assert folder_state(tmp_path) != before and len(read) == 2
    for text in ("six", "three"):
        file.write_text(text)
        os.utime(file, ns=(1, 1))  # another time, then another size
        assert file_sha256(file) == read_sha256(file)
    assert len(read) == 4


def test_verification_reads_bytes_whatever_is_known_about_the_file(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    outputs, known, stat = describe_outputs(tmp_path), file_sha256(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(file) == known  # to the file system it is the same
    assert changed_file(tmp_path, outputs) == "weights"
    assert describe_outputs(tmp_path) != outputs


def test_a_manifest_holds_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token := "hf_" + "Zq7" * 11)
    Manifest("data", "failed", "f", {}, {"mirror": token}, metrics={"texts": [token]}, error=f"E: {token}").write(
        tmp_path
    )
    assert token not in (tmp_path / "manifest.json").read_text()


def test_a_link_to_a_folder_is_removed_and_the_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "merge").symlink_to(tmp_path / "disk")
    remove(tmp_path / "merge")
    assert list(tmp_path.iterdir()) == [tmp_path / "disk"]
