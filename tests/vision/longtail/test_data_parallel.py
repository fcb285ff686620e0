"""Every parameter takes part in every loss, so that data-parallel training needs no search."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from moeapps.registry import MODELS, create_model

METHODS = sorted(name for name, entry in MODELS.items() if "long tail" in entry.tags)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("epoch", [1, 200])
def test_no_parameter_is_unused(name, epoch, one_process):
    torch.manual_seed(0)
    model = create_model(name, **MODELS[name].example).train()
    target = torch.tensor([3, 3, 3, 3])  # the rarest class: at first no view of it is right
    images = torch.randn(4 * model.views, 3, 16, 16)
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # the second forward is the one that would complain
        _, aux = parallel(images, return_aux=True)
        model.loss(aux, target, epoch).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
