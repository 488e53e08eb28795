"""Exercises of lesson 12."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
