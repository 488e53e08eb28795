"""Training: the loop, and what makes a run resumable bit for bit."""

from tinyllm.train.loop import TrainConfig, evaluate, train
from tinyllm.train.trouble import NonFiniteLoss

__all__ = ["NonFiniteLoss", "TrainConfig", "evaluate", "train"]
