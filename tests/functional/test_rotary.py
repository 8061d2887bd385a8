import pytest
import torch

from lightning_mvrec.functional import rotate


def test_a_product_depends_on_the_distance_of_its_steps_only():
    torch.manual_seed(0)
    query_d, key_d = torch.randn(8), torch.randn(8)
    query_Td, key_Td = rotate(query_d.expand(300, 8)), rotate(key_d.expand(300, 8))
    product_TT = query_Td @ key_Td.T
    for distance in (0, 1, 7, 100):
        along = product_TT.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
    assert (product_TT[0, 0] - product_TT[7, 0]).abs() > 1e-2


def test_lengths_of_vectors_stay():
    x_Td = torch.randn(2, 3, 50, 6)
    torch.testing.assert_close(rotate(x_Td).norm(dim=-1), x_Td.norm(dim=-1))


def test_angles_of_bfloat16_vectors_are_not_rounded():
    x_Td = torch.ones(1000, 2)
    torch.testing.assert_close(rotate(x_Td.bfloat16()).float(), rotate(x_Td), rtol=0, atol=2e-2)


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="an even number of channels to be rotated, got 3"):
        rotate(torch.ones(2, 3))
