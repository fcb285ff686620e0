"""MoFME: weather removal by a transformer whose blocks mix feature-modulated experts."""

from typing import Any, Literal

from moeapps.vision.restoration.frame import RestorationFrame
from moeapps.vision.restoration.modulated_mixture import ModulatedMixture


class MoFME(RestorationFrame):
    r"""Image-to-image transformer with a :class:`ModulatedMixture` in every block.

    .. math:: x \leftarrow x + \mathrm{Attn}(\mathrm{LN}(x)), \qquad
        x \leftarrow x + \mathrm{FFN}\Big(\sum_e r_e(x)\, \mathrm{FM}_e(z)\Big)

    Args:
        num_experts: ``N``.
        embed_dim: ``D``.
        depth: Blocks.
        hidden_dim: Width of the shared networks' hidden layer; ``4 D`` if None.
        kind: ``"static"`` or ``"dynamic"`` modulations.
        site: ``"input"`` or ``"hidden"``, where they act.
        routing: Per ``"token"`` or per ``"image"``.
        top_k: Experts that keep a weight; 0 for all.
        star: Base network in front of dynamic modulations.
        dropout: In the blocks.
        uncertainty: Options of :class:`UncertaintyRouter`; None for a linear router.
        compat_offset: The authors' off-by-one; see :class:`ModulatedMixture`.
        **frame: Options of :class:`RestorationFrame`.

    Shape:
        - images ``[B, 3, H, W]`` from 0 to 1, any size; output the same
        - ``aux["routing"]``: one :class:`~moeapps.gating.Routing` per block

    Notes:
        Departures from the released code: any image size, top-k without ties, every expert in use.
        Its unused table of positions is not kept.

    References:
        Zhang et al., *Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise
        Linear Modulation*, AAAI 2024.

    Example:
        >>> import torch
        >>> model = MoFME(4, embed_dim=16, depth=1, num_heads=2, head_dim=8, top_k=2).eval()
        >>> restored, aux = model(torch.rand(1, 3, 20, 33), return_aux=True)
        >>> restored.shape, aux["routing"][0].indices.shape
        (torch.Size([1, 3, 20, 33]), torch.Size([1, 15, 2]))
    """

    def __init__(
        self,
        num_experts: int = 4,
        *,
        embed_dim: int = 384,
        depth: int = 2,
        hidden_dim: int | None = None,
        kind: Literal["static", "dynamic"] = "dynamic",
        site: Literal["input", "hidden"] = "input",
        routing: Literal["token", "image"] = "token",
        top_k: int = 0,
        star: bool = True,
        dropout: float = 0.1,
        uncertainty: dict[str, Any] | None = None,
        compat_offset: bool = False,
        **frame: Any,
    ) -> None:
        ffns = [
            ModulatedMixture(
                embed_dim,
                num_experts,
                hidden_dim=hidden_dim,
                kind=kind,
                site=site,
                routing=routing,
                top_k=top_k,
                star=star,
                dropout=dropout,
                uncertainty=uncertainty,
                compat_offset=compat_offset,
            )
            for _ in range(depth)
        ]
        super().__init__(ffns, embed_dim=embed_dim, dropout=dropout, **frame)
