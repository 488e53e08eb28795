"""Exercises of lesson 6."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
