"""Stain normalisation as MONAI transforms."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from monai.transforms import Compose, RandAxisFlipd, Randomizable

from medkd.datasets.stain import PUBLISHED_MACENKO, fit, normalise
from medkd.datasets.stain_transforms import StainNormalise, StainNormalised
from tests.datasets.test_stain import drawn


def tile(seed: int = 0) -> np.ndarray:
    return drawn(seed).round().astype(np.uint8)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_both_forms_do_what_the_function_does(method: str) -> None:
    reference = fit([tile(5)], method)  # type: ignore[arg-type]
    assert reference is not None
    expected = normalise(tile(), reference)
    np.testing.assert_array_equal(StainNormalise(reference)(tile()), expected)
    done = StainNormalised("image", reference)({"image": tile(), "label": 1})
    np.testing.assert_array_equal(done["image"], expected)
    assert done["label"] == 1


def test_the_published_reference_is_the_default() -> None:
    np.testing.assert_array_equal(StainNormalise()(tile()), normalise(tile(), PUBLISHED_MACENKO))


def test_the_input_is_spared_and_each_key_is_normalised_by_itself() -> None:
    given = {"image": tile(0), "other": tile(1), "id": "a"}
    done = StainNormalised(["image", "other"])(given)
    np.testing.assert_array_equal(given["image"], tile(0))
    np.testing.assert_array_equal(done["other"], StainNormalise()(tile(1)))
    with pytest.raises(KeyError):
        StainNormalised(["image", "absent"])(given)
    lenient = StainNormalised(["image", "absent"], allow_missing_keys=True)
    np.testing.assert_array_equal(lenient(given)["image"], done["image"])


def test_it_is_cached_and_sent_to_a_worker_as_what_is_not_random() -> None:
    """MONAI caches the transforms up to the first random one."""
    assert not isinstance(StainNormalised("image"), Randomizable)
    chain = Compose([StainNormalised("image"), RandAxisFlipd("image", prob=0.5)])
    assert chain.get_index_of_first(lambda one: isinstance(one, Randomizable)) == 1
    sent = pickle.loads(pickle.dumps(chain))
    for seed in range(4):
        seen = []
        for one in (chain, sent):
            one.set_random_state(seed=seed)
            seen.append(np.asarray(one({"image": tile()})["image"]))
        np.testing.assert_array_equal(*seen)
