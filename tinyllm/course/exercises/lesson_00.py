"""Exercises of lesson 0."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
