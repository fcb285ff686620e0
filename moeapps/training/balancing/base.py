r"""What every strategy has in common: it gives weights to task losses or to task gradients.

Letters: ``T`` tasks, ``P`` shared parameters, :math:`L_t` the loss of task ``t`` and :math:`g_t`
its gradient with respect to the shared parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moeapps.errors import ArgumentError


class Balancing(nn.Module, ABC):
    """One strategy. Learned weights are parameters; what it remembers is in its state dict.

    Args:
        num_tasks: ``T``.

    Attributes:
        needs_gradients: Whether it reads a gradient per task, so that :meth:`backward` must be
            called instead of differentiating :meth:`total`.
        needs_losses_after_step: Whether :meth:`after_step` wants the losses of the same batch
            again.
    """

    needs_gradients = False
    needs_losses_after_step = False

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ArgumentError(f"num_tasks={num_tasks} is not positive. Expected 1 or more.")
        self.num_tasks = num_tasks

    @abstractmethod
    def backward(
        self,
        losses: Tensor,
        shared: Sequence[Tensor] = (),
        *,
        representation: Tensor | None = None,
    ) -> Tensor:
        """Add this step's gradients to ``.grad`` of everything the losses depend on.

        Args:
            losses: ``[T]``, with gradient.
            shared: Parameters that several tasks use. Strategies that weigh losses need none.
            representation: Compare the tasks' gradients at this intermediate result instead of at
                the shared parameters, which is cheaper; only for strategies that read gradients.

        Returns:
            The weights of the tasks in this step, ``[T]``, for the log.
        """

    def after_step(self, losses: Tensor) -> None:
        """Look at the losses of the same batch after the step; see the attribute."""

    def end_epoch(self) -> None:
        """Called when a training epoch ends."""

    def check(self, losses: Tensor) -> None:
        """Raise unless there is one loss per task."""
        if losses.shape != (self.num_tasks,):
            raise ArgumentError(
                f"{type(self).__name__} balances {self.num_tasks} tasks, got losses "
                f"{list(losses.shape)}. Expected [{self.num_tasks}]."
            )

    def extra_repr(self) -> str:
        """The number of tasks."""
        return f"num_tasks={self.num_tasks}"


class LossBalancing(Balancing):
    r"""Weights from the values of the losses alone: :math:`L = \sum_t w_t L_t`."""

    @abstractmethod
    def weigh(self, losses: Tensor) -> Tensor:
        """The weights ``[T]`` for losses ``[T]`` without gradient; the same on every process."""

    def total(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and the weights in it.

        Args:
            losses: ``[T]``, with gradient.
        """
        self.check(losses)
        weights = self.weigh(mean_over_processes(losses.detach()))
        return weights @ losses, weights

    def backward(
        self,
        losses: Tensor,
        shared: Sequence[Tensor] = (),
        *,
        representation: Tensor | None = None,
    ) -> Tensor:
        """Differentiate :meth:`total`."""
        total, weights = self.total(losses)
        total.backward()
        return weights


class GradientBalancing(Balancing):
    r"""Weights from the tasks' gradients: shared parameters get :math:`\sum_t w_t g_t`.

    The weights need the gradients' inner products only, :math:`G_{st} = g_s^\top g_t`. Everything
    that is not shared (task towers, embeddings) gets the plain gradient of :math:`\sum_t L_t`.

    Attributes:
        per_tensor: Whether each shared tensor gets weights of its own.

    Notes:
        With several processes the gradients are averaged before they are compared, so the step is
        the one of the global batch; call :func:`average_gradients` for all parameters afterwards.
    """

    needs_gradients = True
    per_tensor = False

    @abstractmethod
    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The weights ``[*, T]``, for inner products ``[*, T, T]`` and losses ``[T]``.

        The leading axis is there if :attr:`per_tensor`.
        """

    def own_weights(self, losses: Tensor) -> Tensor:
        """Weights ``[T]`` of the losses for what is not shared."""
        return torch.ones_like(losses)

    def backward(
        self,
        losses: Tensor,
        shared: Sequence[Tensor] = (),
        *,
        representation: Tensor | None = None,
    ) -> Tensor:
        """One pass per task to its gradient, one for what is not shared."""
        self.check(losses)
        shared = _learning(shared)
        values = mean_over_processes(losses.detach())
        if representation is None:
            gradients = _task_gradients(losses, shared)
            grams = torch.stack([g @ g.T for g in gradients])
            weights = self.weigh(grams if self.per_tensor else grams.sum(0), values)
            each = weights if self.per_tensor else weights.expand(len(shared), -1)
            combined = [w.to(g.dtype) @ g for w, g in zip(each, gradients, strict=True)]
        else:
            weights = self._weigh_at(representation, losses, values)
            total = weights.to(losses.dtype) @ losses
            found = torch.autograd.grad(total, shared, retain_graph=True, allow_unused=True)
            combined = _averaged([_or_zero(g, p) for g, p in zip(found, shared, strict=True)])
        before = [parameter.grad for parameter in shared]
        for parameter in shared:
            parameter.grad = None
        (self.own_weights(values) @ losses).backward()
        for parameter, old, new in zip(shared, before, combined, strict=True):
            new = new.view_as(parameter)
            parameter.grad = new if old is None else old + new
        return weights.mean(0) if self.per_tensor else weights

    def _weigh_at(self, representation: Tensor, losses: Tensor, values: Tensor) -> Tensor:
        if self.per_tensor:
            raise ArgumentError(
                f"{type(self).__name__} weighs each shared tensor by itself. Leave out "
                "representation."
            )
        return self.weigh(_gram_at(representation, losses), values)


def task_norms(
    losses: Tensor, shared: Sequence[Tensor], representation: Tensor | None = None
) -> Tensor:
    """Norm of each task's gradient at the shared parameters or at a representation, ``[T]``."""
    if representation is not None:
        return _gram_at(representation, losses).diagonal().sqrt()
    squares = [g.square().sum(1) for g in _task_gradients(losses, _learning(shared))]
    return torch.stack(squares).sum(0).sqrt()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each ``.grad`` by its mean over the processes; nothing to do with one process.

    A parameter without a gradient counts as zero, so all processes must pass the same parameters.
    """
    if _processes() == 1:
        return
    for parameter in parameters:
        gradient = _or_zero(parameter.grad, parameter)
        gradient = gradient.coalesce() if gradient.is_sparse else gradient
        dist.all_reduce(gradient)
        parameter.grad = gradient / _processes()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of ``values`` over the processes; itself with one process."""
    return values if _processes() == 1 else _averaged([values])[0]


def _learning(shared: Sequence[Tensor]) -> list[Tensor]:
    learning = [parameter for parameter in shared if parameter.requires_grad]
    if not learning:
        raise ArgumentError(
            "The tasks' gradients are compared at shared parameters, but none was given that "
            "learns. Pass shared=model.shared_parameters()."
        )
    return learning


def _gram_at(representation: Tensor, losses: Tensor) -> Tensor:
    [gradients] = _task_gradients(losses, [representation], average=False)
    gram = gradients @ gradients.T
    if _processes() > 1:  # each process holds other rows of one global representation
        dist.all_reduce(gram)
        gram = gram / _processes() ** 2
    return gram


def _task_gradients(
    losses: Tensor, inputs: Sequence[Tensor], *, average: bool = True
) -> list[Tensor]:
    """Gradient of each loss with respect to each input, ``[T, P]`` per input."""
    rows = [
        torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for loss in losses
    ]
    columns = zip(*rows, strict=True)
    stacked = [
        torch.stack([_or_zero(g, p).flatten() for g in column])
        for column, p in zip(columns, inputs, strict=True)
    ]
    return _averaged(stacked) if average else stacked


def _averaged(values: list[Tensor]) -> list[Tensor]:
    """Means over the processes, in one exchange."""
    if _processes() == 1:
        return values
    joined = torch.cat([value.flatten() for value in values])
    dist.all_reduce(joined)
    parts = (joined / _processes()).split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def _or_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
