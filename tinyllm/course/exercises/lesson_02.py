"""Exercises of lesson 2."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
