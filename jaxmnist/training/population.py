"""What is only a number in a run's settings: data of its program, an entry a member.

A population is many networks that one program trains side by side. They share what shapes the
program: the network, the batch size, the number of steps, the kind of optimizer. The numbers may
differ from member to member. A plain run is a population whose members differ in their seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmnist.training.augment import Bounds
from jaxmnist.training.optim import Schedule


class Member(NamedTuple):
    """The numbers of one network's training; in a population each has a leading axis of members.

    Where one is None there is no such thing, and the program does without. That shapes it: only
    members that lack the same can share a program.
    """

    seed: ArrayLike
    """uint32 (): the root of all randomness."""
    schedule: Schedule
    """Learning rate and momentum of every step."""
    weight_decay: ArrayLike = 0.0
    """float (), L2, added to the gradient."""
    label_smoothing: ArrayLike | None = None
    """float (), share of the target spread over all classes."""
    dropout: ArrayLike | None = None
    """float (), rate of each dropout layer."""
    augment: Bounds = Bounds()
    """How far images are transformed at random."""


def stack(members: Sequence[Member]) -> Member:
    """A population in host memory, S members along the leading axis.

    Raises:
      ValueError: where the members differ in what they lack, or in their number of steps.
    """

    def of_kind(*values: ArrayLike) -> np.ndarray:
        return np.stack([np.asarray(value, jnp.result_type(float)) for value in values])

    stacked = jax.tree.map(of_kind, *members)
    return stacked._replace(seed=np.array([member.seed for member in members], np.uint32))
