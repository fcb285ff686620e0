"""A convolution with experts, images sorted by expert, against the published masked form.

    python benchmarks/moe_conv.py [--quick]

The published code runs every image through all experts' filters and masks what was not chosen.
Both forms give the same output and gradients. Time is CPU time of one thread, forward plus
backward, median of interleaved repeats; the dense column is one ordinary convolution of one
expert's size, the least there is to compute. ``bound`` is masked over dense: what a form without
any cost of sorting would reach. Masked computes N times the multiplications, so the bound is about
N: with two experts three times as fast is out of reach, whatever sorts the images.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from moeapps.vision.robust.moe_conv import MoEConv2d, choose

# Experts, images, channels in and out of one expert, size, stride: a ResNet-18 of ratio 1 / N.
SHAPES = [
    (2, 128, 32, 32, 32, 1),
    (2, 128, 128, 128, 8, 1),
    (4, 128, 16, 16, 32, 1),
    (4, 128, 64, 64, 8, 1),
    (4, 128, 64, 128, 8, 2),
    (8, 128, 16, 16, 16, 1),
    (8, 128, 32, 32, 8, 1),
]
QUICK = [(2, 8, 4, 4, 8, 1)]


def masked(x: Tensor, scores: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """The published form: all filters in one convolution, a mask, a sum over experts."""
    experts, out = kernels.shape[:2]
    y = F.conv2d(x, kernels.flatten(0, 1), None, stride, 1).unflatten(1, (experts, out))
    chosen = F.one_hot(scores.argmax(-1), experts).to(scores)
    mask = chosen * (1 + scores - scores.detach())
    return (y * mask.view(*mask.shape, 1, 1, 1)).sum(1)


def seconds(function: Callable[[], Tensor], leaves: list[Tensor]) -> float:
    """CPU time of a forward and a backward pass."""
    for leaf in leaves:
        leaf.grad = None
    start = time.thread_time()
    y = function()
    y.backward(torch.ones_like(y))
    return time.thread_time() - start


def line(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Median seconds of each form for one shape."""
    experts, images, inputs, outputs, size, stride = shape
    conv = MoEConv2d(inputs, outputs, num_experts=experts, stride=stride)
    x = torch.randn(images, inputs, size, size, requires_grad=True)
    scores = torch.randn(images, experts, requires_grad=True)
    kernels, one = conv.experts.w, conv.experts.w[0].detach().clone().requires_grad_()
    forms: dict[str, Callable[[], Tensor]] = {
        "sorted": lambda: conv(x, choose(scores)),
        "masked": lambda: masked(x, scores, kernels, stride),
        "dense": lambda: F.conv2d(x, one, None, stride, 1),
    }
    torch.testing.assert_close(forms["sorted"](), forms["masked"](), atol=1e-4, rtol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats + 1):
        for name, form in forms.items():
            times[name].append(seconds(form, [x, scores, kernels, one]))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def render(rows: list[tuple[tuple[int, ...], dict[str, float]]]) -> str:
    """The page."""
    lines = [
        "# MoE convolution: sorted images against the masked published form",
        "",
        "Forward plus backward, 3x3 kernels, one CPU thread, milliseconds.",
        "",
        "| experts | images | channels | size | stride | sorted | masked | dense of one expert "
        "| masked / sorted | bound | dense / sorted |",
        "|---" * 11 + "|",
    ]
    for (experts, images, inputs, outputs, size, stride), t in rows:
        lines.append(
            f"| {experts} | {images} | {inputs} -> {outputs} | {size} | {stride} "
            f"| {1e3 * t['sorted']:.1f} | {1e3 * t['masked']:.1f} | {1e3 * t['dense']:.1f} "
            f"| {t['masked'] / t['sorted']:.1f} | {t['masked'] / t['dense']:.1f} "
            f"| {t['dense'] / t['sorted']:.2f} |"
        )
    lines += [
        "",
        "*bound*: masked over dense of one expert, what sorting at no cost would reach. Masked "
        "multiplies N times as much, so with two experts the bound is near 2 where multiplying "
        "is what takes the time.",
    ]
    return "\n".join([*lines, "", "Command: `python benchmarks/moe_conv.py`", ""])


def main(arguments: list[str] | None = None) -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one tiny shape, nothing written")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = QUICK if given.quick else SHAPES
    page = render([(shape, line(shape, given.repeats)) for shape in shapes])
    print(page)
    if not given.quick:
        (Path(__file__).parent / "results" / "moe_conv.md").write_text(page)


if __name__ == "__main__":
    main()
