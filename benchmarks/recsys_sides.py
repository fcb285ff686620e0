"""What ``recsys_speed.py`` times: one log, and the models of three libraries with equal layers."""

import contextlib
import importlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from moeapps.recsys import (
    Categorical,
    Dense,
    FeatureSchema,
    PackedLoader,
    RankingData,
    Tables,
    Task,
)
from moeapps.recsys.batch import pack, take
from moeapps.recsys.embeddings import FusedTables
from moeapps.recsys.export import export_inputs, export_network
from moeapps.recsys.losses import MultiTaskLoss
from moeapps.recsys.metrics import gauc
from moeapps.recsys.modules import MultiTaskRanker
from moeapps.recsys.optimizers import ranking_optimizer
from moeapps.registry import create_model
from moeapps.training.export import export_onnx
from moeapps.training.rowwise import RowwiseAdagrad

VOCAB, FIELDS, NUMBERS = 1000, 26, 13
ADAM = {"optimizer": "adam", "lr": 1e-3, "embedding_lr": None, "weight_decay": 0.0,
        "sparse_grad": False, "sparse_optimizer": "rowwise_adagrad"}  # fmt: skip
# embedding, experts of MMoE, their layers, tasks, tower
SIZES = {
    "small": (4, 8, [16], 2, [8]),
    "medium": (8, 12, [64, 32], 9, [16]),
    "large": (16, 8, [256, 128], 3, [64]),
}
MODELS = ("mmoe", "ple")
ANSWERS = 50  # of a model in a row
Timed = Callable[[], Any]


# --------------------------------------------------------------------------------- one log for all


def columns(rows: int, tasks: int, seed: int = 0) -> dict[str, Any]:
    """Ids, numbers and labels."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {f"c{i}": rng.integers(1, VOCAB, rows) for i in range(FIELDS)}
    made |= {f"n{i}": rng.standard_normal(rows).astype(np.float32) for i in range(NUMBERS)}
    made |= {f"t{i}": (rng.random(rows) < 0.3).astype(np.float32) for i in range(tasks)}
    return made


def schema_of(dim: int) -> FeatureSchema:
    """The features for our models."""
    fields = [Categorical(f"c{i}", VOCAB, dim) for i in range(FIELDS)]
    return FeatureSchema([*fields, *(Dense(f"n{i}") for i in range(NUMBERS))])


def tasks_of(count: int) -> list[Task]:
    """Binary tasks."""
    return [Task(f"t{i}") for i in range(count)]


# ------------------------------------------------------------------------------------------- sides


def our_arguments(model: str, size: str, peer: str) -> dict[str, Any]:
    """Of our model with the layers of a peer's."""
    _, experts, dims, _, tower = SIZES[size]
    gate = {"norm": "batch"} if peer == "torch-rechub" else {"bias": False}
    common = {"norm": "batch", "gate": gate, "tower_dims": tower, "tower_norm": "batch"}
    if model == "mmoe":
        return {"num_experts": experts, "expert_dims": dims, **common}
    return {"expert_dims": [dims, dims], "num_specific": 2, "num_shared": 2, **common}


def our_model(model: str, size: str, peer: str) -> Any:
    """Ours."""
    dim, _, _, tasks, _ = SIZES[size]
    return create_model(
        model, schema=schema_of(dim), tasks=tasks_of(tasks), **our_arguments(model, size, peer)
    )


def rechub_model(model: str, size: str) -> Any:
    """The model of torch-rechub."""
    features = importlib.import_module("torch_rechub.basic.features")
    models = importlib.import_module("torch_rechub.models.multi_task")
    dim, experts, dims, tasks, tower = SIZES[size]
    every = [
        *(features.SparseFeature(f"c{i}", VOCAB, dim) for i in range(FIELDS)),
        *(features.DenseFeature(f"n{i}") for i in range(NUMBERS)),
    ]
    kinds, towers = ["classification"] * tasks, [{"dims": tower}] * tasks
    if model == "mmoe":
        return models.MMOE(every, kinds, experts, {"dims": dims}, towers)
    return models.PLE(every, kinds, 2, 2, 2, {"dims": dims}, towers)


def deepctr_model(model: str, size: str) -> Any:
    """The model of deepctr-torch."""
    inputs = importlib.import_module("deepctr_torch.inputs")
    models = importlib.import_module("deepctr_torch.models")
    dim, experts, dims, tasks, tower = SIZES[size]
    every = [
        *(inputs.SparseFeat(f"c{i}", VOCAB, dim) for i in range(FIELDS)),
        *(inputs.DenseFeat(f"n{i}", 1) for i in range(NUMBERS)),
    ]
    common = {
        "expert_dnn_hidden_units": dims, "gate_dnn_hidden_units": (), "dnn_use_bn": True,
        "tower_dnn_hidden_units": tower, "task_types": ["binary"] * tasks,
        "task_names": [f"t{i}" for i in range(tasks)], "l2_reg_embedding": 0.0,
    }  # fmt: skip
    if model == "mmoe":
        return models.MMOE(every, num_experts=experts, **common)
    return models.PLE(every, specific_expert_num=2, shared_expert_num=2, num_levels=2, **common)


def peer_side(peer: str, model: str, size: str, rows: int) -> tuple[Any, Any, Any]:
    """A peer's model, its inputs of a batch, and labels."""
    made = columns(rows, SIZES[size][3])
    features = {key: value for key, value in made.items() if not key.startswith("t")}
    labels = torch.from_numpy(np.stack([made[f"t{i}"] for i in range(SIZES[size][3])], 1))
    if peer == "torch-rechub":
        inputs: Any = {key: torch.from_numpy(value) for key, value in features.items()}
        return rechub_model(model, size), inputs, labels
    inputs = torch.from_numpy(np.stack([v.astype(np.float32) for v in features.values()], 1))
    return deepctr_model(model, size), inputs, labels


# ------------------------------------------------------------------------------------------- lines


def step(peer: str, model: str, size: str, rows: int) -> dict[str, tuple[Timed, Timed]]:
    """A training step of ours and of a peer's."""
    dim, _, _, tasks, _ = SIZES[size]
    ours = our_model(model, size, peer)
    batch = pack(columns(rows, tasks), schema_of(dim), tasks_of(tasks))
    criterion, optimizer = MultiTaskLoss(ours.tasks), ranking_optimizer(ours, ours, ADAM)
    theirs, inputs, labels = peer_side(peer, model, size, rows)
    theirs_optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    theirs.train()

    def our_gradients() -> None:
        optimizer.zero_grad()
        criterion(ours(batch), batch["labels"]).sum().backward()

    def our_step() -> None:
        our_gradients()
        optimizer.step()

    def their_gradients() -> None:
        theirs_optimizer.zero_grad()
        y = theirs(inputs)
        losses = [F.binary_cross_entropy(y[:, t], labels[:, t]) for t in range(tasks)]
        torch.stack(losses).sum().backward()

    def their_step() -> None:
        their_gradients()
        theirs_optimizer.step()

    return {"step": (our_step, their_step), "model": (our_gradients, their_gradients)}


def serve(peer: str, model: str, size: str, rows: int) -> dict[str, tuple[Timed, Timed]]:
    """Probabilities of a small batch, from the fused model in torch and from its ONNX file.

    A server has one model, whose weights stay in the cache: each side answers many times in a row.
    """
    import onnxruntime

    dim, _, _, tasks, _ = SIZES[size]
    module = MultiTaskRanker(
        model=model, model_args=our_arguments(model, size, peer),
        schema=schema_of(dim).to_dict(), tasks=[task.to_dict() for task in tasks_of(tasks)],
    )  # fmt: skip
    assert module.model is not None
    ours = module.model.fuse_for_inference()
    batch = pack(columns(rows, tasks), schema_of(dim))
    theirs, inputs, _ = peer_side(peer, model, size, rows)
    theirs.eval()
    make_inputs, shapes = export_inputs(module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(
            export_network(module), make_inputs, dynamic_shapes=shapes, path=path
        )  # which checks that it gives what the model gives
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
    feed = {f"input/{name}": tensor.numpy() for name, tensor in batch.items()}

    def many(answer: Timed) -> Timed:
        @torch.inference_mode()
        def run() -> int:
            for _ in range(ANSWERS):
                answer()
            return ANSWERS

        return run

    peer_answers = many(lambda: theirs(inputs))
    return {
        "serve eager": (many(lambda: ours.predict_proba(batch)), peer_answers),
        "serve onnx": (many(lambda: session.run(None, feed)), peer_answers),
    }


def epoch(model: str, size: str, rows: int, batch_size: int) -> dict[str, tuple[Timed, Timed]]:
    """One epoch and a validation by our Lightning module and by torch-rechub's trainer."""
    from recsys import train

    trainers = importlib.import_module("torch_rechub.trainers")
    loading = importlib.import_module("torch_rechub.utils.data")
    dim, _, _, tasks, _ = SIZES[size]
    parts = [columns(count, tasks, seed) for seed, count in enumerate((rows, rows // 2, rows // 2))]
    data = RankingData.from_tables(
        Tables(schema_of(dim), tuple(tasks_of(tasks)), *parts, "made"), batch_size=batch_size
    )
    data.setup()
    arguments = our_arguments(model, size, "torch-rechub")

    def our_epoch() -> None:
        train(data, model, arguments, lr=1e-3, seed=0, epochs=1, patience=1)

    def split(made: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        labels = np.stack([made[f"t{i}"] for i in range(tasks)], 1)
        return {key: value for key, value in made.items() if not key.startswith("t")}, labels

    (x, y), (x_val, y_val) = split(parts[0]), split(parts[1])

    def their_epoch() -> None:
        train_loader, val_loader, _ = loading.DataGenerator(x, y).generate_dataloader(
            x_val=x_val, y_val=y_val, x_test=x_val, y_test=y_val, batch_size=batch_size
        )
        network = rechub_model(model, size)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer = trainers.MTLTrainer(network, ["classification"] * tasks, n_epoch=1)
            trainer.train_one_epoch(train_loader)
            trainer.evaluate(trainer.model, val_loader)

    return {"epoch": (our_epoch, their_epoch)}


def loader(peer: str, rows: int, their_rows: int) -> dict[str, tuple[Timed, Timed]]:
    """Batches of 39 columns; time is per row."""
    batch = pack(columns(rows, 2), schema_of(4), tasks_of(2))
    ours = PackedLoader(batch, batch_size=4096, shuffle=True)
    made = columns(their_rows, 2)
    labels = np.stack([made.pop("t0"), made.pop("t1")], 1)
    if peer == "torch-rechub":
        dataset: Any = importlib.import_module("torch_rechub.utils.data").TorchDataset(made, labels)
    else:  # what the fit of deepctr-torch builds
        x = np.stack([value.astype(np.float32) for value in made.values()], 1)
        dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
    theirs = torch.utils.data.DataLoader(dataset, batch_size=4096, shuffle=True)

    def all_of(batches: Any, count: int) -> Callable[[], int]:
        def run() -> int:
            for _ in batches:
                pass
            return count

        return run

    return {"loader": (all_of(ours, rows), all_of(theirs, their_rows))}


def grouped_auc(rows: int) -> dict[str, tuple[Timed, Timed]]:
    """GAUC, after a check that both give the same on a few rows."""
    score = importlib.import_module("torch_rechub.basic.metric").gauc_score
    few = _impressions(400)
    np.testing.assert_allclose(gauc(*few).value, score(*few), rtol=1e-9)
    labels, scores, users = _impressions(rows)
    return {
        "gauc": (lambda: gauc(labels, scores, users).value, lambda: score(labels, scores, users))
    }


def _impressions(rows: int) -> tuple[Any, Any, Any]:
    """Labels, scores and users of 20 rows each, who all have both labels, as the peer needs."""
    rng = np.random.default_rng(0)
    count = rows // 20
    users, labels = np.arange(rows) % count, (rng.random(rows) < 0.3).astype(np.float32)
    labels[:count], labels[count : 2 * count] = 0, 1
    order = rng.permutation(rows)
    return labels[order], rng.random(rows), users[order]


def tables(rows_per_field: int) -> dict[str, tuple[Timed, Timed]]:
    """Lookup, backward and update at batch 256."""
    schema = FeatureSchema([Categorical(f"c{i}", rows_per_field, 16) for i in range(FIELDS)])
    rng = np.random.default_rng(0)
    ids = {f"c{i}": rng.integers(1, rows_per_field, 256) for i in range(FIELDS)}
    batch = pack(ids, schema)

    def side(sparse: bool) -> Timed:
        store = FusedTables(schema, sparse_grad=sparse)
        kind = RowwiseAdagrad if sparse else torch.optim.Adam
        optimizer = kind(store.parameters(), lr=0.01)

        def run() -> None:
            optimizer.zero_grad()
            sum(block.square().sum() for block in store(batch)).backward()
            optimizer.step()

        return run

    return {"tables": (side(True), side(False))}


def home(rows: int) -> dict[str, tuple[Timed, Timed]]:
    """A step of HoME and of PLE, sized as in the short-video benchmark."""
    from recsys import SUITES, count_weights, nearest_size

    suite = SUITES["short_video"]
    data = suite.load("conflict", 0, True)
    data.setup()
    budget = count_weights(suite.entries["HoME"], 3, data)
    batch = take(next(iter(data.train_dataloader())), torch.arange(rows) % 256)
    sides = []
    for name in ("HoME", "PLE*"):
        entry = suite.entries[name]
        size = 3 if name == "HoME" else nearest_size(entry, budget, data)
        model = create_model(
            entry.model, schema=data.schema, tasks=data.tasks, **entry.arguments(size)
        )
        sides.append(_own_step(model, batch))
    return {"home": (sides[0], sides[1])}


def _own_step(model: Any, batch: dict[str, Any]) -> Timed:
    criterion, optimizer = MultiTaskLoss(model.tasks), ranking_optimizer(model, model, ADAM)

    def run() -> None:
        optimizer.zero_grad()
        criterion(model(batch), batch["labels"]).sum().backward()
        optimizer.step()

    return run
