"""Exercises of lesson 11."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
