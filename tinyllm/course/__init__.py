"""What the lessons share: the small model and its texts, a timer, sentences and figures, exercises."""

from tinyllm.course import kit
from tinyllm.course.check import check, example

__all__ = ["check", "example", "kit"]
