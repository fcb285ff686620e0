"""Four rankers on a sample of Census-Income that comes with moeapps: two tasks, real data.

python examples/quickstart_recsys.py    (no files needed; under a minute on a CPU)
"""

import lightning.pytorch as pl

from moeapps.recsys import MultiTaskRanker, RankingData

MODELS = {
    "shared_bottom": {"bottom_dims": [64, 32]},
    "mmoe": {"num_experts": 4, "expert_dims": [32, 32]},
    "ple": {"expert_dims": [[32, 32], [32]]},
    "home": {"expert_dims": [[32, 32], [32]], "num_meta": 1, "rank": 8},
}


def main(epochs: int = 6) -> dict[str, float]:
    """Train all four and return their mean test AUCs."""
    scores = {}
    for name, arguments in MODELS.items():
        pl.seed_everything(0, verbose=False)
        data = RankingData("census-income-sample", batch_size=256)
        ranker = MultiTaskRanker(name, model_args={**arguments, "tower_dims": [16]})
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(ranker, datamodule=data)
        (found,) = trainer.test(ranker, datamodule=data, verbose=False)
        scores[name] = found["test/auc_mean"]
        tasks = ", ".join(
            f"{task.name} {found[f'test/auc/{task.name}']:.4f}" for task in data.tasks
        )
        print(f"{name:14} test AUC: {tasks}")
    return scores


if __name__ == "__main__":
    main()
