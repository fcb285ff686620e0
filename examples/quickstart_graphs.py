"""A GCN alone against Mowst over the same GCN, by the Lightning modules.

python examples/quickstart_graphs.py    (no files needed; under a minute on a CPU)
"""

from moeapps.graphs import MowstClassifier, NodeClassifier, NodeData, fit


def main(epochs: int = 300) -> dict[str, float]:
    """Train both and return their test accuracies."""
    data = NodeData("mixed-csbm", dataset_args={"seed": 0})
    models = {
        "MLP": NodeClassifier("mlp", epochs=epochs),
        "GCN": NodeClassifier("gcn", epochs=epochs),
        "Mowst-GCN": MowstClassifier("gcn", pretrain="both", epochs=epochs),
    }
    accuracies = {}
    for name, model in models.items():
        measures = fit(model, data, seed=0)
        accuracies[name] = measures["test/acc"]
        print(f"{name:10} test accuracy {accuracies[name]:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
