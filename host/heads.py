"""The linear heads that grade an encoder: the paper's, and the one we use unless told otherwise.

ridge  ridge regression of one-hot classes on features standardised by the mean and deviation of the target training
       set; the penalty is the one with the least error on samples left out. In closed form, so that no encoder is at an
       advantage because its features are easier to descend on.
paper  ENTROPI's: Adam at 1e-5, times 0.99 after every epoch, batches of 128, on the features as they are; the paper
       does not say for how long, so 90 epochs, as on its source task
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from entropi.export.ridge import Head, ridge

PAPER_LR, PAPER_DECAY, PAPER_BATCH, PAPER_EPOCHS = 1e-5, 0.99, 128, 90


def paper(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Head:
    """Train on features (N, F) with labels (N,) of 0 ... classes - 1; `seed` draws the start and the order."""
    x, y = torch.from_numpy(np.asarray(features, np.float32)), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(x.shape[1], int(y.max()) + 1)
        optimiser = torch.optim.Adam(head.parameters(), PAPER_LR, fused=True)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, PAPER_DECAY)
        for _ in range(PAPER_EPOCHS):
            for batch in torch.randperm(len(x)).split(PAPER_BATCH):
                optimiser.zero_grad()
                F.cross_entropy(head(x[batch]), y[batch]).backward()
                optimiser.step()
            decay.step()
    return Head(head.weight.detach().numpy(), head.bias.detach().numpy())


HEADS: dict[str, Callable[[np.ndarray, np.ndarray], Head]] = {"ridge": ridge, "paper": paper}
