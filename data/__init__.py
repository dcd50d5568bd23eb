"""Face sets: their formats, decoding, the order of images, loading, augmentation and pair lists.

This folder imports no other folder of the project, and every other folder may import it. Its lowest
layer serves all of them, whether or not they handle images:

    types.py    says what a face set and a batch are.
    options.py  holds the types of options with their ranges, such as `Positive`.
    parts.py    finds a part, such as a head or a format, by the name of its file.
    files.py    reads files from many threads at once and writes files atomically.
    arrays.py   reads .npy and .npz files of unknown origin.
    limits.py   states how large an image, a list or a set may be.
    text.py     escapes names for the place where they are written.
"""
