"""Values that are compressed in the client. What is short, and what was stored before there was compression, is read as it is."""

import zlib

import zstandard

# No JSON, no other text, no pickle and no protobuf message begins with a zero byte. So old values have no header, and need none.
MARK = b"\0"
PLAIN, ZLIB, ZSTD = b"p", b"z", b"s"
THRESHOLD = 200  # Below it a header and a dozen bytes of the format eat up what is saved.
WORTHWHILE = 0.9  # Else the value is stored as it is, and its readers are spared the work.


class Zlib:
    """Of the standard library of every language."""

    kind = ZLIB

    def __init__(self, level=6):
        self._level = level

    def compress(self, value):
        return zlib.compress(value, self._level)

    def decompress(self, data):
        return zlib.decompress(data)


class Zstd:
    """Faster. With a dictionary trained on such values it also finds what they have in common, which is most of a short one."""

    kind = ZSTD

    def __init__(self, level=3, dictionaries=()):
        """`dictionaries`: compresses with the first, reads with all. Keep an old one as long as values live that were made with it."""
        self._compressor = zstandard.ZstdCompressor(level, dictionaries[0] if dictionaries else None)
        # A value names its dictionary by number; 0 is none.
        self._decompressors = {0: zstandard.ZstdDecompressor()}
        self._decompressors |= {each.dict_id(): zstandard.ZstdDecompressor(each) for each in dictionaries}

    def compress(self, value):
        return self._compressor.compress(value)

    def decompress(self, data):
        return self._decompressors[zstandard.get_frame_parameters(data).dict_id].decompress(data)


def pack(value, codec):
    """What is stored for a value."""
    if len(value) >= THRESHOLD:
        data = codec.compress(value)
        if len(data) < WORTHWHILE * len(value):
            return MARK + codec.kind + data
    return MARK + PLAIN + value if value.startswith(MARK) else value


def unpack(stored, codecs):
    """The value. `codecs`: all that ever wrote values that may still be there."""
    if not stored.startswith(MARK):
        return stored
    kind, data = stored[1:2], stored[2:]
    if kind == PLAIN:
        return data
    for codec in codecs:
        if codec.kind == kind:
            return codec.decompress(data)
    raise ValueError("compressed in a way that this program does not know")
