"""Reverse-mode differentiation in forty lines, on single numbers: the whole idea, with nothing around it.

A `Number` remembers which numbers it came from and its derivative by each. `backward` walks from the result to the
inputs and adds, along every path, what the result changes when that number does. After Karpathy's micrograd.
"""

import math


class Number:
    def __init__(self, value, *parents):
        self.value = value
        self.parents = parents  # pairs: (a number this one came from, the derivative of this one by it)
        self.grad = 0.0

    def __add__(self, other):
        return Number(self.value + other.value, (self, 1.0), (other, 1.0))

    def __sub__(self, other):
        return Number(self.value - other.value, (self, 1.0), (other, -1.0))

    def __mul__(self, other):
        return Number(self.value * other.value, (self, other.value), (other, self.value))

    def __truediv__(self, other):
        y = self.value / other.value
        return Number(y, (self, 1 / other.value), (other, -y / other.value))

    def exp(self):
        y = math.exp(self.value)
        return Number(y, (self, y))

    def tanh(self):
        y = math.tanh(self.value)
        return Number(y, (self, 1 - y * y))

    def backward(self):
        self.grad = 1.0
        for number in reversed(inputs_first(self)):
            for parent, derivative in number.parents:
                parent.grad += derivative * number.grad


def inputs_first(number, order=None, seen=None):
    """Every number behind this one, each after all that it came from."""
    order, seen = [] if order is None else order, set() if seen is None else seen
    if number not in seen:
        seen.add(number)
        for parent, _ in number.parents:
            inputs_first(parent, order, seen)
        order.append(number)
    return order
