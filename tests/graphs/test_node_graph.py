import torch

from moeapps.graphs.node_graph import take_rows


def test_sparse_rows_made_in_inference_mode_can_be_taken_outside_it():
    dense = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    with torch.inference_mode():
        sparse = dense.to_sparse_csr()
    rows = torch.tensor([1, 0])
    assert torch.equal(take_rows(sparse, rows).to_dense(), dense[rows])
