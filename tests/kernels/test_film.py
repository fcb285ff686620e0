import pytest
import torch

from moeapps.errors import ArgumentError
from moeapps.kernels import film_mix


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same(y, want, leaves):
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(y.pow(2).sum(), leaves), torch.autograd.grad(want.pow(2).sum(), leaves)
    )


def by_hand(x, w, maps, bias):
    """The formula, expert by expert, from its four parts."""
    D, y = x.shape[-1], 0
    for e in range(maps.shape[0]):
        A, B, a, b = maps[e, :D], maps[e, D:], bias[e, :D], bias[e, D:]
        y = y + w[..., e : e + 1] * ((x @ A.T + a) * x + x @ B.T + b)
    return y


@pytest.mark.parametrize("lead", [(6,), (2, 3), (0,)])
@pytest.mark.parametrize("form", ["rows", "reference", None])
def test_weights_per_row_equal_the_formula(lead, form):
    x, w, maps, bias = leaf(*lead, 3), leaf(*lead, 4), leaf(4, 6, 3), leaf(4, 6)
    same(film_mix(x, w, maps, bias, form=form), by_hand(x, w, maps, bias), [x, w, maps, bias])


@pytest.mark.parametrize("between", [(5,), (2, 3), (0,)])
@pytest.mark.parametrize("form", ["images", "rows", "reference", None])
def test_weights_per_image_equal_the_formula(between, form):
    x, w, maps, bias = leaf(2, *between, 3), leaf(2, 4), leaf(4, 6, 3), leaf(4, 6)
    lifted = w.view(2, *[1] * len(between), 4)
    same(film_mix(x, w, maps, bias, form=form), by_hand(x, lifted, maps, bias), [x, w, maps, bias])


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("D", [3, 8])
def test_maps_mixed_in_pieces_without_gradient_equal_the_formula(images, D):
    x, w, maps, bias = leaf(images, 5, D), leaf(images, 4), leaf(4, 2 * D, D), leaf(4, 2 * D)
    with torch.no_grad():
        y, want = film_mix(x, w, maps, bias), by_hand(x, w.unsqueeze(1), maps, bias)
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", [(2,), (2, 5)])
def test_constants_alone_scale_and_shift(shape):
    x, w, bias = leaf(*shape, 3), leaf(2, 4), leaf(4, 6)
    zero = torch.zeros(4, 6, 3, dtype=torch.float64)
    lifted = w.view(2, *[1] * (len(shape) - 1), 4)
    same(film_mix(x, w, None, bias), by_hand(x, lifted, zero, bias), [x, w, bias])


def test_maps_need_no_bias():
    x, w, maps = leaf(5, 3), leaf(5, 4), leaf(4, 6, 3)
    zero = torch.zeros(4, 6, dtype=torch.float64)
    same(film_mix(x, w, maps), by_hand(x, w, maps, zero), [x, w, maps])


@pytest.mark.parametrize(
    ("x", "w", "maps", "form"),
    [
        ((5, 3), (5, 4), (4, 6, 3), "images"),
        ((5, 3), (5, 4), (4, 6, 3), "static"),
        ((5, 3), (5, 4), None, "rows"),
        ((5, 3), (6, 4), (4, 6, 3), None),
        ((5, 3), (5, 4), (4, 3, 3), None),
    ],
)
def test_what_does_not_fit_is_refused(x, w, maps, form):
    with pytest.raises(ArgumentError):
        film_mix(leaf(*x), leaf(*w), None if maps is None else leaf(*maps), form=form)
