import pytest
import torch

from freemask.methods.freemask import fuse_cross, fuse_temporal
from freemask.methods.fusing import fuse_latent, fuse_self, token_map
from freemask.methods.released import blend_first
from freemask.words.prompts import align

pytestmark = pytest.mark.numeric

torch.manual_seed(0)


def attention(q, k):
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def test_self_rows_are_blended_maps():
    q0, k0, q1, k1, v = torch.randn(5, 3, 2, 6, 4)
    e = torch.rand(3, 6) > 0.5
    rows = e[:, None, :, None].float()
    expected = (rows * attention(q1, k1) + (1 - rows) * attention(q0, k0)) @ v
    assert torch.allclose(fuse_self(q0, k0, v, attention(q1, k1) @ v, e), expected, atol=1e-6)


def test_blending_keys_equals_blending_probabilities_where_the_mask_is_constant():
    q0, k0, q1, k1, v = torch.randn(5, 6, 2, 3, 4)
    m = (torch.rand(6, 1) > 0.5).expand(6, 3)
    rows = m[:, None, :, None].float()
    expected = (rows * attention(q1, k1) + (1 - rows) * attention(q0, k0)) @ v
    fused = attention(fuse_temporal(q0, q1, m), fuse_temporal(k0, k1, m)) @ v
    assert torch.allclose(fused, expected, atol=1e-6)


def tokens(source, edit):
    a, b = source.split(), edit.split()
    alignment = align(source, edit)
    one = [tuple((i + 1,) for i in range(len(x))) for x in (a, b)]
    return token_map(alignment.source_of, alignment.changed, one[0], one[1], 8)


def test_the_same_prompt_maps_to_itself():
    same = tokens("a red car", "a red car")
    assert same.source_of.tolist() == list(range(8))
    assert not same.changed.any()


def test_columns_follow_the_words():
    refined = tokens("a car drives", "a blue car drives")
    assert refined.source_of.tolist() == [0, 1, -1, 2, 3, 4, 5, 6]
    assert refined.changed.tolist() == [False, False, True, False, False, False, False, False]


def test_the_end_of_a_longer_prompt_serves_to_the_last_column():
    """EOS for EOS and the padding after it, of which the source's has one less."""
    assert tokens("a blue car drives", "a car drives").source_of.tolist() == [0, 1, 3, 4, 5, 6, 7, 7]


def test_words_of_unequal_length_share_columns():
    found = token_map((0, 1), (1,), ((1,), (2, 3)), ((1,), (2, 3, 4)), 8)
    assert found.source_of.tolist() == [0, 1, 2, 3, 3, 4, 5, 6]


@pytest.mark.parametrize("fuse", [blend_first, fuse_cross])
def test_cross_keeps_the_source_outside_and_the_edit_inside(fuse):
    a0, a1 = torch.rand(2, 3, 2, 6, 8).softmax(-1)
    columns = tokens("a car drives", "a blue car drives")
    m = torch.zeros(3, 6, dtype=torch.bool)
    m[:, 3:] = True
    out = fuse(a0, a1, m, columns)
    assert torch.allclose(out[:, :, :3, 3], a0[:, :, :3, 2])
    assert torch.allclose(out[:, :, :3, 2], a1[:, :, :3, 2])  # "blue" has no source
    inside = a1[:, :, 3:, 2] if fuse is blend_first else a1[:, :, 3:, 3]
    assert torch.allclose(out[:, :, 3:, 3], inside)


def test_latents_outside_are_the_sources():
    source, edit = torch.randn(2, 1, 4, 2, 3, 3)
    e = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert torch.equal(fuse_latent(source, edit, e), source)
    assert torch.allclose(fuse_latent(source, edit, ~e), edit, atol=1e-6)
