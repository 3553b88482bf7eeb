import numpy as np
from blobs import blobs

from entropi.host import heads


def test_the_papers_head_depends_on_the_scale_of_the_features_and_ours_does_not():
    x, y = blobs(2, 4, 400)
    for scale in (1e-2, 1e2):
        assert heads.ridge(scale * x, y).accuracy(scale * x, y) > 0.95
    small, large = (heads.paper(scale * x, y).accuracy(scale * x, y) for scale in (1e-2, 1e2))
    assert large > small + 0.2


def test_the_papers_head_repeats_itself():
    x, y = blobs(3, 3, 130)
    first, again, other = heads.paper(x, y), heads.paper(x, y), heads.paper(x, y, seed=1)
    np.testing.assert_array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)
