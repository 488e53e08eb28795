"""Exercises of lesson 4."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
