"""Shards keep what was written, byte for byte, and refuse what is damaged or hostile with one line."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from stylepairs.datagen.pairs import manifest, shards
from stylepairs.datagen.pairs.record import Pair, split_of
from stylepairs.datagen.shell import decode
from stylepairs.datagen.shell.errors import InputError


def test_pairs_read_back_as_they_were_written(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "a", count=6)
    pairs = list(shards.read_pairs(tmp_path / "a", accepted_only=False))
    assert [pair.record.id for pair in pairs] == [f"{i:06d}" for i in range(6)]
    for pair in pairs:
        assert pair.before.shape == (16, 16, 3)
        assert pair.mask.shape == (16, 16)
        assert pair.w_before.dtype == np.float16
        assert [n.shape for n in pair.noise] == [(4, 4), (8, 8), (8, 8)]
        np.testing.assert_array_equal(pair.after[pair.mask == 0], pair.before[pair.mask == 0])
    assert pairs[2].record.reasons == ["hair_delta_e 20 > 8"]
    assert pairs[2].record.figures["hair_delta_e"] == 20.0


def test_equal_pairs_make_equal_bytes(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "a")
    synthetic_pairs(tmp_path / "b")
    for name in ("pairs-00000.tar", "pairs-00001.tar", "manifest.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_only_accepted_pairs_and_one_split_are_read_when_asked(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=40)
    assert all(record.accepted for record in shards.read_index(tmp_path))
    assert [pair.record for pair in shards.read_pairs(tmp_path)] == shards.read_index(tmp_path)
    assert len(shards.read_index(tmp_path)) < 40
    train = shards.read_index(tmp_path, accepted_only=False, split="train")
    val = shards.read_index(tmp_path, accepted_only=False, split="val")
    assert len(train) + len(val) == 40
    assert len(train) > len(val)


def test_split_is_nine_to_one_and_depends_on_the_portrait_alone():
    sides = [split_of(f"{i:064x}") for i in range(2000)]
    assert 0.07 < sides.count("val") / 2000 < 0.13
    # Of portraits that others hold already: another rule would train on people that were held out.
    assert [index for index, side in enumerate(sides[:60]) if side == "val"] == [17, 27, 46, 47]


def test_one_pair_is_found_by_its_id_even_when_rejected(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path)
    assert shards.read_pair(tmp_path, "000005").record.accepted is False
    only = shards.read_pair(tmp_path, "000004", parts=("before",))
    assert only.before is not None
    assert only.after is None
    with pytest.raises(InputError, match="has no pair 000099"):
        shards.read_pair(tmp_path, "000099")
    with pytest.raises(InputError, match="not a pair id"):
        shards.read_pair(tmp_path, "../../x")


def test_tars_are_read_without_a_manifest_and_a_stale_manifest_is_not_trusted(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=8, shard_size=4)
    whole = shards.read_index(tmp_path, accepted_only=False)
    (tmp_path / "pairs-00001.tar").unlink()
    assert shards.read_index(tmp_path, accepted_only=False) == whole[:4]
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    assert shards.read_index(tmp_path, accepted_only=False) == whole[:4]


def test_a_shard_that_is_newer_than_the_manifest_is_read_itself(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    pair = shards.read_pair(tmp_path, "000000")
    path = tmp_path / "pairs-00000.tar"
    size = path.stat().st_size
    shards.write_shard(path, [replace(pair, record=replace(pair.record, portrait="portrait_999"))])
    assert path.stat().st_size == size
    assert shards.read_index(tmp_path)[0].portrait == "portrait_999"
    shards.update_manifest(tmp_path)
    assert shards.read_index(tmp_path)[0].portrait == "portrait_999"


def test_a_manifest_is_written_only_where_there_is_none_of_these_shards(tmp_path, synthetic_pairs):
    shards.update_manifest(tmp_path)
    assert list(tmp_path.iterdir()) == []
    synthetic_pairs(tmp_path, count=4, shard_size=2)
    path = tmp_path / "manifest.parquet"
    content = path.read_bytes()
    for file in tmp_path.iterdir():
        os.utime(file, ns=(1_000_000, 1_000_000))
    shards.update_manifest(tmp_path)
    assert path.stat().st_mtime_ns == 1_000_000
    path.unlink()
    shards.update_manifest(tmp_path)
    assert path.read_bytes() == content


def test_one_newer_shard_among_older_ones_makes_the_manifest_stale(tmp_path, synthetic_pairs, monkeypatch):
    synthetic_pairs(tmp_path, count=4, shard_size=2)
    path = tmp_path / "manifest.parquet"
    monkeypatch.setattr(shards, "scan_shard", lambda path: [])
    assert len(shards.read_index(tmp_path, accepted_only=False)) == 4
    os.utime(tmp_path / "pairs-00001.tar", ns=(path.stat().st_mtime_ns + 1,) * 2)
    assert shards.read_index(tmp_path, accepted_only=False) == []


def test_a_manifest_of_another_layout_is_one_clear_line(tmp_path, synthetic_pairs):
    import pyarrow as pa
    import pyarrow.parquet as pq

    synthetic_pairs(tmp_path, count=1)
    metadata = pq.read_schema(tmp_path / "manifest.parquet").metadata
    pq.write_table(pa.table({"id": ["x"]}).replace_schema_metadata(metadata), tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match=r"damaged manifest .*the shards suffice"):
        shards.read_index(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", None), ("id", 1), ("id", "../x"), ("shard", "../pairs-00000.tar"), ("shard", 0), ("degree", "x"),
        ("accepted", None), ("params", None), ("params", "[]"), ("params", "{"), ("params", 5), ("parts", None),
        ("parts", 3), ("parts", [None]), ("parts", [{"name": None, "offset": 0, "bytes": 0}]), ("parts", [{"x": 1}]),
        ("parts", [{"name": "before", "offset": -1, "bytes": 0}]), ("reasons", [None]), ("figure_hair_delta_e", "x"),
        ("parents", [{"id": "x"}]), ("parents", 1), ("split", "test"), ("seed", -1), ("seed", 0.5),
    ],
)  # fmt: skip
def test_a_manifest_with_values_that_cannot_be_is_one_clear_line(tmp_path, synthetic_pairs, column, value):
    import pyarrow as pa
    import pyarrow.parquet as pq

    synthetic_pairs(tmp_path, count=2)
    path = tmp_path / "manifest.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value, value])), path)
    with pytest.raises(InputError, match=r"damaged manifest .*the shards suffice") as caught:
        shards.read_index(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_an_older_version_is_read(tmp_path, synthetic_pairs):
    import pyarrow.parquet as pq

    synthetic_pairs(tmp_path, count=2)
    path = tmp_path / "manifest.parquet"
    whole = shards.read_index(tmp_path)
    pq.write_table(pq.read_table(path).drop_columns(["parents", "source_digest"]), path)
    assert shards.read_index(tmp_path) == whole


def test_a_bug_in_reading_the_manifest_surfaces_as_itself(tmp_path, synthetic_pairs, monkeypatch):
    def bug(row):
        raise AttributeError("a bug")

    synthetic_pairs(tmp_path, count=1)
    monkeypatch.setattr(manifest, "_record", bug)
    with pytest.raises(AttributeError, match="a bug"):
        shards.read_index(tmp_path)


def test_a_tar_is_readable_by_webdataset(tmp_path, synthetic_pairs):
    import webdataset as wds

    synthetic_pairs(tmp_path, count=4)
    samples = list(wds.WebDataset(str(tmp_path / "pairs-00000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["000000", "000001", "000002", "000003"]
    assert {"before.png", "after.png", "mask.png", "latents.npz", "noise.npz", "json"} <= samples[0].keys()
    assert json.loads(samples[0]["json"])["feature"] == "hair_color"


@pytest.mark.parametrize("keep", [0, 100, 5000, -10240, -700])
def test_a_truncated_tar_is_one_clear_line(tmp_path, synthetic_pairs, keep):
    synthetic_pairs(tmp_path, count=3)
    path = tmp_path / "pairs-00000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    if keep == -700:
        return  # only padding was lost: nothing of the pairs
    with pytest.raises(InputError, match=r"pairs-00000.tar: damaged shard .*delete it and build again") as caught:
        list(shards.read_pairs(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1])
def test_a_tar_is_whole_up_to_its_two_last_blocks_of_zeros(tmp_path, synthetic_pairs, count):
    synthetic_pairs(tmp_path, count=1)
    pair = shards.read_pair(tmp_path, "000000")
    path = tmp_path / "pairs-00000.tar"
    shards.write_shard(path, [pair][:count])
    with tarfile.open(path) as tar:
        end = max((-(-(member.offset_data + member.size) // 512) * 512 for member in tar), default=0)
    content = path.read_bytes()
    path.write_bytes(content[: end + 1024])
    assert len(shards.scan_shard(path)) == count
    path.write_bytes(content[: end + 512])
    with pytest.raises(InputError, match="damaged shard"):
        shards.scan_shard(path)


def test_a_shard_whose_last_member_fills_its_blocks_needs_every_byte(tmp_path, synthetic_pairs):
    path = tmp_path / "pairs-00000.tar"
    synthetic_pairs(tmp_path / "made", count=1)
    with tarfile.open(tmp_path / "made" / "pairs-00000.tar") as tar:
        text = tar.extractfile("000000.json").read()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("000000.json")
        info.size = 1024
        tar.addfile(info, io.BytesIO(text.ljust(1024)))
    content = path.read_bytes()[: 512 + 1024 + 1024]
    path.write_bytes(content)
    assert [record.id for record in shards.scan_shard(path)] == ["000000"]
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="truncated"):
        shards.scan_shard(path)


@pytest.mark.parametrize("damage", [b"\xff", bytes(tarfile.BLOCKSIZE)], ids=["garbled", "zeroed"])
def test_a_header_that_cannot_be_read_loses_no_pairs_unseen(tmp_path, synthetic_pairs, damage):
    synthetic_pairs(tmp_path, count=4, shard_size=4)
    path = tmp_path / "pairs-00000.tar"
    with tarfile.open(path) as tar:
        at = next(member.offset for member in tar if member.name.startswith("000002."))
    content = bytearray(path.read_bytes())
    content[at : at + len(damage)] = damage
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pairs-00000\.tar: damaged shard \(a header cannot be read\)"):
        shards.scan_shard(path)


def test_folders_are_named_by_text_as_commands_name_them(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path)
    wanted, url = shards.read_index(tmp_path), f"file://{tmp_path}"
    assert wanted == shards.read_index(str(tmp_path)) == shards.read_index(url)
    assert next(shards.read_pairs(url)).record == wanted[0]
    assert shards.read_pair(url, wanted[1].id).before is not None
    with pytest.raises(InputError, match="unknown kind of URL"):
        shards.read_index("http://host/pairs")


def test_pairs_and_shards_stay_in_order_where_their_numbers_grow_a_digit(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path / "a", count=4, shard_size=4)
    pairs = list(shards.read_pairs(tmp_path / "a", accepted_only=False))
    ids = [shards.pair_id(999_998 + index) for index in range(4)]
    renamed = [replace(pair, record=replace(pair.record, id=id)) for pair, id in zip(pairs, ids, strict=True)]
    (tmp_path / "b").mkdir()
    shards.write_shard(tmp_path / "b" / shards.shard_name(99_999), renamed)
    shards.write_shard(tmp_path / "b" / shards.shard_name(100_000), pairs)
    assert [record.id for record in shards.scan_shard(tmp_path / "b" / "pairs-99999.tar")] == ids
    assert [path.name for path in shards.shard_paths(tmp_path / "b")] == ["pairs-99999.tar", "pairs-100000.tar"]


def test_members_carry_no_time_and_anyone_may_read_them(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    with tarfile.open(tmp_path / "pairs-00000.tar") as tar:
        assert {(member.mode, member.mtime, member.uid, member.uname) for member in tar} == {(0o644, 0, 0, "")}


def test_one_latent_alone_is_not_written(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    whole = shards.read_pair(tmp_path, "000000")
    for half in (replace(whole, w_after=None), replace(whole, w_before=None)):
        shards.write_shard(tmp_path / "pairs-00000.tar", [half])
        assert "latents" not in shards.scan_shard(tmp_path / "pairs-00000.tar")[0].parts


@pytest.mark.parametrize(
    "name", ["../evil.before.png", "/etc/passwd", "000001.before.exe", "000000/before.png", "0000٠1.json"]
)
def test_a_tar_with_foreign_names_is_refused(tmp_path, name):
    with tarfile.open(tmp_path / "pairs-00000.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match="unexpected member"):
        shards.read_index(tmp_path)


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "pairs-00000.tar", "w") as tar:
        for text in (b"abc", b"xyz"):
            info = tarfile.TarInfo("000000.before.png")
            info.size = 3
            tar.addfile(info, io.BytesIO(text))
    with pytest.raises(InputError, match="two members"):
        shards.read_index(tmp_path)


def test_a_link_in_a_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "pairs-00000.tar", "w") as tar:
        info = tarfile.TarInfo("000000.before.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(InputError, match="unexpected member"):
        shards.read_index(tmp_path)


def test_garbled_pixels_are_one_clear_line(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    path = tmp_path / "pairs-00000.tar"
    record = shards.read_index(tmp_path)[0]
    data = bytearray(path.read_bytes())
    for part, (offset, size) in record.parts.items():
        garbled = bytearray(data)
        garbled[offset + 8 : offset + size] = bytes(size - 8)
        path.write_bytes(garbled)
        with pytest.raises(InputError, match="pair 000000 cannot be read"):
            shards.read_pair(tmp_path, "000000", parts=(part,))


def test_a_png_that_claims_to_be_huge_is_not_decoded(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    path = tmp_path / "pairs-00000.tar"
    offset, _ = shards.read_index(tmp_path)[0].parts["before"]
    data = bytearray(path.read_bytes())
    data[offset + 16 : offset + 24] = (60000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(InputError, match="60000 x 60000"):
        shards.read_pair(tmp_path, "000000")


def hostile_npy(shape: str, descr: str = "<f2", content: bytes = bytes(96)) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(data: bytes, compression: int = zipfile.ZIP_STORED, name: str = "w0.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


DAMAGED_NPZ = {
    "claims 2^45 items": zipped(hostile_npy(f"({2**45},)")),
    "claims less than it holds": zipped(hostile_npy("(2, 2)")),
    "negative": zipped(hostile_npy("(-6, -8)")),
    "items without a size": zipped(hostile_npy(f"({2**45},)", "|V0", b"")),
    "objects": zipped(hostile_npy("(12,)", "|O")),
    "nested shape": zipped(hostile_npy("(" * 4000 + ")" * 4000)),
    "another format": zipped(b"\x93NUMPY\x09\x00" + hostile_npy("(48,)")[8:]),
    "no array": zipped(b"text", name="w0.txt"),
    "compressed in another way": zipped(hostile_npy("(48,)"), zipfile.ZIP_LZMA),
    "deflated bomb": lambda: zipped(bytes(300 << 20), zipfile.ZIP_DEFLATED),  # a second's work, for its test alone
    "no zip": b"PK\x05\x06" + bytes(10),
}


@pytest.mark.parametrize("case", DAMAGED_NPZ)
def test_arrays_that_are_not_what_they_claim_are_one_clear_line(tmp_path, synthetic_pairs, monkeypatch, case):
    synthetic_pairs(tmp_path, count=1)
    content = DAMAGED_NPZ[case]
    damaged = content() if callable(content) else content
    monkeypatch.setattr(shards, "encode_npz", lambda **arrays: damaged)
    pair = shards.read_pair(tmp_path, "000000")
    shards.write_shard(tmp_path / "pairs-00000.tar", [pair])
    for part in ("latents", "noise"):
        with pytest.raises(InputError, match="pair 000000 cannot be read") as caught:
            shards.read_pair(tmp_path, "000000", parts=(part,))
        assert "\n" not in str(caught.value)


def test_checked_arrays_read_back_from_content_and_path(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "name": np.array(["b", "cd"]),
        "none": np.zeros((0, 2)),
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    for source in (tmp_path / "x.npz", (tmp_path / "x.npz").read_bytes()):
        found = decode.decode_npz(source)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(decode.Damaged, match="oversized"):
        decode.decode_npz(tmp_path / "x.npz", max_bytes=100)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "null", "[]", '{"provenance": []}', "{}", '"x"', "1e999", "9" * 5000, "\ud800"],
)
def test_hostile_details_are_one_clear_line(tmp_path, text):
    write_details(tmp_path, text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"damaged shard .*delete it and build again") as caught:
        shards.read_index(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("figures", []), ("degree", 10**400), ("params", 1), ("reasons", 7)])
def test_details_of_the_wrong_kind_are_one_clear_line(tmp_path, synthetic_pairs, key, value):
    synthetic_pairs(tmp_path, count=1)
    with tarfile.open(tmp_path / "pairs-00000.tar") as tar:
        details = json.load(tar.extractfile("000000.json"))
    write_details(tmp_path, json.dumps(details | {key: value}).encode())
    with pytest.raises(InputError, match="damaged shard"):
        shards.scan_shard(tmp_path / "pairs-00000.tar")


def write_details(folder, data: bytes) -> None:
    with tarfile.open(folder / "pairs-00000.tar", "w") as tar:
        info = tarfile.TarInfo("000000.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def test_a_folder_without_pairs_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no such folder of pairs"):
        shards.read_index(tmp_path / "none")
    with pytest.raises(InputError, match="no finished shard"):
        shards.read_index(tmp_path)


def test_a_rejected_pair_without_pixels_is_kept_with_its_reason(tmp_path, synthetic_pairs):
    synthetic_pairs(tmp_path, count=1)
    whole = shards.read_pair(tmp_path, "000000")
    record = replace(whole.record, accepted=False, reasons=["not finite"], figures={"outside_psnr_db": float("nan")})
    shards.write_shard(tmp_path / "pairs-00000.tar", [Pair(record, before=whole.before)])
    shards.write_manifest(tmp_path)
    pair = shards.read_pair(tmp_path, "000000")
    assert pair.after is None
    assert pair.record.figures == {"outside_psnr_db": None}


def test_a_bug_in_reading_a_record_surfaces_as_itself(tmp_path, synthetic_pairs, monkeypatch):
    def bug(*arguments):
        raise AttributeError("a bug")

    synthetic_pairs(tmp_path, count=1)
    monkeypatch.setattr(shards, "decode_record", bug)
    with pytest.raises(AttributeError, match="a bug"):
        shards.scan_shard(tmp_path / "pairs-00000.tar")
