"""A buffer of fixed capacity per expert and two batched products.

For gates that bound the load, and for back ends without a grouped product.
"""

import torch
from torch import Tensor

from moeapps.errors import ArgumentError
from moeapps.kernels.dense import products
from moeapps.kernels.networks import Networks
from moeapps.kernels.select import is_traced


def sorted_rows(
    rows_RD: Tensor, experts_R: Tensor, offsets_E: Tensor, nets: Networks, capacity: int
) -> Tensor:
    """Apply ``E`` stacked networks to rows sorted by expert through a ``[E, C, D]`` buffer.

    Args:
        rows_RD: Rows sorted by expert.
        experts_R: Expert id of each row, ``E`` past the last offset.
        offsets_E: End of each expert's rows.
        nets: The networks.
        capacity: Largest number of rows any expert has.

    Returns:
        ``[R, O]``; rows past the last offset give zero.
    """
    E, R = nets.num_experts, rows_RD.shape[0]
    keep = experts_R < E
    starts = torch.nn.functional.pad(offsets_E, (1, 0)).index_select(0, experts_R)
    place = torch.arange(R, device=rows_RD.device) - starts
    slot = torch.where(keep, experts_R * capacity + place, E * capacity)
    # The last row of the buffer collects the rows of nobody.
    buffer = rows_RD.new_zeros(E * capacity + 1, rows_RD.shape[1]).index_copy(0, slot, rows_RD)
    y = products(buffer[: E * capacity].view(E, capacity, rows_RD.shape[1]), nets)
    y = y.reshape(E * capacity, nets.out_features)
    y = y.index_select(0, slot.clamp(max=E * capacity - 1))
    return torch.where(keep.unsqueeze(1), y, 0)


def largest_group(offsets_E: Tensor) -> Tensor:
    """Most rows any expert has."""
    return torch.diff(offsets_E, prepend=offsets_E.new_zeros(1)).max()


def check_capacity(offsets_E: Tensor, capacity: int) -> None:
    """Raise when an expert has more rows than the buffer; never drop a row silently."""
    largest = largest_group(offsets_E)
    advice = "Limit the routing first with gating.capacity(...), or leave capacity=None."
    if is_traced():
        fits, message = largest <= capacity, f"An expert has more rows than capacity={capacity}."
        torch._assert_async(fits, f"{message} {advice}")
    elif int(largest) > capacity:
        raise ArgumentError(f"An expert has {int(largest)} rows but capacity={capacity}. {advice}")
