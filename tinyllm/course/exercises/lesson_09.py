"""Exercises of lesson 9."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
