import pytest
import torch
from torch import Tensor

from paredown.search.compression.examples import choose_examples
from paredown.search.training import distance_to, distillation_loss


def answers(n: int = 4000) -> tuple[Tensor, Tensor]:
    """Return samples, numbered, and scores: a trained network is sure about most."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(n, 10, generator=rng)
    scores[torch.arange(n), torch.randint(0, 10, (n,), generator=rng)] += 40 * torch.rand(
        n, generator=rng
    )
    return torch.arange(n, dtype=torch.float32)[:, None], scores


def test_few_examples_tell_the_distance_over_all() -> None:
    inputs, scores = answers()
    errors: dict[str, list[float]] = {"chosen": [], "random": []}
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        others = scores + 0.4 * torch.randn(scores.shape, generator=rng)
        whole = distillation_loss(others, scores)
        order = torch.randperm(len(scores), generator=rng)
        chosen = choose_examples(inputs[order], scores[order], 300)
        rows = chosen.inputs[:, 0].long()
        assert len(rows.unique()) == 300
        assert torch.equal(scores[rows], chosen.outputs)
        assert float(chosen.weights.mean()) == pytest.approx(1.0)
        errors["chosen"].append(float(chosen.distance()(others[rows]) / whole) - 1)
        rows = order[:300]
        errors["random"].append(float(distance_to(scores[rows])(others[rows]) / whole) - 1)
    spread = {name: torch.tensor(values).square().mean().sqrt() for name, values in errors.items()}
    assert spread["chosen"] < 0.7 * spread["random"]


@pytest.mark.parametrize("count", [4000, 10_000])
def test_all_count_the_same_where_all_are_taken(count: int) -> None:
    inputs, scores = answers()
    chosen = choose_examples(inputs, scores, count)
    assert torch.equal(chosen.inputs, inputs)
    torch.testing.assert_close(chosen.weights, torch.ones(len(inputs)))


def test_answers_that_are_no_scores_are_taken_evenly() -> None:
    inputs, _ = answers()
    chosen = choose_examples(inputs, inputs * 2, 40)
    assert len(chosen.inputs) == 40
    gaps = chosen.inputs[1:, 0] - chosen.inputs[:-1, 0]
    assert set(gaps.tolist()) <= {99.0, 100.0, 101.0}
    torch.testing.assert_close(chosen.weights, torch.ones(40))
    assert chosen.distance()(chosen.outputs + 1).item() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (6, 2, 4)])
def test_weights_count(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    outputs, targets = (torch.randn(shape, generator=rng) for _ in range(2))
    weights = torch.tensor([0.0, 2.0, 1.0, 0.0, 3.0, 0.0])
    parts = [distillation_loss(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)]
    expected = (torch.stack(parts) * weights).mean()
    torch.testing.assert_close(distance_to(targets, weights)(outputs), expected)
    torch.testing.assert_close(distance_to(targets)(outputs), torch.stack(parts).mean())
