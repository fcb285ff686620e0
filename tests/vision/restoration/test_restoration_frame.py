import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError
from moeapps.vision.restoration.frame import Attention, RestorationFrame, pad_to
from moeapps.vision.restoration.moe_vit import MoEViT
from moeapps.vision.restoration.mofme import MoFME
from moeapps.vision.restoration.restoration_vit import RestorationViT

SMALL = {
    "embed_dim": 16,
    "patch_size": 4,
    "num_heads": 2,
    "head_dim": 8,
    "head_channels": 4,
    "tail_channels": (8, 8),
}
MODELS = {
    "vit": lambda: RestorationViT(**SMALL),
    "moe": lambda: MoEViT(3, top_k=2, **SMALL),
    "token": lambda: MoFME(3, top_k=2, **SMALL),
    "image": lambda: MoFME(3, routing="image", **SMALL),
    "uncertain": lambda: MoFME(3, top_k=2, uncertainty={"p": 0.2, "mode": "temper"}, **SMALL),
    "static": lambda: MoFME(3, kind="static", site="hidden", residual_learning=True, **SMALL),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(16, 32), (17, 23), (5, 40), (1, 1), (2, 3)])
def test_any_size_comes_back_in_its_range(name, size):
    model = MODELS[name]().eval()
    restored = model(torch.rand(2, 3, *size))
    assert restored.shape == (2, 3, *size)
    assert restored.isfinite().all()
    assert restored.min() >= 0
    assert restored.max() <= 1


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_one_is_a_row_of_the_batch(name):
    torch.manual_seed(0)
    model, images = MODELS[name]().eval(), torch.rand(3, 3, 12, 20)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-6, rtol=1e-5)


def test_squares_land_where_their_tokens_are():
    """A wide image: the released un-patching swaps its sides."""
    frame = RestorationFrame([], **SMALL)
    p, channels = frame.patch_size, 8
    features = torch.arange(2 * 5.0).view(1, 1, 2, 5)
    frame.unpatch = torch.nn.Linear(1, p * p * channels)
    with torch.no_grad():
        frame.unpatch.weight.fill_(1000)
        frame.unpatch.bias.copy_(torch.arange(p * p * channels))
    grid = frame._to_grid(features)
    assert grid.shape == (1, channels, 2 * p, 5 * p)
    for row, column, c in [(0, 0, 0), (1, 2, 3), (5, 9, 1), (7, 19, 7)]:
        token = (row // p) * 5 + column // p
        inside = ((row % p) * p + column % p) * channels + c
        assert grid[0, c, row, column] == 1000 * token + inside


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    attention = Attention(16, 2, 12, dropout=0.1).eval()
    x = torch.randn(2, 7, 16)
    q, k, v = (x @ attention.qkv.weight.T).split(24, -1)
    out = []
    for head in (slice(0, 12), slice(12, 24)):
        a = (q[..., head] @ k[..., head].transpose(1, 2) * 12**-0.5).softmax(-1)
        out.append(a @ v[..., head])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(out, -1)))


def test_residual_learning_adds_the_change_and_clamps_in_eval_only():
    torch.manual_seed(0)
    model = RestorationViT(residual_learning=True, dropout=0.0, **SMALL)
    with torch.no_grad():
        model.tail[-1].weight.zero_()
        model.tail[-1].bias.fill_(0.7)
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model(images), images + 0.7)
    torch.testing.assert_close(model.eval()(images), (images + 0.7).clamp(max=1))


def test_padding_reflects_where_it_can():
    x = torch.arange(6.0).view(1, 1, 1, 6)
    assert pad_to(x, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]  # one row: repeated
    x = torch.arange(20.0).view(1, 1, 4, 5)
    torch.testing.assert_close(pad_to(x, 4), F.pad(x, (0, 3, 0, 0), mode="reflect"))
    assert pad_to(x[..., :4], 4).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("name", ["moe", "token", "image", "uncertain", "static"])
def test_aux_and_explain_tell_what_every_block_decided(name):
    model, images = MODELS[name]().eval(), torch.rand(2, 3, 10, 20)
    restored, aux = model(images, return_aux=True)
    torch.testing.assert_close(restored, model(images))
    assert len(aux["routing"]) == 2
    for routing, shares in zip(aux["routing"], model.explain(images), strict=True):
        routing.check()
        assert shares.shape == (2, 3, 3, 5)
        torch.testing.assert_close(shares.sum(1), torch.ones(2, 3, 5))


def test_a_network_without_experts_explains_nothing():
    model = MODELS["vit"]()
    assert model(torch.rand(1, 3, 8, 8), return_aux=True)[1] == {"routing": []}
    assert model.explain(torch.rand(1, 3, 8, 8)) == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
def test_what_is_no_batch_of_colour_images_is_refused(shape):
    with pytest.raises(ArgumentError, match="expected float images"):
        MODELS["vit"]()(torch.rand(shape))
    with pytest.raises(ArgumentError):
        MODELS["vit"]()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_every_routing_learns_from_an_image():
    for name in ("moe", "token", "image", "uncertain", "static"):
        torch.manual_seed(0)
        model = MODELS[name]()
        F.mse_loss(model(torch.rand(2, 3, 12, 12)), torch.rand(2, 3, 12, 12)).backward()
        gates = [p for n, p in model.named_parameters() if ".gate." in n]
        assert len(gates) == 4
        assert all(p.grad.any() for p in gates)
