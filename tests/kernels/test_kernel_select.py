"""The rule, its overrides and their precedence."""

import threading

import pytest
import torch

from moeapps import kernels
from moeapps.errors import ArgumentError, UnknownNameError
from moeapps.kernels.networks import Networks
from moeapps.kernels.select import choose, wished


def rule(E=8, K=2, D=8, F=16, dtype=torch.float32, device="cpu", **kwargs):
    nets = Networks(torch.empty(E, F, D), None, torch.empty(E, D, F), None)
    return choose(nets, dtype=dtype, device=torch.device(device), top_k=K, **kwargs)


def test_cpu_takes_loop_when_few_experts_run():
    assert rule(K=2).strategy == "loop"
    assert rule(K=6).strategy == "loop"


def test_cpu_takes_dense_when_most_experts_run():
    assert rule(K=7).strategy == "dense"


def test_traced_takes_grouped_where_it_can():
    assert rule(traced=True).strategy == "grouped"


@pytest.mark.parametrize("inputs", [{"dtype": torch.float64}, {"D": 6}, {"F": 18}])
def test_traced_without_grouped_takes_padded_only_with_a_capacity(inputs):
    assert rule(traced=True, capacity=4, **inputs).strategy == "padded"
    chosen = rule(traced=True, **inputs)
    assert chosen.strategy == "dense"
    assert "grouped is out" in chosen.reason


@pytest.mark.parametrize(
    ("dtype", "capability", "strategy"),
    [
        (torch.bfloat16, (9, 0), "grouped"),
        (torch.bfloat16, (8, 0), "loop"),
        (torch.float32, (9, 0), "loop"),
    ],
)
def test_cuda_takes_grouped_only_in_bfloat16_on_new_devices(
    monkeypatch, dtype, capability, strategy
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert rule(dtype=dtype, device="cuda").strategy == strategy


def test_argument_beats_context_beats_environment_beats_rule(monkeypatch):
    monkeypatch.setenv("MOEAPPS_KERNEL", "padded")
    assert rule().strategy == "padded"
    assert "MOEAPPS_KERNEL" in rule().reason
    with kernels.use("dense"):
        assert rule().strategy == "dense"
        with kernels.use("grouped"):
            assert rule().strategy == "grouped"
        assert rule().strategy == "dense"
        assert rule(strategy="loop").strategy == "loop"
    assert rule().strategy == "padded"
    monkeypatch.delenv("MOEAPPS_KERNEL")
    assert rule().strategy == "loop"


def test_use_is_undone_by_an_exception():
    with pytest.raises(RuntimeError, match="inside"), kernels.use("dense"):
        raise RuntimeError("inside")
    assert rule().strategy == "loop"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"dtype": torch.float64, "strategy": "grouped"}, "no float64"),
        ({"D": 6, "strategy": "grouped"}, "multiples of 4"),
        ({"D": 12, "dtype": torch.bfloat16, "strategy": "grouped"}, "multiples of 8"),
        ({"traced": True, "strategy": "loop"}, "on the host"),
        ({"traced": True, "strategy": "reference"}, "on the host"),
    ],
)
def test_illegal_wish_is_an_error_with_its_reason(inputs, reason):
    with pytest.raises(ArgumentError, match=reason):
        rule(**inputs)


def test_illegal_environment_wish_names_the_variable(monkeypatch):
    monkeypatch.setenv("MOEAPPS_KERNEL", "grouped")
    with pytest.raises(ArgumentError, match="MOEAPPS_KERNEL=grouped"):
        rule(dtype=torch.float64)


@pytest.mark.parametrize("name", ["triton", "lop"])
def test_unknown_names_are_refused_everywhere(monkeypatch, name):
    with pytest.raises(UnknownNameError, match="kernel strategy"), kernels.use(name):
        pass
    with pytest.raises(UnknownNameError, match="kernel strategy"):
        rule(strategy=name)
    monkeypatch.setenv("MOEAPPS_KERNEL", name)
    with pytest.raises(UnknownNameError, match="kernel strategy"):
        rule()


def test_autocast_decides_what_is_legal():
    x, indices, w = torch.zeros(4, 12), torch.zeros(4, 1).long(), torch.zeros(2, 12, 12)
    assert kernels.explain(x, indices, w, strategy="grouped").strategy == "grouped"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ArgumentError, match="of 8"):
        kernels.explain(x, indices, w, strategy="grouped")


def test_explain_agrees_with_what_runs():
    x, indices, w = torch.zeros(4, 8), torch.zeros(4, 1).long(), torch.zeros(4, 8, 8)
    assert str(kernels.explain(x, indices, w)).startswith("loop: ")
    with kernels.use("padded"):
        assert kernels.explain(x, indices, w) == ("padded", "kernels.use('padded')")


def test_threads_do_not_see_each_others_choice():
    seen = []
    with kernels.use("dense"):
        other = threading.Thread(target=lambda: seen.append(rule().strategy))
        other.start()
        other.join()
        assert rule().strategy == "dense"
    assert seen == ["loop"]


def test_compiled_code_follows_use():
    def double(x):
        return 2 * x if wished() == "dense" else x

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    x = torch.ones(2)
    assert compiled(x).sum() == 2
    with kernels.use("dense"):
        assert compiled(x).sum() == 4
    assert compiled(x).sum() == 2
