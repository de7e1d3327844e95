"""Seeded damage to bytes and to JSON."""

import json
import random

# What a program that writes the wrong thing may write into a JSON file.
ODD_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    10**9,
    10**30,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "../../escape",
    "/etc/passwd",
    "x" * 10_000,
    [],
    {},
    [[]],
    [1, "2"],
    {"a": None},
)


def damage(data: bytes, rng: random.Random, others: list[bytes] = ()) -> bytes:
    """Returns bytes after one to four edits: bits, bytes and runs changed, lost, repeated, or taken from other data."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(edited) + 1) if rng.random() < 0.7 else rng.randrange(min(len(edited), 64) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, len(edited)))
        kind = rng.randrange(7)
        if kind == 0 and start < len(edited):
            edited[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            edited[start : start + length] = rng.randbytes(min(length, len(edited) - start))
        elif kind == 2:
            del edited[start : start + length]
        elif kind == 3:
            del edited[start:]
        elif kind == 4:
            edited[start:start] = edited[start : start + length]
        elif kind == 5:
            edited[start : start + length] = bytes([rng.choice((0, 255))]) * min(length, 4096)
        elif others:
            other = rng.choice(others)
            edited[start:] = other[rng.randrange(len(other) + 1) :]
    return bytes(edited)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Returns a JSON file's bytes with one or two values replaced, removed or added, or with damaged bytes."""
    if rng.random() < 0.2:
        return damage(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        place, key = rng.choice(list(_places(content)))
        if rng.random() < 0.15:
            del place[key]
        elif isinstance(place, dict) and rng.random() < 0.1:
            place[rng.choice(("unknown", "", key.upper()))] = rng.choice(ODD_VALUES)
        else:
            place[key] = rng.choice(ODD_VALUES)
        if not content:
            break
    return json.dumps(content).encode()


def _places(content: dict | list):
    """Yields each container with each of its keys."""
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
