"""STEM: tables of every task's own, all forward and task-specific backward."""

import torch
from sample_rankers import TASKS, batch_of, build


def tables_touched(model):
    """By copy (tasks in order, then shared): whether its embeddings got any gradient."""
    (table,) = model.embedding_parameters()
    return [bool(part.any()) for part in table.grad.chunk(len(TASKS) + 1, 1)]


def test_other_tasks_tables_get_exactly_no_gradient_with_one_layer():
    for t in range(3):
        model, batch = build("stem"), batch_of(30)
        model(batch)[:, t].sum().backward()
        assert tables_touched(model) == [t == 0, t == 1, t == 2, True]
        grads = model.levels[0].experts.layers[0][0].w.grad
        for owner, grad in zip(model.levels[0].owners, grads, strict=True):
            assert bool(grad.any()) == (owner in (TASKS[t].name, "shared"))


def test_all_experts_take_part_forward():
    model, batch = build("stem").eval(), batch_of(10)
    before = model(batch)[:, 0]
    with torch.no_grad():
        model.levels[0].experts.layers[-1][0].w[1] += 1  # an expert of the second task
    assert (model(batch)[:, 0] != before).any()


def test_inputs_are_the_tables_of_each_task():
    model, batch = build("stem").eval(), batch_of(10)
    x = model.inputs(batch)
    assert x.shape == (10, 4, model.schema.flat_width)
    store = model.inputs.store
    item = batch["cat"][:, 1]
    place = model.schema.flat_slice("item")
    for copy in range(4):
        expected = store.weight("item")[item].chunk(4, 1)[copy]
        assert torch.equal(x[:, copy, place], expected)
        assert torch.equal(x[:, copy, -4:], batch["dense"])


def test_gates_read_the_sum_of_own_and_shared():
    model, batch = build("stem").double().eval(), batch_of(10, dtype=torch.float64)
    _, aux = model(batch, return_aux=True)
    x, gate = aux.inputs, model.levels[0].gate.score
    for t in range(3):
        hidden = gate.bank.to_expert_list()[t](x[:, t] + x[:, 3])
        own = slice(4 * t, 4 * t + 4)
        logits = hidden @ gate.linear.w[own, 0].T + gate.linear.b[own, 0]
        torch.testing.assert_close(aux.levels[0].routing.weights[:, t], logits.softmax(-1))
