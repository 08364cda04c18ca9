import torch

from paredown.studies.tasks.augment import random_flip, random_shift


def test_shift_moves_each_image_and_fills_with_zeros() -> None:
    images = torch.zeros(64, 2, 5, 5)
    images[:, 0, 2, 2], images[:, 1, 2, 3] = 1.0, 2.0

    shifted = random_shift(images, 1, torch.Generator().manual_seed(0))

    assert shifted.shape == images.shape
    places = set()
    for image in shifted:
        (row, column) = (image[0] == 1).nonzero()[0].tolist()
        assert image[1, row, column + 1] == 2
        assert image.sum() == 3
        places.add((row, column))
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}


def test_shift_by_nothing_changes_nothing() -> None:
    images = torch.randn(3, 1, 4, 6)

    torch.testing.assert_close(random_shift(images, 0, torch.Generator()), images)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(4.0).reshape(1, 1, 1, 4).repeat(1000, 1, 1, 1)

    flipped = random_flip(images, torch.Generator().manual_seed(0))

    n_mirrored = int((flipped[:, 0, 0, 0] == 3).sum())
    assert 400 < n_mirrored < 600
    assert ((flipped == images) | (flipped == images.flip(3))).all()
