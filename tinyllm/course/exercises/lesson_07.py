"""Exercises of lesson 7."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
