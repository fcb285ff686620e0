"""Sharded embedding tables give what whole ones give, on two processes."""

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from moeapps.errors import ArgumentError, MoeappsError
from moeapps.recsys import Categorical, FeatureSchema, MultiHot, Sequence
from moeapps.recsys.export import Scorer
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.sharding import gather_embeddings, shard_embeddings
from moeapps.registry import create_model

WORLD = 2
EXAMPLE = Path(__file__).parents[2] / "examples" / "recsys_sharded_embeddings.py"


def load_example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[EXAMPLE.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes found."""
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return folder


def worker(rank, folder):
    load_example().work(rank, folder)
    find_gradients(rank, folder)
    serve_and_save(rank, folder)


def test_the_example_trains_as_one_process_does_and_halves_the_tables(folder):
    example = load_example()
    alone = example.build()
    whole = sum(table.nbytes for table in alone.embedding_parameters())
    expected = list(example.train(alone, 0, 1))
    assert expected[-1] < 0.7 * expected[0]
    for rank in range(WORLD):
        size, losses, weights = torch.load(folder / f"{rank}.pt")
        assert size == whole / WORLD
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4, msg=name)


SCHEMA = FeatureSchema(  # widths of 4 and 8, an odd number of rows, a shared table
    [
        Categorical("user", 6, 4),
        Categorical("item", 5, 8),
        Categorical("tab", 3, 8),
        Sequence("seen", 5, 8, pooling="last", shared_with="item"),
    ]
)
PLAIN = FeatureSchema(SCHEMA.features[:3])


def build(name, schema=SCHEMA, **arguments):
    torch.manual_seed(0)
    return create_model(name, schema=schema, tasks=["click", "like"], **arguments).double()


def rows(start, stop):
    generator = torch.Generator().manual_seed(0)
    cat = torch.stack([torch.randint(n, (8,), generator=generator) for n in (6, 5, 3)], 1)
    values = torch.randint(5, (8,), generator=generator)
    bag = {"values": values[start:stop], "offsets": torch.arange(stop - start)}
    return {"cat": cat[start:stop], "bag/seen": bag}


MODELS = {"ple": {"expert_dims": [[4]]}, "stem": {"expert_dims": [[4]]}}


def find_gradients(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/gradients_store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    found = {}
    for name, arguments in MODELS.items():
        model = build(name, **arguments)
        shard_embeddings(model, init_device_mesh("cpu", (WORLD,)))
        logits = model(rows(4 * rank, 4 * rank + 4))
        logits.square().mean().backward()
        grads = [table.grad.full_tensor() for table in model.embedding_parameters()]
        gather_embeddings(model)
        found[name] = (logits.detach(), grads, [t.detach() for t in model.embedding_parameters()])
    torch.save(found, f"{folder}/gradients_{rank}.pt")
    distributed.destroy_process_group()


def test_logits_and_gradients_are_those_of_whole_tables(folder):
    for name, arguments in MODELS.items():
        whole = build(name, **arguments)
        logits = whole(rows(0, 8))
        logits.square().mean().backward()
        for rank in range(WORLD):
            found, grads, tables = torch.load(folder / f"gradients_{rank}.pt")[name]
            torch.testing.assert_close(found, logits.detach()[4 * rank : 4 * rank + 4])
            for table, grad, kept in zip(whole.embedding_parameters(), grads, tables, strict=True):
                torch.testing.assert_close(grad, table.grad)
                assert torch.equal(kept, table)


def serve_and_save(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/serving_store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    mesh, found, refused = init_device_mesh("cpu", (WORLD,)), {}, {}
    whole, model, other = (build("ple", expert_dims=[[4]]).eval() for _ in range(3))
    no_bags = build("ple", PLAIN, expert_dims=[[4]])
    own = rows(4 * rank, 4 * rank + 4)

    def refuse(what, call, *arguments):
        with pytest.raises(MoeappsError) as error:
            call(*arguments)
        refused[what] = str(error.value)

    for each in (model, other, no_bags):
        shard_embeddings(each, mesh)
    with torch.no_grad():
        served, served_plain = model.fuse_for_inference(), no_bags.fuse_for_inference()
        found["fused"] = [served(own), served(own)]
        found["fused without bags"] = served_plain(own)
    refuse("shard twice", shard_embeddings, model, mesh)
    refuse("resize", model.resize_vocab, "user", 9)
    refuse("export", Scorer, model)
    other.inputs.store.tables["4"].data.zero_()
    found["trained elsewhere"] = other(own).detach()
    refuse("load parts into whole", whole.load_state_dict, model.state_dict())
    other.load_state_dict(whole.state_dict())
    found["whole into parts"] = other(own).detach()
    other.inputs.store.tables["4"].data.zero_()
    torch.save(model.state_dict(), f"{folder}/parts_{rank}.pt")
    other.load_state_dict(torch.load(f"{folder}/parts_{rank}.pt", weights_only=True))
    found["parts into parts"] = other(own).detach()
    module = MultiTaskRanker("ple", schema=SCHEMA.to_dict(), tasks=["click"])
    shard_embeddings(module.model, mesh)
    refuse("one file", module.on_save_checkpoint, {})
    with torch.no_grad():
        gather_embeddings(served_plain)
        found["gathered"] = served_plain(own)
    refuse("gather twice", gather_embeddings, served_plain)
    torch.save((found, refused), f"{folder}/serving_{rank}.pt")
    distributed.destroy_process_group()


def test_models_in_parts_are_served_and_saved_or_say_what_they_need(folder):
    expected, plain = (
        build("ple", schema, expert_dims=[[4]]).eval()(rows(0, 8)).detach()
        for schema in (SCHEMA, PLAIN)
    )
    for rank in range(WORLD):
        found, refused = torch.load(folder / f"serving_{rank}.pt")
        own = slice(4 * rank, 4 * rank + 4)
        for logits in (*found["fused"], found["whole into parts"], found["parts into parts"]):
            torch.testing.assert_close(logits, expected[own])
        for name in ("fused without bags", "gathered"):
            torch.testing.assert_close(found[name], plain[own])
        assert not torch.equal(found["trained elsewhere"], expected[own])
        assert "was saved in parts" in refused["load parts into whole"]
        assert "The tables are whole" in refused["gather twice"]
        for what in ("shard twice", "resize", "export", "one file"):
            assert "gather_embeddings(model) in all processes first" in refused[what], what


@pytest.mark.parametrize(
    ("feature", "arguments", "named"),
    [
        (MultiHot("tags", 9, 4), {}, "pooled features \\['tags'\\]"),
        (Categorical("user", 9, 4), {"sparse_grad": True}, "sparse_grad=True"),
    ],
    ids=["pooled", "sparse"],
)
def test_what_cannot_be_sharded_is_refused(feature, arguments, named):
    model = create_model("mmoe", schema=FeatureSchema([feature]), tasks=["a"], **arguments)
    with pytest.raises(ArgumentError, match=named):
        shard_embeddings(model, None)
