"""Training: the loop, and what makes a run resumable bit for bit."""

from tinyllm.train.interrupt import Interrupted
from tinyllm.train.loop import NonFiniteLoss, TrainConfig, evaluate, fit
from tinyllm.train.run import train

__all__ = ["Interrupted", "NonFiniteLoss", "TrainConfig", "evaluate", "fit", "train"]
