"""The largest sizes that files of unknown origin may ask memory for.

Every reader compares the size that a header declares with the limit before it allocates anything.
The limits are far above honest data: a photograph of 200 million pixels passes.
"""

MOST_PIXELS = 1 << 28
"""Pixels of one image: 268 million, 0.8 GB when decoded."""

FREE_PIXELS = 1 << 22
MOST_PIXELS_PER_BYTE = 1 << 10
"""Pixels that each encoded byte may stand for, beyond FREE_PIXELS of the image.

A JPEG or an 8-bit PNG of one plain color stays below, and a photograph needs a hundredth.
"""

MOST_IMAGE_BYTES = 1 << 29
"""Bytes of one encoded image: 537 MB."""

FREE_BYTES = 1 << 24
MOST_BYTES_PER_BYTE = 1 << 7
"""Bytes that each byte of a deflated image may become, beyond FREE_BYTES of the image.

Only uncompressed kinds such as BMP become much smaller in a zip, and photographs by a factor of 3.
"""

MOST_TEXT_BYTES = 1 << 30
"""Bytes of a list of pairs or names that is read as a whole: 1.1 GB."""

MOST_IDENTITIES = 1 << 24
"""Identities of a set: 16.8 million. The largest published set has 4 million."""
