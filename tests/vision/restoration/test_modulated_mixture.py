import itertools

import pytest
import torch
import torch.nn.functional as F

from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.gating import record
from moeapps.vision.restoration.modulated_mixture import ModulatedMixture

D, N = 6, 5


def by_hand(m, x, per_image):
    """The definition, expert by expert, on plain parameters."""
    h = F.layer_norm(x, (D,), m.norm.weight, m.norm.bias)
    seen = x.mean(1, keepdim=True) if per_image else x
    logits = seen @ m.gate.score.weight.T + m.gate.score.bias
    if m.top_k:
        kept = logits.topk(m.top_k, -1).indices
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept, logits.gather(-1, kept))
    r = logits.softmax(-1)
    w, b = m.experts.w, m.experts.b
    if w is not None and hasattr(m.star, "a"):
        h = F.gelu(m.star.a(h)) * m.star.b(h)

    def experts(z):
        width, y = z.shape[-1], 0
        for e in range(N):
            scale, shift = b[e, :width], b[e, width:]
            if w is not None:
                scale, shift = z @ w[e, :width].T + scale, z @ w[e, width:].T + shift
            y = y + r[..., e : e + 1] * (scale * z + shift)
        return y

    u = m.ffn.fc1(experts(h)) if m.site == "input" else experts(m.ffn.fc1(h))
    return m.ffn.fc2(F.gelu(u))


FORMS = [
    dict(zip(("kind", "site", "star"), form, strict=True)) | {"routing": routing, "top_k": top_k}
    for form, routing, top_k in itertools.product(
        [
            ("static", "input", False),
            ("static", "hidden", False),
            ("dynamic", "input", False),
            ("dynamic", "input", True),
        ],
        ["token", "image"],
        [0, 2, 3],
    )
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_form_equals_the_loop_in_values_and_gradients(form):
    torch.manual_seed(0)
    mixture = ModulatedMixture(D, N, **form).double().eval()
    mixture.top_k = form["top_k"]
    x = torch.randn(3, 7, D, dtype=torch.float64, requires_grad=True)
    y, want = mixture(x), by_hand(mixture, x, form["routing"] == "image")
    torch.testing.assert_close(y, want, atol=1e-10, rtol=1e-10)
    leaves = [x, *mixture.parameters()]
    cotangent = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, cotangent),
        torch.autograd.grad(want, leaves, cotangent),
        atol=1e-9,
        rtol=1e-9,
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_inference_equals_training_mode_without_dropout(form):
    torch.manual_seed(0)
    mixture = ModulatedMixture(D, N, dropout=0.0, **form)
    x = torch.randn(3, 7, D)
    trained = mixture(x)
    with torch.no_grad():
        torch.testing.assert_close(mixture.eval()(x), trained.detach(), atol=1e-5, rtol=1e-5)


def test_one_expert_starts_as_the_plain_network():
    mixture = ModulatedMixture(D, 1, kind="static").eval()
    x = torch.randn(2, 7, D)
    torch.testing.assert_close(
        mixture(x), mixture.ffn.fc2(F.gelu(mixture.ffn.fc1(mixture.norm(x))))
    )


def test_several_constant_experts_start_apart_so_that_the_router_learns():
    torch.manual_seed(0)
    b = ModulatedMixture(400, 8, kind="static").experts.b
    scale, shift = b.chunk(2, -1)
    assert abs(scale.mean() - 1) < 0.02
    assert abs(shift.mean()) < 0.02
    assert abs(scale.std() - 0.2) < 0.02
    assert abs(shift.std() - 0.2) < 0.02


def test_parameters_per_expert():
    def size(n, **options):
        return sum(p.numel() for p in ModulatedMixture(D, n, **options).parameters())

    assert size(5) - size(4) == 2 * D * D + 3 * D + 1  # with its row of the router and its bias
    assert size(5, kind="static") - size(4, kind="static") == 3 * D + 1


def test_offset_of_the_released_code():
    torch.manual_seed(0)
    mixture = ModulatedMixture(D, 3, star=False, norm=False, compat_offset=True).double().eval()
    x = torch.randn(2, 7, D, dtype=torch.float64)
    r = (x @ mixture.gate.score.weight.T + mixture.gate.score.bias).softmax(-1)
    u = r[..., :1] * F.gelu(x)
    for e in (0, 1):
        scale, shift = (x @ mixture.experts.w[e].T + mixture.experts.b[e]).chunk(2, -1)
        u = u + r[..., e + 1 : e + 2] * (scale * x + shift)
    torch.testing.assert_close(mixture(x), mixture.ffn.fc2(F.gelu(mixture.ffn.fc1(u))))
    mixture(x).sum().backward()
    assert mixture.experts.w.grad[2].eq(0).all()


@pytest.mark.parametrize("routing", ["token", "image"])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(routing):
    mixture = ModulatedMixture(D, N, routing=routing, top_k=2).eval()
    x = torch.randn(3, 7, D)
    torch.testing.assert_close(mixture(x)[1:2], mixture(x[1:2]))


def test_routings_are_reported():
    model = torch.nn.ModuleDict({"ffn": ModulatedMixture(D, N, routing="image", top_k=2)}).eval()
    with record(model) as rec:
        _, routing = model["ffn"](torch.randn(3, 7, D), return_routing=True)
    assert rec.routings["ffn"][0] is routing
    assert routing.check().weights.shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "constant"}, UnknownNameError),
        ({"site": "output"}, UnknownNameError),
        ({"routing": "pixel"}, UnknownNameError),
        ({"kind": "dynamic", "site": "hidden"}, ArgumentError),
        ({"kind": "static", "compat_offset": True}, ArgumentError),
        ({"top_k": 6}, ArgumentError),
    ],
)
def test_options_that_exclude_one_another(options, error):
    with pytest.raises(error):
        ModulatedMixture(D, N, **options)
