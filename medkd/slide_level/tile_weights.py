"""Bootstrap weights of tiles, drawn once for all slides. Imports numpy alone."""

from __future__ import annotations

import numpy as np

_ROWS = 8192


class TileWeights:
    """Poisson counts for a bootstrap of means over tiles, in place of draws with replacement.

    Each tile comes Poisson(1) times in a resample (Hanley and MacGibbon 2006; Chamandy et al.
    2012), so weights of different tiles are independent and the same table of weights serves every
    slide: a slide's resamples are one matrix product. A resample's mean is divided by its own sum
    of weights. Next to drawing n of n tiles the variance of the mean grows by about 1/n of itself.

    Slides with more tiles than the table has rows go on at its top with the resamples moved by
    one, so that within a resample no weight is used twice. Intervals of two slides come from the
    same weights, each right by itself.

    Args:
        resamples: how many.
        seed: of the weights.
    """

    def __init__(self, resamples: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._weights = np.empty((_ROWS, resamples), np.float32)
        self._drawn = 0

    def sums(self, values: np.ndarray, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Weighted sums of values and the sums of weights, for each resample.

        Products are float32, so values should be centred about 0: the error is then about 1e-7 of
        their spread.

        Args:
            values: float32, (networks, tiles).
            first: the number of weights before these; a patient's slides follow one another.

        Returns:
            Sums, float64, (networks, resamples), and weights, float64, (resamples,).
        """
        rows = np.concatenate([values, np.ones((1, values.shape[1]), np.float32)])
        total = np.zeros((len(rows), self._weights.shape[1]))
        self._draw(min(first + values.shape[1], _ROWS))
        done = 0
        while done < values.shape[1]:
            turn, row = divmod(first + done, _ROWS)
            count = min(_ROWS - row, values.shape[1] - done)
            part = rows[:, done : done + count] @ self._weights[row : row + count]
            total += np.roll(part, turn, axis=1)
            done += count
        return total[:-1], total[-1]

    def _draw(self, rows: int) -> None:
        """Fill the table from its top; small slides need no more of it."""
        while self._drawn < rows:
            block = self._weights[self._drawn : self._drawn + 256]
            block[:] = self._random.poisson(1.0, block.shape)
            self._drawn += len(block)
