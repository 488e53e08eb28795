"""Files are whole or not there, and read back as they were; what is damaged gets one sentence."""

from __future__ import annotations

import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyllm.backend.half import BFLOAT16
from tinyllm.formats import atomic, safetensors_file
from tinyllm.formats.safetensors_file import CODES, read, read_header, write

dtypes = st.sampled_from([d for d in CODES if d != BFLOAT16])
arrays = dtypes.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.dictionaries(names, arrays, max_size=5))
def test_a_round_trip_changes_no_bit(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("f") / "a.safetensors"
    write(path, state, {"made by": "a test"})
    back, metadata = read(path)
    assert set(back) == set(state) and all(same(back[k], state[k]) for k in state)
    assert metadata == {"format": "pt", "made by": "a test"}
    assert {k: v[1] for k, v in read_header(path).items()} == {k: v.shape for k, v in state.items()}


@given(st.dictionaries(names, arrays, min_size=1, max_size=5))
def test_the_library_reads_it_and_writes_the_same_bytes(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("f")
    write(folder / "ours", state)
    theirs = safetensors.numpy.load_file(folder / "ours")
    assert all(same(theirs[k], state[k]) for k in state)
    safetensors.numpy.save_file(state, folder / "theirs", {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_layouts_and_byte_orders_do_not_matter(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    write(tmp_path / "a", {"t": x.T, "s": x[::2, ::-3], "big": x.astype(">f4")})
    back, _ = read(tmp_path / "a")
    assert np.array_equal(back["t"], x.T) and np.array_equal(back["s"], x[::2, ::-3]) and np.array_equal(back["big"], x)


def test_bfloat16_bits_survive(tmp_path):
    bits = np.arange(0, 65536, 7, dtype=np.uint16)  # NaN payloads among them
    write(tmp_path / "a", {"w": bits.view(BFLOAT16)})
    assert read_header(tmp_path / "a")["w"] == ("BF16", bits.shape)
    assert np.array_equal(read(tmp_path / "a")[0]["w"].view(np.uint16), bits)


def test_bfloat16_bits_are_taken_for_nothing_else(tmp_path):
    write(tmp_path / "a", {"w": np.ones(3, np.uint16).view(BFLOAT16)})
    w = read(tmp_path / "a")[0]["w"]
    for use in (lambda: w.astype(np.float32), lambda: w + w, lambda: np.add(w, 1), lambda: np.asarray(w, np.float64)):
        with pytest.raises((TypeError, ValueError)):
            use()


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([None]), np.zeros(2, np.complex128), 3.0])
def test_what_cannot_be_stored_is_named(tmp_path, bad):
    with pytest.raises(TypeError, match="offender"):
        write(tmp_path / "a", {"offender": bad})
    assert not os.listdir(tmp_path)


@given(st.data())
def test_a_truncated_file_is_one_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "w.safetensors"
    write(path, {"a": np.ones((3, 4), np.float32), "b": np.arange(5)})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match="w.safetensors"):
        read(path)


@given(st.data())
def test_a_flipped_bit_is_an_error_or_another_readable_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "w.safetensors"
    write(path, {"a": np.ones((3, 4), np.float32), "b": np.arange(5)})
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    whole[data.draw(st.integers(0, 7 + length))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        read(path)
    except ValueError as error:
        assert "w.safetensors" in str(error)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a torch file", b"\x80\x02pickle", b"hello", b"\xff" * 100])
def test_foreign_files(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="w.pt"):
        read(tmp_path / "w.pt")


def test_a_missing_file_and_a_missing_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    write(tmp_path / "a", {"x": np.ones(1)})
    with pytest.raises(KeyError, match="y"):
        read(tmp_path / "a", ["y"])


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "w"
    write(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write(path, {"a": np.ones(3)})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["w"] and path.read_bytes() == before


def test_a_failure_half_way_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic.write_whole(tmp_path / "x") as file:
        file.write(b"half")
        raise RuntimeError
    assert not os.listdir(tmp_path)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="no folder"):
        write(tmp_path / "missing" / "w", {"a": np.zeros(1)})
    with pytest.raises(OSError, match="is a folder"):
        write(tmp_path, {"a": np.zeros(1)})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot make the folder"):
        atomic.make_folder(tmp_path / "file" / "sub")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="not run: root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"):
        write(tmp_path / "w", {"a": np.zeros(1)})
    tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="not run: links and modes are POSIX's")
def test_links_are_followed_and_modes_are_ordinary(tmp_path):
    write(tmp_path / "real", {"a": np.zeros(1)})
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", {"a": np.ones(1)})
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "real")[0]["a"][0] == 1


def test_reading_maps_nothing(tmp_path):
    write(tmp_path / "a", {"x": np.ones(1000)})
    x = safetensors_file.read(tmp_path / "a")[0]["x"]
    assert x.flags.owndata or x.base.flags.owndata
    x += 1  # and so it may be written to
