"""Archives from elsewhere: what is in them is read, what is odd or damaged is refused."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from resnext_jax.data.builders import archives
from resnext_jax.errors import DataError
from tests.data.raw import write_tar

MAX_BYTES = 10_000
FILES = {"a/1.bin": b"one" * 400, "a/2.bin": b"", "3.bin": bytes(range(256)) * 8}


def read_all(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    with archives.open_tar(path) as tar:
        return {
            member.name: archives.read(tar, member)
            for member in archives.files(tar, path, max_bytes)
        }


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


def write_member(path: Path, member: tarfile.TarInfo) -> None:
    """An archive of one good file and then a member without contents."""
    with tarfile.open(path, "w") as tar:
        good = tarfile.TarInfo("good")
        good.size = 3
        tar.addfile(good, io.BytesIO(b"abc"))
        tar.addfile(member)


@pytest.mark.parametrize("name", ["files.tar", "files.tar.gz"])
def test_reads_files_in_order(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / name, FILES)
    found = read_all(tmp_path / name)
    assert found == FILES
    assert list(found) == list(FILES)


def test_reads_an_archive_without_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "files.tar", {})
    assert read_all(tmp_path / "files.tar") == {}


def test_passes_folders_over(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    write_member(tmp_path / "files.tar", folder)
    assert read_all(tmp_path / "files.tar") == {"good": b"abc"}


def test_reads_an_archive_in_an_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "inner.tar", FILES)
    path = tmp_path / "outer.tar"
    write_tar(path, {"first": b"1", "inner.tar": (tmp_path / "inner.tar").read_bytes()})
    with archives.open_tar(path) as tar:
        _, member = archives.files(tar, path, 10**6)
        inside = path / member.name
        with archives.open_tar(inside, tar.extractfile(member)) as inner:
            found = {
                file.name: archives.read(inner, file)
                for file in archives.files(inner, inside, MAX_BYTES)
            }
    assert found == FILES


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "/etc/passwd"])
def test_refuses_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_member(tmp_path / "bad.tar", tarfile.TarInfo(name))
    assert "unsafe path" in refusal(tmp_path / "bad.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_refuses_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("bad")
    member.type = kind
    member.linkname = "good"
    write_member(tmp_path / "bad.tar", member)
    assert "a link or a device" in refusal(tmp_path / "bad.tar")


def test_refuses_an_absurd_size(tmp_path: Path) -> None:
    member = tarfile.TarInfo("bad")
    member.size = 10**12
    (tmp_path / "bad.tar").write_bytes(member.tobuf())
    assert "claims 1,000,000,000,000 bytes, more than the 10,000" in refusal(tmp_path / "bad.tar")


def test_takes_the_largest_size_and_no_more(tmp_path: Path) -> None:
    write_tar(tmp_path / "files.tar", {"x": b"12345"})
    assert read_all(tmp_path / "files.tar", max_bytes=5) == {"x": b"12345"}
    with pytest.raises(DataError, match="claims 5 bytes, more than the 4"):
        read_all(tmp_path / "files.tar", max_bytes=4)


# Three headers of a block each, contents of three, none and four blocks: where they begin.
CUTS = {
    "in a header": 100,
    "between header and contents": 512,
    "in the contents": 1500,
    "between two members": 2048,
    "before the last contents": 3072,
    "in the last contents": 4000,
    "before the end mark": 5120,
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_refuses_an_archive_that_is_cut(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.tar"
    write_tar(path, FILES)
    whole = path.read_bytes()
    assert whole[5120:5632] == bytes(512)  # the end mark
    assert whole[5119] == 255  # the last byte of the last file
    path.write_bytes(whole[:cut])
    assert "is not a whole tar archive" in refusal(path)


def test_refuses_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tar"
    write_tar(path, FILES)
    damaged = bytearray(path.read_bytes())
    damaged[2048 + 5] ^= 1  # in the name of the second file
    path.write_bytes(damaged)
    assert "is not a whole tar archive (its header at byte 2,048 is damaged)" in refusal(path)


@pytest.mark.parametrize("keep", [30, 0.5, -20, -4])
def test_refuses_a_compressed_archive_that_is_cut(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.tar.gz"
    write_tar(path, FILES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refusal(path)


def test_refuses_a_compressed_archive_with_a_damaged_checksum(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tar.gz"
    write_tar(path, FILES)
    damaged = bytearray(path.read_bytes())
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    refusal(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404 Not Found</html>", b"x" * 5000, gzip.compress(b"y" * 5000)],
    ids=["empty", "short", "long", "compressed"],
)
def test_refuses_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "not.tar").write_bytes(data)
    assert "is not a whole tar archive" in refusal(tmp_path / "not.tar")


def test_tells_that_an_archive_is_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.tar")


def test_tells_that_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    assert "cannot be read (Is a directory)" in refusal(tmp_path / "folder.tar")
