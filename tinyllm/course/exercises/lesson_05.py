"""Exercises of lesson 5."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
