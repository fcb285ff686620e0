"""Sparse times dense with cheap gradients: the arithmetic under message passing.

Letters: ``R`` rows (targets), ``V`` columns (sources), ``M`` entries, ``D`` width.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def _no_beta_warning() -> Iterator[None]:
    with warnings.catch_warnings():  # torch calls its CSR layout "beta" on first use
        warnings.simplefilter("ignore", UserWarning)
        yield


def compress(x: Tensor) -> Tensor:
    """A dense matrix as ``torch.sparse_csr``."""
    with _no_beta_warning():
        return x.to_sparse_csr()


class Pattern:
    """Where a sparse ``[R, V]`` matrix has entries, in compressed rows.

    Args:
        crow: ``[R + 1]`` start of each row.
        col: ``[M]`` column of each entry.
        num_cols: ``V``.
    """

    def __init__(self, crow: Tensor, col: Tensor, num_cols: int) -> None:
        self.crow = crow
        self.col = col
        self.num_cols = num_cols

    @classmethod
    def from_pairs(cls, row: Tensor, col: Tensor, shape: tuple[int, int]) -> tuple[Self, Tensor]:
        """Pattern of the entries ``(row, col)`` and the order that sorts them into it."""
        order = torch.argsort(row * shape[1] + col, stable=True)
        crow = row.new_zeros(shape[0] + 1)
        torch.cumsum(torch.bincount(row, minlength=shape[0]), 0, out=crow[1:])
        return cls(crow, col[order], shape[1]), order

    @property
    def num_rows(self) -> int:
        """``R``."""
        return self.crow.numel() - 1

    @cached_property
    def row(self) -> Tensor:
        """``[M]`` row of each entry."""
        index = torch.arange(self.num_rows, device=self.col.device)
        return index.repeat_interleave(self.crow.diff(), output_size=self.col.numel())

    @cached_property
    def degree(self) -> Tensor:
        """``[R]`` entries per row."""
        return self.crow.diff()

    @cached_property
    def transpose(self) -> tuple["Pattern", Tensor]:
        """Transposed pattern and the order that carries values over to it.

        A pattern that equals its own transpose is returned itself, so that an undirected graph is
        kept once.
        """
        other, order = Pattern.from_pairs(self.col, self.row, (self.num_cols, self.num_rows))
        if torch.equal(other.crow, self.crow) and torch.equal(other.col, self.col):
            return self, order
        return other, order

    @cached_property
    def ones(self) -> Tensor:
        """The pattern as a ``torch.sparse_csr`` matrix of ones."""
        return self.matrix(torch.ones(self.col.numel(), device=self.col.device))

    def restrict(self, nodes: Tensor, place: Tensor, *, num_inner: int) -> tuple["Pattern", Tensor]:
        """A square part of the pattern, and the places of its entries in the whole.

        Args:
            nodes: ``[v]`` rows and columns to keep, in their new order.
            place: ``[V]`` new number of each node, -1 for those left out.
            num_inner: Only the first rows keep their entries.
        """
        inner = nodes[:num_inner]
        owner, entry = spread(self.crow[inner], self.degree[inner])
        col = place[self.col[entry]]
        kept = col >= 0
        crow = self.crow.new_zeros(nodes.numel() + 1)
        torch.cumsum(torch.bincount(owner[kept], minlength=nodes.numel()), 0, out=crow[1:])
        return Pattern(crow, col[kept], nodes.numel()), entry[kept]

    def matrix(self, values: Tensor) -> Tensor:
        """``torch.sparse_csr`` matrix with these values."""
        shape = (self.num_rows, self.num_cols)
        with _no_beta_warning():
            return torch.sparse_csr_tensor(
                self.crow, self.col, values, shape, check_invariants=False
            )

    def multiply(self, values: Tensor, x: Tensor) -> Tensor:
        """``A x`` without gradient, ``[R, D]``, in the dtype of ``values``.

        On the CPU one bag of columns per row is summed: the kernel behind ``embedding_bag`` runs
        about twice as fast there as the CSR product.
        """
        if self.col.numel() == 0:
            return values.new_zeros(self.num_rows, x.size(1))
        x = x.to(values.dtype).contiguous()
        with torch.autocast(x.device.type, enabled=False):
            if x.device.type == "cpu":
                return F.embedding_bag(
                    self.col,
                    x,
                    self.crow,
                    mode="sum",
                    per_sample_weights=values,
                    include_last_offset=True,
                )
            return torch.sparse.mm(self.matrix(values), x)


def spread(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """All places ``first[i] .. first[i] + count[i] - 1`` in a row, each with its ``i``.

    Example:
        >>> [t.tolist() for t in spread(torch.tensor([5, 9]), torch.tensor([2, 1]))]
        [[0, 0, 1], [5, 6, 9]]
    """
    owner = torch.arange(count.numel(), device=count.device).repeat_interleave(count)
    before = count.cumsum(0) - count
    return owner, torch.arange(owner.numel(), device=count.device) + (first - before)[owner]


class Operator:
    """A fixed sparse matrix; ``operator @ x`` is differentiable in ``x`` as often as needed.

    A symmetric operator serves as its own transpose in the backward pass, any other keeps its
    transpose after the first backward pass.

    Args:
        pattern: Where entries are.
        values: ``[M]``, float32 or float64. Features of another precision are brought to it
            and back.

    Example:
        >>> pattern, _ = Pattern.from_pairs(torch.tensor([0, 1]), torch.tensor([1, 0]), (2, 2))
        >>> operator = Operator(pattern, torch.tensor([2.0, 3.0]))
        >>> operator @ torch.tensor([[1.0], [10.0]])
        tensor([[20.],
                [ 3.]])
    """

    def __init__(self, pattern: Pattern, values: Tensor) -> None:
        self.pattern = pattern
        self.values = values

    @cached_property
    def _asymmetric_transpose(self) -> "Operator | None":  # None: the operator is symmetric
        with torch.inference_mode(False), torch.no_grad():
            pattern, order = self.pattern.transpose
            values = self.values[order]
            if pattern is self.pattern and torch.equal(values, self.values):
                return None
            return Operator(pattern, values)

    @property
    def is_symmetric(self) -> bool:
        """Whether the matrix equals its transpose exactly."""
        return self._asymmetric_transpose is None

    @property
    def transpose(self) -> "Operator":
        """The transposed operator; the operator itself when it is symmetric."""
        return self._asymmetric_transpose or self

    def __matmul__(self, x: Tensor) -> Tensor:
        return _Multiply.apply(x, self)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Operator) -> Tensor:
        ctx.operator = operator
        return operator.pattern.multiply(operator.values, x).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.transpose @ grad, None


def entry_products(pattern: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """``left[i] . right[j]`` for every entry ``(i, j)`` of the pattern, ``[M]``."""
    if pattern.col.numel() == 0:
        return left.new_zeros(0)
    with torch.autocast(left.device.type, enabled=False):
        mask = pattern.ones.to(left.dtype)
        product = torch.sparse.sampled_addmm(
            mask, left.contiguous(), right.t().contiguous(), beta=0.0
        )
    return product.values()
