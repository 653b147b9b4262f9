import torch
from torch.nn import functional

from fs_runtime.benchmarks.flops import flops, matmul_peak


def test_a_matrix_product_counts_two_operations_for_each_pair() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_attention_counts_as_its_two_products() -> None:
    q = torch.ones(2, 4, 16, 8)  # (B, heads, T, width)
    assert flops(lambda: functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (2 * 4) * 16 * 16 * 8


def test_a_convolution_counts_its_window() -> None:
    layer = torch.nn.Conv2d(3, 8, 4, stride=4, bias=False)
    image = torch.ones(1, 3, 16, 16)
    assert flops(lambda: layer(image)) == 2 * (4 * 4) * (3 * 4 * 4) * 8


def test_the_peak_is_above_what_a_thin_product_reaches() -> None:
    device = torch.device("cpu")
    assert matmul_peak(device, torch.float32, rounds=2) > 1e8  # a tenth of a percent of any processor's
