"""Keep masks come back from disk bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.errors import ModelError
from spp_cli.sparsity.masks import FILE_NAME, KeepMasks, mask_digest, pack, save_masks, unpack

shapes = st.tuples(st.integers(1, 9), st.integers(1, 17))


def random_mask(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(shapes, st.integers(0, 2**16))
def test_packing_takes_one_bit_a_weight_and_loses_nothing(shape, seed):
    keep = random_mask(shape, seed)
    packed = pack(keep)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-keep.numel() // 8)
    assert torch.equal(unpack(packed, shape), keep)


def test_the_first_weight_is_bit_zero():
    assert pack(torch.tensor([True, False, False, True])).tolist() == [0b1001]


def test_saved_masks_are_read_back_with_their_digest(tmp_path):
    keep = {"b": random_mask((3, 5), 1), "a": random_mask((8, 2), 2)}
    packed = {name: pack(mask) for name, mask in keep.items()}
    digest = save_masks(tmp_path, packed, {name: tuple(mask.shape) for name, mask in keep.items()})
    masks = KeepMasks(tmp_path)
    assert masks.digest == digest
    assert set(masks) == {"a", "b"}
    assert all(torch.equal(masks[name], keep[name]) for name in keep)


def test_equal_masks_make_equal_files(tmp_path):
    packed = {name: pack(random_mask((8, 8), seed)) for seed, name in enumerate("abcd")}
    contents = set()
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_masks(folder, packed, dict.fromkeys(packed, (8, 8)))
        contents.add((folder / FILE_NAME).read_bytes())
    assert len(contents) == 1


def test_the_digest_sees_every_bit_name_and_shape():
    packed, shape = {"a": pack(random_mask((4, 4), 0))}, {"a": (4, 4)}
    digest = mask_digest(packed, shape)
    flipped = {"a": packed["a"].clone()}
    flipped["a"][0] ^= 1
    assert digest != mask_digest(flipped, shape)
    assert digest != mask_digest(packed, {"a": (2, 8)})
    assert digest != mask_digest({"b": packed["a"]}, {"b": (4, 4)})
    assert digest == mask_digest(dict(packed), dict(shape))


def test_a_folder_without_masks_says_what_makes_them(tmp_path):
    with pytest.raises(ModelError, match=r"has no keep_masks.safetensors.*Run: spp prune"):
        KeepMasks(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"q\":", rb"\"p\":"),  # in the description
        (b'"q":', b'"p":'),  # of the tensor
        (b"[3, 8]", b"[3, 9]"),
        (b"[3, 8]", b"null  "),
        (b'"U8"', b'"I8"'),
    ],
)
def test_masks_with_a_changed_header_are_corrupt(old, new, tmp_path):
    save_masks(tmp_path, {"q": pack(random_mask((3, 8), 0))}, {"q": (3, 8)})
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(ModelError, match=r"is corrupt"):
        KeepMasks(tmp_path)


def test_a_corrupt_mask_file_is_named(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"keep_masks.safetensors is corrupt"):
        KeepMasks(tmp_path)
