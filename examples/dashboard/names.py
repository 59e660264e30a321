"""Keys, tags and owners are bytes. On the page and in its search they are text that stands for exactly one sequence of bytes."""

import re

LONGEST = 160  # characters that are shown of a name


def shown(name: bytes, longest: int = LONGEST) -> str:
    r"""UTF-8 as it is, all else as \xff and \u202e: nothing invisible, and nothing that turns the line around."""
    text = "".join(map(_visible, name.decode("utf-8", "surrogateescape")))
    return text if len(text) <= longest else f"{text[:longest]}… ({len(name):,} bytes)"


def _visible(character: str) -> str:
    if character == "\\":
        return r"\\"
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def typed(text: str) -> bytes:
    """The name that is shown as `text`."""

    def name(match: re.Match) -> bytes:
        kind, digits = match[0][1:2], match[0][2:]
        if kind == b"\\":
            return b"\\"
        return bytes.fromhex(digits.decode()) if kind == b"x" else chr(int(digits, 16)).encode("utf-8", "replace")

    escapes = rb"\\(?:\\|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5})"
    return re.sub(escapes, name, text.encode("utf-8", "replace"))
