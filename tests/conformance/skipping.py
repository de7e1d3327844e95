"""Skips inherited tests that do not apply, each with its reason."""

import unittest
from collections.abc import Callable


def skip_tests(reasons: dict[str, str]) -> Callable[[type], type]:
    """Class decorator: skips the inherited tests that `reasons` names. A name that upstream lacks is an error."""

    def decorate(test_class: type) -> type:
        for name, reason in reasons.items():
            if not hasattr(test_class, name):
                raise AttributeError(f"{name}, to be skipped, is not among the tests of {test_class.__name__}")
            setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
        return test_class

    return decorate
