"""Exercises of lesson 10."""

from tinyllm.course.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
