"""compact_tiny: one convolution a block, 6,584 parameters. The whole recipe is inferred: the
write-up gives three epochs of its curve and the best accuracy only.

    python -m jaxmnist.main --config compact_tiny

20 s of training on two cores of an AMD EPYC (Zen 5). Accuracy: published 95.70 % (best epoch);
measured 98.702 ± 0.110 % (final epoch, n = 100), 98.757 % (best epoch, mean).
"""

from jaxmnist.config import Config, default_config


def get_config() -> Config:
    config = default_config()
    config.recipe = "compact_tiny"
    config.model = "compact_tiny"
    config.dropout = 0.1
    config.split = "train/val"
    config.num_epochs = 15

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9

    config.schedule.name = "constant"

    config.augment.rotate_degrees = 10.0
    config.augment.translate = 0.1
    return config
