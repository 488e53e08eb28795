"""What a test cannot run without."""

from __future__ import annotations

import pytest

from tinyllm.course.cuda_on_cpu import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="not run: g++ is not installed")
