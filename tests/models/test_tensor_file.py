"""Plain reads of safetensors files give what the library wrote."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from spp_cli.models.tensor_file import TensorFile, write_tensors

dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(dtypes, st.lists(st.integers(0, 5), max_size=3)),
    min_size=1,
    max_size=4,
)


@given(tensors, st.integers(0, 99))
def test_what_was_saved_is_read_bit_for_bit(tmp_path_factory, wanted, seed):
    torch.manual_seed(seed)
    saved = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in wanted.items()}
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save_file(saved, path, metadata={"format": "pt"})
    file = TensorFile(path)
    assert sorted(file.names()) == sorted(saved)
    assert file.metadata == {"format": "pt"}
    for name, tensor in saved.items():
        assert file.shape(name) == tuple(tensor.shape)
        assert file.dtype(name) == tensor.dtype
        assert torch.equal(file.read(name), tensor)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = save({"a": torch.randn(3, 4), "b": torch.randn(5)})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            TensorFile(path)
    path.write_bytes(whole)
    assert TensorFile(path).names() == ["a", "b"]


@pytest.mark.parametrize("header", [b"[]", b"5", b"null"])
def test_a_header_that_is_no_object_is_refused(header, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="not a JSON object"):
        TensorFile(path)


def write(path, header, size):
    encoded = header.encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(size))
    return path


def entry(name, *offsets, type_="U8", length=None):
    shape = [offsets[1] - offsets[0] if length is None else length]
    described = {"dtype": type_, "shape": shape, "data_offsets": list(offsets)}
    return f"{json.dumps(name)}: {json.dumps(described)}"


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("a", 0, 4), entry("a", 4, 8)], "has 'a' twice"),
        ([entry("a", 0, 4), entry("b", 2, 8)], "of a and b overlap"),
        ([entry("a", 0, 8), entry("b", 0, 8)], "of a and b overlap"),
        ([entry("a", 0, 3), entry("b", 4, 8)], "of a and b leave a gap"),
        ([entry("a", 1, 8)], "of the header and a leave a gap"),
        ([entry("a", 0, 4), entry("b", 4, 7)], "of b are not the last"),
        ([entry("a", 0, 4), entry("b", 4, 9)], "of b are not all there"),
        ([entry("a", 0, 8, length=7)], "of a are not all there"),
        ([entry("a", 0, 8, type_="F7")], "a is of the unknown type 'F7'"),
    ],
)
def test_a_header_that_the_library_refuses_is_refused(entries, says, tmp_path):
    path = write(tmp_path / "a.safetensors", f"{{{', '.join(entries)}}}", 8)
    with pytest.raises(ValueError, match=says):
        TensorFile(path)
    if "twice" not in says:  # of two the library reads the second
        with pytest.raises(SafetensorError):
            safe_open(path, framework="pt")


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ({"shape": [-2, -4]}, r"a has the shape \[-2, -4\]"),
        ({"shape": [2.0, 4]}, "a has the shape"),
        ({"shape": [True, 8]}, "a has the shape"),
        ({"shape": "ab"}, "a has the shape ab"),
        ({"shape": {"8": 1}}, "a has the shape"),
        ({"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "a has the shape"),
        ({"shape": [2**40, 2**40], "data_offsets": [0, 2**80]}, "a has the shape"),
        ({"data_offsets": [-4, 4]}, "a is at -4 to 4 of the file"),
        ({"data_offsets": [0.0, 8.0]}, "a is at 0.0"),
        ({"data_offsets": [False, 8]}, "a is at False"),
        ({"data_offsets": [0, 4, 8]}, "too many values"),
        ({"dtype": ["U8"]}, "unknown type"),
        ({"dtype": None}, "unknown type"),
    ],
)
def test_odd_numbers_and_types_in_a_header_are_refused(described, says, tmp_path):
    whole = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    path = tmp_path / "a.safetensors"
    TensorFile(write(path, json.dumps({"a": whole}), 8))
    with pytest.raises(ValueError, match=says):
        TensorFile(write(path, json.dumps({"a": whole | described}), 8))


@pytest.mark.parametrize("metadata", [[1], {"a": 1}, {"a": {"b": "c"}}, "x"])
def test_metadata_that_is_not_text_is_refused(metadata, tmp_path):
    path = write(tmp_path / "a.safetensors", json.dumps({"__metadata__": metadata}), 0)
    with pytest.raises(ValueError, match="metadata is not text"):
        TensorFile(path)


def test_a_header_that_is_nested_too_deep_is_refused(tmp_path):
    path = write(tmp_path / "a.safetensors", '{"a":' * 9999 + "1" + "}" * 9999, 0)
    with pytest.raises(ValueError, match="nested too deep"):
        TensorFile(path)


@pytest.mark.parametrize(("type_", "length"), [("U32", 2), ("F8_E8M0", 8), ("F4", 16), ("C64", 1)])
def test_the_types_of_quantized_weights_are_known_by_name(type_, length, tmp_path):
    header = f"{{{entry('a', 0, 8, type_=type_, length=length)}}}"
    file = TensorFile(write(tmp_path / "a.safetensors", header, 8))
    assert file.type_code("a") == type_


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, path)

    def read(name):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_tensors(path, {"a": ((3,), torch.float32)}, read, {})
    assert torch.equal(TensorFile(path).read("a"), torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(100)}, path)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match="ends in the middle of a"):
        file.read("a")
