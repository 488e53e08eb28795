"""Exercises of lesson 13."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
