"""Exercises of lesson 3."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
