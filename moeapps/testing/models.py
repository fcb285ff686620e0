"""One battery of checks for every registered model."""

import copy
import importlib
import inspect
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from moeapps import gating
from moeapps.registry import ModelEntry, model_info
from moeapps.testing.inputs import Example, example_inputs


class Subject:
    """A registered model under test: fresh models and inputs that always come out the same.

    Args:
        model: Its name, or its entry in the registry.
    """

    def __init__(self, model: str | ModelEntry) -> None:
        self.entry = model if isinstance(model, ModelEntry) else model_info(model)

    def build(self, *, seed: int = 0) -> nn.Module:
        """A new model from the entry's example arguments; the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module_name, _, attribute = self.entry.target.partition(":")
            return getattr(importlib.import_module(module_name), attribute)(**self.entry.example)

    def example(self, *, size: int = 24, seed: int = 0) -> Example:
        """Inputs for the entry's task."""
        return example_inputs(self.entry, size=size, seed=seed)


def inputs_for(model: nn.Module, example: Example) -> dict[str, Any]:
    """The inputs that ``model.forward`` has a parameter for."""
    accepted = inspect.signature(model.forward).parameters
    return {name: value for name, value in example.inputs.items() if name in accepted}


def predict(model: nn.Module, example: Example) -> Tensor:
    """The model's output on the example, after checking that it is one tensor."""
    output = model(**inputs_for(model, example))
    _require(isinstance(output, Tensor), f"forward returned {type(output).__name__}, not a tensor")
    return output


def check_builds(subject: Subject) -> None:
    """Builds from plain arguments that survive JSON, and builds the same twice."""
    arguments = subject.entry.example
    _require(json.loads(json.dumps(arguments)) == arguments, "example arguments change in JSON")
    first, second = subject.build(), subject.build()
    _require(isinstance(first, nn.Module), f"built a {type(first).__name__}, not a module")
    _require(_same_state(first, second), "the same seed gives different initial weights")


def check_shapes(subject: Subject) -> None:
    """The prediction has the task's shape for several sizes, and is finite."""
    model = subject.build().eval()
    for size in (2, 7, 24):
        example = subject.example(size=size)
        output = predict(model, example)
        _require(
            tuple(output.shape) == example.output_shape,
            f"output {list(output.shape)}, expected {list(example.output_shape)}",
        )
        _require(bool(output.isfinite().all()), f"output of {size} rows is not finite")


def check_gradients(subject: Subject) -> None:
    """Two steps reach every parameter: what starts at zero may hold back another for one step."""
    model, example = subject.build().train(), subject.example()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    waiting = {name for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        optimizer.zero_grad()
        example.loss(predict(model, example)).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = parameter.grad
                _require(gradient is not None, f"{name} gets no gradient")
                assert gradient is not None
                _require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
                if bool(gradient.any()):
                    waiting.discard(name)
        optimizer.step()
    _require(not waiting, f"the gradient of {', '.join(sorted(waiting))} is zero")


def check_routings(subject: Subject) -> None:
    """Every routing inside is valid; a model tagged ``mixture`` reports at least one."""
    model, example = subject.build().eval(), subject.example()
    with gating.record(model) as recording:
        predict(model, example)
    routings = [routing for calls in recording.routings.values() for routing in calls]
    for routing in routings:
        routing.check()
    mixture = "mixture" in subject.entry.tags
    _require(bool(routings) or not mixture, "tagged as a mixture but reports no routing")


def check_eval_is_deterministic(subject: Subject) -> None:
    """Two calls in eval mode agree bit for bit and change no buffer."""
    model, example = subject.build().eval(), subject.example()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first, second = predict(model, example), predict(model, example)
    _require(torch.equal(first, second), "two calls in eval mode differ")
    _require(
        all(torch.equal(before[name], value) for name, value in model.state_dict().items()),
        "a call in eval mode changes the state dict",
    )


def check_state_dict(subject: Subject) -> None:
    """State dict and safetensors carry everything that decides the output."""
    model, example = _warmed(subject), subject.example()
    expected = predict(model, example)
    for read in (_through_torch, _through_safetensors):
        other = subject.build(seed=1)
        other.load_state_dict(read(model.state_dict()))
        output = predict(other.eval(), example)
        _require(torch.equal(output, expected), f"output differs after {read.__name__[9:]}")


def check_copies(subject: Subject) -> None:
    """A used model can be copied and pickled."""
    model, example = _warmed(subject), subject.example()
    expected = predict(model, example)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        _require(torch.equal(predict(copied, example), expected), "the copy's output differs")


def check_overfits(subject: Subject) -> None:
    """A few hundred steps learn one small batch by heart."""
    model, example = subject.build().train(), subject.example()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout
        for _ in range(200):
            optimizer.zero_grad()
            example.loss(predict(model, example)).backward()
            optimizer.step()
    accuracy = example.accuracy(predict(model.eval(), example))
    _require(accuracy > 0.95, f"accuracy on the batch itself is only {accuracy:.2f}")


def check_export(subject: Subject) -> None:
    """``torch.export`` gives a program that agrees with the model for other sizes."""
    model, example = _warmed(subject), subject.example()
    inputs = inputs_for(model, example)
    shapes = {name: _dims(example.dynamic[name]) for name in inputs}
    program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=shapes).module()
    for size in (24, 41):
        other = subject.example(size=size, seed=size)
        with torch.no_grad():
            expected = predict(model, other)
            output = program(**inputs_for(model, other))
        torch.testing.assert_close(output, expected, msg=lambda text: f"exported program: {text}")


def check_bfloat16(subject: Subject) -> None:
    """Under bfloat16 autocast outputs and gradients are finite and near those of float32."""
    model, example = _warmed(subject), subject.example()
    expected = predict(model, example).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = predict(model, example)
        loss = example.loss(output.float())
    error = (output.detach().float() - expected).norm() / expected.norm().clamp_min(1e-6)
    _require(float(error) < 0.05, f"bfloat16 output is {float(error):.1%} off")
    loss.backward()
    finite = all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    _require(finite, "a gradient under bfloat16 autocast is not finite")


MODEL_CHECKS: dict[str, Callable[[Subject], None]] = {
    "builds": check_builds,
    "shapes": check_shapes,
    "gradients": check_gradients,
    "routings": check_routings,
    "eval": check_eval_is_deterministic,
    "state_dict": check_state_dict,
    "copies": check_copies,
    "overfits": check_overfits,
    "export": check_export,
    "bfloat16": check_bfloat16,
}
"""Checks by the name under which a registry entry may declare that it ``cannot`` do it."""


def check_model(model: str | ModelEntry) -> dict[str, str]:
    """Run every check of :data:`MODEL_CHECKS` that the model does not declare it cannot pass.

    Args:
        model: Name of a registered model, or an entry with a small ``example``.

    Returns:
        What the model declares it cannot do, with the reason.

    Raises:
        AssertionError: A property does not hold; the message names model and check.

    Example:
        >>> check_model("mlp")
        {}
    """
    subject = Subject(model)
    cannot = subject.entry.cannot
    for name, check in MODEL_CHECKS.items():
        if name not in cannot:
            try:
                check(subject)
            except AssertionError as error:
                raise AssertionError(f"{subject.entry.target}, {name}: {error}") from error
    return dict(cannot)


def _dims(dynamic: dict[Any, Any]) -> dict[Any, Any]:
    """Named sizes as symbols of ``torch.export``, however deep they lie."""
    return {
        key: _dims(value) if isinstance(value, dict) else torch.export.Dim(value, min=2)
        for key, value in dynamic.items()
    }


def _warmed(subject: Subject) -> nn.Module:
    """A model in eval mode whose running statistics are no longer the initial ones."""
    model = subject.build().train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predict(model, subject.example(seed=1))
    return model.eval()


def _through_torch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _through_safetensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return safetensors.torch.load(safetensors.torch.save(state))


def _same_state(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
