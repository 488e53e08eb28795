"""Exercises of lesson 14."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
